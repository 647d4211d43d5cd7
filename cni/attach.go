package cni

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"syscall"

	"github.com/containerd/errdefs"
	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/types"
	"golang.org/x/sys/unix"
)

// Attach connects the sandbox's network namespace to the node's network. When
// it fails, the plugins have been told to undo (DEL) what they had done.
// Without a usable network the error is Unavailable and says what is missing.
func (m *Manager) Attach(ctx context.Context, r Request) (Result, error) {
	d := m.of(r.Handler)
	snap := d.current()
	list, err := snap.usable(d.path)
	if err != nil {
		return Result{}, err
	}
	rt, err := m.runtimeConf(r)
	if err != nil {
		return Result{}, err
	}
	if err := portsFree(r.Config.GetPortMappings()); err != nil {
		return Result{}, err
	}
	res, err := m.addNoted(ctx, snap, rt)
	if err == nil {
		return res, nil
	}
	err = fmt.Errorf("attach to network %q of %s: %w", list.Name, snap.file, err)
	if undo := m.Detach(context.WithoutCancel(ctx), r); undo != nil {
		err = fmt.Errorf("%w; and undoing it: %w", err, undo)
	}
	return Result{}, err
}

// addNoted writes down what is about to be done before it does it.
func (m *Manager) addNoted(ctx context.Context, snap snapshot, rt *libcni.RuntimeConf) (Result, error) {
	added, err := m.turns.add(ctx, snap.network.Name)
	if err != nil {
		return Result{}, err
	}
	defer added()
	note := func() error { return m.writeIntent(snap.network, rt) }
	if snap.file == builtinFile {
		err = m.marked(ctx, note)
	} else {
		err = note()
	}
	if err != nil {
		return Result{}, err
	}
	return m.add(ctx, snap.network, rt)
}

func (m *Manager) add(ctx context.Context, list *libcni.NetworkConfigList, rt *libcni.RuntimeConf) (Result, error) {
	ctx, cancel := m.limit(ctx)
	defer cancel()
	raw, err := m.lib.AddNetworkList(ctx, list, rt)
	if err != nil {
		return Result{}, classify(err)
	}
	return newResult(raw)
}

// Detach disconnects a sandbox. It uses the network the sandbox was attached
// to, whatever the configuration directory holds by now. Idempotent; a network
// namespace that is gone is no error.
func (m *Manager) Detach(ctx context.Context, r Request) error {
	list, rt := m.owed(r)
	if list == nil {
		return nil
	}
	ctx, cancel := m.limit(ctx)
	defer cancel()
	if err := m.lib.DelNetworkList(ctx, list, rt); err != nil {
		return fmt.Errorf("detach from network %q: %w", list.Name, classify(err))
	}
	return m.dropIntent(r.SandboxID)
}

// Check asks the plugins whether an attached sandbox is still connected as it
// was. NotFound when the sandbox was never attached. Networks of a version that
// knows no CHECK pass.
func (m *Manager) Check(ctx context.Context, r Request) error {
	list, rt := m.owed(r)
	if list == nil {
		return fmt.Errorf("check network of sandbox %s: not attached: %w", r.SandboxID, errdefs.ErrNotFound)
	}
	ctx, cancel := m.limit(ctx)
	defer cancel()
	err := m.lib.CheckNetworkList(ctx, list, rt)
	if err != nil && !errors.Is(err, libcni.ErrorCheckNotSupp) {
		return fmt.Errorf("check network %q of sandbox %s: %w", list.Name, r.SandboxID, classify(err))
	}
	return nil
}

// owed finds the network a detach is owed to: that of the intent, else that of
// libcni's cache, else, for a sandbox known to be attached, the current one. What
// of these is damaged is passed over. A nil list means none.
func (m *Manager) owed(r Request) (*libcni.NetworkConfigList, *libcni.RuntimeConf) {
	list, in, err := m.readIntent(r.SandboxID)
	if err == nil && list == nil && !r.Attached {
		return nil, nil
	}
	// A request that no attach would take must not keep its sandbox for ever.
	rt, refused := m.runtimeConf(r)
	if err == nil && list != nil {
		rt.Args, rt.CapabilityArgs = in.Args, in.Capability
		return list, rt
	}
	if err != nil {
		m.cfg.Logger.Warn("network attachment note is damaged, using the cached one", "sandbox", r.SandboxID, "error", err)
	}
	cached, err := m.lib.GetCachedAttachments(r.SandboxID)
	if err == nil && len(cached) > 0 {
		list, err = libcni.NetworkConfFromBytes(cached[0].Config)
		if err == nil {
			rt.Args, rt.CapabilityArgs = cached[0].CniArgs, cached[0].CapabilityArgs
			return list, rt
		}
	}
	if err != nil {
		m.cfg.Logger.Warn("cached network attachment is damaged, using the current network", "sandbox", r.SandboxID, "error", err)
	}
	if refused != nil {
		m.cfg.Logger.Warn("detaching a sandbox without what its request has wrong", "sandbox", r.SandboxID, "error", refused)
	}
	if list = m.of(r.Handler).current().network; list == nil {
		m.cfg.Logger.Warn("nothing is known of a sandbox's network any more, its addresses may stay reserved", "sandbox", r.SandboxID)
	}
	return list, rt
}

// limit bounds one operation, so that a hung plugin ends.
func (m *Manager) limit(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeoutCause(ctx, m.cfg.Timeout,
		fmt.Errorf("time-out of %v: %w", m.cfg.Timeout, context.DeadlineExceeded))
}

// classify gives a plugin's failure a sentinel: "try again later" and time-outs
// are Unavailable, a rejected configuration is FailedPrecondition.
func classify(err error) error {
	var pe *types.Error
	if errors.As(err, &pe) {
		switch pe.Code {
		case types.ErrTryAgainLater, types.ErrPluginNotAvailable:
			return fmt.Errorf("%w: %w", errdefs.ErrUnavailable, err)
		case types.ErrInvalidNetworkConfig, types.ErrIncompatibleCNIVersion, types.ErrInvalidEnvironmentVariables:
			return fmt.Errorf("%w: %w", errdefs.ErrFailedPrecondition, err)
		}
	}
	if errors.Is(err, context.DeadlineExceeded) {
		return fmt.Errorf("%w: %w", errdefs.ErrUnavailable, err)
	}
	if exhausted(err) {
		return fmt.Errorf("%w: %w", errdefs.ErrResourceExhausted, err)
	}
	return err
}

// exhausted reports whether a plugin says that the node has run out of
// something. Plugins pass on what the kernel says as text.
func exhausted(err error) bool {
	for _, no := range []syscall.Errno{unix.ENOSPC, unix.EDQUOT, unix.EMFILE, unix.ENFILE, unix.EAGAIN, unix.ENOMEM} {
		if errors.Is(err, no) || strings.Contains(err.Error(), no.Error()) {
			return true
		}
	}
	return false
}

package cni

import (
	"context"
	"errors"
	"fmt"

	"github.com/containerd/errdefs"
	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/types"
)

// Attach connects the sandbox's network namespace to the node's network. When
// it fails, the plugins have been told to undo (DEL) what they had done.
// Without a usable network the error is Unavailable and says what is missing.
func (m *Manager) Attach(ctx context.Context, r Request) (Result, error) {
	snap := m.current()
	list, err := snap.usable(m.cfg.ConfDir)
	if err != nil {
		return Result{}, err
	}
	rt, err := runtimeConf(r)
	if err != nil {
		return Result{}, err
	}
	if err := m.writeIntent(list, rt); err != nil {
		return Result{}, err
	}
	res, err := m.add(ctx, list, rt)
	if err == nil {
		return res, nil
	}
	err = fmt.Errorf("attach to network %q of %s: %w", list.Name, snap.file, err)
	if undo := m.Detach(context.WithoutCancel(ctx), r); undo != nil {
		err = fmt.Errorf("%w; and undoing it: %w", err, undo)
	}
	return Result{}, err
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
	list, rt, err := m.owed(r)
	if err != nil || list == nil {
		return err
	}
	ctx, cancel := m.limit(ctx)
	defer cancel()
	if err := m.lib.DelNetworkList(ctx, list, rt); err != nil && !goneAlready(err) {
		return fmt.Errorf("detach from network %q: %w", list.Name, classify(err))
	}
	return m.dropIntent(r.SandboxID)
}

// Check asks the plugins whether an attached sandbox is still connected as it
// was. NotFound when the sandbox was never attached. Networks of a version that
// knows no CHECK pass.
func (m *Manager) Check(ctx context.Context, r Request) error {
	list, rt, err := m.owed(r)
	if err != nil {
		return err
	}
	if list == nil {
		return fmt.Errorf("check network of sandbox %s: not attached: %w", r.SandboxID, errdefs.ErrNotFound)
	}
	ctx, cancel := m.limit(ctx)
	defer cancel()
	err = m.lib.CheckNetworkList(ctx, list, rt)
	if err != nil && !errors.Is(err, libcni.ErrorCheckNotSupp) {
		return fmt.Errorf("check network %q of sandbox %s: %w", list.Name, r.SandboxID, classify(err))
	}
	return nil
}

// owed finds the network a detach is owed to: that of the intent, else that of
// libcni's cache, else, for a sandbox known to be attached, the current one.
// A nil list means none.
func (m *Manager) owed(r Request) (*libcni.NetworkConfigList, *libcni.RuntimeConf, error) {
	rt, err := runtimeConf(r)
	if err != nil {
		return nil, nil, err
	}
	list, in, err := m.readIntent(r.SandboxID)
	if err == nil && list != nil {
		rt.Args, rt.CapabilityArgs = in.Args, in.Capability
		return list, rt, nil
	}
	if err != nil {
		m.cfg.Logger.Warn("network attachment note is damaged, using the cached one", "sandbox", r.SandboxID, "error", err)
	} else if !r.Attached {
		return nil, nil, nil
	}
	cached, cacheErr := m.lib.GetCachedAttachments(r.SandboxID)
	if cacheErr == nil && len(cached) > 0 {
		list, err := libcni.NetworkConfFromBytes(cached[0].Config)
		if err != nil {
			return nil, nil, fmt.Errorf("read cached network of sandbox %s: %w", r.SandboxID, err)
		}
		rt.Args, rt.CapabilityArgs = cached[0].CniArgs, cached[0].CapabilityArgs
		return list, rt, nil
	}
	if list = m.current().network; list == nil {
		m.cfg.Logger.Warn("nothing is known of a sandbox's network any more, its addresses may stay reserved", "sandbox", r.SandboxID)
	}
	return list, rt, nil
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
	return err
}

// goneAlready reports a plugin's statement that it knows nothing of the
// sandbox any more, which the specification lets a detach take for success.
func goneAlready(err error) bool {
	var pe *types.Error
	return errors.As(err, &pe) && pe.Code == types.ErrUnknownContainer
}

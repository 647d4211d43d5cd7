package sandbox

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strings"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-dev/berth/cni/netns"
	"github.com/berth-dev/berth/sandbox/spec"
)

// namespacesStep makes and pins the pod's namespaces with its host name and
// sysctls. A PID namespace comes with the holder.
func (m *Manager) namespacesStep() step {
	return step{
		Name: "namespaces",
		Do: func(ctx context.Context, s *state) error {
			want := netns.Spec{
				Dir:      m.at.nsDir(s.Rec.ID),
				Kinds:    madeKinds(s.Rec.Config),
				Hostname: s.Rec.Config.GetHostname(),
				Sysctls:  m.sysctls(s.Rec.Config),
			}
			if ownUser(s.Rec.Config) {
				return m.makeOwned(ctx, s, want)
			}
			if len(want.Kinds) == 0 {
				return nil
			}
			_, err := netns.Create(want)
			return err
		},
		Undo: m.unpin,
		Done: func(_ context.Context, s *state) (bool, error) {
			have, err := netns.Pinned(m.at.nsDir(s.Rec.ID))
			if err != nil {
				return false, err
			}
			for kind := range m.at.plannedPins(s.Rec.ID, s.Rec.Config) {
				if kind == netns.PID && !ownUser(s.Rec.Config) {
					continue // the holder's step makes it
				}
				if !slices.Contains(have, kind) {
					return false, nil
				}
			}
			return true, nil
		},
	}
}

// makeOwned makes a pod's user namespace and the namespaces that it owns. No
// thread of a program with several can enter a user namespace, so a holder is
// started in new ones; it stays if the pod shares a PID namespace.
func (m *Manager) makeOwned(ctx context.Context, s *state, want netns.Spec) error {
	if err := os.MkdirAll(want.Dir, 0o711); err != nil {
		return err
	}
	kinds := append(slices.Clone(want.Kinds), netns.User)
	if sharedPID(s.Rec.Config) {
		kinds = append(kinds, netns.PID)
	}
	pid, err := m.startHolder(s, kinds)
	if err != nil {
		return fmt.Errorf("make user namespace: %w", err)
	}
	if _, err := netns.PinFrom(pid, want.Dir, kinds...); err != nil {
		return err
	}
	if sharedPID(s.Rec.Config) {
		s.Rec.Facts.HolderPID = pid
		err = m.placeHolder(pid, s)
	} else {
		err = killAndWait(ctx, pid)
	}
	if err != nil {
		return err
	}
	uid, gid := spec.UserNamespace(s.Rec.Config).Root()
	return netns.SetUp(want, uid, gid)
}

func (m *Manager) unpin(_ context.Context, s *state) error {
	return netns.UnpinAll(m.at.nsDir(s.Rec.ID))
}

// pingGroups cannot be all groups in a user namespace that does not map them.
const pingGroups = "net.ipv4.ping_group_range"

// sysctls are the pod's own, over those that all pods get. Pure.
func (m *Manager) sysctls(c *runtimeapi.PodSandboxConfig) map[string]string {
	out, kinds := map[string]string{}, madeKinds(c)
	for name, value := range m.cfg.Sysctls {
		own := netns.CheckSysctls(map[string]string{name: value}, kinds) == nil
		if own && (name != pingGroups || spec.UserNamespace(c) == nil) {
			out[name] = value
		}
	}
	for name, value := range c.GetLinux().GetSysctls() {
		delete(out, strings.ReplaceAll(name, "/", ".")) // either form is right
		out[name] = value
	}
	return out
}

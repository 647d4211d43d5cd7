package sandbox

import (
	"context"
	"slices"

	"github.com/berth-dev/berth/cni/netns"
)

// namespacesStep makes and pins the pod's namespaces with its host name and
// sysctls. A PID namespace comes with the holder.
func (m *Manager) namespacesStep() step {
	return step{
		Name: "namespaces",
		Do: func(_ context.Context, s *state) error {
			kinds := madeKinds(s.Rec.Config)
			if len(kinds) == 0 {
				return nil
			}
			_, err := netns.Create(netns.Spec{
				Dir:      m.at.nsDir(s.Rec.ID),
				Kinds:    kinds,
				Hostname: s.Rec.Config.GetHostname(),
				Sysctls:  s.Rec.Config.GetLinux().GetSysctls(),
			})
			return err
		},
		Undo: m.unpin,
		Done: func(_ context.Context, s *state) (bool, error) {
			have, err := netns.Pinned(m.at.nsDir(s.Rec.ID))
			if err != nil {
				return false, err
			}
			for _, kind := range madeKinds(s.Rec.Config) {
				if !slices.Contains(have, kind) {
					return false, nil
				}
			}
			return true, nil
		},
	}
}

func (m *Manager) unpin(_ context.Context, s *state) error {
	return netns.UnpinAll(m.at.nsDir(s.Rec.ID))
}

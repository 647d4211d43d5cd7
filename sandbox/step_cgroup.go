package sandbox

import (
	"context"
	"fmt"
)

// cgroupStep makes the pod cgroup unless the client's exists already.
func (m *Manager) cgroupStep() step {
	return step{
		Name: "cgroup",
		Do: func(_ context.Context, s *state) error {
			if !s.Rec.Facts.OwnsCgroup {
				return nil
			}
			if err := m.cg.Create(s.Rec.Facts.CgroupParent); err != nil {
				return fmt.Errorf("create pod cgroup: %w", err)
			}
			return nil
		},
		Undo: func(_ context.Context, s *state) error { return m.removeCgroup(s) },
		Done: func(_ context.Context, s *state) (bool, error) {
			return !s.Rec.Facts.OwnsCgroup || m.cgroupExists(s.Rec.Facts.CgroupParent), nil
		},
	}
}

// removeCgroup removes the pod cgroup with whatever containers left below it.
func (m *Manager) removeCgroup(s *state) error {
	if !s.Rec.Facts.OwnsCgroup {
		return nil
	}
	if err := m.cg.Kill(s.Rec.Facts.CgroupParent); err != nil {
		return fmt.Errorf("empty pod cgroup: %w", err)
	}
	if err := m.cg.Remove(s.Rec.Facts.CgroupParent); err != nil {
		return fmt.Errorf("remove pod cgroup: %w", err)
	}
	return nil
}

package sandbox

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/containerd/errdefs"

	"github.com/berth-dev/berth/cni/netns"
	"github.com/berth-dev/berth/store"
	"github.com/berth-dev/berth/store/op"
)

// Stop releases network, holder and namespaces and marks the record stopped.
// Idempotent; an unknown sandbox is no error. The caller has stopped the
// containers. When the network cannot be detached the sandbox is not stopped.
func (m *Manager) Stop(ctx context.Context, id string) error {
	rec, err := m.db.Sandbox(id)
	if errdefs.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("stop sandbox %s: %w", id, err)
	}
	released, err := m.released(rec)
	if err != nil {
		return fmt.Errorf("stop sandbox %s: %w", id, err)
	}
	if released {
		return nil
	}
	s := &state{Rec: rec}
	if s.Rec.Facts.StoppedAt.IsZero() {
		s.Rec.Facts.StoppedAt = time.Now()
	}
	if err := op.Run(ctx, m.db, m.stopVerb(), rec.ID, s); err != nil {
		return fmt.Errorf("stop sandbox %s: %w", id, err)
	}
	return nil
}

// released reports whether a stop has nothing left to do: a sandbox can be
// marked stopped, by a reboot, while its network is still to be detached.
func (m *Manager) released(rec store.Sandbox) (bool, error) {
	if rec.Facts.StoppedAt.IsZero() || rec.Facts.Network.Attached || isHolder(rec.Facts.HolderPID, rec.ID) {
		return false, nil
	}
	pins, err := netns.Pinned(m.at.nsDir(rec.ID))
	return len(pins) == 0, err
}

func (m *Manager) stopVerb() op.Verb[*state] {
	return op.Verb[*state]{
		Kind:    kindStop,
		OnCrash: op.Resume,
		Steps: []step{
			{Name: "detach network", Do: m.detach, Undo: nothing, Done: notKnown},
			{Name: "kill holder", Do: m.killHolder, Undo: nothing, Done: m.holderGone},
			{Name: "unpin namespaces", Do: m.unpin, Undo: nothing, Done: m.unpinned},
		},
		Commit: func(s *state) store.Change {
			c := store.Change{EndOps: m.staleOps(s.Rec.ID)}
			rec, err := m.db.Sandbox(s.Rec.ID)
			if err != nil {
				return c // removed meanwhile: must not come back
			}
			rec.Facts.Network.Attached = false
			if rec.Facts.StoppedAt.IsZero() {
				rec.Facts.StoppedAt = s.Rec.Facts.StoppedAt
			}
			c.PutSandboxes = []store.Sandbox{rec}
			return c
		},
	}
}

// nothing is the Undo of a step that only takes away.
func nothing(context.Context, *state) error { return nil }

// notKnown is the Done of a step whose Do finds out by itself.
func notKnown(context.Context, *state) (bool, error) { return false, nil }

func (m *Manager) holderGone(_ context.Context, s *state) (bool, error) {
	if !sharedPID(s.Rec.Config) {
		return true, nil
	}
	return false, nil
}

func (m *Manager) unpinned(_ context.Context, s *state) (bool, error) {
	pins, err := netns.Pinned(m.at.nsDir(s.Rec.ID))
	return err == nil && len(pins) == 0, err
}

// staleOps are the entries that failed attempts to stop or remove this sandbox
// left in the journal; a success ends them all.
func (m *Manager) staleOps(id string) []string {
	var ids []string
	for _, o := range m.db.Ops() {
		if o.Subject == id && (o.Kind == kindStop || o.Kind == kindRemove) {
			ids = append(ids, o.ID)
		}
	}
	return ids
}

// Remove deletes files, cgroup and record of a sandbox; one that is not
// stopped is stopped first. Idempotent; an unknown sandbox is no error. The
// caller has removed the containers.
func (m *Manager) Remove(ctx context.Context, id string) error {
	if err := m.Stop(ctx, id); err != nil {
		return fmt.Errorf("remove sandbox %s: %w", id, err)
	}
	rec, err := m.db.Sandbox(id)
	if errdefs.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("remove sandbox %s: %w", id, err)
	}
	if n := len(m.db.ContainersOf(rec.ID)); n > 0 {
		return fmt.Errorf("remove sandbox %s: it still has %d containers: %w", id, n, errdefs.ErrFailedPrecondition)
	}
	if err := op.Run(ctx, m.db, m.removeVerb(), rec.ID, &state{Rec: rec}); err != nil {
		return fmt.Errorf("remove sandbox %s: %w", id, err)
	}
	return nil
}

func (m *Manager) removeVerb() op.Verb[*state] {
	return op.Verb[*state]{
		Kind:    kindRemove,
		OnCrash: op.Resume,
		Steps: []step{
			{Name: "remove files", Do: m.removeFiles, Undo: nothing, Done: notKnown},
			{Name: "remove cgroup", Undo: nothing, Done: notKnown,
				Do: func(_ context.Context, s *state) error { return m.removeCgroup(s) }},
		},
		Commit: func(s *state) store.Change {
			return store.Change{DeleteSandboxes: []string{s.Rec.ID}, EndOps: m.staleOps(s.Rec.ID)}
		},
	}
}

// Verbs under which sandboxes are in the journal.
func (m *Manager) verbs() []op.Verb[*state] {
	return []op.Verb[*state]{m.runVerb(), m.stopVerb(), m.removeVerb()}
}

// Resume finishes or undoes what verbs have left half done of a sandbox, as the
// journal has it. The caller keeps other verbs off it. What fails stays in the
// journal.
func (m *Manager) Resume(ctx context.Context, id string) error {
	var errs []error
	for _, v := range m.verbs() {
		errs = append(errs, op.Recover(ctx, m.db, v, id, newState))
	}
	return errors.Join(errs...)
}

// Unfinished tells whether a journal entry is a sandbox's, and the unique name
// of a sandbox that was being made; "" for other verbs.
func Unfinished(o store.Op) (name string, ours bool) {
	switch o.Kind {
	case kindStop, kindRemove:
		return "", true
	case kindRun:
		s := newState()
		if err := s.UnmarshalJSON(o.Payload); err != nil {
			return "", true
		}
		return store.SandboxName(s.Rec), true
	}
	return "", false
}

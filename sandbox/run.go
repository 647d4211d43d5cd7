package sandbox

import (
	"context"
	"fmt"
	"os"
	"path"
	"time"

	"github.com/berth-dev/berth/store"
	"github.com/berth-dev/berth/store/op"
)

// The journal's names of the verbs.
const (
	kindRun    = "sandbox.run"
	kindStop   = "sandbox.stop"
	kindRemove = "sandbox.remove"
)

type step = op.Step[*state]

// Run builds the sandbox (rec has ID, Handler and Config set; Facts are filled
// in), commits and returns the record. On an error nothing is left.
func (m *Manager) Run(ctx context.Context, rec store.Sandbox) (store.Sandbox, error) {
	err := Validate(rec.Config)
	if err == nil && m.cfg.SystemdCgroup {
		err = validateSlice(rec.Config)
	}
	if err != nil {
		return store.Sandbox{}, fmt.Errorf("run sandbox %s: %w", rec.ID, err)
	}
	done, err := m.claim(rec)
	if err != nil {
		return store.Sandbox{}, fmt.Errorf("run sandbox %s: %w", rec.ID, err)
	}
	defer done()
	s := &state{Rec: rec}
	s.Rec.Facts = m.plannedFacts(rec)
	if err := op.Run(ctx, m.db, m.runVerb(), rec.ID, s); err != nil {
		return store.Sandbox{}, fmt.Errorf("run sandbox %s: %w", rec.ID, err)
	}
	m.watchHolder(s.Rec)
	return s.Rec, nil
}

func (m *Manager) runVerb() op.Verb[*state] {
	return op.Verb[*state]{
		Kind:    kindRun,
		OnCrash: op.Rollback,
		Steps: []step{
			m.cgroupStep(),
			m.namespacesStep(),
			m.networkStep(),
			m.filesStep(),
			m.holderStep(),
			m.announceStep(),
		},
		Commit: func(s *state) store.Change { return store.Change{PutSandboxes: []store.Sandbox{s.Rec}} },
	}
}

// announceStep tells plugins, which may refuse the sandbox. It is the last step:
// they see the sandbox complete, and clients do not see it yet.
func (m *Manager) announceStep() step {
	return step{
		Name: "announce",
		Do: func(ctx context.Context, s *state) error {
			if m.plugins == nil {
				return nil
			}
			return m.plugins.RunPod(ctx, s.Rec)
		},
		Undo: func(ctx context.Context, s *state) error {
			if m.plugins != nil {
				m.plugins.UndoPod(ctx, s.Rec.ID)
			}
			return nil
		},
	}
}

// plannedFacts are the facts that are decided before anything is done.
func (m *Manager) plannedFacts(rec store.Sandbox) store.SandboxFacts {
	f := store.SandboxFacts{
		CreatedAt:  rec.Facts.CreatedAt,
		BootID:     m.cfg.BootID,
		Namespaces: m.at.plannedPins(rec.ID, rec.Config),

		SELinuxLevel: rec.Facts.SELinuxLevel, SELinuxMount: rec.Facts.SELinuxMount,
	}
	if f.CreatedAt.IsZero() {
		f.CreatedAt = time.Now()
	}
	f.CgroupParent = cgroupParent(rec, m.cfg.SystemdCgroup)
	f.OwnsCgroup = !m.cfg.SystemdCgroup && (!m.cgroupExists(f.CgroupParent) || m.madeHere(rec.ID, f.CgroupParent))
	return f
}

// cgroupParent is the pod cgroup: the client's, else one of Berth's own. With
// systemd it is the name of a slice, which systemd makes by itself.
func cgroupParent(rec store.Sandbox, systemd bool) string {
	parent := rec.Config.GetLinux().GetCgroupParent()
	switch {
	case systemd && parent == "":
		return commonSlice
	case systemd:
		return parent
	case parent == "":
		return ownCgroup(rec.ID)
	}
	return path.Join("/", parent)
}

// commonSlice holds, with systemd, the containers of all pods whose client names
// no parent.
const commonSlice = "berth.slice"

// ownCgroup is the pod cgroup that Berth makes when the client names none.
func ownCgroup(id string) string { return "/berth/" + id }

func (m *Manager) cgroupExists(group string) bool {
	dir := m.cg.Dir("pids", group)
	if dir == "" {
		dir = m.cg.Dir("memory", group)
	}
	_, err := os.Stat(dir)
	return err == nil
}

package sandbox

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"time"

	"github.com/berth-dev/berth/cni/netns"
	"github.com/berth-dev/berth/store"
)

// Reconcile compares the sandboxes with the kernel and the disk: what belongs
// to no sandbox is taken away, and a sandbox that lost its namespaces is marked
// stopped. It runs in Recover and may run at any time no verb is under way.
func (m *Manager) Reconcile(ctx context.Context) error {
	w, err := m.observe()
	if err != nil {
		return fmt.Errorf("reconcile sandboxes: %w", err)
	}
	var errs []error
	failed := map[string]bool{}
	for _, a := range reconcile(m.db.Sandboxes(), w) {
		if failed[a.ID] {
			continue // what comes later may take away what is still needed
		}
		m.cfg.Logger.Warn("reconcile sandbox", "action", string(a.Do), "sandbox", a.ID, "reason", a.Why)
		if err := m.apply(ctx, a, w); err != nil {
			failed[a.ID] = true
			errs = append(errs, fmt.Errorf("reconcile sandbox %s: %s: %w", a.ID, a.Do, err))
		}
	}
	return errors.Join(errs...)
}

func (m *Manager) observe() (world, error) {
	w := world{BootID: m.cfg.BootID, Pins: map[string][]string{}, Dirs: map[string]bool{}, Groups: map[string]bool{},
		Holders: map[string]int{}, Busy: map[string]bool{}}
	for _, o := range m.db.Ops() {
		w.Busy[o.Subject] = true
	}
	pinned, err := idsIn(m.at.nsRoot())
	if err != nil {
		return w, err
	}
	for _, id := range pinned {
		if w.Pins[id], err = netns.Pinned(m.at.nsDir(id)); err != nil {
			return w, err
		}
	}
	for _, root := range []string{m.at.filesRoot(), m.at.stateRoot()} {
		dirs, err := idsIn(root)
		if err != nil {
			return w, err
		}
		for _, id := range dirs {
			w.Dirs[id] = true
			w.Groups[id] = !m.cfg.SystemdCgroup && m.cgroupExists(ownCgroup(id))
		}
	}
	holders, err := findHolders()
	if err != nil {
		return w, err
	}
	for id, pid := range holders {
		// Another daemon's holder is not ours: its pins are elsewhere.
		if _, ours := w.Pins[id]; ours {
			w.Holders[id] = pid
		}
	}
	return w, nil
}

// idsIn lists the entries of a directory that are named by sandbox IDs.
func idsIn(dir string) ([]string, error) {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var ids []string
	for _, e := range entries {
		if e.IsDir() && isID(e.Name()) {
			ids = append(ids, e.Name())
		}
	}
	return ids, nil
}

func (m *Manager) apply(ctx context.Context, a action, w world) error {
	// All that is known of an orphan is its ID, from which its places follow.
	s := &state{Rec: store.Sandbox{ID: a.ID, Facts: store.SandboxFacts{CgroupParent: ownCgroup(a.ID), OwnsCgroup: true}}}
	switch a.Do {
	case detachOrphan:
		return m.detach(ctx, s)
	case removeOrphanGrp:
		return m.removeCgroup(s)
	case killOrphan:
		return killAndWait(ctx, w.Holders[a.ID])
	case unpinOrphan:
		return netns.UnpinAll(m.at.nsDir(a.ID))
	case removeOrphanDir:
		return m.removeFiles(ctx, s)
	case markStopped:
		rec, err := m.db.Sandbox(a.ID)
		if err != nil {
			return err
		}
		rec.Facts.StoppedAt = time.Now()
		return m.db.Commit(ctx, store.Change{PutSandboxes: []store.Sandbox{rec}})
	}
	return fmt.Errorf("unknown action %q", a.Do)
}

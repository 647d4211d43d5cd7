package sandbox

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"time"

	"github.com/berth-dev/berth/cni/netns"
	"github.com/berth-dev/berth/observe"
	"github.com/berth-dev/berth/store"
	"github.com/berth-dev/berth/store/op"
)

// Examine compares the sandboxes with the kernel and the disk, and returns what
// is to be done, in order. It changes nothing, and may run beside verbs.
func (m *Manager) Examine(context.Context) ([]Action, error) {
	// What is made or taken away meanwhile must not look like trouble: a sandbox
	// without a record here was made after the node was looked at, and one
	// without a journal entry after that has a record, or nothing is left of it.
	before := map[string]bool{}
	for _, r := range m.db.Sandboxes() {
		before[r.ID] = true
	}
	w, err := m.observe("")
	if err != nil {
		return nil, fmt.Errorf("examine sandboxes: %w", err)
	}
	recs := m.db.Sandboxes()
	for _, r := range recs {
		w.Busy[r.ID] = w.Busy[r.ID] || !before[r.ID]
	}
	return reconcile(recs, w), nil
}

// Settle does what Examine would say about one sandbox now: what belongs to no
// sandbox is taken away, and a sandbox that lost its namespaces is marked
// stopped. The caller keeps other verbs off it.
func (m *Manager) Settle(ctx context.Context, id string) error {
	w, err := m.observe(id)
	if err != nil {
		return fmt.Errorf("settle sandbox %s: %w", id, err)
	}
	var recs []store.Sandbox
	if rec, err := m.db.Sandbox(id); err == nil {
		recs = append(recs, rec)
	}
	for _, a := range reconcile(recs, w) {
		m.cfg.Logger.Warn("reconcile sandbox", "action", string(a.Do), "sandbox", a.ID, "reason", a.Why)
		// What comes later may take away what is still needed.
		work, end := observe.Begin(ctx, observe.Work{Kind: observe.Repair, Name: "sandbox: " + string(a.Do), Object: a.ID, Pod: a.ID})
		op.Fault("sandbox.reconcile", "act", "before")
		err := m.apply(work, a, w)
		op.Fault("sandbox.reconcile", "act", "after")
		end(err)
		if err != nil {
			return fmt.Errorf("settle sandbox %s: %s: %w", a.ID, a.Do, err)
		}
	}
	return nil
}

// observe looks at one sandbox, or at all when only is empty. After a reboot each
// of many is settled by itself: what one needs must not cost what all do. The
// journal comes last: what is seen without an entry is not under way.
func (m *Manager) observe(only string) (world, error) {
	w := world{BootID: m.cfg.BootID, Pins: map[string][]string{}, Dirs: map[string]bool{}, Groups: map[string]bool{},
		Owed: map[string]bool{}}
	pinned, err := idsIn(m.at.nsRoot(), only)
	if err != nil {
		return w, err
	}
	for _, id := range pinned {
		if w.Pins[id], err = netns.Pinned(m.at.nsDir(id)); err != nil {
			return w, err
		}
	}
	for _, root := range []string{m.at.filesRoot(), m.at.stateRoot()} {
		dirs, err := idsIn(root, only)
		if err != nil {
			return w, err
		}
		for _, id := range dirs {
			w.Dirs[id] = true
			w.Groups[id] = !m.cfg.SystemdCgroup && m.cgroupExists(ownCgroup(id))
		}
	}
	owed, err := m.due.Owed()
	if err != nil {
		return w, err
	}
	for _, id := range owed {
		if isID(id) && (only == "" || only == id) {
			w.Owed[id] = true
		}
	}
	if w.Holders, err = holdersOf(w.Pins); err != nil {
		return w, err
	}
	w.Busy = m.busy()
	return w, nil
}

// holdersOf returns the holders of pinned sandboxes. Another daemon's holder is
// not ours: its pins are elsewhere. Without pins no process is looked at.
func holdersOf(pins map[string][]string) (map[string]int, error) {
	if len(pins) == 0 {
		return map[string]int{}, nil
	}
	all, err := findHolders()
	maps.DeleteFunc(all, func(id string, _ int) bool { _, ours := pins[id]; return !ours })
	return all, err
}

// idsIn lists the directories in dir that are named by sandbox IDs, or just that
// of only.
func idsIn(dir, only string) ([]string, error) {
	if only != "" {
		st, err := os.Lstat(filepath.Join(dir, only))
		if errors.Is(err, fs.ErrNotExist) {
			return nil, nil
		}
		if err != nil || !st.IsDir() || !isID(only) {
			return nil, err
		}
		return []string{only}, nil
	}
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

func (m *Manager) apply(ctx context.Context, a Action, w world) error {
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
	case detachStopped:
		rec, err := m.db.Sandbox(a.ID)
		if err != nil {
			return err
		}
		if err := m.detach(ctx, &state{Rec: rec}); err != nil {
			return err
		}
		rec.Facts.Network.Attached = false
		return m.db.Commit(ctx, store.Change{PutSandboxes: []store.Sandbox{rec}})
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

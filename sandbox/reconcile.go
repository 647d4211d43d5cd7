package sandbox

import (
	"cmp"
	"fmt"
	"slices"

	"github.com/berth-dev/berth/cni/netns"
	"github.com/berth-dev/berth/store"
)

// world is what was seen of the sandboxes on this node. It only holds things
// that carry Berth's mark: names that are sandbox IDs, in its own run directory.
type world struct {
	BootID  string
	Pins    map[string][]string // pinned kinds by sandbox; an entry without kinds is an empty directory
	Dirs    map[string]bool     // directories of files, at run time or lasting, by sandbox
	Groups  map[string]bool     // those of them whose pod cgroup of Berth's own making exists
	Holders map[string]int      // holder processes whose namespace directory is ours, by sandbox
	Owed    map[string]bool     // sandboxes that a detach is owed for
	Busy    map[string]bool     // sandboxes with a verb in the journal: its to settle
}

// Verdict is what is to be done about one thing.
type Verdict string

const (
	detachOrphan    Verdict = "detach network"
	unpinOrphan     Verdict = "unpin namespaces"
	killOrphan      Verdict = "kill holder"
	removeOrphanGrp Verdict = "remove cgroup"
	removeOrphanDir Verdict = "remove files"
	markStopped     Verdict = "mark not ready"
	detachStopped   Verdict = "release network"
)

// Action is one verdict on one sandbox, with the reason for people.
type Action struct {
	Do  Verdict
	ID  string
	Why string
}

func (a Action) String() string { return fmt.Sprintf("%s %s: %s", a.Do, a.ID, a.Why) }

// reconcile compares records with the world. Pure; actions come in the order
// they are to be taken: by verdict (processes before network, pins and files), then ID.
func reconcile(recs []store.Sandbox, w world) []Action {
	known := map[string]bool{}
	var out []Action
	for _, r := range recs {
		known[r.ID] = true
		if w.Busy[r.ID] {
			continue
		}
		if r.Facts.Network.Attached && r.Facts.BootID != w.BootID {
			out = append(out, Action{detachStopped, r.ID, "the node was restarted"})
		}
		if !r.Facts.StoppedAt.IsZero() {
			continue
		}
		if why := notReady(r, w); why != "" {
			out = append(out, Action{markStopped, r.ID, why})
		}
	}
	orphan := func(id string) bool { return !known[id] && !w.Busy[id] }
	for id, pid := range w.Holders {
		if orphan(id) {
			out = append(out, Action{killOrphan, id, fmt.Sprintf("process %d of no known sandbox", pid)})
		}
	}
	for id := range w.Pins {
		if orphan(id) {
			out = append(out, Action{detachOrphan, id, "network of no known sandbox"})
			out = append(out, Action{unpinOrphan, id, "pins of no known sandbox"})
		}
	}
	for id := range w.Owed {
		if _, pinned := w.Pins[id]; orphan(id) && !pinned {
			out = append(out, Action{detachOrphan, id, "network of no known sandbox"})
		}
	}
	for id := range w.Dirs {
		if !orphan(id) {
			continue
		}
		if _, pinned := w.Pins[id]; !pinned && !w.Owed[id] {
			out = append(out, Action{detachOrphan, id, "network of no known sandbox"})
		}
		if w.Groups[id] {
			out = append(out, Action{removeOrphanGrp, id, "cgroup of no known sandbox"})
		}
		out = append(out, Action{removeOrphanDir, id, "files of no known sandbox"})
	}
	order := []Verdict{markStopped, detachStopped, killOrphan, detachOrphan, unpinOrphan, removeOrphanGrp, removeOrphanDir}
	slices.SortFunc(out, func(a, b Action) int {
		return cmp.Or(cmp.Compare(slices.Index(order, a.Do), slices.Index(order, b.Do)), cmp.Compare(a.ID, b.ID))
	})
	return out
}

// notReady returns why a sandbox that nobody stopped cannot run containers any
// more; "" when it can.
func notReady(r store.Sandbox, w world) string {
	if r.Facts.BootID != w.BootID {
		return "the node was restarted"
	}
	for _, kind := range []string{netns.Net, netns.IPC, netns.UTS, netns.PID, netns.User} {
		if r.Facts.Namespaces[kind] != "" && !slices.Contains(w.Pins[r.ID], kind) {
			return "its " + kind + " namespace is gone"
		}
	}
	if r.Facts.HolderPID != 0 && w.Holders[r.ID] != r.Facts.HolderPID {
		return "the holder of its pid namespace is gone"
	}
	return ""
}

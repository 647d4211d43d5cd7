// Package reconcile compares the records of containers with what the node has
// of them. Plan is pure; Observe looks, and changes nothing.
package reconcile

import (
	"cmp"
	"maps"
	"slices"

	"github.com/berth-dev/berth/store"
)

// World is what was seen of containers on this node. It only holds things that
// carry Berth's mark: names that are container IDs, in its own directories; and
// what an OCI runtime knows of them, or says to have been made from such a one.
type World struct {
	Bundles map[string]bool   // run-time directories: specification, socket, mount point
	States  map[string]bool   // state directories: writable layer, exit record
	Mounts  map[string]bool   // root file systems that are mounted
	Runc    map[string]string // containers that an OCI runtime knows, and the handler they run under
	Busy    map[string]bool   // containers with a journal entry: theirs to settle
}

// Verdict is what is to be done about one container.
type Verdict string

// What can be done.
const (
	Remove  Verdict = "remove"                   // all there is of it; nobody knows it
	Unmount Verdict = "unmount root file system" // it has ended
)

// Action is one verdict on one container, with the reason for the log.
type Action struct {
	Do  Verdict
	ID  string
	Why string
}

// Plan returns what is to be done, by ID. Pure.
func Plan(recs []store.Container, w World) []Action {
	known := map[string]store.Container{}
	for _, r := range recs {
		known[r.ID] = r
	}
	out := map[string]Action{}
	orphan := func(id, why string) {
		_, ok := known[id]
		if _, told := out[id]; !ok && !told && !w.Busy[id] {
			out[id] = Action{Remove, id, why}
		}
	}
	for id := range w.Runc {
		orphan(id, "the OCI runtime knows it, and no record does")
	}
	for id := range w.Mounts {
		if r, ok := known[id]; ok && r.Facts.Exit != nil && !w.Busy[id] {
			out[id] = Action{Unmount, id, "it has ended, and its root file system is still mounted"}
		}
		orphan(id, "mount of no known container")
	}
	for id := range w.Bundles {
		orphan(id, "run-time directory of no known container")
	}
	for id := range w.States {
		orphan(id, "state directory of no known container")
	}
	return slices.SortedFunc(maps.Values(out), func(a, b Action) int { return cmp.Compare(a.ID, b.ID) })
}

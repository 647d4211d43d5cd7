package nri

import (
	"sync"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/berth-dev/berth/store"
)

// view is what plugins know. It changes under a sync block only, so that a
// plugin that joins sees it before or after an event, never between.
type view struct {
	mu         sync.Mutex
	pods       map[string]*podEntry
	containers map[string]*containerEntry
}

type podEntry struct {
	stopped bool
	pending *store.Sandbox // until its record is committed
}

type containerEntry struct {
	stopped bool
	pending *pending // until its record is committed
}

// pending is a container that is being made.
type pending struct {
	rec  store.Container
	spec *specs.Spec // not written to any more
}

func newView(db *store.DB) *view {
	v := &view{pods: map[string]*podEntry{}, containers: map[string]*containerEntry{}}
	for _, s := range db.Sandboxes() {
		v.pods[s.ID] = &podEntry{stopped: !s.Facts.StoppedAt.IsZero()}
	}
	for _, c := range db.Containers() {
		v.containers[c.ID] = &containerEntry{stopped: c.Facts.Exit != nil}
	}
	return v
}

// known returns the pods, and the containers that have not ended, each with
// its record as long as that is not committed.
func (v *view) known() (map[string]*store.Sandbox, map[string]*pending) {
	v.mu.Lock()
	defer v.mu.Unlock()
	pods, containers := map[string]*store.Sandbox{}, map[string]*pending{}
	for id, e := range v.pods {
		pods[id] = e.pending
	}
	for id, e := range v.containers {
		if !e.stopped {
			containers[id] = e.pending
		}
	}
	return pods, containers
}

func (v *view) addPod(s store.Sandbox) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.pods[s.ID] = &podEntry{pending: &s}
}

func (v *view) addContainer(c store.Container, doc *specs.Spec) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.containers[c.ID] = &containerEntry{pending: &pending{rec: c, spec: doc}}
}

// adjusted replaces the specification of a container that is being made.
func (v *view) adjusted(id string, doc *specs.Spec) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if e := v.containers[id]; e != nil && e.pending != nil {
		e.pending = &pending{rec: e.pending.rec, spec: doc}
	}
}

// committed drops what the record now holds.
func (v *view) committed(id string) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if e := v.containers[id]; e != nil {
		e.pending = nil
	}
}

// stopPod reports whether plugins have yet to be told that the pod stops.
func (v *view) stopPod(id string) bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	e := v.pods[id]
	if e == nil || e.stopped {
		return false
	}
	e.stopped = true
	return true
}

// removePod reports whether plugins knew of the pod, and the record of one
// that was not committed.
func (v *view) removePod(id string) (uncommitted *store.Sandbox, known bool) {
	v.mu.Lock()
	defer v.mu.Unlock()
	e := v.pods[id]
	if e == nil {
		return nil, false
	}
	delete(v.pods, id)
	return e.pending, true
}

// stopContainer reports whether plugins have yet to be told of the end.
func (v *view) stopContainer(id string) bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	e := v.containers[id]
	if e == nil || e.stopped {
		return false
	}
	e.stopped = true
	return true
}

// removeContainer is removePod for containers.
func (v *view) removeContainer(id string) (uncommitted *pending, known bool) {
	v.mu.Lock()
	defer v.mu.Unlock()
	e := v.containers[id]
	if e == nil {
		return nil, false
	}
	delete(v.containers, id)
	return e.pending, true
}

// running reports whether plugins believe that a container has not ended.
func (v *view) running(id string) bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	e := v.containers[id]
	return e != nil && !e.stopped
}

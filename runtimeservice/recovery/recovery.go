// Package recovery brings objects back into a known state beside the calls
// that are served: calls on an object wait for the first attempt on it alone,
// and what fails is tried again with growing pauses until it succeeds.
package recovery

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/containerd/errdefs"
)

// parallel is how many attempts run at the same time.
const parallel = 64

// Pauses between attempts, unless the work has its own.
const (
	firstPause = time.Second
	lastPause  = 5 * time.Minute
)

// Work is what is to be done about one object.
type Work struct {
	Kind  string // of the object: "sandbox", "container", "images", "node"
	ID    string
	Name  string // calls also wait under this; "": none
	Doing string // for people
	// Run makes one attempt. It does nothing when there is nothing left to do.
	Run func(ctx context.Context) error
	// Moot reports that there is nothing left to do; nil: never.
	Moot func() bool
	// Pause is the first pause between attempts, it doubles up to MaxPause; 0:
	// one second, five minutes.
	Pause, MaxPause time.Duration
	// Late work was found while calls were served: nobody waits for it, and
	// its first attempt comes after the first pause.
	Late bool
}

func (w Work) key() string { return w.Kind + " " + w.ID }

// State is how work stands.
type State struct {
	Work
	Since    time.Time
	Failures int
	Err      error     // of the last attempt
	Next     time.Time // zero: an attempt is under way, or waits for its turn

	again bool // it was asked for during the attempt, which may have looked before
}

// Tracker runs works. Its methods may be called at the same time.
type Tracker struct {
	log   *slog.Logger
	spawn func(func(ctx context.Context))
	slots chan struct{}

	mu      sync.Mutex
	states  map[string]*State // by key and doing
	gates   map[string]*gate  // by key or name
	settled chan struct{}
}

// gate is what calls wait at.
type gate struct {
	works int // whose first attempt has not ended
	open  chan struct{}
}

// New returns a tracker without work. spawn runs a function in the background
// until its context, which ends with the daemon, is over.
func New(log *slog.Logger, spawn func(func(ctx context.Context))) *Tracker {
	return &Tracker{log: log, spawn: spawn, slots: make(chan struct{}, parallel),
		states: map[string]*State{}, gates: map[string]*gate{}, settled: make(chan struct{})}
}

// Go begins works that are not under way already. When it returns, calls on
// their objects wait. The channel is closed after the first attempt on each.
// One whose attempt is under way is done once more after it, as late work.
func (t *Tracker) Go(works ...Work) <-chan struct{} {
	var first sync.WaitGroup
	t.mu.Lock()
	for _, w := range works {
		id := w.key() + " " + w.Doing
		if st := t.states[id]; st != nil {
			st.again = st.again || st.Next.IsZero()
			continue
		}
		st := &State{Work: w, Since: time.Now()}
		t.states[id] = st
		if !w.Late {
			t.shut(w)
		}
		first.Add(1)
		t.spawn(func(ctx context.Context) {
			t.work(ctx, st, sync.OnceFunc(first.Done))
			for t.again(ctx, id, st) {
				t.work(ctx, st, func() {})
			}
		})
	}
	t.mu.Unlock()
	done := make(chan struct{})
	go func() { first.Wait(); close(done) }()
	return done
}

// again forgets work that is through, unless it was asked for meanwhile.
func (t *Tracker) again(ctx context.Context, id string, st *State) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if !st.again || ctx.Err() != nil {
		delete(t.states, id)
		return false
	}
	w := st.Work
	w.Late = true
	*st = State{Work: w, Since: time.Now()}
	return true
}

// work attempts until one succeeds or ctx ends. tried is called after the first.
func (t *Tracker) work(ctx context.Context, st *State, tried func()) {
	pause, longest := cmp.Or(st.Pause, firstPause), cmp.Or(st.MaxPause, lastPause)
	open := sync.OnceFunc(func() { t.unshut(st.Work); tried() })
	defer open()
	if st.Late && !t.rest(ctx, st, pause) {
		return
	}
	for {
		err := t.attempt(ctx, st)
		open()
		if err == nil || ctx.Err() != nil || st.Moot != nil && st.Moot() {
			return
		}
		t.mu.Lock()
		st.Failures++
		st.Err = err
		t.mu.Unlock()
		t.log.Error("recovery failed, it is tried again", "kind", st.Kind, "id", st.ID, "doing", st.Doing, "failures", st.Failures, "pause", pause, "error", err)
		if !t.rest(ctx, st, pause) {
			return
		}
		pause = min(2*pause, longest)
	}
}

func (t *Tracker) attempt(ctx context.Context, st *State) error {
	select {
	case t.slots <- struct{}{}:
		defer func() { <-t.slots }()
		t.mu.Lock()
		st.again = false
		t.mu.Unlock()
		return st.Run(ctx)
	case <-ctx.Done():
		return ctx.Err()
	}
}

// rest pauses, and reports whether there is anything to go on with.
func (t *Tracker) rest(ctx context.Context, st *State, d time.Duration) bool {
	t.mu.Lock()
	st.Next = time.Now().Add(d)
	t.mu.Unlock()
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
		return false
	}
	t.mu.Lock()
	st.Next = time.Time{}
	t.mu.Unlock()
	return st.Moot == nil || !st.Moot()
}

func (w Work) names() []string {
	if w.Name == "" {
		return []string{w.key()}
	}
	return []string{w.key(), w.Kind + " " + w.Name}
}

// shut and unshut are called with and without mu.
func (t *Tracker) shut(w Work) {
	for _, n := range w.names() {
		if t.gates[n] == nil {
			t.gates[n] = &gate{open: make(chan struct{})}
		}
		t.gates[n].works++
	}
}

func (t *Tracker) unshut(w Work) {
	if w.Late {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, n := range w.names() {
		g := t.gates[n]
		if g.works--; g.works == 0 {
			close(g.open)
			delete(t.gates, n)
		}
	}
}

// Wait returns when the object, by ID or name, has been attempted once. It fails
// with Unavailable when ctx ends before.
func (t *Tracker) Wait(ctx context.Context, kind, id string) error {
	t.mu.Lock()
	g := t.gates[kind+" "+id]
	t.mu.Unlock()
	if g == nil {
		return nil
	}
	select {
	case <-g.open:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("%s is being recovered after the daemon's start, repeat the call: %w: %w", kind, ctx.Err(), errdefs.ErrUnavailable)
	}
}

// List returns the works that have not succeeded, by kind and ID.
func (t *Tracker) List() []State {
	t.mu.Lock()
	var out []State
	for _, st := range t.states {
		out = append(out, *st)
	}
	t.mu.Unlock()
	out = slices.DeleteFunc(out, func(s State) bool { return s.Failures > 0 && s.Moot != nil && s.Moot() })
	slices.SortFunc(out, func(a, b State) int { return strings.Compare(a.key()+a.Doing, b.key()+b.Doing) })
	return out
}

// Of says what is being done about an object; "" when nothing is.
func (t *Tracker) Of(kind, id string) string {
	for _, s := range t.List() {
		if s.Kind == kind && s.ID == id {
			return s.Doing
		}
	}
	return ""
}

// Settle says that a start has been gone through: each object was attempted once.
func (t *Tracker) Settle() { close(t.settled) }

// Settled is closed by Settle.
func (t *Tracker) Settled() <-chan struct{} { return t.settled }

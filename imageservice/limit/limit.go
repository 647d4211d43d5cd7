// Package limit bounds what all pulls of a node take together. The bounds can
// change while they are in use.
package limit

import (
	"context"
	"sync"
	"time"
)

// Gate lets a number of holders in at a time. The zero value lets nobody in.
type Gate struct {
	mu    sync.Mutex
	limit int
	held  int
	queue []chan struct{} // closed to let its owner in; first come, first served
}

// NewGate returns a gate for n holders.
func NewGate(n int) *Gate { return &Gate{limit: n} }

// Resize changes how many may hold the gate. Holders beyond a smaller number stay.
func (g *Gate) Resize(n int) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.limit = n
	g.admit()
}

// admit lets in who waits and fits; mu is held.
func (g *Gate) admit() {
	for len(g.queue) > 0 && g.held < g.limit {
		g.held++
		close(g.queue[0])
		g.queue = g.queue[1:]
	}
}

// Take waits for a place; the error is the context's cause.
func (g *Gate) Take(ctx context.Context) error {
	if g.TryTake() {
		return nil
	}
	g.mu.Lock()
	in := make(chan struct{})
	g.queue = append(g.queue, in)
	g.admit()
	g.mu.Unlock()
	select {
	case <-in:
		return nil
	case <-ctx.Done():
	}
	g.mu.Lock()
	for i, c := range g.queue {
		if c == in {
			g.queue = append(g.queue[:i:i], g.queue[i+1:]...)
			g.mu.Unlock()
			return context.Cause(ctx)
		}
	}
	g.mu.Unlock()
	g.Give() // let in at the last moment
	return context.Cause(ctx)
}

// TryTake takes a place if one is free and nobody waits.
func (g *Gate) TryTake() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if len(g.queue) > 0 || g.held >= g.limit {
		return false
	}
	g.held++
	return true
}

// Give gives a place back.
func (g *Gate) Give() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.held--
	g.admit()
}

// Rate bounds a number of units per second; 0 is no bound. Whoever comes pays
// for what he took before the next may take, so that no request is too large
// and the sum never runs ahead by more than one of them.
type Rate struct {
	mu      sync.Mutex
	perSec  int64
	free    time.Time     // when all that was taken is paid for
	changed chan struct{} // closed by Resize
}

// NewRate returns a rate of n units per second.
func NewRate(n int64) *Rate { return &Rate{perSec: n, changed: make(chan struct{})} }

// Resize changes the rate, also for those who wait.
func (r *Rate) Resize(n int64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if n == r.perSec {
		return
	}
	r.perSec, r.free = n, time.Time{}
	close(r.changed)
	r.changed = make(chan struct{})
}

// Take waits until what was taken before is paid for, then takes n.
func (r *Rate) Take(ctx context.Context, n int) error {
	for {
		r.mu.Lock()
		now, changed := time.Now(), r.changed
		wait := r.free.Sub(now)
		if r.perSec <= 0 {
			r.mu.Unlock()
			return nil
		}
		if wait <= 0 {
			r.free = now.Add(time.Duration(float64(n) / float64(r.perSec) * float64(time.Second)))
			r.mu.Unlock()
			return nil
		}
		r.mu.Unlock()
		t := time.NewTimer(wait)
		select {
		case <-t.C:
		case <-changed:
			t.Stop()
		case <-ctx.Done():
			t.Stop()
			return context.Cause(ctx)
		}
	}
}

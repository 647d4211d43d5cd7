package shim

import (
	"context"
	"sync"
)

// life is one life of a container in this daemon, from its creation or from
// when it was found again: its end is told once, however many connections to
// the shim, and whoever asks for the container, come upon it at the same time.
type life struct {
	holders int           // guarded by Manager.mu
	asking  chan struct{} // has room for the one who finds out what became of the shim

	mu      sync.Mutex
	told    bool
	dropped int64 // bytes its log lost, as far as they have been added up
	capped  int64
}

func newLife() *life { return &life{asking: make(chan struct{}, 1)} }

// tell reports whether the end has not been told yet, and takes it for told.
func (l *life) tell() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	was := l.told
	l.told = true
	return !was
}

func (l *life) wasTold() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.told
}

// note adds up what the container's log has lost, whichever connection says so.
func (l *life) note(m *Manager, h LogHealth) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if d := h.Dropped - l.dropped; d > 0 {
		m.dropped.Add(d)
		l.dropped = h.Dropped
	}
	if d := h.Capped - l.capped; d > 0 {
		m.capped.Add(d)
		l.capped = h.Capped
	}
}

// ask waits for its turn to find out about the shim. An end that is found in
// one turn is told before the next one begins.
func (l *life) ask(ctx context.Context) error {
	select {
	case l.asking <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (l *life) asked() { <-l.asking }

// begin makes a new life of a container that is about to be created. Whoever
// begins or holds a life must release it.
func (m *Manager) begin(id string) *life {
	m.mu.Lock()
	defer m.mu.Unlock()
	l := newLife()
	l.holders = 1
	m.lives[id] = l
	return l
}

// hold returns the life of a container, which is new when nobody holds it.
func (m *Manager) hold(id string) *life {
	m.mu.Lock()
	defer m.mu.Unlock()
	l := m.lives[id]
	if l == nil {
		l = newLife()
		m.lives[id] = l
	}
	l.holders++
	return l
}

// release forgets a life that nobody holds: no connection is left then that
// could tell its end.
func (m *Manager) release(id string, l *life) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if l.holders--; l.holders == 0 && m.lives[id] == l {
		delete(m.lives, id)
	}
}

package shim

import (
	"context"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/berth-dev/berth/shim/wire"
)

// healthWait bounds how long shims whose logs fail are asked how they fare.
const healthWait = time.Second

// LogTrouble is a container whose last write to its log failed.
type LogTrouble struct {
	ID  string
	Log LogHealth
}

// LogTrouble returns the containers whose logs can't be written, by ID. Shims
// tell when that begins and ends; only those that fail are asked for figures,
// within a second. Shims of protocol 1 tell nothing of their own accord.
func (m *Manager) LogTrouble(ctx context.Context) []LogTrouble {
	var out []LogTrouble
	for _, s := range m.askAgain(ctx, func(h LogHealth) bool { return h.Error != 0 }) {
		if h := s.logHealth(); h.Error != 0 {
			out = append(out, LogTrouble{ID: s.id, Log: h})
		}
	}
	return out
}

// LogLosses are the bytes that logs lack of what containers wrote.
type LogLosses struct {
	Dropped, Capped int64        // by this daemon's containers, those that have ended included; see LogHealth
	Containers      []LogTrouble // those with a shim that have lost any, by ID
}

// LogLosses returns what logs have lost. Both sums only grow while the daemon
// lives; a container that an earlier daemon made brings what it lost under
// that. Only shims that told of a loss are asked again, within a second.
func (m *Manager) LogLosses(ctx context.Context) LogLosses {
	all := m.askAgain(ctx, func(h LogHealth) bool { return h.Error != 0 || h.Dropped > 0 || h.Capped > 0 })
	out := LogLosses{Dropped: m.dropped.Load(), Capped: m.capped.Load()}
	for _, s := range all {
		out.Containers = append(out.Containers, LogTrouble{ID: s.id, Log: s.logHealth()})
	}
	return out
}

// askAgain asks the shims, of those whose last word on their log is of
// interest, for the present state, and returns them by ID.
func (m *Manager) askAgain(ctx context.Context, of func(LogHealth) bool) []*session {
	ctx, cancel := context.WithTimeout(ctx, healthWait)
	defer cancel()
	var wg sync.WaitGroup
	var out []*session
	for _, s := range m.sessions() {
		if !of(s.logHealth()) {
			continue
		}
		out = append(out, s)
		wg.Go(func() {
			// Without an answer, what was told last counts.
			_, _ = s.state(ctx)
		})
	}
	wg.Wait()
	slices.SortFunc(out, func(a, b *session) int { return strings.Compare(a.id, b.id) })
	return out
}

func (m *Manager) sessions() []*session {
	m.mu.Lock()
	defer m.mu.Unlock()
	out := make([]*session, 0, len(m.shims))
	for _, s := range m.shims {
		out = append(out, s)
	}
	return out
}

func (s *session) logHealth() LogHealth {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.health
}

// note takes over what a shim says about its log. Its counters only grow, but
// an answer may come behind one that was given later.
func (s *session) note(h wire.LogHealth) {
	s.mu.Lock()
	defer s.mu.Unlock()
	was := s.health
	s.health = healthOf(h)
	s.health.Dropped, s.health.Capped = max(was.Dropped, h.Dropped), max(was.Capped, h.Capped)
	s.life.note(s.m, s.health)
}

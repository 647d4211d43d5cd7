package stats

import (
	"sync"
	"time"
)

// A rate is computed over a window that begins with an earlier reading. Calls
// within window of it, such as those of a second client, get the rate of the
// one before; only a container that has none yet gets by with less.
const (
	window      = time.Second
	firstWindow = 100 * time.Millisecond
)

// slack is how many entries of objects that are gone may wait for the next
// clearing.
const slack = 256

// rates remembers one CPU reading of every container and pod.
type rates struct {
	mu    sync.Mutex
	last  map[string]reading
	limit int
}

type reading struct {
	at    time.Time // monotonic
	usage uint64    // nanoseconds of CPU time
	rate  uint64    // nano cores, up to at
	known bool
}

func newRates() *rates { return &rates{last: map[string]reading{}, limit: slack} }

// rate notes a reading and returns the average use since an earlier one, in
// nano cores. ok is false while there is nothing to compare with.
func (r *rates) rate(id string, at time.Time, usage uint64) (nanoCores uint64, ok bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	was, seen := r.last[id]
	if !seen || usage < was.usage {
		// Never seen, or the group was made anew.
		r.last[id] = reading{at: at, usage: usage}
		return 0, false
	}
	d := at.Sub(was.at)
	switch {
	case d >= window:
		n := perSecond(usage-was.usage, d)
		r.last[id] = reading{at: at, usage: usage, rate: n, known: true}
		return n, true
	case was.known:
		return was.rate, true
	case d >= firstWindow:
		return perSecond(usage-was.usage, d), true
	}
	return 0, false
}

func perSecond(nanos uint64, d time.Duration) uint64 {
	return uint64(float64(nanos) * float64(time.Second) / float64(d))
}

// prune drops what is not known any more, once that much has come together
// that it may pay.
func (r *rates) prune(known func(id string) bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.last) <= r.limit {
		return
	}
	for id := range r.last {
		if !known(id) {
			delete(r.last, id)
		}
	}
	r.limit = 2*len(r.last) + slack
}

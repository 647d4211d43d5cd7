package registry

import (
	"sync"
	"time"

	"github.com/containerd/containerd/v2/core/remotes/docker"
)

const (
	// breakerRest is how long a host that did not answer is passed over; it
	// doubles with each failure in a row, up to breakerMost.
	breakerRest = 30 * time.Second
	breakerMost = 4 * time.Minute
)

// breaker remembers hosts that did not answer, so that one dead mirror costs
// one time-out and not one per request:
//
//	closed -- fails --> open for its rest -- over --> one request tries it
//	   ^                 ^                               |         |
//	   |                 +----------- fails -------------+         |
//	   +------------------------------ answers --------------------+
//
// It only orders hosts: an open one is tried when no other host gave an answer.
type breaker struct {
	trial time.Duration // how long the one request may take before the next tries

	mu   sync.Mutex
	down map[string]*outage
}

// outage is what is known of a host that did not answer.
type outage struct {
	until    time.Time
	failures int
}

// order returns the hosts to use, and those to fall back on.
func (b *breaker) order(hosts []docker.RegistryHost, now time.Time) (up, resting []docker.RegistryHost) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, h := range hosts {
		o := b.down[h.Host]
		if o != nil && o.until.After(now) {
			resting = append(resting, h)
			continue
		}
		if o != nil {
			o.until = now.Add(b.trial) // others pass it over while this caller tries
		}
		up = append(up, h)
	}
	return up, resting
}

func (b *breaker) fail(host string, now time.Time) {
	b.mu.Lock()
	defer b.mu.Unlock()
	o := b.down[host]
	if o == nil {
		o = &outage{}
		b.down[host] = o
	}
	o.until = now.Add(min(breakerRest<<min(o.failures, 8), breakerMost))
	o.failures++
}

func (b *breaker) ok(host string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.down, host)
}

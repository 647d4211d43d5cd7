package stats

import (
	"context"
	"sync"
	"time"
)

// A writable layer is walked beside the call, one layer at a time, and a layer
// may take a twentieth of the time: a call answers with the last size and the
// time when it was measured.
const (
	freshFor  = 2 * time.Second
	dutyCycle = 20
	// firstWait is how long a call waits for the first size of a layer.
	firstWait = 50 * time.Millisecond
	// askedWait is how long a call for one object waits for a new size.
	askedWait = 250 * time.Millisecond
)

type disk struct {
	src   Disk
	spawn func(func(context.Context))

	mu      sync.Mutex
	sizes   map[string]*size
	queue   []string // IDs to measure; at most once each
	walking bool
	limit   int
}

// size is one layer's last measurement.
type size struct {
	bytes, inodes uint64
	at            time.Time // zero: never measured
	cost          time.Duration
	done          chan struct{} // closed when the measurement under way ends; nil: none is
	err           error         // of the last measurement
}

func newDisk(src Disk, spawn func(func(context.Context))) *disk {
	return &disk{src: src, spawn: spawn, sizes: map[string]*size{}, limit: slack}
}

// usage returns the size of a container's layer, and when it was measured. ok
// is false when that is not known (yet). With asked set a new size is worth
// waiting for.
func (d *disk) usage(ctx context.Context, id string, asked bool) (s size, ok bool, err error) {
	d.mu.Lock()
	entry := d.sizes[id]
	if entry == nil {
		entry = &size{}
		d.sizes[id] = entry
	}
	if entry.done == nil && entry.stale(time.Now()) {
		d.measureLater(id, entry)
	}
	done, wait := entry.done, time.Duration(0)
	switch {
	case done == nil:
	case asked:
		wait = askedWait
	case entry.at.IsZero():
		wait = firstWait
	}
	d.mu.Unlock()
	if wait > 0 {
		t := time.NewTimer(wait)
		defer t.Stop()
		select {
		case <-done:
		case <-t.C:
		case <-ctx.Done():
		}
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	return *entry, !entry.at.IsZero(), entry.err
}

func (s *size) stale(t time.Time) bool {
	return s.at.IsZero() || t.Sub(s.at) > max(freshFor, dutyCycle*s.cost)
}

// measureLater queues a layer; the caller holds mu.
func (d *disk) measureLater(id string, entry *size) {
	entry.done = make(chan struct{})
	d.queue = append(d.queue, id)
	if !d.walking {
		d.walking = true
		d.spawn(d.walk)
	}
}

// walk measures what is queued and ends.
func (d *disk) walk(ctx context.Context) {
	for {
		d.mu.Lock()
		if len(d.queue) == 0 {
			d.walking = false
			d.mu.Unlock()
			return
		}
		id := d.queue[0]
		d.queue = d.queue[1:]
		d.mu.Unlock()

		start := time.Now()
		bytes, inodes, err := d.src.WritableUsage(ctx, id)

		d.mu.Lock()
		s := d.sizes[id]
		if s.err = err; err == nil {
			s.bytes, s.inodes, s.at = bytes, inodes, time.Now()
		}
		s.cost = time.Since(start)
		close(s.done)
		s.done = nil
		d.mu.Unlock()
	}
}

// prune is like that of rates. What is being measured stays.
func (d *disk) prune(known func(id string) bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if len(d.sizes) <= d.limit {
		return
	}
	for id, s := range d.sizes {
		if s.done == nil && !known(id) {
			delete(d.sizes, id)
		}
	}
	d.limit = 2*len(d.sizes) + slack
}

package store

import (
	"cmp"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	bolt "go.etcd.io/bbolt"
)

// Events are derived from what is committed: the transaction that changes a
// record writes the events of that change too. So every event has happened, each
// happens once, and their order is that of the commits, whatever dies when.
//
// The journal of events is bounded. Its numbers grow by one. A journal that is
// made anew, with a database that was lost, begins with the time in
// microseconds, which is beyond all that the old one has given out.
const (
	keepEvents  = 2048 // newest events, in memory and in the database
	keepRecords = 1024 // newest events that still know their records
)

// The kinds of events.
const (
	SandboxCreated   = "sandbox.created"
	SandboxStopped   = "sandbox.stopped"
	SandboxRemoved   = "sandbox.removed"
	ContainerCreated = "container.created"
	ContainerStarted = "container.started"
	ContainerStopped = "container.stopped"
	ContainerRemoved = "container.removed"
	ImagePulled      = "image.pulled"
	ImageRemoved     = "image.removed"
)

// Event is one change in the life of an object.
type Event struct {
	Seq       uint64    `json:"-"` // the key
	At        time.Time `json:"at"`
	Kind      string    `json:"kind"`
	ID        string    `json:"id"`
	PodID     string    `json:"pod,omitempty"`  // sandbox; "" for images
	Name      string    `json:"name,omitempty"` // as its user gave it
	Namespace string    `json:"namespace,omitempty"`
	ExitCode  int32     `json:"exitCode,omitempty"` // of container.stopped
	Reason    string    `json:"reason,omitempty"`

	// The records as they were after the event, or before a removal. Nil for
	// events of earlier daemons, and for those that many others have followed.
	Sandbox   *Sandbox   `json:"-"`
	Container *Container `json:"-"`
}

// eventLog is the journal in memory. DB.mu guards it; only a writer changes it.
type eventLog struct {
	events []Event       // oldest first
	last   uint64        // number given out last
	more   chan struct{} // closed at the next append
}

// Events returns at most limit events with numbers greater than after, oldest
// first; after 0 stands for the oldest that is kept. When there are none yet,
// more is closed when there are. It fails with OutOfRange when the journal no
// longer has all events after that number, or never got so far.
func (db *DB) Events(after uint64, limit int) (events []Event, more <-chan struct{}, err error) {
	db.mu.RLock()
	defer db.mu.RUnlock()
	l := db.index.events
	oldest := l.last + 1
	if len(l.events) > 0 {
		oldest = l.events[0].Seq
	}
	switch {
	case after == 0:
	case after > l.last:
		return nil, nil, fmt.Errorf("read events after %d: the last one is %d: %w", after, l.last, errdefs.ErrOutOfRange)
	case after+1 < oldest:
		return nil, nil, fmt.Errorf("read events after %d: the journal begins with %d, earlier ones are gone; list the objects and read from 0: %w",
			after, oldest, errdefs.ErrOutOfRange)
	}
	i, _ := slices.BinarySearchFunc(l.events, after+1, func(e Event, seq uint64) int { return cmp.Compare(e.Seq, seq) })
	events = slices.Clone(l.events[i:min(i+limit, len(l.events))])
	return events, l.more, nil
}

// LastEvent returns the number of the newest event.
func (db *DB) LastEvent() uint64 {
	db.mu.RLock()
	defer db.mu.RUnlock()
	return db.index.events.last
}

// append takes over what has been written.
func (l *eventLog) append(events []Event) {
	if len(events) == 0 {
		return
	}
	l.events = append(l.events, events...)
	if n := len(l.events) - keepEvents; n > 0 {
		l.events = slices.Delete(l.events, 0, n)
	}
	for i := max(0, len(l.events)-keepRecords-len(events)); i < len(l.events)-keepRecords; i++ {
		l.events[i].Sandbox, l.events[i].Container = nil, nil
	}
	l.last = events[len(events)-1].Seq
	close(l.more)
	l.more = make(chan struct{})
}

// write numbers events, adds them to the database and drops the oldest. A
// transaction that is repeated numbers them anew.
func (l *eventLog) write(tx *bolt.Tx, events []Event) error {
	if len(events) == 0 {
		return nil
	}
	b, err := tx.CreateBucketIfNotExists([]byte(bucketEvents))
	if err != nil {
		return fmt.Errorf("make bucket %s: %w", bucketEvents, err)
	}
	last := l.last
	if k, _ := b.Cursor().Last(); k != nil {
		last = binary.BigEndian.Uint64(k)
	}
	for i := range events {
		last++
		events[i].Seq = last
		e := events[i]
		data, err := json.Marshal(e)
		if err != nil {
			return fmt.Errorf("encode event %s of %s: %w", e.Kind, e.ID, err)
		}
		if err := b.Put(binary.BigEndian.AppendUint64(nil, e.Seq), data); err != nil {
			return fmt.Errorf("put event %d: %w", e.Seq, err)
		}
	}
	c := b.Cursor()
	for k, _ := c.First(); k != nil && binary.BigEndian.Uint64(k) <= last-keepEvents; k, _ = c.First() {
		if err := c.Delete(); err != nil {
			return fmt.Errorf("drop an old event: %w", err)
		}
	}
	return nil
}

// loadEvents reads the journal. One that cannot be read is begun anew: events
// tell of facts, and the facts are elsewhere.
func loadEvents(db *bolt.DB, log *slog.Logger) (*eventLog, error) {
	l := &eventLog{last: uint64(time.Now().UnixMicro()), more: make(chan struct{})}
	err := db.View(func(tx *bolt.Tx) error {
		b := tx.Bucket([]byte(bucketEvents))
		if b == nil {
			return nil
		}
		return b.ForEach(func(k, v []byte) error {
			var e Event
			if len(k) != 8 {
				return fmt.Errorf("key %x is no number", k)
			}
			if err := json.Unmarshal(v, &e); err != nil {
				return fmt.Errorf("event %x: %w", k, err)
			}
			e.Seq = binary.BigEndian.Uint64(k)
			if n := len(l.events); n > 0 && e.Seq != l.events[n-1].Seq+1 {
				return fmt.Errorf("event %d follows %d", e.Seq, l.events[n-1].Seq)
			}
			l.events = append(l.events, e)
			return nil
		})
	})
	switch {
	case err != nil:
		log.Warn("the journal of events cannot be read and is begun anew", "error", err)
		l.events = nil
		return l, db.Update(func(tx *bolt.Tx) error { return tx.DeleteBucket([]byte(bucketEvents)) })
	case len(l.events) > 0:
		l.last = l.events[len(l.events)-1].Seq
	}
	return l, nil
}

// eventsOf derives the events of a change; x is the index before it.
func eventsOf(x *index, c Change, at time.Time) []Event {
	var out []Event
	add := func(kind string, e Event) {
		e.At, e.Kind = at, kind
		out = append(out, e)
	}
	for _, id := range c.DeleteContainers {
		if old, ok := x.containers.byID[id]; ok {
			add(ContainerRemoved, containerEvent(old))
		}
	}
	for _, id := range c.DeleteSandboxes {
		if old, ok := x.sandboxes.byID[id]; ok {
			add(SandboxRemoved, sandboxEvent(old))
		}
	}
	for _, id := range c.DeleteImages {
		if old, ok := x.images.byID[id]; ok {
			add(ImageRemoved, Event{ID: id, Name: imageNames(*old)})
		}
	}
	for _, s := range c.PutSandboxes {
		for _, kind := range sandboxChanges(x.sandboxes.byID[s.ID], s) {
			add(kind, sandboxEvent(&s))
		}
	}
	for _, v := range c.PutContainers {
		for _, kind := range containerChanges(x.containers.byID[v.ID], v) {
			e := containerEvent(&v)
			if kind == ContainerStopped {
				e.ExitCode, e.Reason = v.Facts.Exit.Code, v.Facts.Exit.Reason
			}
			add(kind, e)
		}
	}
	for _, i := range c.PutImages {
		if old := x.images.byID[i.ID]; old == nil {
			add(ImagePulled, Event{ID: i.ID, Name: imageNames(i)})
		}
	}
	withSandboxes(out, x)
	return out
}

func sandboxEvent(s *Sandbox) Event {
	m := s.Config.GetMetadata()
	return Event{ID: s.ID, PodID: s.ID, Name: m.GetName(), Namespace: m.GetNamespace(), Sandbox: s}
}

func containerEvent(c *Container) Event {
	return Event{ID: c.ID, PodID: c.SandboxID, Name: c.Config.GetMetadata().GetName(), Container: c}
}

// sandboxChanges lists what has become of a sandbox; old is nil for a new one.
func sandboxChanges(old *Sandbox, now Sandbox) (kinds []string) {
	if old == nil {
		kinds = append(kinds, SandboxCreated)
	}
	if !now.Facts.StoppedAt.IsZero() && (old == nil || old.Facts.StoppedAt.IsZero()) {
		kinds = append(kinds, SandboxStopped)
	}
	return kinds
}

// containerChanges is the same for a container. A start that is learned after
// the end is no event: it would come in the wrong order.
func containerChanges(old *Container, now Container) (kinds []string) {
	if old == nil {
		kinds = append(kinds, ContainerCreated)
		old = &Container{}
	}
	if old.Facts.Exit != nil {
		return kinds
	}
	if !now.Facts.StartedAt.IsZero() && old.Facts.StartedAt.IsZero() {
		kinds = append(kinds, ContainerStarted)
	}
	if now.Facts.Exit != nil {
		kinds = append(kinds, ContainerStopped)
	}
	return kinds
}

// withSandboxes fills in the pods of containers; x is the index before the change.
func withSandboxes(events []Event, x *index) {
	gone := map[string]*Sandbox{}
	for _, e := range events {
		if e.Kind == SandboxRemoved {
			gone[e.ID] = e.Sandbox
		}
	}
	for i, e := range events {
		if e.Sandbox != nil || e.PodID == "" {
			continue
		}
		s := x.sandboxes.byID[e.PodID]
		if s == nil {
			s = gone[e.PodID]
		}
		if s != nil {
			events[i].Sandbox, events[i].Namespace = s, s.Config.GetMetadata().GetNamespace()
		}
	}
}

func imageNames(i Image) string {
	tags, digests := i.Names()
	return strings.Join(append(tags, digests...), " ")
}

package store

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	bolt "go.etcd.io/bbolt"
)

// Quarantined is a record that could not be read, or one that lost what it
// stands for. It was taken out of its bucket, so that the rest works, and kept.
type Quarantined struct {
	Bucket  string // "sandboxes", "containers", "images", "layers", "ops"
	Key     string // object ID
	Reason  string
	FoundAt time.Time
	Data    []byte // the record's bytes; may be none
}

// Name is how the entry is called: bucket and key.
func (q Quarantined) Name() string { return q.Bucket + "/" + q.Key }

// Quarantined returns the entries of the quarantine. One ends when it is
// dropped, or when its object is made anew.
func (db *DB) Quarantined() []Quarantined {
	db.mu.RLock()
	defer db.mu.RUnlock()
	return slices.Clone(db.bad)
}

// DropQuarantined deletes an entry for good. It is named by Name or a unique
// prefix of its key. It fails with NotFound or InvalidArgument.
func (db *DB) DropQuarantined(ctx context.Context, name string) error {
	q, err := FindQuarantined(db.Quarantined(), name)
	if err != nil {
		return fmt.Errorf("drop quarantined: %w", err)
	}
	return db.Commit(ctx, Change{dropQuarantined: []string{q.Name()}})
}

// FindQuarantined returns the entry with that name or unique prefix of a key.
func FindQuarantined(all []Quarantined, name string) (Quarantined, error) {
	var hits []Quarantined
	for _, q := range all {
		switch {
		case q.Name() == name:
			return q, nil
		case name != "" && strings.HasPrefix(q.Key, name):
			hits = append(hits, q)
		}
	}
	switch len(hits) {
	case 0:
		return Quarantined{}, fmt.Errorf("entry %q of the quarantine: %w", name, errdefs.ErrNotFound)
	case 1:
		return hits[0], nil
	}
	return Quarantined{}, fmt.Errorf("entry %q of the quarantine is ambiguous, give the full name: %w", name, errdefs.ErrInvalidArgument)
}

// withEndedQuarantine completes a change: an object that is put is well again.
func withEndedQuarantine(c Change, bad []Quarantined) Change {
	if len(bad) == 0 {
		return c
	}
	made := map[string]bool{}
	for _, s := range c.PutSandboxes {
		made[bucketSandboxes+"/"+s.ID] = true
	}
	for _, v := range c.PutContainers {
		made[bucketContainers+"/"+v.ID] = true
	}
	for _, i := range c.PutImages {
		made[bucketImages+"/"+i.ID] = true
	}
	for _, l := range c.PutLayers {
		made[bucketLayers+"/"+l.ChainID] = true
	}
	c.dropQuarantined = slices.Clone(c.dropQuarantined)
	for _, q := range bad {
		if made[q.Name()] {
			c.dropQuarantined = append(c.dropQuarantined, q.Name())
		}
	}
	return c
}

// quarantineAfter is the quarantine once the change has been made.
func quarantineAfter(bad []Quarantined, c Change) []Quarantined {
	if len(c.dropQuarantined)+len(c.Quarantine) == 0 {
		return bad
	}
	names := slices.Clone(c.dropQuarantined)
	for _, q := range c.Quarantine {
		names = append(names, q.Name())
	}
	rest := slices.DeleteFunc(slices.Clone(bad), func(q Quarantined) bool { return slices.Contains(names, q.Name()) })
	return append(rest, c.Quarantine...)
}

func applyQuarantine(tx *bolt.Tx, c Change) error {
	b := tx.Bucket([]byte(bucketQuarantine))
	for _, name := range c.dropQuarantined {
		if err := b.Delete([]byte(name)); err != nil {
			return fmt.Errorf("drop quarantined %s: %w", name, err)
		}
	}
	for _, q := range c.Quarantine {
		if err := putQuarantined(tx, q); err != nil {
			return err
		}
	}
	return nil
}

func putQuarantined(tx *bolt.Tx, q Quarantined) error {
	data, err := json.Marshal(q)
	if err != nil {
		return err
	}
	if err := tx.Bucket([]byte(bucketQuarantine)).Put([]byte(q.Name()), data); err != nil {
		return fmt.Errorf("quarantine %s: %w", q.Name(), err)
	}
	return nil
}

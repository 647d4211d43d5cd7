package store

import (
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/containerd/errdefs"
	bolt "go.etcd.io/bbolt"
)

// Quarantined is a record that could not be read when the database was opened.
// It was taken out of its bucket, so that the rest works, and kept as it was.
type Quarantined struct {
	Bucket  string // "sandboxes", "containers", "images", "layers", "ops"
	Key     string // object ID
	Reason  string
	FoundAt time.Time
	Data    []byte // the record's bytes
}

// loader collects what a database holds, and what in it cannot be read.
type loader struct {
	tx    *bolt.Tx
	index *index
	bad   []Quarantined
	now   time.Time
}

// loadIndex reads all records. Bad ones are set aside in one transaction; a
// healthy database is only read.
func loadIndex(db *bolt.DB) (*index, []Quarantined, error) {
	l := loader{index: newIndex(), now: time.Now().UTC()}
	var kept []Quarantined
	stale := false
	err := db.View(func(tx *bolt.Tx) (err error) {
		if err := checkBuckets(tx); err != nil {
			return err
		}
		l.tx = tx
		if err := l.readAll(); err != nil {
			return err
		}
		stale = l.namesAreStale()
		kept, err = readQuarantine(tx)
		return err
	})
	if err != nil {
		return nil, nil, err
	}
	if len(l.bad) == 0 && !stale {
		return l.index, kept, nil
	}
	err = db.Update(func(tx *bolt.Tx) error {
		if err := setAside(tx, l.bad); err != nil {
			return err
		}
		return rewriteNames(tx, l.index)
	})
	if err != nil {
		return nil, nil, fmt.Errorf("set bad records aside: %w", err)
	}
	return l.index, append(kept, l.bad...), nil
}

func checkBuckets(tx *bolt.Tx) error {
	for _, name := range []string{bucketSandboxes, bucketContainers, bucketImages, bucketLayers, bucketOps, bucketNames, bucketQuarantine} {
		if tx.Bucket([]byte(name)) == nil {
			return damaged(fmt.Errorf("bucket %s is missing", name))
		}
	}
	for _, name := range []string{bucketSandboxes, bucketContainers} {
		if namesBucket(tx, name) == nil {
			return damaged(fmt.Errorf("bucket %s/%s is missing", bucketNames, name))
		}
	}
	return nil
}

func (l *loader) readAll() error {
	x := l.index
	return errors.Join(
		read(l, sandboxCodec(), func(s Sandbox) error {
			if owner, ok := x.sandboxNames[SandboxName(s)]; ok {
				return fmt.Errorf("name %q belongs to sandbox %s too", SandboxName(s), owner)
			}
			x.putSandbox(s)
			return nil
		}),
		read(l, containerCodec(), func(c Container) error {
			if owner, ok := x.containerNames[ContainerName(c)]; ok {
				return fmt.Errorf("name %q belongs to container %s too", ContainerName(c), owner)
			}
			x.putContainer(c)
			return nil
		}),
		read(l, imageCodec(), func(i Image) error { x.putImage(i); return nil }),
		read(l, layerCodec(), func(v Layer) error { x.layers.put(v); return nil }),
		read(l, opCodec(), func(o Op) error { x.ops.put(o); return nil }),
	)
}

func read[T any](l *loader, c codec[T], add func(T) error) error {
	return l.tx.Bucket([]byte(c.bucket)).ForEach(func(k, v []byte) error {
		obj, err := c.decode(string(k), v)
		if err == nil {
			err = add(obj)
		}
		if err != nil {
			l.bad = append(l.bad, Quarantined{
				Bucket: c.bucket, Key: string(k), Reason: err.Error(), FoundAt: l.now, Data: append([]byte{}, v...),
			})
		}
		return nil
	})
}

// namesAreStale reports whether the names buckets differ from the records:
// the name of a record that was set aside would be taken for ever.
func (l *loader) namesAreStale() bool {
	return differs(namesBucket(l.tx, bucketSandboxes), l.index.sandboxNames) ||
		differs(namesBucket(l.tx, bucketContainers), l.index.containerNames)
}

func differs(b *bolt.Bucket, want map[string]string) bool {
	n, same := 0, true
	_ = b.ForEach(func(k, v []byte) error {
		n++
		same = same && want[string(k)] == string(v)
		return nil
	})
	return !same || n != len(want)
}

func rewriteNames(tx *bolt.Tx, x *index) error {
	names := tx.Bucket([]byte(bucketNames))
	for kind, want := range map[string]map[string]string{bucketSandboxes: x.sandboxNames, bucketContainers: x.containerNames} {
		if err := names.DeleteBucket([]byte(kind)); err != nil {
			return err
		}
		b, err := names.CreateBucket([]byte(kind))
		if err != nil {
			return err
		}
		for name, id := range want {
			if err := b.Put([]byte(name), []byte(id)); err != nil {
				return err
			}
		}
	}
	return nil
}

func setAside(tx *bolt.Tx, bad []Quarantined) error {
	for _, q := range bad {
		data, err := json.Marshal(q)
		if err != nil {
			return err
		}
		if err := tx.Bucket([]byte(bucketQuarantine)).Put([]byte(q.Bucket+"/"+q.Key), data); err != nil {
			return err
		}
		if err := tx.Bucket([]byte(q.Bucket)).Delete([]byte(q.Key)); err != nil {
			return err
		}
	}
	return nil
}

func readQuarantine(tx *bolt.Tx) ([]Quarantined, error) {
	var out []Quarantined
	err := tx.Bucket([]byte(bucketQuarantine)).ForEach(func(k, v []byte) error {
		q := Quarantined{}
		if err := json.Unmarshal(v, &q); err != nil {
			// Still worth showing; the quarantine must never stop a start.
			q = Quarantined{Key: string(k), Reason: errors.Join(err, errdefs.ErrDataLoss).Error(), Data: append([]byte{}, v...)}
		}
		out = append(out, q)
		return nil
	})
	return out, err
}

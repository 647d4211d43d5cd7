package store

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	bolt "go.etcd.io/bbolt"
)

// loader collects what a database holds, and what in it cannot be read.
type loader struct {
	tx    *bolt.Tx
	index *index
	bad   []Quarantined
	now   time.Time
	files *mirror
	// healed are records that could not be read, by the copies in their
	// objects' directories.
	healed map[objectKey][]byte
}

// loadIndex reads all records. Bad ones are set aside in one transaction; a
// healthy database is only read.
func loadIndex(db *bolt.DB, files *mirror) (*index, []Quarantined, error) {
	l := loader{index: newIndex(), now: time.Now().UTC(), files: files, healed: map[objectKey][]byte{}}
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
		if stale, err = l.namesAreStale(); err != nil {
			return err
		}
		kept, err = readQuarantine(tx)
		return err
	})
	if err != nil {
		return nil, nil, err
	}
	if len(l.bad) == 0 && len(l.healed) == 0 && !stale {
		return l.index, kept, nil
	}
	err = db.Update(func(tx *bolt.Tx) error {
		if err := errors.Join(setAside(tx, l.bad), l.heal(tx)); err != nil {
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
		read(l, layerCodec(), func(v Layer) error { x.putLayer(v); return nil }),
		read(l, opCodec(), func(o Op) error { x.ops.put(o); return nil }),
	)
}

func read[T any](l *loader, c codec[T], add func(T) error) error {
	return l.tx.Bucket([]byte(c.bucket)).ForEach(func(k, v []byte) error {
		obj, err := c.decode(string(k), v)
		if errors.Is(err, errMisplaced) || err != nil && !mayBeKey(c.bucket, string(k)) {
			return damaged(err)
		}
		if err != nil {
			obj, err = fromCopy(l, c, string(k), err)
		}
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

// fromCopy reads the copy of a record that cannot be read; err says why.
func fromCopy[T any](l *loader, c codec[T], id string, err error) (T, error) {
	var none T
	k := objectKey{c.bucket, id}
	have := l.files.find(k)
	if have.record == nil || have.schema != l.files.schema {
		return none, err
	}
	obj, copyErr := c.decode(id, have.record)
	if copyErr != nil {
		return none, err
	}
	l.files.log.Warn("a record cannot be read; the copy in the object's directory takes its place", "kind", c.kind, "id", id, "error", err)
	l.healed[k] = have.record
	return obj, nil
}

func (l *loader) heal(tx *bolt.Tx) error {
	for k, record := range l.healed {
		if err := tx.Bucket([]byte(k.bucket)).Put([]byte(k.id), record); err != nil {
			return err
		}
	}
	return nil
}

// mayBeKey tells the key of an image or layer from one that is damaged. Those of
// sandboxes and containers are compared with the names.
func mayBeKey(bucket, key string) bool {
	_, hex, _ := strings.Cut(key, ":")
	return bucket != bucketImages && bucket != bucketLayers || plainImageID(key) && len(hex)%64 == 0
}

// namesAreStale reports whether the names buckets differ from the records:
// the name of a record that was set aside would be taken for ever. A name of
// something that has no record, not even a bad one, shows a damaged key.
func (l *loader) namesAreStale() (stale bool, err error) {
	for kind, want := range map[string]map[string]string{bucketSandboxes: l.index.sandboxNames, bucketContainers: l.index.containerNames} {
		n, records := 0, l.tx.Bucket([]byte(kind))
		err = errors.Join(err, namesBucket(l.tx, kind).ForEach(func(k, v []byte) error {
			n++
			if records.Get(v) == nil {
				return damaged(fmt.Errorf("name %q belongs to %q, which has no record", k, v))
			}
			stale = stale || want[string(k)] != string(v)
			return nil
		}))
		stale = stale || n != len(want)
	}
	return stale, err
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
		if err := putQuarantined(tx, q); err != nil {
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

package store

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	bolt "go.etcd.io/bbolt"
)

// A database that is damaged or gone is rebuilt. The directories say which
// objects exist, their files say what they are; where a file cannot be read,
// the backup's record serves, and where that has none either, the object is
// quarantined. Neither the journal nor anything else is taken from the backup:
// what has changed since it was made would come back. What a verb left half
// done is found by comparing the records with the node, as after any start.

// found is one object that the rebuild knows of.
type found struct {
	key    objectKey
	schema int    // that its record was written under
	record []byte // nil: not readable
	reason string // why
	data   []byte // of the file that is not readable; nil: there is no file
}

// rebuild makes a new database beside path, at the path it returns, of what
// the directories hold. It refuses what a newer Berth has written.
func rebuild(path string, m *mirror, sch schema, writer string) (tmp string, all []found, err error) {
	if all, err = m.collect(); err != nil {
		return "", nil, err
	}
	for _, o := range all {
		if o.schema > sch.version {
			return "", nil, fmt.Errorf("record of %s %s has schema %d; this Berth knows up to schema %d: run the newer Berth: %w",
				o.key.bucket, o.key.id, o.schema, sch.version, errdefs.ErrFailedPrecondition)
		}
	}
	fillFrom(backupPath(path), sch.version, all)
	tmp = path + ".rebuilt"
	if err := removeFile(tmp); err != nil {
		return "", nil, err
	}
	db, err := bolt.Open(tmp, 0o600, &bolt.Options{Timeout: time.Second})
	if err != nil {
		return "", nil, err
	}
	err = errors.Join(db.Update(func(tx *bolt.Tx) error { return fill(tx, all, sch, writer) }), db.Close())
	return tmp, all, err
}

// fill makes the schema and puts the records in, each at its own version.
func fill(tx *bolt.Tx, all []found, sch schema, writer string) error {
	if err := createSchema(tx, sch, writer); err != nil {
		return err
	}
	now := time.Now().UTC()
	for _, o := range all {
		if o.record != nil || o.data == nil {
			continue // what has no file either was being made, and was never committed
		}
		q := Quarantined{Bucket: o.key.bucket, Key: o.key.id, Reason: o.reason, FoundAt: now, Data: o.data}
		if err := putQuarantined(tx, q); err != nil {
			return err
		}
	}
	for v := 1; v <= sch.version; v++ {
		for _, o := range all {
			if o.schema != v || o.record == nil {
				continue
			}
			if err := tx.Bucket([]byte(o.key.bucket)).Put([]byte(o.key.id), o.record); err != nil {
				return err
			}
		}
		if m, ok := findMigration(sch.migrations, v); ok && v < sch.version {
			if err := m.apply(tx); err != nil {
				return fmt.Errorf("migrate schema %d to %d: %w", v, v+1, err)
			}
		}
	}
	return nil
}

// fillFrom takes the records that are missing from the backup.
func fillFrom(backup string, newest int, all []found) {
	missing := false
	for _, o := range all {
		missing = missing || o.record == nil
	}
	if !missing || verify(backup) != nil {
		return
	}
	// An error leaves what it could not read in quarantine.
	_ = readOnly(backup, func(tx *bolt.Tx) error {
		h, err := headerOf(tx)
		if err != nil || h.version > newest {
			return err
		}
		for i, o := range all {
			if o.record != nil {
				continue
			}
			if b := tx.Bucket([]byte(o.key.bucket)).Get([]byte(o.key.id)); intact(o.key.id, b) {
				all[i].record, all[i].schema = append([]byte{}, b...), h.version
			}
		}
		return nil
	})
}

// collect lists the objects that have a directory or a file.
func (m *mirror) collect() ([]found, error) {
	var all []found
	for _, bucket := range []string{bucketSandboxes, bucketContainers} {
		names, err := namesIn(filepath.Join(m.dir, bucket))
		if err != nil {
			return nil, err
		}
		for _, id := range names {
			if isObjectID(id) {
				all = append(all, m.find(objectKey{bucket, id}))
			}
		}
	}
	names, err := namesIn(filepath.Join(m.dir, dirImages))
	if err != nil {
		return nil, err
	}
	for _, n := range names {
		if id := imageOfFile(n); plainImageID(id) {
			all = append(all, m.find(objectKey{bucketImages, id}))
		}
	}
	if names, err = namesIn(filepath.Join(m.dir, bucketLayers)); err != nil {
		return nil, err
	}
	for _, n := range names {
		if isObjectID(n) {
			all = append(all, m.find(objectKey{bucketLayers, "sha256:" + n}))
		}
	}
	return all, nil
}

func namesIn(dir string) ([]string, error) {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names, err
}

// find reads the copy of an object's record.
func (m *mirror) find(k objectKey) found {
	if hex, ok := strings.CutPrefix(k.id, "sha256:"); ok && k.bucket == bucketLayers && isObjectID(hex) {
		return m.findLayer(hex)
	}
	record, schema, err := m.read(k)
	if err == nil {
		return found{key: k, schema: schema, record: record}
	}
	data, _ := readSmall(m.path(k))
	return found{key: k, reason: err.Error(), data: data}
}

// findLayer makes a layer's record of its layer.json. Its form has not changed
// since schema 1, so it counts as one of the newest.
func (m *mirror) findLayer(hex string) found {
	o := found{key: objectKey{bucketLayers, "sha256:" + hex}, schema: m.schema}
	data, err := readSmall(filepath.Join(m.dir, bucketLayers, hex, fileLayer))
	var file struct{ Layer Layer }
	if err == nil {
		err = json.Unmarshal(data, &file)
	}
	if err == nil && file.Layer.ChainID != o.key.id {
		err = fmt.Errorf("%s is of layer %q: %w", fileLayer, file.Layer.ChainID, errdefs.ErrDataLoss)
	}
	if err == nil {
		o.record, err = layerCodec().encode(file.Layer)
	}
	if err != nil {
		o.schema, o.reason, o.data = 0, err.Error(), data
	}
	return o
}

// exists reports whether any object has left a record: then a database that is
// missing or empty has been lost, and is not a new one.
func (m *mirror) exists() (bool, error) {
	all, err := m.collect()
	for _, o := range all {
		if o.record != nil || o.data != nil {
			return true, err
		}
	}
	return false, err
}

// replaceDatabase puts the rebuilt database into place. The damaged one is
// kept beside it, if told so, under the name that is returned.
func replaceDatabase(path, rebuilt string, keep bool) (kept string, err error) {
	if keep {
		kept = path + ".damaged-" + time.Now().UTC().Format("20060102T150405.000Z")
		if err := os.Rename(path, kept); err != nil {
			return "", err
		}
	}
	if err := os.Rename(rebuilt, path); err != nil {
		return kept, err
	}
	return kept, syncDir(filepath.Dir(path))
}

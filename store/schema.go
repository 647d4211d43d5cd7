package store

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"strconv"
	"time"

	"github.com/containerd/errdefs"
	bolt "go.etcd.io/bbolt"
)

// schemaVersion is what this build writes. Raise it together with a new entry
// in migrations, and add a database of the old version to testdata.
const schemaVersion = 1

// migration lifts a database from version `from` to from+1.
type migration struct {
	from  int
	apply func(tx *bolt.Tx) error
}

// schema is the version to reach and the way there.
type schema struct {
	version    int
	migrations []migration
}

// currentSchema has no migrations yet: version 1 is the first.
func currentSchema() schema { return schema{version: schemaVersion} }

const (
	keySchema    = "schema"
	keySum       = "schema-sum"
	keyCreatedBy = "created-by"
	keyCreatedAt = "created-at"
	keyWrittenBy = "written-by"
)

// prepareSchema makes a new database, migrates an old one, accepts a current
// one without a write, and refuses anything else without a write.
func prepareSchema(db *bolt.DB, sch schema, writer string) error {
	have, empty, err := readSchema(db)
	switch {
	case err != nil:
		return err
	case empty:
		return db.Update(func(tx *bolt.Tx) error { return createSchema(tx, sch, writer) })
	case have.version == sch.version:
		return nil
	case have.version > sch.version:
		return fmt.Errorf("database has schema %d, written by Berth %s; this Berth knows up to schema %d: run the newer Berth: %w",
			have.version, have.writer, sch.version, errdefs.ErrFailedPrecondition)
	}
	if err := backup(db, have.version); err != nil {
		return fmt.Errorf("copy the database before its migration: %w", err)
	}
	return db.Update(func(tx *bolt.Tx) error { return migrate(tx, have.version, sch, writer) })
}

type schemaHeader struct {
	version int
	writer  string
}

func readSchema(db *bolt.DB) (h schemaHeader, empty bool, err error) {
	err = db.View(func(tx *bolt.Tx) error {
		if first, _ := tx.Cursor().First(); first == nil {
			empty = true
			return nil
		}
		h, err = headerOf(tx)
		return err
	})
	return h, empty, err
}

func headerOf(tx *bolt.Tx) (h schemaHeader, err error) {
	meta := tx.Bucket([]byte(bucketMeta))
	if meta == nil {
		if tx.Bucket([]byte(bucketSandboxes)) != nil || tx.Bucket([]byte(bucketContainers)) != nil {
			return h, damaged(fmt.Errorf("bucket %s is missing", bucketMeta))
		}
		return h, fmt.Errorf("database is not one of Berth: %w", errdefs.ErrFailedPrecondition)
	}
	h.writer = string(meta.Get([]byte(keyWrittenBy)))
	raw := string(meta.Get([]byte(keySchema)))
	if h.version, err = strconv.Atoi(raw); err != nil || h.version < 1 || !sumFits(meta.Get([]byte(keySum)), raw) {
		return h, damaged(fmt.Errorf("schema version is %q", raw))
	}
	return h, nil
}

// putSchema notes the version, with a checksum: a flipped bit must not make it a newer one's.
func putSchema(meta *bolt.Bucket, version int, writer string) error {
	v := strconv.Itoa(version)
	return errors.Join(
		meta.Put([]byte(keySchema), []byte(v)),
		meta.Put([]byte(keySum), sumOf(v)),
		meta.Put([]byte(keyWrittenBy), []byte(writer)),
	)
}

func sumOf(version string) []byte { return fmt.Appendf(nil, "%08x", checksum([]byte(version))) }

func sumFits(sum []byte, version string) bool {
	return sum == nil || bytes.Equal(sum, sumOf(version))
}

func createSchema(tx *bolt.Tx, sch schema, writer string) error {
	for _, name := range []string{bucketMeta, bucketSandboxes, bucketContainers, bucketImages, bucketLayers, bucketOps, bucketNames, bucketQuarantine} {
		if _, err := tx.CreateBucket([]byte(name)); err != nil {
			return fmt.Errorf("create bucket %s: %w", name, err)
		}
	}
	for _, name := range []string{bucketSandboxes, bucketContainers} {
		if _, err := tx.Bucket([]byte(bucketNames)).CreateBucket([]byte(name)); err != nil {
			return fmt.Errorf("create bucket %s/%s: %w", bucketNames, name, err)
		}
	}
	meta := tx.Bucket([]byte(bucketMeta))
	return errors.Join(
		putSchema(meta, sch.version, writer),
		meta.Put([]byte(keyCreatedBy), []byte(writer)),
		meta.Put([]byte(keyCreatedAt), []byte(time.Now().UTC().Format(time.RFC3339))),
	)
}

// migrate runs all migrations in the one transaction, so that a crash leaves
// the old version or the new one.
func migrate(tx *bolt.Tx, from int, sch schema, writer string) error {
	for v := from; v < sch.version; v++ {
		m, ok := findMigration(sch.migrations, v)
		if !ok {
			return fmt.Errorf("database has schema %d and there is no migration from %d to %d: %w", from, v, v+1, errdefs.ErrFailedPrecondition)
		}
		if err := m.apply(tx); err != nil {
			return fmt.Errorf("migrate schema %d to %d: %w", v, v+1, err)
		}
	}
	meta := tx.Bucket([]byte(bucketMeta))
	return putSchema(meta, sch.version, writer)
}

func findMigration(ms []migration, from int) (migration, bool) {
	for _, m := range ms {
		if m.from == from {
			return m, true
		}
	}
	return migration{}, false
}

// backup leaves a copy beside the database, <name>.schema-<version>, for the
// way back to the older Berth. A copy that is there already and whole is kept.
func backup(db *bolt.DB, version int) error {
	path := fmt.Sprintf("%s.schema-%d", db.Path(), version)
	if st, err := os.Stat(path); err == nil && st.Size() > 0 && wholeCopy(path) == nil {
		return nil
	}
	return copyDatabase(db, path, wholeCopy)
}

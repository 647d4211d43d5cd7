// Package store keeps the facts of the node: it is the only importer of bbolt.
//
// Writes are durable when the call returns; reads are served from memory. The
// bucket tree of <state directory>/berth.db:
//
//	meta
//	    schema       decimal schema version
//	    created-by   version of the Berth that made the database
//	    created-at   RFC 3339
//	    written-by   version of the Berth that migrated it last
//	sandboxes        sandbox ID   -> record: CRI config, facts
//	containers       container ID -> record: CRI config, facts
//	images           image ID     -> record: image config, facts
//	layers           chain ID     -> record: facts
//	ops              op ID        -> record: payload, facts (the journal)
//	names
//	    sandboxes    unique name  -> sandbox ID
//	    containers   unique name  -> container ID
//	quarantine       <bucket>/<key> -> JSON: a record that could not be read
//
// A record is a checksummed, versioned envelope; see codec.go.
package store

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime/debug"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	bolt "go.etcd.io/bbolt"
	berrors "go.etcd.io/bbolt/errors"
)

const (
	bucketMeta       = "meta"
	bucketSandboxes  = "sandboxes"
	bucketContainers = "containers"
	bucketImages     = "images"
	bucketLayers     = "layers"
	bucketOps        = "ops"
	bucketNames      = "names"
	bucketQuarantine = "quarantine"
)

// Config says where the database lives.
type Config struct {
	Dir         string        // state directory, made when missing; the database is Dir/berth.db
	Version     string        // of this Berth, noted in a database it makes; "" is "unknown"
	LockTimeout time.Duration // how long Open waits for another daemon to leave; 0: one second
}

// Validate reports what is wrong with the configuration.
func (c Config) Validate() error {
	if c.Dir == "" {
		return fmt.Errorf("state directory is empty: %w", errdefs.ErrInvalidArgument)
	}
	if c.LockTimeout < 0 {
		return fmt.Errorf("lock timeout %s is negative: %w", c.LockTimeout, errdefs.ErrInvalidArgument)
	}
	return nil
}

// DB is the store of facts. Its methods may be called at the same time.
//
// Records handed in and out share what they point to with the store: maps,
// slices and messages inside a record must not be modified, neither by the
// one who commits it nor by the one who reads it. Replace them instead.
type DB struct {
	path   string
	bolt   *bolt.DB
	lock   *dirLock
	commit sync.Mutex   // one writer; held over transaction and index
	mu     sync.RWMutex // guards index, bad, live
	index  *index
	bad    []Quarantined
	live   map[string]struct{} // journal entries a goroutine works on
}

// Open opens or creates the database and loads it into memory. It fails with
// FailedPrecondition when another daemon uses the directory or a newer Berth
// has written the database, and with DataLoss when the file is damaged; in
// all these cases nothing is changed.
func Open(cfg Config) (*DB, error) {
	return open(cfg, currentSchema())
}

func open(cfg Config, sch schema) (_ *DB, err error) {
	if err := cfg.Validate(); err != nil {
		return nil, fmt.Errorf("open store: %w", err)
	}
	if cfg.Version == "" {
		cfg.Version = "unknown"
	}
	if cfg.LockTimeout == 0 {
		cfg.LockTimeout = time.Second
	}
	if err := os.MkdirAll(cfg.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("open store: %w", err)
	}
	lock, err := lockDir(cfg.Dir, cfg.LockTimeout)
	if err != nil {
		return nil, fmt.Errorf("open store %s: %w", cfg.Dir, err)
	}
	db := &DB{path: filepath.Join(cfg.Dir, "berth.db"), lock: lock, live: map[string]struct{}{}}
	if err := db.load(cfg, sch); err != nil {
		return nil, errors.Join(fmt.Errorf("open store %s: %w", db.path, err), db.close())
	}
	return db, nil
}

// load opens the file and reads it whole. bbolt panics on damaged pages, and
// a file cut short faults when it is read through the memory map; both come
// back as an error here.
func (db *DB) load(cfg Config, sch schema) (err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if r := recover(); r != nil {
			db.bolt = nil // its locks may be held: it cannot be closed any more
			err = damaged(fmt.Errorf("%v", r))
		}
	}()
	db.bolt, err = bolt.Open(db.path, 0o600, &bolt.Options{
		Timeout:         cfg.LockTimeout,
		PreLoadFreelist: true,
	})
	switch {
	case errors.Is(err, berrors.ErrTimeout):
		return fmt.Errorf("database is locked by another program: %w", errdefs.ErrFailedPrecondition)
	case errors.Is(err, berrors.ErrInvalid), errors.Is(err, berrors.ErrChecksum), errors.Is(err, berrors.ErrVersionMismatch):
		return damaged(err)
	case err != nil:
		return err
	}
	if err := prepareSchema(db.bolt, sch, cfg.Version); err != nil {
		return err
	}
	if err := syncDir(cfg.Dir); err != nil {
		return err
	}
	db.index, db.bad, err = loadIndex(db.bolt)
	return err
}

func damaged(err error) error {
	return fmt.Errorf("database is damaged, move it aside or restore a copy of it: %w: %w", err, errdefs.ErrDataLoss)
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// Close closes the database and lets another daemon have the directory.
// Reads keep working, writes fail.
func (db *DB) Close() error {
	db.commit.Lock()
	defer db.commit.Unlock()
	return db.close()
}

func (db *DB) close() error {
	var err error
	if db.bolt != nil {
		err = db.bolt.Close()
	}
	err = errors.Join(err, db.lock.release())
	if err != nil {
		return fmt.Errorf("close store %s: %w", db.path, err)
	}
	return nil
}

// Commit applies a change in one synced transaction: deletions first, then
// puts. Deleting what does not exist is no error. It fails with AlreadyExists
// when a sandbox or container name belongs to another ID, with
// InvalidArgument for a record without an ID and with ResourceExhausted when
// the disk is full; then nothing has changed.
//
// A tag or digest reference belongs to one image: an image that is put takes
// its references away from any other image.
func (db *DB) Commit(ctx context.Context, c Change) error {
	db.commit.Lock()
	defer db.commit.Unlock()
	c = db.index.withMovedRefs(c) // only a writer changes the index
	err := db.update(ctx, func(tx *bolt.Tx) error { return applyChange(tx, c) })
	if err != nil {
		return fmt.Errorf("commit to store: %w", err)
	}
	db.mu.Lock()
	defer db.mu.Unlock()
	db.index.apply(c)
	return nil
}

// BeginOp writes a journal entry; it is durable when the call returns. The
// entry is claimed for the caller (see ClaimOp). It fails with AlreadyExists
// when the ID is taken.
func (db *DB) BeginOp(ctx context.Context, o Op) error {
	db.commit.Lock()
	defer db.commit.Unlock()
	if _, ok := db.index.ops.byID[o.ID]; ok {
		return fmt.Errorf("begin op %s: %w", o.ID, errdefs.ErrAlreadyExists)
	}
	err := db.update(ctx, func(tx *bolt.Tx) error { return putRecord(tx, opCodec(), o) })
	if err != nil {
		return fmt.Errorf("begin op %s: %w", o.ID, err)
	}
	db.mu.Lock()
	defer db.mu.Unlock()
	db.index.ops.put(o)
	db.live[o.ID] = struct{}{}
	return nil
}

// update runs one transaction and classifies its failure.
func (db *DB) update(ctx context.Context, fn func(*bolt.Tx) error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	err := db.bolt.Update(fn)
	switch {
	case err == nil:
		return nil
	case isDiskFull(err):
		return fmt.Errorf("no space left for %s, free some: %w: %w", db.path, err, errdefs.ErrResourceExhausted)
	case errors.Is(err, berrors.ErrDatabaseNotOpen):
		return fmt.Errorf("store is closed: %w", errdefs.ErrUnavailable)
	}
	return err
}

// Package store keeps the facts of the node: it is the only one that writes bbolt.
//
// Writes are durable when the call returns; reads are served from memory. The
// bucket tree of <state directory>/berth.db:
//
//	meta
//	    schema       decimal schema version
//	    schema-sum   its checksum; earlier versions wrote none
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
//	events           number, 8 bytes big endian -> JSON (made when first needed)
//
// A record is a checksummed, versioned envelope; see codec.go. Each object's own
// directory holds a copy of it (mirror.go), from which a database that is
// damaged or gone is rebuilt (rebuild.go).
package store

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"runtime/debug"
	"sync"
	"syscall"
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
	bucketEvents     = "events"
)

// Config says where the database lives.
type Config struct {
	Dir         string        // state directory, made when missing; the database is Dir/berth.db
	Version     string        // of this Berth, noted in a database it makes; "" is "unknown"
	LockTimeout time.Duration // how long Open waits for another daemon to leave; 0: one second
	BackupEvery time.Duration // longest time between a change and a backup; 0: ten minutes
	Logger      *slog.Logger  // nil: discard
	Copy        bool          // of a database alone: one that is empty or damaged is DataLoss, there is nothing to rebuild it from
}

func (c Config) withDefaults() Config {
	if c.Version == "" {
		c.Version = "unknown"
	}
	if c.LockTimeout == 0 {
		c.LockTimeout = time.Second
	}
	if c.BackupEvery <= 0 {
		c.BackupEvery = backupEvery
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	return c
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
	queue  writers      // wait for the next transaction
	commit sync.Mutex   // one transaction; held over it and the index
	mu     sync.RWMutex // guards index, bad, live
	index  *index
	bad    []Quarantined
	live   map[string]struct{} // journal entries a goroutine works on
	left   chan struct{}       // tells that a verb left its entry
	files  *mirror             // used under commit
	copies *backups
}

// Open opens or creates the database and loads it into memory. One that is
// damaged or gone is rebuilt from the objects' directories; the damaged file is
// kept, renamed. It fails with FailedPrecondition when another daemon uses the
// directory or a newer Berth has written the database; then nothing is changed.
func Open(cfg Config) (*DB, error) {
	return open(cfg, currentSchema())
}

func open(cfg Config, sch schema) (_ *DB, err error) {
	if err := cfg.Validate(); err != nil {
		return nil, fmt.Errorf("open store: %w", err)
	}
	cfg = cfg.withDefaults()
	if err := os.MkdirAll(cfg.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("open store: %w", err)
	}
	lock, err := lockDir(cfg.Dir, cfg.LockTimeout)
	if err != nil {
		return nil, fmt.Errorf("open store %s: %w", cfg.Dir, err)
	}
	db := &DB{path: filepath.Join(cfg.Dir, "berth.db"), lock: lock, live: map[string]struct{}{}, left: make(chan struct{}, 1)}
	db.files = &mirror{dir: cfg.Dir, schema: sch.version, log: cfg.Logger, stale: map[objectKey]struct{}{}}
	db.copies = &backups{every: cfg.BackupEvery, log: cfg.Logger, run: db.backUp}
	err = db.load(cfg, sch)
	if err == nil {
		err = db.files.match(db.bolt, db.index)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open store %s: %w", db.path, err), db.close())
	}
	return db, nil
}

// load reads the database, and rebuilds it first when that cannot be done.
func (db *DB) load(cfg Config, sch schema) error {
	st, statErr := os.Stat(db.path)
	keep := statErr == nil && st.Size() > 0
	err := db.read(cfg, sch)
	if !errdefs.IsDataLoss(err) || cfg.Copy {
		return err
	}
	if db.bolt != nil {
		_ = db.bolt.Close() // nothing was written to it
		db.bolt = nil
	}
	tmp, all, rebuildErr := rebuild(db.path, db.files, sch, cfg.Version)
	if rebuildErr != nil {
		return errors.Join(err, fmt.Errorf("rebuild the database: %w", rebuildErr))
	}
	kept, rebuildErr := replaceDatabase(db.path, tmp, keep)
	if rebuildErr != nil {
		return errors.Join(err, fmt.Errorf("replace the database: %w", rebuildErr))
	}
	cfg.Logger.Error("the database was rebuilt from the directories of the objects", "reason", err, "objects", len(all), "kept", kept)
	if err := db.read(cfg, sch); err != nil {
		return err
	}
	db.copies.changed()
	return nil
}

// read opens the file and reads it whole. What bbolt panics on, and what faults
// when it is read through the memory map, comes back as an error here.
func (db *DB) read(cfg Config, sch schema) (err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if r := recover(); r != nil {
			db.bolt = nil // its locks may be held: it cannot be closed any more
			err = damaged(fmt.Errorf("%v", r))
		}
	}()
	if err := CheckPages(db.path, cfg.LockTimeout); err != nil {
		return err
	}
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
	if err := db.refuseLost(cfg.Copy); err != nil {
		return err
	}
	if err := prepareSchema(db.bolt, sch, cfg.Version); err != nil {
		return err
	}
	if err := syncDir(cfg.Dir); err != nil {
		return err
	}
	if db.index, db.bad, err = loadIndex(db.bolt, db.files); err != nil {
		return err
	}
	db.index.events, err = loadEvents(db.bolt, cfg.Logger)
	return err
}

// refuseLost says that a database without anything in it has been lost, when
// there are objects, or may have been because it is a copy.
func (db *DB) refuseLost(isCopy bool) error {
	_, empty, err := readSchema(db.bolt)
	if err != nil || !empty {
		return err
	}
	if isCopy {
		return damaged(errors.New("it is empty"))
	}
	lost, err := db.files.exists()
	if err == nil && lost {
		err = damaged(errors.New("it is empty, and there are objects"))
	}
	return err
}

func damaged(err error) error {
	return fmt.Errorf("database is damaged: %w: %w", err, errdefs.ErrDataLoss)
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// Close backs the database up, closes it and lets another daemon have the
// directory. Reads keep working, writes fail.
func (db *DB) Close() error {
	db.copies.end()
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
//
// The events of the change are written with it (see Events).
func (db *DB) Commit(ctx context.Context, c Change) error {
	var (
		full   Change
		events []Event
	)
	err := db.submit(&writer{
		ctx: ctx, alone: len(c.PutImages)+len(c.DeleteImages) > 0,
		tx: func(tx *bolt.Tx) error {
			full = withEndedQuarantine(db.index.withMovedRefs(c), db.bad) // only a writer changes them
			events = eventsOf(db.index, full, time.Now())
			return errors.Join(applyChange(tx, full), db.index.events.write(tx, events))
		},
		after: func() {
			db.applied(full, events)
			db.files.follow(full, db.index)
			db.copies.changed()
		},
	})
	if err != nil {
		return fmt.Errorf("commit to store: %w", err)
	}
	return nil
}

// applied lets readers see a change.
func (db *DB) applied(c Change, events []Event) {
	db.mu.Lock()
	defer db.mu.Unlock()
	db.index.apply(c)
	db.index.events.append(events)
	db.bad = quarantineAfter(db.bad, c)
}

// BeginOp writes a journal entry; it is durable when the call returns. The
// entry is claimed for the caller (see ClaimOp). It fails with AlreadyExists
// when the ID is taken.
func (db *DB) BeginOp(ctx context.Context, o Op) error {
	err := db.submit(&writer{
		ctx: ctx,
		tx: func(tx *bolt.Tx) error {
			if tx.Bucket([]byte(bucketOps)).Get([]byte(o.ID)) != nil {
				return errdefs.ErrAlreadyExists
			}
			return putRecord(tx, opCodec(), o)
		},
		after: func() {
			db.mu.Lock()
			defer db.mu.Unlock()
			db.index.ops.put(o)
			db.live[o.ID] = struct{}{}
		},
	})
	if err != nil {
		return fmt.Errorf("begin op %s: %w", o.ID, err)
	}
	return nil
}

// endIfDamaged ends the daemon after a panic in a transaction, when its database has
// been damaged since the start: every other call would fail, and whoever serves calls
// catches panics. The next start rebuilds the database.
func (db *DB) endIfDamaged(p any) {
	f, err := os.Open(db.path)
	if err == nil {
		err = errors.Join(walkFile(f), f.Close())
	}
	if errdefs.IsDataLoss(err) {
		go panic(fmt.Sprintf("%s: %v; after a panic in a transaction: %v", db.path, err, p))
		select {}
	}
}

// update runs one transaction and classifies its failure.
func (db *DB) update(fn func(*bolt.Tx) error) error {
	defer func() {
		if p := recover(); p != nil {
			db.endIfDamaged(p)
			panic(p)
		}
	}()
	err := db.bolt.Update(fn)
	switch {
	case err == nil:
		return nil
	case isDiskFull(err):
		return fmt.Errorf("no space left for %s, free some: %w: %w", db.path, err, errdefs.ErrResourceExhausted)
	case errors.Is(err, syscall.EROFS), errors.Is(err, syscall.EIO):
		return fmt.Errorf("the file system of %s cannot be written; the kernel's log says why, repair it and restart the node: %w: %w", db.path, err, errdefs.ErrFailedPrecondition)
	case errors.Is(err, berrors.ErrDatabaseNotOpen):
		return fmt.Errorf("store is closed: %w", errdefs.ErrUnavailable)
	}
	return err
}

package store

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"runtime/debug"
	"sync"
	"time"

	bolt "go.etcd.io/bbolt"
)

// backupEvery is how long changes wait for the next backup.
const backupEvery = 10 * time.Minute

// backups keep a copy of the database at <name>.backup. It is read back and
// checked before it takes the place of the one before. One is made some time
// after a change, and at the end; an idle node makes none.
type backups struct {
	every time.Duration
	log   *slog.Logger
	run   func() error

	work  sync.Mutex // one copy at a time
	mu    sync.Mutex
	timer *time.Timer // nil: nothing has changed since the last copy
	ended bool
}

// changed arms the timer. It must be quick: commits call it.
func (b *backups) changed() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.timer == nil && !b.ended {
		b.timer = time.AfterFunc(b.every, func() { b.take() })
	}
}

// take makes a copy if something has changed.
func (b *backups) take() {
	b.work.Lock()
	defer b.work.Unlock()
	b.mu.Lock()
	due := b.timer != nil
	if due {
		b.timer.Stop()
		b.timer = nil
	}
	b.mu.Unlock()
	if !due {
		return
	}
	if err := b.run(); err != nil {
		b.log.Warn("cannot back up the database; the last backup stays", "error", err)
	}
}

// end takes the last copy; changes after it arm nothing.
func (b *backups) end() {
	b.mu.Lock()
	b.ended = true
	b.mu.Unlock()
	b.take()
}

func backupPath(path string) string { return path + ".backup" }

// backUp copies the database, checks the copy and puts it in place.
func (db *DB) backUp() error {
	to := backupPath(db.path)
	if err := copyDatabase(db.bolt, to, verify); err != nil {
		return fmt.Errorf("back up %s: %w", db.path, err)
	}
	return nil
}

// copyDatabase leaves a copy that check accepts, durably, or what was there before.
func copyDatabase(db *bolt.DB, to string, check func(path string) error) error {
	tmp := to + ".tmp"
	err := writeCopy(db, tmp)
	if err == nil {
		err = check(tmp)
	}
	if err == nil {
		err = os.Rename(tmp, to)
	}
	if err != nil {
		return errors.Join(err, removeFile(tmp))
	}
	return syncDir(filepath.Dir(to))
}

func writeCopy(db *bolt.DB, to string) error {
	f, err := os.OpenFile(to, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	err = db.View(func(tx *bolt.Tx) error { _, err := tx.WriteTo(f); return err })
	if err == nil {
		err = f.Sync()
	}
	return errors.Join(err, f.Close())
}

// verify walks all pages of a copy and looks for the buckets.
func verify(path string) error {
	if err := wholeCopy(path); err != nil {
		return err
	}
	return readOnly(path, checkBuckets)
}

// wholeCopy walks all pages of a copy, whatever its schema.
func wholeCopy(path string) error {
	if err := CheckPages(path, time.Second); err != nil {
		return fmt.Errorf("check %s: %w", path, err)
	}
	return nil
}

// readOnly reads a database whose pages are whole. It changes nothing.
func readOnly(path string, f func(*bolt.Tx) error) (err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if r := recover(); r != nil {
			err = damaged(fmt.Errorf("%v", r))
		}
	}()
	db, err := bolt.Open(path, 0o600, &bolt.Options{ReadOnly: true, Timeout: time.Second})
	if err != nil {
		return err
	}
	return errors.Join(db.View(f), db.Close())
}

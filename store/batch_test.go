package store

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	bolt "go.etcd.io/bbolt"
)

// transactions counts the transactions that the database has seen.
func transactions(t testing.TB, db *DB) (n int) {
	t.Helper()
	if err := db.bolt.View(func(tx *bolt.Tx) error { n = tx.ID(); return nil }); err != nil {
		t.Fatal(err)
	}
	return n
}

// Those who come while a transaction is under way share the next one; one that
// is refused, or has given up, takes nobody with it.
func TestWritersShareTransactions(t *testing.T) {
	db := openTest(t, t.TempDir())
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	taken := sandbox(1)
	taken.ID = testID(99) // with another's name
	calls := map[string]func() error{
		"name taken": func() error { return db.Commit(t.Context(), Change{PutSandboxes: []Sandbox{taken}}) },
		"gave up":    func() error { return db.Commit(gone, Change{PutSandboxes: []Sandbox{sandbox(50)}}) },
		"op":         func() error { return db.BeginOp(t.Context(), Op{ID: "op"}) },
		"same op":    func() error { return db.BeginOp(t.Context(), Op{ID: "op"}) },
		"image":      func() error { return db.Commit(t.Context(), Change{PutImages: []Image{image(1, "app:1")}}) },
		"other":      func() error { return db.Commit(t.Context(), Change{PutImages: []Image{image(2, "app:1")}}) },
	}
	for i := 1; i <= 20; i++ {
		calls[fmt.Sprint("sandbox ", i)] = func() error { return db.Commit(t.Context(), Change{PutSandboxes: []Sandbox{sandbox(i)}}) }
	}
	db.commit.Lock() // a transaction is under way
	before := transactions(t, db)
	var mu sync.Mutex
	var wg sync.WaitGroup
	errs := map[string]error{}
	for what, call := range calls {
		wg.Go(func() {
			err := call()
			mu.Lock()
			errs[what] = err
			mu.Unlock()
		})
	}
	for db.queue.waiting() < len(calls) {
		time.Sleep(time.Millisecond)
	}
	db.commit.Unlock()
	wg.Wait()
	// The images go alone, with a group before, between and after them.
	if n := transactions(t, db) - before; n > 5 {
		t.Errorf("%d calls took %d transactions", len(calls), n)
	}
	if !errors.Is(errs["gave up"], context.Canceled) {
		t.Errorf("gave up: %v", errs["gave up"])
	}
	names := 0
	for what, err := range errs {
		switch what {
		case "name taken", "sandbox 1", "op", "same op":
			if errdefs.IsAlreadyExists(err) {
				names++
				continue
			}
		case "gave up":
			continue
		}
		if err != nil {
			t.Errorf("%s: %v", what, err)
		}
	}
	if names != 2 {
		t.Errorf("%d calls were refused, want one sandbox and one op: %v", names, errs)
	}
	if n := len(db.Sandboxes()); n != 20 {
		t.Errorf("%d sandboxes", n)
	}
	owners := 0
	for _, i := range db.Images() {
		owners += len(i.RepoTags)
	}
	if owners != 1 {
		t.Errorf("%d images have the tag", owners)
	}
}

// One that panics takes its transaction with it: nobody of it is told that what
// it wrote is durable, and the store goes on.
func TestPanicOfAWriter(t *testing.T) {
	db := openTest(t, t.TempDir())
	calls := []func() error{
		func() error { return db.Commit(t.Context(), Change{PutSandboxes: []Sandbox{sandbox(1)}}) },
		func() error {
			return db.submit(&writer{ctx: t.Context(), tx: func(*bolt.Tx) error { panic("bad writer") }, after: func() {}})
		},
		func() error { return db.Commit(t.Context(), Change{PutSandboxes: []Sandbox{sandbox(2)}}) },
	}
	errs, panicked := make([]error, len(calls)), make([]bool, len(calls))
	db.commit.Lock() // a transaction is under way
	var wg sync.WaitGroup
	for i, call := range calls {
		wg.Go(func() {
			defer func() { panicked[i] = recover() != nil }()
			errs[i] = call()
		})
		for db.queue.waiting() <= i {
			time.Sleep(time.Millisecond)
		}
	}
	db.commit.Unlock()
	wg.Wait()
	leaders := 0
	for i, err := range errs {
		if panicked[i] {
			leaders++
		} else if !errdefs.IsAborted(err) {
			t.Errorf("writer %d: %v", i, err)
		}
	}
	if n := len(db.Sandboxes()); leaders != 1 || n != 0 {
		t.Errorf("%d panics, %d sandboxes", leaders, n)
	}
	if err := db.Commit(t.Context(), Change{PutSandboxes: []Sandbox{sandbox(3)}}); err != nil {
		t.Error(err)
	}
}

package store

import (
	"context"
	"fmt"
	"slices"
	"sync"

	"github.com/containerd/errdefs"
	bolt "go.etcd.io/bbolt"
)

// A transaction costs two syncs of the disk, however little it writes. Writers
// that come while one is under way are therefore gathered, and go to the disk
// together in the next one.

// writer is what one writer wants of a transaction.
type writer struct {
	ctx   context.Context
	tx    func(*bolt.Tx) error // may run more than once: a transaction is repeated without the writer that failed it
	after func()               // once it is durable, before the next transaction
	alone bool                 // it looks at the index, which others of the transaction would change only afterwards

	done bool  // guarded by DB.commit
	err  error // what it is told; that it was cut short until there is an outcome
}

// writers wait for the next transaction.
type writers struct {
	mu    sync.Mutex
	queue []*writer
}

func (q *writers) add(w *writer) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.queue = append(q.queue, w)
}

func (q *writers) take() []*writer {
	q.mu.Lock()
	defer q.mu.Unlock()
	all := q.queue
	q.queue = nil
	return all
}

func (q *writers) waiting() int {
	q.mu.Lock()
	defer q.mu.Unlock()
	return len(q.queue)
}

// submit returns when the writer's part is durable or has failed. Whoever gets the lock
// first does the work of all that wait.
//
// A panic of one that has the lock leaves those it took without an answer: theirs is then
// that nothing is known to be written.
func (db *DB) submit(w *writer) error {
	w.err = fmt.Errorf("the transaction was cut short: %w", errdefs.ErrAborted)
	db.queue.add(w)
	db.commit.Lock()
	defer db.commit.Unlock()
	if w.done {
		return w.err
	}
	for all := db.queue.take(); len(all) > 0; {
		n := 1
		for !all[0].alone && n < len(all) && !all[n].alone {
			n++
		}
		db.together(slices.Clone(all[:n]))
		all = all[n:]
	}
	return w.err
}

// together runs writers in one transaction. One that fails takes none of the
// others with it.
func (db *DB) together(ws []*writer) {
	finish := func(w *writer, err error) { w.done, w.err = true, err }
	ws = slices.DeleteFunc(ws, func(w *writer) bool {
		err := w.ctx.Err()
		if err != nil {
			finish(w, err)
		}
		return err != nil
	})
	for len(ws) > 0 {
		failed := -1
		err := db.update(func(tx *bolt.Tx) error {
			for i, w := range ws {
				if err := w.tx(tx); err != nil {
					failed = i
					return err
				}
			}
			return nil
		})
		if failed >= 0 {
			finish(ws[failed], err)
			ws = slices.Delete(ws, failed, failed+1)
			continue
		}
		for _, w := range ws {
			if err == nil {
				w.after()
			}
			finish(w, err)
		}
		return
	}
}

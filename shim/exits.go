package shim

import "sync"

// exitQueue is a channel without a bound: a connection never waits for the
// reader of Exits.
type exitQueue struct {
	out  chan Exit
	stop chan struct{}
	once sync.Once

	mu    sync.Mutex
	ready *sync.Cond
	queue []Exit
	ended bool
}

func newExitQueue() *exitQueue {
	q := &exitQueue{out: make(chan Exit), stop: make(chan struct{})}
	q.ready = sync.NewCond(&q.mu)
	go q.pump()
	return q
}

func (q *exitQueue) put(e Exit) {
	q.mu.Lock()
	q.queue = append(q.queue, e)
	q.mu.Unlock()
	q.ready.Signal()
}

func (q *exitQueue) pump() {
	defer close(q.out)
	for {
		q.mu.Lock()
		for len(q.queue) == 0 && !q.ended {
			q.ready.Wait()
		}
		if q.ended {
			q.mu.Unlock()
			return
		}
		e := q.queue[0]
		q.queue = q.queue[1:]
		q.mu.Unlock()
		select {
		case q.out <- e:
		case <-q.stop:
			return
		}
	}
}

func (q *exitQueue) close() {
	q.once.Do(func() {
		close(q.stop)
		q.mu.Lock()
		q.ended = true
		q.mu.Unlock()
		q.ready.Signal()
	})
}

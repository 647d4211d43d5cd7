package limit

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// TestGate: never more than the limit, growing lets waiters in, a cancelled
// waiter takes no place with it.
func TestGate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := NewGate(2)
		ctx := t.Context()
		for range 2 {
			if err := g.Take(ctx); err != nil {
				t.Fatal(err)
			}
		}
		if g.TryTake() {
			t.Error("a third got in")
		}
		gone, cancel := context.WithCancelCause(ctx)
		failed := make(chan error, 1)
		go func() { failed <- g.Take(gone) }()
		var in atomic.Int32
		for range 3 {
			go func() {
				if g.Take(ctx) == nil {
					in.Add(1)
				}
			}()
		}
		synctest.Wait()
		why := errors.New("client went away")
		cancel(why)
		if err := <-failed; !errors.Is(err, why) {
			t.Errorf("cancelled waiter: %v", err)
		}
		g.Resize(4)
		synctest.Wait()
		if in.Load() != 2 {
			t.Errorf("%d waiters in after the gate grew by two", in.Load())
		}
		g.Resize(1)
		for range 3 {
			g.Give()
		}
		synctest.Wait()
		if in.Load() != 2 {
			t.Errorf("the gate let someone in while it was over its smaller limit")
		}
		g.Give()
		synctest.Wait()
		if in.Load() != 3 {
			t.Errorf("%d in", in.Load())
		}
	})
}

// TestRate in virtual time: 10 takers of 1000 at 1000/s need 9 s, because the
// last one does not wait for its own; a resize frees those who wait.
func TestRate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := NewRate(1000)
		var wg sync.WaitGroup
		start := time.Now()
		for range 10 {
			wg.Go(func() {
				if err := r.Take(t.Context(), 1000); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		if d := time.Since(start); d < 9*time.Second || d > 9*time.Second+time.Millisecond {
			t.Errorf("took %s", d)
		}
		start = time.Now()
		wg.Go(func() { _ = r.Take(t.Context(), 1) })
		synctest.Wait()
		r.Resize(0)
		wg.Wait()
		if d := time.Since(start); d != 0 {
			t.Errorf("waited %s although the limit is gone", d)
		}
		r.Resize(1)
		_ = r.Take(t.Context(), 3600)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := r.Take(ctx, 1); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("got %v", err)
		}
	})
}

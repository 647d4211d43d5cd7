package recovery

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/containerd/errdefs"
)

// start runs f with a tracker whose background work ends with f.
func start(t *testing.T, f func(t *testing.T, tr *Tracker)) {
	synctest.Test(t, func(t *testing.T) {
		var wg sync.WaitGroup
		ctx, cancel := context.WithCancel(context.Background())
		f(t, New(slog.New(slog.DiscardHandler), func(g func(context.Context)) { wg.Go(func() { g(ctx) }) }))
		cancel()
		wg.Wait()
	})
}

func TestCallsWaitForTheirObjectAlone(t *testing.T) {
	start(t, func(t *testing.T, tr *Tracker) {
		release := make(chan struct{})
		slow := Work{Kind: "sandbox", ID: "1", Name: "web", Doing: "stop", Run: func(context.Context) error { <-release; return nil }}
		done := tr.Go(slow, Work{Kind: "sandbox", ID: "2", Run: func(context.Context) error { return nil }})
		synctest.Wait()
		if err := tr.Wait(t.Context(), "sandbox", "2"); err != nil {
			t.Error(err)
		}
		for _, name := range []string{"1", "web"} {
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			if err := tr.Wait(ctx, "sandbox", name); !errdefs.IsUnavailable(err) {
				t.Errorf("%s: %v", name, err)
			}
			cancel()
		}
		if tr.Of("sandbox", "1") != "stop" || tr.Of("sandbox", "2") != "" {
			t.Errorf("list: %v", tr.List())
		}
		close(release)
		<-done
		if err := tr.Wait(t.Context(), "sandbox", "web"); err != nil {
			t.Error(err)
		}
		synctest.Wait()
		if l := tr.List(); len(l) != 0 {
			t.Errorf("left: %v", l)
		}
	})
}

func TestFailuresAreRepeated(t *testing.T) {
	start(t, func(t *testing.T, tr *Tracker) {
		var tries []time.Duration
		begun := time.Now()
		work := Work{Kind: "container", ID: "c", Doing: "undo", Run: func(context.Context) error {
			tries = append(tries, time.Since(begun))
			if len(tries) < 4 {
				return errors.New("no")
			}
			return nil
		}}
		<-tr.Go(work)
		// One that failed does not hold calls up, and is seen.
		if err := tr.Wait(t.Context(), "container", "c"); err != nil {
			t.Error(err)
		}
		synctest.Wait()
		l := tr.List()
		if len(l) != 1 || l[0].Failures != 1 || l[0].Err == nil || l[0].Next.Sub(begun) != time.Second {
			t.Errorf("list: %+v", l)
		}
		tr.Go(work) // is under way already
		time.Sleep(time.Hour)
		synctest.Wait() // what the work wrote is read below
		if want := []time.Duration{0, time.Second, 3 * time.Second, 7 * time.Second}; len(tries) != 4 || tries[3] != want[3] || tries[2] != want[2] {
			t.Errorf("tries at %v, want %v", tries, want)
		}
		if l := tr.List(); len(l) != 0 {
			t.Errorf("left: %v", l)
		}
	})
}

func TestLateWork(t *testing.T) {
	start(t, func(t *testing.T, tr *Tracker) {
		var ran, moot atomic.Bool
		tr.Go(Work{Kind: "node", Late: true, Pause: time.Minute, Moot: moot.Load,
			Run: func(context.Context) error { ran.Store(true); return errors.New("no") }})
		if err := tr.Wait(t.Context(), "node", ""); err != nil || ran.Load() {
			t.Errorf("late work holds calls up: %v", err)
		}
		time.Sleep(time.Hour)
		synctest.Wait() // what the work wrote is read below
		if !ran.Load() || len(tr.List()) != 1 {
			t.Error("late work did not run")
		}
		moot.Store(true)
		if len(tr.List()) != 0 {
			t.Error("moot work is listed")
		}
		time.Sleep(time.Hour)
		synctest.Wait() // what the work wrote is read below
		if len(tr.states) != 0 {
			t.Error("moot work is tried on")
		}
	})
}

// TestAskedForMeanwhile: an attempt that is under way may have looked already, so
// what is asked for then is done after it, once.
func TestAskedForMeanwhile(t *testing.T) {
	start(t, func(t *testing.T, tr *Tracker) {
		var tries atomic.Int32
		looked, goOn := make(chan struct{}), make(chan struct{})
		work := Work{Kind: "container", ID: "c", Doing: "undo", Run: func(context.Context) error {
			if tries.Add(1) == 1 {
				close(looked)
				<-goOn
			}
			return nil
		}}
		first := tr.Go(work)
		<-looked
		for range 3 {
			work.Late = true
			<-tr.Go(work)
		}
		close(goOn)
		<-first
		if err := tr.Wait(t.Context(), "container", "c"); err != nil {
			t.Error(err)
		}
		time.Sleep(time.Hour)
		synctest.Wait() // what the work wrote is read below
		if n, l := tries.Load(), tr.List(); n != 2 || len(l) != 0 {
			t.Errorf("%d tries, left: %v", n, l)
		}
	})
}

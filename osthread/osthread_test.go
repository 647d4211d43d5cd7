package osthread

import (
	"errors"
	"os"
	"strconv"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// Never on the main thread, and a thread that was not restored ends, so that
// nobody gets it again.
func TestRun(t *testing.T) {
	failed := errors.New("failed")
	var mu sync.Mutex
	var used []int
	var wg sync.WaitGroup
	for range 64 {
		wg.Go(func() {
			err := RunAndEnd(func() error {
				mu.Lock()
				defer mu.Unlock()
				used = append(used, unix.Gettid())
				return failed
			})
			if !errors.Is(err, failed) {
				t.Errorf("got %v", err)
			}
		})
	}
	wg.Wait()
	for _, tid := range used {
		if tid == unix.Getpid() {
			t.Error("the main thread was used")
		}
		for end := time.Now().Add(time.Minute); ; time.Sleep(time.Millisecond) {
			if _, err := os.Stat("/proc/self/task/" + strconv.Itoa(tid)); err != nil {
				break
			}
			if time.Now().After(end) {
				t.Fatalf("thread %d did not end", tid)
			}
		}
	}
	if err := Run(func() (bool, error) { return true, nil }); err != nil {
		t.Error(err)
	}
}

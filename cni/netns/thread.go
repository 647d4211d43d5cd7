package netns

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/berth-dev/berth/osthread"
)

// Do runs fn inside the network namespace pinned at path. fn must not start
// goroutines that are to be inside too: only its own thread is. Sockets that fn
// opens stay in the namespace after it returned. Safe for concurrent use.
func Do(path string, fn func() error) error {
	return osthread.Run(func() (bool, error) { return inside(path, fn) })
}

// inside reports whether the calling thread is back in its own namespace; when
// it is not, the thread must not be used again.
func inside(path string, fn func() error) (restored bool, err error) {
	own, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		return true, fmt.Errorf("open own network namespace: %w", err)
	}
	defer own.Close()
	target, err := os.Open(path)
	if err != nil {
		return true, fmt.Errorf("open network namespace: %w", err)
	}
	defer target.Close()
	if err := unix.Setns(int(target.Fd()), unix.CLONE_NEWNET); err != nil {
		return true, fmt.Errorf("enter network namespace %s: %w", path, err)
	}
	err = fn()
	back := unix.Setns(int(own.Fd()), unix.CLONE_NEWNET)
	if back != nil {
		return false, errors.Join(err, fmt.Errorf("leave network namespace %s: %w", path, back))
	}
	return true, err
}

package store

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// dirLock keeps a state directory to one daemon: an flock on <dir>/lock, whose
// content is the holder's pid for the message the second one gets.
type dirLock struct{ f *os.File }

// lockDir waits up to the timeout for the lock.
func lockDir(dir string, timeout time.Duration) (*dirLock, error) {
	f, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	if err := flock(f, unix.LOCK_EX, timeout); err != nil {
		if errdefs.IsFailedPrecondition(err) {
			err = fmt.Errorf("state directory %s is in use by %s: %w", dir, holder(f), errdefs.ErrFailedPrecondition)
		}
		return nil, errors.Join(err, f.Close())
	}
	// The pid serves a message only: the lock holds without it, on a full disk too.
	if err := f.Truncate(0); err == nil {
		_, _ = f.WriteAt([]byte(strconv.Itoa(os.Getpid())+"\n"), 0)
	}
	return &dirLock{f: f}, nil
}

// flock waits up to the timeout for a lock, and then fails with FailedPrecondition.
func flock(f *os.File, how int, timeout time.Duration) error {
	for deadline := time.Now().Add(timeout); ; time.Sleep(10 * time.Millisecond) {
		err := unix.Flock(int(f.Fd()), how|unix.LOCK_NB)
		switch {
		case err == nil:
			return nil
		case !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR):
			return fmt.Errorf("lock %s: %w", f.Name(), err)
		case time.Now().After(deadline):
			return fmt.Errorf("%s is locked by another program: %w", f.Name(), errdefs.ErrFailedPrecondition)
		}
	}
}

func holder(f *os.File) string {
	b, _ := io.ReadAll(io.NewSectionReader(f, 0, 32))
	pid, err := strconv.Atoi(strings.TrimSpace(string(b)))
	if err != nil {
		return "another daemon"
	}
	return fmt.Sprintf("another daemon (pid %d)", pid)
}

// release gives the lock up; a second call does nothing.
func (l *dirLock) release() error {
	if err := l.f.Close(); err != nil && !errors.Is(err, os.ErrClosed) {
		return err
	}
	return nil
}

func isDiskFull(err error) bool {
	return errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT)
}

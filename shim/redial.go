package shim

import (
	"context"
	"errors"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// redialPause is the longest pause between two attempts to learn what became of
// a shim whose connection has ended.
const redialPause = 30 * time.Second

// How often Reconnect dials a shim that hangs up, and the first pause between
// two attempts, which doubles: 635 ms in all.
const (
	hangUps    = 8
	firstPause = 5 * time.Millisecond
)

// pause waits, and reports whether ctx let it.
func pause(ctx context.Context, d time.Duration) bool {
	select {
	case <-ctx.Done():
		return false
	case <-time.After(d):
		return true
	}
}

// dialKind classifies the failure to connect to a shim. Only an absent socket,
// and one that nobody listens on, say that there is no shim; a daemon without
// descriptors, say, must not take its containers for dead.
func dialKind(err error) error {
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ECONNREFUSED) || errors.Is(err, unix.ENOTDIR) {
		return errdefs.ErrNotFound
	}
	return errdefs.ErrUnavailable
}

// learn finds out why the connection ended: the shim is dialled again before it
// is taken for dead, and one that lives keeps its new connection.
func (s *session) learn() {
	for wait := 20 * time.Millisecond; ; wait = min(2*wait, redialPause) {
		ctx, cancel := context.WithTimeout(context.Background(), cleanupTime)
		err := s.learnOnce(ctx)
		cancel()
		if err == nil {
			return
		}
		select {
		case <-s.m.exits.stop:
			return
		case <-time.After(wait):
		}
	}
}

func (s *session) learnOnce(ctx context.Context) error {
	if err := s.life.ask(ctx); err != nil {
		return err
	}
	defer s.life.asked()
	if s.life.wasTold() { // by whoever asked meanwhile
		return nil
	}
	st, err := s.m.reconnect(ctx, s.id)
	if err == nil && st.Exit != nil {
		s.deliver(*st.Exit)
	}
	return err
}

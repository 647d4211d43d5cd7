package streaming

import (
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// hangups tells when peers close their side of connections, also of those that
// nobody reads because a process does not take its input: a read would find the
// end only behind the input. It waits in one epoll instance for all.
type hangups struct {
	ep *os.File

	mu   sync.Mutex
	next int32
	gone map[int32]func()
}

func newHangups() (*hangups, error) {
	fd, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("watch streaming clients: %w", err)
	}
	_ = unix.SetNonblock(fd, true) // so that Go's own poller waits for it, not a thread
	h := &hangups{ep: os.NewFile(uintptr(fd), "hangups"), gone: map[int32]func(){}}
	raw, err := h.ep.SyscallConn()
	if err != nil {
		return nil, errors.Join(fmt.Errorf("watch streaming clients: %w", err), h.ep.Close())
	}
	go h.run(raw)
	return h, nil
}

func (h *hangups) close() error { return h.ep.Close() }

// run calls who is concerned until close.
func (h *hangups) run(raw syscall.RawConn) {
	var events [16]unix.EpollEvent
	for {
		n := 0
		err := raw.Read(func(fd uintptr) bool {
			n, _ = unix.EpollWait(int(fd), events[:], 0)
			return n > 0
		})
		if err != nil {
			return
		}
		for _, e := range events[:n] {
			h.mu.Lock()
			gone := h.gone[e.Fd]
			delete(h.gone, e.Fd)
			h.mu.Unlock()
			if gone != nil {
				gone()
			}
		}
	}
}

// watch calls gone once when the peer has closed its side. A connection that
// cannot be watched is one whose end only a read will tell. stop is to be called
// before the connection is closed.
func (h *hangups) watch(c *net.TCPConn, gone func()) (stop func()) {
	h.mu.Lock()
	h.next++
	// Not the descriptor: that may soon be another connection's.
	id := h.next
	h.gone[id] = gone
	h.mu.Unlock()
	stop = func() {
		h.mu.Lock()
		defer h.mu.Unlock()
		delete(h.gone, id)
	}
	conn, err := c.SyscallConn()
	if err != nil {
		return stop
	}
	ep, err := h.ep.SyscallConn()
	if err != nil {
		return stop
	}
	_ = ep.Control(func(epfd uintptr) {
		_ = conn.Control(func(fd uintptr) {
			_ = unix.EpollCtl(int(epfd), unix.EPOLL_CTL_ADD, int(fd),
				&unix.EpollEvent{Events: unix.EPOLLRDHUP | unix.EPOLLONESHOT, Fd: id})
		})
	})
	return stop
}

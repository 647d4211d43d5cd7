package supervise

import (
	"io"
	"os"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/berth-dev/berth/shim/wire"
)

// testShim is a shim without a container.
func testShim(t *testing.T) *shim {
	t.Helper()
	l, err := newLoop()
	if err != nil {
		t.Fatal(err)
	}
	s := &shim{loop: l, listener: -1, conns: map[*conn]struct{}{}}
	s.c.phase = wire.PhaseRunning
	t.Cleanup(func() {
		for c := range s.conns {
			l.drop(&c.fd)
		}
		closeFD(&s.listener)
		closeFD(&l.ep)
	})
	return s
}

// TestAcceptWithoutDescriptors: a client for whom there is no descriptor neither
// keeps the shim busy nor is forgotten.
func TestAcceptWithoutDescriptors(t *testing.T) {
	t.Chdir(t.TempDir())
	s := testShim(t)
	var err error
	if s.listener, err = listenUnix("sock", unix.SOCK_SEQPACKET); err != nil {
		t.Fatal(err)
	}
	accepts := 0
	if err := s.loop.add(s.listener, unix.EPOLLIN, func(uint32) { accepts++; s.accept() }); err != nil {
		t.Fatal(err)
	}
	client, err := unix.Socket(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(client)
	if err := unix.Connect(client, &unix.SockaddrUnix{Name: "sock"}); err != nil {
		t.Fatal(err)
	}
	var was unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &was); err != nil {
		t.Fatal(err)
	}
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: 1, Max: was.Max}); err != nil {
		t.Fatal(err)
	}
	restore := func() { _ = unix.Setrlimit(unix.RLIMIT_NOFILE, &was) }
	defer restore()
	s.loop.after(0, func() {
		if accepts != 1 || len(s.conns) != 0 {
			t.Errorf("%d tries, %d connections", accepts, len(s.conns))
		}
		var events [1]unix.EpollEvent
		if n, _ := unix.EpollWait(s.loop.ep, events[:], 0); n != 0 {
			t.Error("the listener is still ready")
		}
		restore()
	})
	var look func()
	look = func() {
		s.loop.done = len(s.conns) == 1
		s.loop.after(5, look)
	}
	look()
	runLoop(t, s.loop)
	if accepts != 2 {
		t.Errorf("%d tries", accepts)
	}
}

// TestHangUpKeepsInput: what an attached client sent before it hung up reaches
// the container, also when the shim had not read it for want of room and the
// client left output unread.
func TestHangUpKeepsInput(t *testing.T) {
	s := testShim(t)
	io1, ends, err := newStdio(s.loop, &wire.Create{Stdin: true, StdinOnce: true})
	if err != nil {
		t.Fatal(err)
	}
	defer io1.close()
	s.c.io = io1
	stdin := os.NewFile(uintptr(ends[0]), "stdin")
	defer stdin.Close()
	ends[0] = -1
	ends.close()
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	s.open(pair[0])
	var c *conn
	for c = range s.conns {
	}
	c.version, c.tap, c.stdin = wire.Version, true, true
	io1.tap(c)
	c.send(wire.KindStdout, 0, []byte("unread"))

	sent, got := 0, make(chan int64, 1)
	frame := wire.Append(nil, wire.Frame{Kind: wire.KindStdin, Body: make([]byte, 16<<10)})
	var feed func()
	feed = func() {
		for {
			err := unix.Send(pair[1], frame, unix.MSG_DONTWAIT)
			if err == nil {
				sent += 16 << 10
				continue
			}
			if err == unix.EAGAIN && !c.paused {
				s.loop.after(1, feed)
				return
			}
			if err != unix.EAGAIN {
				t.Error(err)
			}
			break
		}
		closeFD(&pair[1])
		c.send(wire.KindStdout, 0, []byte("to nobody"))
		go func() { n, _ := io.Copy(io.Discard, stdin); got <- n }()
	}
	feed()
	var total int64
	var look func()
	look = func() {
		select {
		case total = <-got:
			s.loop.done = true
		default:
			s.loop.after(5, look)
		}
	}
	look()
	runLoop(t, s.loop)
	if total != int64(sent) || sent < maxStdin {
		t.Errorf("%d bytes arrived, %d were sent", total, sent)
	}
	if len(s.conns) != 0 || len(io1.taps) != 0 {
		t.Errorf("%d connections, %d attachments are left", len(s.conns), len(io1.taps))
	}
}

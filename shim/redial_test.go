package shim

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/berth-dev/berth/shim/wire"
)

// TestHangUpIsNotDeath lets a shim close its connection: it is dialled again,
// and nothing is cleaned up as long as it answers.
func TestHangUpIsNotDeath(t *testing.T) {
	dir := t.TempDir()
	id := strings.Repeat("ab", 32)
	run := filepath.Join(dir, "run", id)
	killed := filepath.Join(dir, "killed")
	program := filepath.Join(dir, "berth-shim")
	if err := errors.Join(os.MkdirAll(run, 0o700), os.WriteFile(program, []byte("#!/bin/sh\ntouch "+killed+"\n"), 0o700),
		os.WriteFile(filepath.Join(run, wire.LaunchFile), wire.AppendLaunchRecord(nil, &wire.Launch{ShimPID: 1, PID: 1}), 0o600)); err != nil {
		t.Fatal(err)
	}
	l := listenIn(t, run)
	dialled := make(chan *net.UnixConn, 16)
	go func() {
		for {
			c, err := l.AcceptUnix()
			if err != nil {
				return
			}
			go serveRunning(c)
			dialled <- c
		}
	}()
	m, err := New(Config{Binary: program, RunDir: filepath.Join(dir, "run"), StateDir: filepath.Join(dir, "state")})
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	st, err := m.Reconnect(t.Context(), id)
	if err != nil || st.Phase != PhaseRunning {
		t.Fatal(st, err)
	}
	hangUp(t, <-dialled)
	var second *net.UnixConn
	select {
	case second = <-dialled:
	case x := <-m.Exits():
		t.Fatalf("taken for dead: %+v", x)
	case <-time.After(30 * time.Second):
		t.Fatal("not dialled again")
	}
	if st, err := m.Reconnect(t.Context(), id); err != nil || st.Phase != PhaseRunning {
		t.Error(st, err)
	}
	if _, err := os.Stat(killed); err == nil {
		t.Fatal("its container was cleaned up")
	}
	if err := l.Close(); err != nil { // now it dies
		t.Fatal(err)
	}
	hangUp(t, second)
	for dead := false; !dead; {
		select {
		case c := <-dialled: // Reconnect may have dialled once more
			hangUp(t, c)
		case x := <-m.Exits():
			if dead = true; x.ID != id || !x.Lost {
				t.Errorf("%+v", x)
			}
		}
	}
	if _, err := os.Stat(killed); err != nil {
		t.Error("what a dead shim left was not cleaned up")
	}
}

// listenIn is the socket of a shim in its directory.
func listenIn(t *testing.T, run string) *net.UnixListener {
	t.Helper()
	at, err := os.Open(run) // a socket's address is short
	if err != nil {
		t.Fatal(err)
	}
	defer at.Close()
	address := fmt.Sprintf("/proc/self/fd/%d/%s", at.Fd(), wire.SocketFile)
	l, err := net.ListenUnix("unixpacket", &net.UnixAddr{Name: address, Net: "unixpacket"})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false) // the address is of a descriptor that is closed by then
	return l
}

// TestEndIsToldOnce lets a shim greet and be gone before it says more, as one
// that has just recorded its container's end does: who asked hears of the end,
// and nobody else does.
func TestEndIsToldOnce(t *testing.T) {
	dir := t.TempDir()
	for i := range 100 {
		id := fmt.Sprintf("%064d", i)
		run := filepath.Join(dir, "run", id)
		if err := errors.Join(os.MkdirAll(run, 0o700), os.WriteFile(filepath.Join(run, wire.ExitFile),
			wire.AppendExitRecord(nil, wire.Exit{Code: 5, FinishedAt: 1}), 0o600)); err != nil {
			t.Fatal(err)
		}
		l := listenIn(t, run)
		go func() {
			c, err := l.AcceptUnix()
			if err == nil {
				greetAndGo(c)
			}
			_ = l.Close()
		}()
		m, err := New(Config{Binary: "/bin/false", RunDir: filepath.Join(dir, "run"), StateDir: filepath.Join(dir, "state")})
		if err != nil {
			t.Fatal(err)
		}
		if st, err := m.Reconnect(t.Context(), id); err != nil || st.Phase != PhaseExited || st.Exit.Code != 5 {
			t.Fatal(st, err)
		}
		until(t, "nobody looks for the shim any more", func() bool {
			m.mu.Lock()
			defer m.mu.Unlock()
			return len(m.lives) == 0
		})
		m.exits.put(Exit{ID: "last"})
		if x := <-m.Exits(); x.ID != "last" {
			t.Fatalf("told twice: %+v", x)
		}
		_ = m.Close()
	}
}

// greetAndGo answers the greeting, reads one request and hangs up.
func greetAndGo(c *net.UnixConn) {
	defer c.Close()
	buf := make([]byte, wire.MaxFrame+1)
	n, err := c.Read(buf)
	if err != nil {
		return
	}
	f, err := wire.Parse(buf[:n])
	if err != nil {
		return
	}
	body := wire.Encode(&wire.Hello{Version: wire.Version, Oldest: wire.Oldest})
	if _, err := c.Write(wire.Append(nil, wire.Frame{Kind: wire.KindReply, ID: f.ID, Body: body})); err == nil {
		_, _ = c.Read(buf)
	}
}

// hangUp ends a connection although another goroutine reads from it.
func hangUp(t *testing.T, c *net.UnixConn) {
	t.Helper()
	raw, err := c.SyscallConn()
	if err == nil {
		err = raw.Control(func(fd uintptr) { _ = unix.Shutdown(int(fd), unix.SHUT_RDWR) })
	}
	if err != nil && !errors.Is(err, net.ErrClosed) {
		t.Fatal(err)
	}
}

// serveRunning answers as the shim of a running container.
func serveRunning(c *net.UnixConn) {
	defer c.Close()
	buf := make([]byte, wire.MaxFrame+1)
	for {
		n, err := c.Read(buf)
		if err != nil || n == 0 {
			return
		}
		f, err := wire.Parse(buf[:n])
		if err != nil {
			return
		}
		body := wire.Encode(&wire.Reply{Phase: wire.PhaseRunning, PID: 1})
		if f.Kind == wire.KindHello {
			body = wire.Encode(&wire.Hello{Version: wire.Version, Oldest: wire.Oldest})
		}
		if _, err := c.Write(wire.Append(nil, wire.Frame{Kind: wire.KindReply, ID: f.ID, Body: body})); err != nil {
			return
		}
	}
}

func TestDialKind(t *testing.T) {
	for errno, dead := range map[error]bool{unix.ENOENT: true, unix.ECONNREFUSED: true, unix.ENOTDIR: true,
		unix.EMFILE: false, unix.ENFILE: false, unix.EAGAIN: false, unix.EACCES: false, unix.ENOMEM: false} {
		if errdefs.IsNotFound(dialKind(fmt.Errorf("dial: %w", errno))) != dead {
			t.Error(errno)
		}
	}
}

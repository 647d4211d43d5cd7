package shim

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"strings"
	"sync"
	"time"

	"github.com/containerd/errdefs"

	"github.com/berth-dev/berth/shim/wire"
)

// cleanupTime bounds the cleanup after a dead shim.
const cleanupTime = 30 * time.Second

// session is the lasting connection to one container's shim.
type session struct {
	m    *Manager
	id   string
	link *link
	life *life
	pid  int // of the shim, when this process has to reap it; else 0; guarded by m.mu

	mu     sync.Mutex
	health LogHealth
}

func (s *session) event(f wire.Frame) {
	switch f.Kind {
	case wire.KindExited:
		var e wire.Exit
		if wire.Decode(f.Body, &e) == nil {
			s.deliver(exitOf(s.id, e))
		}
	case wire.KindLogHealth:
		var h wire.LogHealth
		if wire.Decode(f.Body, &h) == nil {
			s.note(h)
		}
	}
}

// version is that of the protocol spoken with the shim.
func (s *session) version() int64 { return s.link.version }

// state asks the shim how its container fares.
func (s *session) state(ctx context.Context) (*wire.Reply, error) {
	r, _, err := s.link.call(ctx, wire.KindState, nil, nil)
	if err == nil {
		s.note(r.Log)
	}
	return r, err
}

func (s *session) deliver(e Exit) {
	if s.life.tell() {
		s.m.exits.put(e)
	}
}

func (s *session) close() { s.link.close() }

// ended reports whether the connection has gone.
func (s *session) ended() bool {
	select {
	case <-s.link.done:
		return true
	default:
		return false
	}
}

// watch waits for the connection's end, which is the shim's as a rule.
func (s *session) watch() {
	defer s.m.release(s.id, s.life)
	<-s.link.done
	s.m.mu.Lock()
	if s.m.shims[s.id] == s {
		delete(s.m.shims, s.id)
	}
	closed, pid := s.m.closed, s.pid
	s.m.mu.Unlock()
	if pid != 0 {
		go reap(pid)
	}
	if s.life.wasTold() || closed {
		return
	}
	s.learn()
}

// post finds out how a container ended whose shim is gone. ok is false when
// there has never been one. As long as its processes may live its end is not
// known, and that is an error.
func (m *Manager) post(ctx context.Context, id string) (e Exit, ok bool, err error) {
	if e, ok, err = m.LastExit(id); ok || err != nil {
		return e, ok, err
	}
	l, err := m.readLaunch(id)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, wire.ErrRecord) {
		return Exit{}, false, nil
	}
	if err != nil {
		return Exit{}, false, fmt.Errorf("%w: %w", err, errdefs.ErrUnavailable)
	}
	failed := m.cleanup(ctx, id, Runtime(l.Create.Runtime))
	// Whatever else it could not do, it records the end of what it killed.
	if e, ok, err = m.LastExit(id); ok || err != nil {
		return e, ok, err
	}
	if failed != nil {
		return Exit{}, false, fmt.Errorf("its shim is dead: %w: %w", failed, errdefs.ErrUnavailable)
	}
	return Exit{ID: id, Code: 255, Lost: true, At: time.Now()}, l.Made(), nil
}

// LastExit reads the exit record of a container and asks no shim: that of one
// from before a reboot is all that is left of it. A record that is there and
// cannot be read is Unavailable.
func (m *Manager) LastExit(id string) (e Exit, ok bool, err error) {
	for _, p := range []string{m.exitPath(id), m.runDir(id) + "/" + wire.ExitFile} {
		b, err := os.ReadFile(p)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return Exit{}, false, fmt.Errorf("read exit record: %w: %w", err, errdefs.ErrUnavailable)
		}
		if e, err := wire.ParseExitRecord(b); err == nil {
			return exitOf(id, e), true, nil
		}
	}
	return Exit{}, false, nil
}

func (m *Manager) readLaunch(id string) (*wire.Launch, error) {
	b, err := os.ReadFile(m.runDir(id) + "/" + wire.LaunchFile)
	if err != nil {
		return nil, fmt.Errorf("read launch file: %w", err)
	}
	return wire.ParseLaunchRecord(b)
}

// errClosed is the answer once the Manager is closed.
var errClosed = fmt.Errorf("shim manager is closed: %w", errdefs.ErrUnavailable)

// open is errClosed once the Manager is closed.
func (m *Manager) open() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return errClosed
	}
	return nil
}

// cleanup runs berth-shim in that mode. A Manager that is closed may not: it
// has no connection, so every shim would look dead to it.
func (m *Manager) cleanup(ctx context.Context, id string, r Runtime) error {
	if err := m.open(); err != nil {
		return fmt.Errorf("clean up container %s: %w", id, err)
	}
	systemd := "0"
	if r.SystemdCgroup {
		systemd = "1"
	}
	cmd := exec.CommandContext(ctx, m.cfg.Binary, "cleanup", r.Path, r.Root, systemd, id)
	cmd.Dir = m.runDir(id)
	cmd.Env = shimEnv()
	cmd.WaitDelay = 10 * time.Second
	out, err := cmd.CombinedOutput()
	if err != nil {
		return fmt.Errorf("clean up container %s: %s: %w", id, strings.TrimSpace(string(out)), err)
	}
	return nil
}

// shimEnv is all that a shim and its runtime get to see. GOGC=25 lets Go collect
// garbage from 1 MiB on; the shim does so itself before. disablethp keeps a kernel
// that makes huge pages of everything from giving it 2 MiB at a time. Above all it lacks
// NOTIFY_SOCKET, which runc would hand to the container.
func shimEnv() []string {
	env := []string{"GOGC=25", "GOMAXPROCS=1", "GODEBUG=disablethp=1"}
	for _, k := range []string{"PATH", "DBUS_SYSTEM_BUS_ADDRESS", "XDG_RUNTIME_DIR"} {
		if v := os.Getenv(k); v != "" {
			env = append(env, k+"="+v)
		}
	}
	return env
}

// session returns the connection to a container's shim, made anew if needed.
func (m *Manager) session(ctx context.Context, id string) (*session, error) {
	m.mu.Lock()
	s, closed := m.shims[id], m.closed
	m.mu.Unlock()
	if s != nil && !s.ended() {
		return s, nil
	}
	if closed {
		return nil, errClosed
	}
	c, err := dial(m.runDir(id))
	if err != nil {
		return nil, fmt.Errorf("connect to shim of %s: %w: %w", id, err, dialKind(err))
	}
	return m.adopt(ctx, id, c, 0)
}

// adopt makes a session of a connection. pid is that of the shim when it has to be
// reaped after the session, else 0.
func (m *Manager) adopt(ctx context.Context, id string, c *net.UnixConn, pid int) (*session, error) {
	s := &session{m: m, id: id, life: m.hold(id), pid: pid}
	l, _, err := newLink(ctx, c, true, s.event)
	if err != nil {
		m.release(id, s.life)
		return nil, err
	}
	s.link = l
	m.mu.Lock()
	old, closed := m.shims[id], m.closed
	if old != nil && old.ended() {
		old = nil // its watcher has not come round to it
	}
	switch {
	case old == nil && !closed:
		m.shims[id] = s
	case old != nil && pid != 0:
		old.pid = pid
	}
	m.mu.Unlock()
	if old != nil || closed {
		s.close()
		m.release(id, s.life)
		if closed {
			return nil, errClosed
		}
		return old, nil
	}
	go s.watch()
	return s, nil
}

// request asks a container's shim and returns its reply.
func (m *Manager) request(ctx context.Context, id string, kind wire.Kind, body []byte) (*wire.Reply, error) {
	s, err := m.session(ctx, id)
	if err != nil {
		return nil, goneIsNotFound(err)
	}
	r, files, err := s.link.call(ctx, kind, body, nil)
	closeFDs(files)
	return r, goneIsNotFound(err)
}

// goneIsNotFound: a shim that went away before it answered is none.
func goneIsNotFound(err error) error {
	if errors.Is(err, errGone) {
		return fmt.Errorf("%w: %w", err, errdefs.ErrNotFound)
	}
	return err
}

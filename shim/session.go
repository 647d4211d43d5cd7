package shim

import (
	"context"
	"errors"
	"fmt"
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

	mu    sync.Mutex
	quiet bool // no (further) exit is to be delivered
}

func (s *session) event(f wire.Frame) {
	var e wire.Exit
	if f.Kind != wire.KindExited || wire.Decode(f.Body, &e) != nil {
		return
	}
	s.deliver(exitOf(s.id, e))
}

func (s *session) deliver(e Exit) {
	if s.silence() {
		s.m.exits.put(e)
	}
}

// silence makes sure that no exit is delivered from now on. It reports
// whether one still could have been.
func (s *session) silence() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	was := s.quiet
	s.quiet = true
	return !was
}

func (s *session) close() {
	s.silence()
	s.link.close()
}

// watch waits for the connection's end, which is the shim's.
func (s *session) watch() {
	<-s.link.done
	s.m.mu.Lock()
	if s.m.shims[s.id] == s {
		delete(s.m.shims, s.id)
	}
	closed := s.m.closed
	s.m.mu.Unlock()
	s.mu.Lock()
	told := s.quiet
	s.mu.Unlock()
	if told || closed {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), cleanupTime)
	defer cancel()
	if e, ok := s.m.post(ctx, s.id); ok {
		s.deliver(e)
	}
}

// post finds out how a container ended whose shim is gone. ok is false when
// there has never been one.
func (m *Manager) post(ctx context.Context, id string) (Exit, bool) {
	if e, ok := m.readExit(id); ok {
		return e, true
	}
	l, err := m.readLaunch(id)
	if err != nil {
		return Exit{}, false
	}
	// The error, if any, will be Delete's too; the container's end is a fact.
	if err := m.cleanup(ctx, id, Runtime(l.Create.Runtime)); errors.Is(err, errClosed) {
		return Exit{}, false
	}
	if e, ok := m.readExit(id); ok {
		return e, true
	}
	return Exit{ID: id, Code: 255, Lost: true, At: time.Now()}, l.PID != 0
}

func (m *Manager) readExit(id string) (Exit, bool) {
	for _, p := range []string{m.exitPath(id), m.runDir(id) + "/" + wire.ExitFile} {
		b, err := os.ReadFile(p)
		if err != nil {
			continue
		}
		if e, err := wire.ParseExitRecord(b); err == nil {
			return exitOf(id, e), true
		}
	}
	return Exit{}, false
}

func (m *Manager) readLaunch(id string) (*wire.Launch, error) {
	b, err := os.ReadFile(m.runDir(id) + "/" + wire.LaunchFile)
	if err != nil {
		return nil, err
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
	cmd.WaitDelay = time.Second
	out, err := cmd.CombinedOutput()
	if err != nil {
		return fmt.Errorf("clean up container %s: %s: %w", id, strings.TrimSpace(string(out)), err)
	}
	return nil
}

// shimEnv is all that a shim and its runtime get to see. Above all it lacks
// NOTIFY_SOCKET, which runc would hand to the container.
func shimEnv() []string {
	env := []string{"GOGC=10", "GOMAXPROCS=1"}
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
	if s != nil {
		return s, nil
	}
	if closed {
		return nil, errClosed
	}
	c, err := dial(m.runDir(id))
	if err != nil {
		return nil, fmt.Errorf("connect to shim of %s: %w: %w", id, err, errdefs.ErrNotFound)
	}
	return m.adopt(ctx, id, c)
}

// adopt makes a session of a connection.
func (m *Manager) adopt(ctx context.Context, id string, c *net.UnixConn) (*session, error) {
	s := &session{m: m, id: id}
	l, _, err := newLink(ctx, c, true, s.event)
	if err != nil {
		return nil, err
	}
	s.link = l
	m.mu.Lock()
	old, closed := m.shims[id], m.closed
	if old == nil && !closed {
		m.shims[id] = s
	}
	m.mu.Unlock()
	if old != nil || closed {
		s.close()
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
		return nil, err
	}
	r, files, err := s.link.call(ctx, kind, body, nil)
	closeFDs(files)
	if errors.Is(err, errGone) {
		return r, fmt.Errorf("%w: %w", err, errdefs.ErrNotFound)
	}
	return r, err
}

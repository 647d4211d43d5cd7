package shim

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/berth-dev/berth/shim/wire"
)

// child is a shim that this process has started and nobody has spoken with. It
// is in a session of its own and init's as soon as this process has gone; until
// then this process reaps it.
type child struct {
	conn *net.UnixConn // its first connection
	pid  int
}

// early is the start of a shim that nobody waits for yet.
type early struct {
	done chan struct{} // closed when the other two are set
	c    *child
	err  error
}

// Prepare begins to start the shim of a container whose run-time directory exists,
// so that it is there when Create asks for it. What fails Create reports. Where no
// Create follows, Delete must. Should this process die meanwhile the shim leaves.
func (m *Manager) Prepare(id string) {
	e := &early{done: make(chan struct{})}
	m.mu.Lock()
	m.early[id] = e
	m.mu.Unlock()
	go func() {
		defer close(e.done)
		e.c, e.err = m.launch(id)
	}()
}

// prepared returns the shim that Prepare has started, if it was called, once.
func (m *Manager) prepared(id string) (c *child, ok bool, err error) {
	m.mu.Lock()
	e := m.early[id]
	delete(m.early, id)
	m.mu.Unlock()
	if e == nil {
		return nil, false, nil
	}
	<-e.done
	return e.c, true, e.err
}

// dismiss ends the shim that Prepare has started, if no Create has asked for it.
func (m *Manager) dismiss(id string) {
	if c, _, _ := m.prepared(id); c != nil {
		m.kill(id, c)
	}
}

// launch starts a shim.
func (m *Manager) launch(id string) (*child, error) {
	dir := m.runDir(id)
	if c, err := dial(dir); err == nil {
		_ = c.Close()
		return nil, fmt.Errorf("it has a shim: %w", errdefs.ErrAlreadyExists)
	}
	log, err := os.OpenFile(filepath.Join(dir, wire.LogFile), os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer null.Close()
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	defer unix.Close(pair[1])
	ours := os.NewFile(uintptr(pair[0]), "shim")
	defer ours.Close()
	conn, err := net.FileConn(ours)
	if err != nil {
		return nil, err
	}
	// Not by os/exec, which would keep a descriptor for each shim.
	pid, err := syscall.ForkExec(m.cfg.Binary, []string{m.cfg.Binary, "run", id}, &syscall.ProcAttr{
		Dir: dir, Env: shimEnv(),
		Files: []uintptr{null.Fd(), null.Fd(), log.Fd(), uintptr(pair[1])},
		Sys:   &syscall.SysProcAttr{Setsid: true},
	})
	if err != nil {
		_ = conn.Close()
		return nil, fmt.Errorf("launch shim: %s: %w", m.cfg.Binary, err)
	}
	return &child{conn: conn.(*net.UnixConn), pid: pid}, nil
}

// kill ends a shim that was never asked for a container, and leaves nothing of it
// but its log.
func (m *Manager) kill(id string, c *child) {
	_ = c.conn.Close()
	_ = unix.Kill(c.pid, unix.SIGKILL) // it is not reaped: the number is its own
	reap(c.pid)
	_ = os.Remove(filepath.Join(m.runDir(id), wire.SocketFile))
}

// reap waits for the end of a shim that this process has started. A thread of its
// own waits, so this is for one that is on its way out.
func reap(pid int) {
	for {
		if _, err := unix.Wait4(pid, nil, 0, nil); err != unix.EINTR { //nolint:errorlint // an errno as the call returns it
			return
		}
	}
}

// explain adds what a shim that did not even answer wrote to its log.
func (m *Manager) explain(id string, err error) error {
	b, rerr := os.ReadFile(filepath.Join(m.runDir(id), wire.LogFile))
	if rerr != nil || len(b) == 0 {
		return err
	}
	return fmt.Errorf("%w: %.500q", err, b)
}

// noThreads classifies the end of a shim that the kernel gave no thread: Go's
// runtime only prints that.
func noThreads(err error) error {
	if strings.Contains(err.Error(), "failed to create new OS thread") {
		return fmt.Errorf("no more processes may be made, look at the pids limits above berthd and at kernel.threads-max: %v: %w", err, errdefs.ErrResourceExhausted)
	}
	return err
}

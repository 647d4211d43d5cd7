package shim

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/berth-dev/berth/shim/wire"
)

// Create launches the shim and runs `runc create` in it. On an error nothing
// is left: no shim, no runc state, no cgroup. The error carries runc's message.
func (m *Manager) Create(ctx context.Context, r CreateRequest) (Created, error) {
	if r.ID == "" || filepath.Base(r.ID) != r.ID {
		return Created{}, fmt.Errorf("create container %q: bad id: %w", r.ID, errdefs.ErrInvalidArgument)
	}
	out, err := m.create(ctx, r)
	if err == nil {
		return out, nil
	}
	err = fmt.Errorf("create container %s: %w", r.ID, err)
	if ctx.Err() != nil || errors.Is(err, errdefs.ErrUnavailable) {
		// Nobody knows how far it came.
		clean, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanupTime)
		defer cancel()
		err = errors.Join(err, m.Delete(clean, r.ID, r.Runtime))
	}
	return Created{}, err
}

func (m *Manager) create(ctx context.Context, r CreateRequest) (Created, error) {
	path, err := exec.LookPath(r.Runtime.Path)
	if err == nil {
		path, err = filepath.Abs(path)
	}
	if err != nil {
		return Created{}, fmt.Errorf("find runtime: %w: %w", err, errdefs.ErrFailedPrecondition)
	}
	r.Runtime.Path = path
	if err := os.MkdirAll(filepath.Dir(m.exitPath(r.ID)), 0o700); err != nil {
		return Created{}, err
	}
	conn, err := m.launch(r.ID)
	if err != nil {
		return Created{}, err
	}
	s, err := m.adopt(ctx, r.ID, conn)
	if err != nil {
		return Created{}, m.explain(r.ID, err)
	}
	req := wire.Create{Runtime: wire.Runtime(r.Runtime), ID: r.ID, LogPath: r.LogPath, ExitPath: m.exitPath(r.ID),
		Terminal: r.Terminal, Stdin: r.Stdin, StdinOnce: r.StdinOnce, SharedPIDs: r.SharedPIDs,
		PartialBytes: int64(r.PartialBytes)}
	reply, _, err := s.link.call(ctx, wire.KindCreate, wire.Encode(&req), nil)
	if err != nil {
		// What was never created can't end.
		s.silence()
		if reply != nil {
			m.await(ctx, s)
		}
		return Created{}, err
	}
	out := Created{PID: int(reply.PID)}
	if l, err := m.readLaunch(r.ID); err == nil {
		out.ShimPID = int(l.ShimPID)
	}
	return out, nil
}

// await waits for a shim that is about to end.
func (m *Manager) await(ctx context.Context, s *session) {
	select {
	case <-s.link.done:
	case <-ctx.Done():
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

// launch starts a shim that belongs to init, and returns the first connection.
func (m *Manager) launch(id string) (*net.UnixConn, error) {
	dir := m.runDir(id)
	if c, err := dial(dir); err == nil {
		_ = c.Close()
		return nil, fmt.Errorf("it has a shim: %w", errdefs.ErrAlreadyExists)
	}
	const flags = os.O_WRONLY | os.O_CREATE | os.O_APPEND
	log, err := os.OpenFile(filepath.Join(dir, wire.LogFile), flags, 0o600)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	ours, theirs := os.NewFile(uintptr(pair[0]), "shim"), os.NewFile(uintptr(pair[1]), "shim")
	defer ours.Close()
	defer theirs.Close()
	cmd := exec.Command(m.cfg.Binary, "launch", id)
	cmd.Dir, cmd.Env = dir, shimEnv()
	cmd.Stderr = log
	cmd.ExtraFiles = []*os.File{theirs}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Run(); err != nil {
		return nil, m.explain(id, fmt.Errorf("launch shim: %w", err))
	}
	c, err := net.FileConn(ours)
	if err != nil {
		return nil, err
	}
	return c.(*net.UnixConn), nil
}

// Reconnect attaches to a shim that an earlier daemon launched, or reads the
// exit record it left. Exits of reconnected shims arrive on Exits. A container
// whose shim died is killed, and reported as exited and lost.
func (m *Manager) Reconnect(ctx context.Context, id string) (State, error) {
	for range 3 {
		s, err := m.session(ctx, id)
		if errors.Is(err, errdefs.ErrNotFound) {
			break
		}
		if err == nil {
			var r *wire.Reply
			if r, _, err = s.link.call(ctx, wire.KindState, nil, nil); err == nil {
				if r.Phase == wire.PhaseExited {
					s.silence()
				}
				return stateOf(id, r), nil
			}
		}
		if !errors.Is(err, errdefs.ErrUnavailable) {
			return State{}, fmt.Errorf("reconnect container %s: %w", id, err)
		}
	}
	if e, ok := m.post(ctx, id); ok {
		return State{Phase: PhaseExited, StartedAt: e.StartedAt, Exit: &e}, nil
	}
	if err := m.open(); err != nil {
		return State{}, fmt.Errorf("reconnect container %s: %w", id, err)
	}
	return State{Phase: PhaseGone}, nil
}

// State asks the container's shim, or reads what it left, without changing
// anything.
func (m *Manager) State(ctx context.Context, id string) (State, error) {
	r, err := m.request(ctx, id, wire.KindState, nil)
	if err == nil {
		return stateOf(id, r), nil
	}
	if !errors.Is(err, errdefs.ErrNotFound) {
		return State{}, fmt.Errorf("state of container %s: %w", id, err)
	}
	if e, ok := m.readExit(id); ok {
		return State{Phase: PhaseExited, StartedAt: e.StartedAt, Exit: &e}, nil
	}
	return State{Phase: PhaseGone}, nil
}

// Start runs `runc start` and returns the start time that the shim recorded.
func (m *Manager) Start(ctx context.Context, id string) (time.Time, error) {
	r, err := m.request(ctx, id, wire.KindStart, nil)
	if err != nil {
		return time.Time{}, fmt.Errorf("start container %s: %w", id, err)
	}
	return when(r.StartedAt), nil
}

// Signal sends a signal to the container's init, or to all its processes.
// A container that has ended is NotFound.
func (m *Manager) Signal(ctx context.Context, id string, sig syscall.Signal, all bool) error {
	_, err := m.request(ctx, id, wire.KindSignal, wire.Encode(&wire.Signal{Number: int64(sig), All: all}))
	if err != nil {
		return fmt.Errorf("signal container %s: %w", id, err)
	}
	return nil
}

// Resize sets the size of the container's console in cells. It may be called
// before the container is started.
func (m *Manager) Resize(ctx context.Context, id string, width, height uint16) error {
	body := wire.Encode(&wire.Size{Width: int64(width), Height: int64(height)})
	if _, err := m.request(ctx, id, wire.KindResize, body); err != nil {
		return fmt.Errorf("resize container %s: %w", id, err)
	}
	return nil
}

// ReopenLog makes the shim open its log path anew, after a rotation.
func (m *Manager) ReopenLog(ctx context.Context, id string) error {
	if _, err := m.request(ctx, id, wire.KindReopen, nil); err != nil {
		return fmt.Errorf("reopen log of container %s: %w", id, err)
	}
	return nil
}

// Update applies resources to the container's cgroup.
func (m *Manager) Update(ctx context.Context, id string, _ Runtime, res *specs.LinuxResources) error {
	err := func() error {
		file, err := document("resources", res)
		if err != nil {
			return err
		}
		defer unix.Close(file)
		s, err := m.session(ctx, id)
		if err != nil {
			return err
		}
		_, _, err = s.link.call(ctx, wire.KindUpdate, nil, []int{file})
		return err
	}()
	if err != nil {
		return fmt.Errorf("update container %s: %w", id, err)
	}
	return nil
}

// document puts a value as JSON into a file without a name.
func document(name string, v any) (int, error) {
	b, err := json.Marshal(v)
	if err != nil {
		return -1, err
	}
	fd, err := unix.MemfdCreate(name, unix.MFD_CLOEXEC)
	if err != nil {
		return -1, err
	}
	for len(b) > 0 {
		n, err := unix.Write(fd, b)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			_ = unix.Close(fd)
			return -1, err
		}
		b = b[n:]
	}
	return fd, nil
}

// Delete removes all run-time traces of a container whatever state it is in:
// processes, runc state, cgroup, shim. Idempotent. The bundle directory and
// the exit record stay; they belong to the caller. After Close it is Unavailable,
// unless nothing is left.
func (m *Manager) Delete(ctx context.Context, id string, r Runtime) error {
	if s, err := m.session(ctx, id); err == nil {
		ask, cancel := context.WithTimeout(ctx, cleanupTime)
		_, _, err = s.link.call(ask, wire.KindDelete, nil, nil)
		if err == nil || errors.Is(err, errGone) {
			m.await(ask, s)
		}
		cancel()
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("delete container %s: %w", id, err)
		}
	}
	if !m.remains(id, r) {
		return nil
	}
	if err := m.cleanup(ctx, id, r); err != nil {
		return err
	}
	return nil
}

// remains reports whether there is anything for cleanup to do.
func (m *Manager) remains(id string, r Runtime) bool {
	for _, p := range []string{filepath.Join(m.runDir(id), wire.LaunchFile),
		filepath.Join(m.runDir(id), wire.SocketFile), filepath.Join(r.Root, id, "state.json")} {
		if _, err := os.Lstat(p); err == nil {
			return true
		}
	}
	return false
}

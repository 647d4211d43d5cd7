package shim

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/berth-dev/berth/observe"
	"github.com/berth-dev/berth/shim/wire"
)

// Create launches the shim and runs `runc create` in it. On an error nothing
// is left: no shim, no runc state, no cgroup. The error carries runc's message.
func (m *Manager) Create(ctx context.Context, r CreateRequest) (Created, error) {
	if r.ID == "" || filepath.Base(r.ID) != r.ID {
		return Created{}, fmt.Errorf("create container %q: bad id: %w", r.ID, errdefs.ErrInvalidArgument)
	}
	work, end := watched(ctx, "create", r.ID)
	out, err := m.create(work, r)
	end(err)
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
	c, ok, err := m.prepared(r.ID)
	if !ok {
		c, err = m.launch(r.ID)
	}
	if err != nil {
		return Created{}, err
	}
	l := m.begin(r.ID)
	defer m.release(r.ID, l)
	s, err := m.adopt(ctx, r.ID, c.conn, c.pid)
	if err != nil {
		m.kill(r.ID, c)
		return Created{}, noThreads(m.explain(r.ID, err))
	}
	if err := canMake(s, r); err != nil {
		l.tell()  // what was never created can't end
		s.close() // the shim leaves: it was never asked for a container
		return Created{}, err
	}
	req := wire.Create{Runtime: wire.Runtime(r.Runtime), ID: r.ID, LogPath: r.LogPath, ExitPath: m.exitPath(r.ID),
		Terminal: r.Terminal, Stdin: r.Stdin, StdinOnce: r.StdinOnce,
		PartialBytes: int64(r.PartialBytes), Limits: wire.LogLimits(r.Limits), Restore: wire.Restore(r.Restore), Gate: r.Gate}
	reply, _, err := s.link.call(ctx, wire.KindCreate, wire.Encode(&req), nil)
	if err != nil {
		l.tell()
		if reply != nil {
			m.await(ctx, s)
		}
		return Created{}, explainFailure(err)
	}
	return Created{PID: int(reply.PID), ShimPID: c.pid}, nil
}

// await waits for a shim that is about to end.
func (m *Manager) await(ctx context.Context, s *session) {
	select {
	case <-s.link.done:
	case <-ctx.Done():
	}
}

// Reconnect attaches to a shim that an earlier daemon launched, or reads the
// exit record it left. Exits of reconnected shims arrive on Exits. A container
// whose shim died is killed, and reported as exited and lost; as long as that
// fails it is Unavailable.
func (m *Manager) Reconnect(ctx context.Context, id string) (State, error) {
	l := m.hold(id)
	defer m.release(id, l)
	if err := l.ask(ctx); err != nil {
		return State{}, fmt.Errorf("reconnect container %s: %w", id, err)
	}
	defer l.asked()
	st, err := m.reconnect(ctx, id)
	if err == nil && st.Exit != nil {
		l.tell()
	}
	return st, err
}

// reconnect is Reconnect for who has the turn to ask.
func (m *Manager) reconnect(ctx context.Context, id string) (State, error) {
	st, err := m.find(ctx, id)
	if err == nil {
		return st, nil
	}
	if !errdefs.IsNotFound(err) {
		return State{}, fmt.Errorf("reconnect container %s: %w", id, err)
	}
	e, ok, err := m.post(ctx, id)
	if err == nil && !ok {
		err = m.open()
	}
	if err != nil {
		return State{}, fmt.Errorf("reconnect container %s: %w", id, err)
	}
	return ended(e, ok), nil
}

// find asks the container's shim how it fares. Only where nobody listens the
// answer is NotFound: a shim that listens and hangs up, again and again, is
// not dead, whatever else it is.
func (m *Manager) find(ctx context.Context, id string) (State, error) {
	var err error
	for try := range hangUps {
		// A shim that is on its way out hangs up just before nobody listens any more.
		if try > 0 && !pause(ctx, firstPause<<(try-1)) {
			break
		}
		var s *session
		if s, err = m.session(ctx, id); err == nil {
			var r *wire.Reply
			if r, err = s.state(ctx); err == nil {
				return stateOf(s, r), nil
			}
		}
		if !errdefs.IsUnavailable(err) {
			break
		}
	}
	return State{}, err
}

// State asks the container's shim, or reads what it left, without changing
// anything.
func (m *Manager) State(ctx context.Context, id string) (State, error) {
	st, err := m.find(ctx, id)
	if err == nil {
		return st, nil
	}
	if !errdefs.IsNotFound(err) {
		return State{}, fmt.Errorf("state of container %s: %w", id, err)
	}
	e, ok, err := m.LastExit(id)
	if err != nil {
		return State{}, fmt.Errorf("state of container %s: %w", id, err)
	}
	return ended(e, ok), nil
}

// ended is the state of a container without a shim. ok: it has an exit record.
func ended(e Exit, ok bool) State {
	if !ok {
		return State{Phase: PhaseGone}
	}
	return State{Phase: PhaseExited, StartedAt: e.StartedAt, Exit: &e}
}

// Start runs `runc start`, or `runc restore` for a container that was made with
// Restore: if that fails the container cannot be started any more.
func (m *Manager) Start(ctx context.Context, id string) (Started, error) {
	ctx, end := watched(ctx, "start", id)
	r, err := m.request(ctx, id, wire.KindStart, nil)
	end(err)
	if err != nil {
		return Started{}, fmt.Errorf("start container %s: %w", id, explainFailure(err))
	}
	return Started{At: when(r.StartedAt), PID: int(r.PID)}, nil
}

// Signal sends a signal to the container's init.
// A container that has ended is NotFound.
func (m *Manager) Signal(ctx context.Context, id string, sig syscall.Signal) error {
	ctx, end := watched(ctx, "signal", id)
	_, err := m.request(ctx, id, wire.KindSignal, wire.Encode(&wire.Signal{Number: int64(sig)}))
	end(err)
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
	ctx, end := watched(ctx, "update", id)
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
	end(err)
	if err != nil {
		return fmt.Errorf("update container %s: %w", id, explainFailure(err))
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
// unless nothing is left. A container whose processes do not end, though they
// were killed, is Unavailable too; it goes by itself when they do.
func (m *Manager) Delete(ctx context.Context, id string, r Runtime) error {
	ctx, end := watched(ctx, "delete", id)
	err := m.delete(ctx, id, r)
	end(err)
	return err
}

// watched tells the context's observer of a request to a shim.
func watched(ctx context.Context, name, id string) (context.Context, observe.End) {
	return observe.Begin(ctx, observe.Work{Kind: observe.Shim, Name: name, Object: id})
}

func (m *Manager) delete(ctx context.Context, id string, r Runtime) error {
	m.dismiss(id)
	if s, err := m.session(ctx, id); err == nil {
		ask, cancel := context.WithTimeout(ctx, deleteTime)
		_, _, err = s.link.call(ask, wire.KindDelete, nil, nil)
		if err == nil || errors.Is(err, errGone) {
			m.await(ask, s)
		}
		cancel()
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("delete container %s: %w", id, err)
		}
		if err != nil && m.waits(ctx, id) {
			return fmt.Errorf("delete container %s: its processes were killed and have not ended: %w", id, errdefs.ErrUnavailable)
		}
	}
	if !m.remains(id, r) {
		return nil
	}
	return m.cleanup(ctx, id, r)
}

// deleteTime is how long a shim may take for its container's removal, waitsTime
// how long one that has taken longer may take to say how it fares.
const (
	deleteTime = 25 * time.Second
	waitsTime  = 2 * time.Second
)

// waits reports whether a shim is well and waits for what no signal ends: a
// container's init, or the runtime that makes it. To kill the shim would help
// nobody, and would lose how the container ends.
func (m *Manager) waits(ctx context.Context, id string) bool {
	ctx, cancel := context.WithTimeout(ctx, waitsTime)
	defer cancel()
	st, err := m.find(ctx, id)
	return err == nil && (st.Phase == PhaseCreated || st.Phase == PhaseRunning)
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

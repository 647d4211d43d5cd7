package shim

import (
	"context"
	"fmt"
	"io"
	"os"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/containerd/errdefs"

	"github.com/berth-dev/berth/shim/wire"
)

// Exec is a process running in a container. The process and all it spawned
// end when Close is called before Wait has returned, or when the daemon dies.
type Exec struct {
	PID    int
	Stdin  io.WriteCloser // nil unless asked for
	Stdout *os.File       // read end; the console when Terminal
	Stderr *os.File       // nil when Terminal

	link  *link
	ended chan struct{} // closed once code is set
	once  sync.Once
	code  int32
}

// execFiles are the ends of an exec's pipes: ours as files, the process's as
// descriptors.
type execFiles struct {
	in, out, err *os.File
	theirs       []int
}

func (f *execFiles) close() {
	for _, o := range []*os.File{f.in, f.out, f.err} {
		if o != nil {
			_ = o.Close()
		}
	}
	f.closeTheirs()
}

func (f *execFiles) closeTheirs() {
	closeFDs(f.theirs)
	f.theirs = nil
}

// pipeEnd makes a pipe of which end number mine (0 reads) is ours. os.Pipe
// would make the container's end non-blocking as well.
func pipeEnd(mine int, name string) (*os.File, int, error) {
	var p [2]int
	if err := unix.Pipe2(p[:], unix.O_CLOEXEC); err != nil {
		return nil, -1, err
	}
	_ = unix.SetNonblock(p[mine], true)
	return os.NewFile(uintptr(p[mine]), name), p[1-mine], nil
}

func newExecFiles(r ExecRequest) (*execFiles, error) {
	f := &execFiles{}
	doc, err := document("process", r.Process)
	if err != nil {
		return nil, err
	}
	f.theirs = append(f.theirs, doc)
	if r.Process.Terminal {
		return f, nil
	}
	add := func(mine int, name string) *os.File {
		if err != nil {
			return nil
		}
		var ours *os.File
		var fd int
		if ours, fd, err = pipeEnd(mine, name); err == nil {
			f.theirs = append(f.theirs, fd)
		}
		return ours
	}
	f.out, f.err = add(0, "stdout"), add(0, "stderr")
	if r.Stdin {
		f.in = add(1, "stdin")
	}
	if err != nil {
		f.close()
		return nil, err
	}
	return f, nil
}

// Exec runs a process in a running container.
func (m *Manager) Exec(ctx context.Context, id string, r ExecRequest) (*Exec, error) {
	if r.Process == nil {
		return nil, fmt.Errorf("exec in container %s: no process: %w", id, errdefs.ErrInvalidArgument)
	}
	work, end := watched(ctx, "exec", id)
	e, err := m.exec(work, id, r)
	end(err)
	if err != nil {
		return nil, fmt.Errorf("exec in container %s: %w", id, err)
	}
	return e, nil
}

func (m *Manager) exec(ctx context.Context, id string, r ExecRequest) (*Exec, error) {
	f, err := newExecFiles(r)
	if err != nil {
		return nil, err
	}
	conn, err := dial(m.runDir(id))
	if err != nil {
		f.close()
		return nil, fmt.Errorf("connect to shim: %w: %w", err, dialKind(err))
	}
	e := &Exec{ended: make(chan struct{})}
	if e.link, _, err = newLink(ctx, conn, false, e.event); err != nil {
		f.close()
		return nil, goneIsNotFound(err)
	}
	req := &wire.Exec{Terminal: r.Process.Terminal, Stdin: r.Stdin}
	reply, files, err := e.link.call(ctx, wire.KindExec, wire.Encode(req), f.theirs)
	f.closeTheirs()
	if err == nil && r.Process.Terminal {
		err = f.console(files, r.Stdin)
	}
	if err != nil {
		f.close()
		e.link.close()
		return nil, err
	}
	e.PID = int(reply.PID)
	e.Stdout, e.Stderr = f.out, f.err
	if f.in != nil {
		e.Stdin = f.in
	}
	return e, nil
}

// console takes the pty master that came with the reply.
func (f *execFiles) console(files []int, stdin bool) error {
	if len(files) != 1 {
		closeFDs(files)
		return fmt.Errorf("shim sent no console: %w", errdefs.ErrUnknown)
	}
	_ = unix.SetNonblock(files[0], true)
	f.out = os.NewFile(uintptr(files[0]), "console")
	if !stdin {
		return nil
	}
	fd, err := unix.FcntlInt(uintptr(files[0]), unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		return err
	}
	f.in = os.NewFile(uintptr(fd), "console")
	return nil
}

func (e *Exec) event(f wire.Frame) {
	var x wire.Exit
	if f.Kind != wire.KindExecEnded || wire.Decode(f.Body, &x) != nil {
		return
	}
	e.once.Do(func() {
		e.code = int32(x.Code)
		close(e.ended)
	})
}

// Wait returns the exit code (128+signal when killed by one). It returns when
// the process ends, whether or not a child of it keeps the pipes open.
func (e *Exec) Wait(ctx context.Context) (int32, error) {
	select {
	case <-e.ended:
		return e.code, nil
	case <-ctx.Done():
		return 0, ctx.Err()
	case <-e.link.done:
	}
	select {
	case <-e.ended:
		return e.code, nil
	default:
		return 0, fmt.Errorf("wait for exec: %w: %w", errGone, errdefs.ErrUnavailable)
	}
}

// Resize sets the console's size in cells.
func (e *Exec) Resize(width, height uint16) error {
	raw, err := e.Stdout.SyscallConn()
	if err != nil {
		return err
	}
	var serr error
	err = raw.Control(func(fd uintptr) {
		serr = unix.IoctlSetWinsize(int(fd), unix.TIOCSWINSZ, &unix.Winsize{Row: height, Col: width})
	})
	if err == nil {
		err = serr
	}
	if err != nil {
		return fmt.Errorf("resize exec: %w", err)
	}
	return nil
}

// Kill kills the process and everything it started. Wait returns the code.
func (e *Exec) Kill(context.Context) error {
	select {
	case <-e.ended:
		return nil
	case <-e.link.done:
		return nil
	default:
	}
	return e.link.tell(wire.KindKillExec, 0, nil, nil)
}

// Close releases the pipes; a process that is still running is killed.
func (e *Exec) Close() error {
	if e.Stdin != nil {
		_ = e.Stdin.Close()
	}
	_ = e.Stdout.Close()
	if e.Stderr != nil {
		_ = e.Stderr.Close()
	}
	e.link.close()
	return nil
}

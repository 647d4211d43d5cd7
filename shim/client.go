// Package shim is the daemon's side of berth-shim: it launches shims, finds
// them again after a restart, and speaks shim/wire with them.
package shim

import (
	"context"
	"io"
	"os"
	"syscall"
	"time"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// Config says where shims and their files live.
type Config struct {
	Binary   string // path of berth-shim
	RunDir   string // container C lives in RunDir/C: config.json, rootfs/, shim.sock, shim.log
	StateDir string // StateDir/C/exit is the durable exit record
}

// Runtime is the OCI runtime a container runs under.
type Runtime struct {
	Path          string // runc binary
	Root          string // runc --root
	SystemdCgroup bool
}

// CreateRequest describes a container to be made. The bundle RunDir/ID with
// config.json and its rootfs exists already.
type CreateRequest struct {
	ID           string
	Runtime      Runtime
	LogPath      string // CRI log file; "" : output is read and dropped
	Terminal     bool
	Stdin        bool
	StdinOnce    bool
	SharedPIDs   bool // the container does not own its PID namespace: leftovers are killed by cgroup
	PartialBytes int  // longest log line before it is split; 0: 16384
}

// Created is the outcome of a successful Create.
type Created struct {
	PID     int // container's init
	ShimPID int
}

// Exit reports the end of a container, or of an attempt to find its shim.
type Exit struct {
	ID        string
	Code      int32 // 128+signal when killed by one
	Signal    int
	OOMKilled bool
	At        time.Time
	Lost      bool // the shim died without a record: Code is 255, the rest unknown
}

// Phase is the life-cycle phase a shim reports.
type Phase int

const (
	PhaseCreated Phase = iota + 1
	PhaseRunning
	PhaseExited
	PhaseGone // neither shim nor exit record exist
)

// State is what is known about a container from its shim or its exit record.
type State struct {
	Phase     Phase
	PID       int
	StartedAt time.Time
	Exit      *Exit // when PhaseExited
}

// ExecRequest describes a process to be run in a container.
type ExecRequest struct {
	Process *specs.Process // as the OCI process document; Terminal is honoured
	Stdin   bool           // whether the caller will write to Stdin
}

// Manager is the set of shims of this daemon.
type Manager struct{}

// New checks the configuration. It starts nothing.
func New(cfg Config) (*Manager, error) { return nil, errdefs.ErrNotImplemented }

// Create launches the shim and runs `runc create` in it. On an error nothing
// is left: no shim, no runc state, no cgroup. The error carries runc's message.
func (m *Manager) Create(ctx context.Context, r CreateRequest) (Created, error) {
	return Created{}, errdefs.ErrNotImplemented
}

// Reconnect attaches to a shim that an earlier daemon launched, or reads the
// exit record it left. Exits of reconnected shims arrive on Exits.
func (m *Manager) Reconnect(ctx context.Context, id string) (State, error) {
	return State{}, errdefs.ErrNotImplemented
}

// Start runs `runc start` and returns the start time that the shim recorded.
func (m *Manager) Start(ctx context.Context, id string) (time.Time, error) {
	return time.Time{}, errdefs.ErrNotImplemented
}

// Signal sends a signal to the container's init, or to all its processes.
// A container that has ended is NotFound.
func (m *Manager) Signal(ctx context.Context, id string, sig syscall.Signal, all bool) error {
	return errdefs.ErrNotImplemented
}

// Exits delivers every end of a container exactly once per daemon life.
func (m *Manager) Exits() <-chan Exit { return nil }

// Exec runs a process in a running container.
func (m *Manager) Exec(ctx context.Context, id string, r ExecRequest) (*Exec, error) {
	return nil, errdefs.ErrNotImplemented
}

// Exec is a process running in a container. The process and all it spawned
// end when Close is called before Wait has returned, or when the daemon dies.
type Exec struct {
	PID    int
	Stdin  io.WriteCloser // nil unless asked for
	Stdout *os.File       // read end; the console when Terminal
	Stderr *os.File       // nil when Terminal
}

// Wait returns the exit code (128+signal when killed by one).
func (e *Exec) Wait(ctx context.Context) (int32, error) { return 0, errdefs.ErrNotImplemented }

// Resize sets the console's size in cells.
func (e *Exec) Resize(width, height uint16) error { return errdefs.ErrNotImplemented }

// Kill kills the process and everything it started.
func (e *Exec) Kill(ctx context.Context) error { return errdefs.ErrNotImplemented }

// Close releases the pipes; a process that is still running is killed.
func (e *Exec) Close() error { return nil }

// Attach connects to the container's own stdio: output from now on, and its
// stdin when the container was created with one.
func (m *Manager) Attach(ctx context.Context, id string, stdin bool) (*Attached, error) {
	return nil, errdefs.ErrNotImplemented
}

// Attached is a connection to a container's stdio. Stdout and Stderr end with
// the container. A reader that is too slow loses the connection, never the log.
type Attached struct {
	Stdin  io.WriteCloser // nil unless asked for and the container has one
	Stdout io.Reader
	Stderr io.Reader // nil when the container has a terminal
}

// Close detaches.
func (a *Attached) Close() error { return nil }

// Resize sets the size of the container's console in cells. It may be called
// before the container is started.
func (m *Manager) Resize(ctx context.Context, id string, width, height uint16) error {
	return errdefs.ErrNotImplemented
}

// ReopenLog makes the shim open its log path anew, after a rotation.
func (m *Manager) ReopenLog(ctx context.Context, id string) error { return errdefs.ErrNotImplemented }

// Update applies resources to the container's cgroup.
func (m *Manager) Update(ctx context.Context, id string, r Runtime, res *specs.LinuxResources) error {
	return errdefs.ErrNotImplemented
}

// Delete removes all run-time traces of a container whatever state it is in:
// processes, runc state, cgroup, shim. Idempotent. The bundle directory and
// the exit record stay; they belong to the caller.
func (m *Manager) Delete(ctx context.Context, id string, r Runtime) error {
	return errdefs.ErrNotImplemented
}

// Close disconnects from all shims and leaves them running.
func (m *Manager) Close() error { return nil }

// Package shim is the daemon's side of berth-shim: it launches shims, finds
// them again after a restart, and speaks shim/wire with them.
//
// Per container there is one connection that stays open and brings the
// container's end, and one for each exec and attachment, whose closing ends
// them. Nothing here waits for a runtime without the caller's context.
package shim

import (
	"errors"
	"fmt"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/berth-dev/berth/shim/wire"
)

// Config says where shims and their files live.
type Config struct {
	Binary   string // path of berth-shim
	RunDir   string // container C lives in RunDir/C: config.json, rootfs/, shim.sock, shim.log
	StateDir string // StateDir/C/exit is the durable exit record
}

// Validate checks that all three are set.
func (c Config) Validate() error {
	if c.Binary == "" || c.RunDir == "" || c.StateDir == "" {
		return fmt.Errorf("shim: binary, run and state directory are needed: %w", errdefs.ErrInvalidArgument)
	}
	return nil
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
	PartialBytes int // longest log line before it is split; 0: 16384
	Limits       LogLimits
	Restore      Restore
	Gate         bool // the runtime is runc: a created container waits at the FIFO exec.fifo in Root/ID, and the shim starts it there
}

// Restore makes the start of a container the restoring of a checkpoint. Until
// then it has no process: Created.PID is 0. The zero value is an ordinary start.
type Restore struct {
	Images string // directory with CRIU's images
	Work   string // directory for CRIU's log, which stays for who wants to know why it failed
	Cgroup string // path of the container's control group
}

// LogLimits bound what a container may write to its log. 0 is no limit.
type LogLimits struct {
	Rate      int64 // bytes of the log a second; a burst of one second, and 64 KiB at least, is free
	FileBytes int64 // size of one log file, until it is rotated
	Block     bool  // the container waits, instead of losing output and getting a line that counts it
}

// Created is the outcome of a successful Create.
type Created struct {
	PID     int // container's init
	ShimPID int
}

// Started is the outcome of a successful Start.
type Started struct {
	At  time.Time // as the shim recorded it
	PID int       // container's init
}

// Exit reports the end of a container, or of an attempt to find its shim.
type Exit struct {
	ID        string
	Code      int32 // 128+signal when killed by one
	Signal    int
	OOMKilled bool
	StartedAt time.Time // zero when it never started or that is unknown
	At        time.Time
	Lost      bool // the shim died without a record: Code is 255, the rest unknown
}

// Phase is the life-cycle phase a shim reports.
type Phase int

// Phases of a container.
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
	Log       LogHealth
	Busy      Busy
	Version   int64 // of the protocol spoken with the shim; 0: there is none any more
}

// LogHealth is how a container's log fares.
type LogHealth struct {
	Dropped int64         // bytes lost to write errors
	Error   syscall.Errno // the last of these, 0 when the log is being written
	Capped  int64         // bytes that LogLimits dropped
	Paused  bool          // the container waits for LogLimits
}

// Busy is the runtime command that a shim waits for longest.
type Busy struct {
	Command string // "create", "start", "restore", "exec", "update", "delete"; "": it waits for none
	Since   time.Time
}

// ExecRequest describes a process to be run in a container.
type ExecRequest struct {
	Process *specs.Process // as the OCI process document; Terminal is honoured
	Stdin   bool           // whether the caller will write to Stdin
}

// Manager is the set of shims of this daemon.
type Manager struct {
	cfg   Config
	exits *exitQueue

	dropped, capped atomic.Int64 // bytes that logs have lost

	mu     sync.Mutex
	shims  map[string]*session
	lives  map[string]*life
	early  map[string]*early
	closed bool
}

// New checks the configuration. It starts nothing.
func New(cfg Config) (*Manager, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	for _, p := range []*string{&cfg.Binary, &cfg.RunDir, &cfg.StateDir} {
		abs, err := filepath.Abs(*p)
		if err != nil {
			return nil, fmt.Errorf("shim: resolve %s: %w", *p, err)
		}
		*p = abs
	}
	return &Manager{cfg: cfg, exits: newExitQueue(), shims: map[string]*session{},
		lives: map[string]*life{}, early: map[string]*early{}}, nil
}

// Exits delivers every end of a container exactly once per daemon life. It is
// closed by Close. An end that Reconnect reported first is not repeated here.
func (m *Manager) Exits() <-chan Exit { return m.exits.out }

// Close disconnects from all shims and leaves them running.
func (m *Manager) Close() error {
	m.mu.Lock()
	m.closed = true
	all := m.shims
	m.shims = map[string]*session{}
	m.mu.Unlock()
	for _, s := range all {
		s.close()
	}
	m.exits.close()
	return nil
}

func (m *Manager) runDir(id string) string   { return filepath.Join(m.cfg.RunDir, id) }
func (m *Manager) exitPath(id string) string { return filepath.Join(m.cfg.StateDir, id, "exit") }

func when(ns int64) time.Time {
	if ns == 0 {
		return time.Time{}
	}
	return time.Unix(0, ns)
}

func exitOf(id string, e wire.Exit) Exit {
	return Exit{ID: id, Code: int32(e.Code), Signal: int(e.Signal), OOMKilled: e.OOMKilled,
		StartedAt: when(e.StartedAt), At: when(e.FinishedAt), Lost: e.Lost}
}

func healthOf(h wire.LogHealth) LogHealth {
	return LogHealth{Dropped: h.Dropped, Error: syscall.Errno(h.Errno), Capped: h.Capped, Paused: h.Paused}
}

func stateOf(from *session, r *wire.Reply) State {
	s := State{PID: int(r.PID), StartedAt: when(r.StartedAt), Log: healthOf(r.Log),
		Busy: Busy{Command: r.Busy.Command, Since: when(r.Busy.Since)}, Version: from.version()}
	switch r.Phase {
	case wire.PhaseCreating, wire.PhaseCreated:
		s.Phase = PhaseCreated
	case wire.PhaseRunning:
		s.Phase = PhaseRunning
	case wire.PhaseExited:
		e := exitOf(from.id, r.Exit)
		s.Phase, s.Exit = PhaseExited, &e
	default:
		s.Phase = PhaseGone
	}
	return s
}

// errGone is a connection that ended before the answer came.
var errGone = errors.New("the shim closed the connection")

func replyError(r *wire.Reply) error {
	var kind error
	switch r.Code {
	case wire.CodeOK:
		return nil
	case wire.CodeNotFound:
		kind = errdefs.ErrNotFound
	case wire.CodeExists:
		kind = errdefs.ErrAlreadyExists
	case wire.CodeState:
		kind = errdefs.ErrFailedPrecondition
	case wire.CodeInvalid:
		kind = errdefs.ErrInvalidArgument
	case wire.CodeUnavailable:
		kind = errdefs.ErrUnavailable
	case wire.CodeUnknown:
		kind = errdefs.ErrNotImplemented
	default:
		kind = errdefs.ErrUnknown
	}
	return fmt.Errorf("%s: %w", r.Message, kind)
}

// canMake refuses what an older shim would not know of.
func canMake(s *session, r CreateRequest) error {
	what, needs := "log limits", int64(0)
	if r.Limits.Rate > 0 || r.Limits.FileBytes > 0 {
		needs = wire.VersionLimits
	}
	if r.Restore.Images != "" {
		what, needs = "checkpoints", wire.VersionRestore
	}
	if s.version() >= needs {
		return nil
	}
	return fmt.Errorf("%s need a berth-shim of protocol %d, the installed one speaks %d; install the berth-shim that came with this berthd: %w",
		what, needs, s.version(), errdefs.ErrFailedPrecondition)
}

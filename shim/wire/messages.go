package wire

// message is a body made of fields.
type message interface{ fields() []field }

// Encode returns a message's body.
func Encode(m message) []byte { return appendFields(nil, m.fields()) }

// Decode fills a message from a body. Fields the body lacks keep their value.
func Decode(b []byte, m message) error { return parseFields(b, m.fields()) }

// Hello opens a connection, from both sides. The shim's is its answer: it
// carries the state as well.
type Hello struct {
	Version int64
	Oldest  int64
	Events  bool // from the daemon: send KindExited when the container ends
	PID     int64
	ID      string
}

func (m *Hello) fields() []field {
	return []field{{tag: 1, n: &m.Version}, {tag: 2, n: &m.Oldest}, {tag: 3, b: &m.Events},
		{tag: 4, n: &m.PID}, {tag: 5, s: &m.ID}}
}

// Common returns the version that both sides speak.
func (m *Hello) Common() (int64, error) {
	v := min(m.Version, Version)
	if v < Oldest || v < m.Oldest {
		return 0, ErrVersion
	}
	return v, nil
}

// Runtime is the OCI runtime and how to call it.
type Runtime struct {
	Path          string
	Root          string
	SystemdCgroup bool
}

func (m *Runtime) fields() []field {
	return []field{{tag: 1, s: &m.Path}, {tag: 2, s: &m.Root}, {tag: 3, b: &m.SystemdCgroup}}
}

// Create asks for the container; it is also most of the launch file.
type Create struct {
	Runtime      Runtime
	ID           string
	LogPath      string
	ExitPath     string // where the durable exit record goes
	Terminal     bool
	Stdin        bool
	StdinOnce    bool
	PartialBytes int64
	Limits       LogLimits // since VersionLimits
	Restore      Restore   // since VersionRestore
	Gate         bool      // a created container waits at runc's FIFO; shims that do not know it run the start command
}

// Tag 14 was of a field that nothing read; it must not get another meaning.
func (m *Create) fields() []field {
	return append(m.Runtime.fields(), field{tag: 8, s: &m.ID}, field{tag: 9, s: &m.LogPath},
		field{tag: 10, s: &m.ExitPath}, field{tag: 11, b: &m.Terminal}, field{tag: 12, b: &m.Stdin},
		field{tag: 13, b: &m.StdinOnce}, field{tag: 15, n: &m.PartialBytes},
		field{tag: 16, n: &m.Limits.Rate}, field{tag: 17, n: &m.Limits.FileBytes}, field{tag: 18, b: &m.Limits.Block},
		field{tag: 19, s: &m.Restore.Images}, field{tag: 20, s: &m.Restore.Work}, field{tag: 21, s: &m.Restore.Cgroup},
		field{tag: 22, b: &m.Gate})
}

// Restore makes the start of a container the restoring of a checkpoint's
// processes. Until then it has none.
type Restore struct {
	Images string // directory with CRIU's images; "": an ordinary container
	Work   string // directory for what CRIU says
	Cgroup string // path of the container's control group, which is not known from a process
}

// LogLimits bound a container's log. 0 is no limit.
type LogLimits struct {
	Rate      int64 // bytes of records a second
	FileBytes int64 // size of one file, until it is rotated
	Block     bool  // let the container wait instead of dropping its output
}

// Launch is the content of the file LaunchFile in a container's run-time
// directory. The file is there as long as something may be left to clean up.
type Launch struct {
	Create  Create
	ShimPID int64
	PID     int64  // 0 before runc create has returned
	Cgroup  string // path of the container's control group; "" until it is made
}

func (m *Launch) fields() []field {
	return append(m.Create.fields(), field{tag: 32, n: &m.ShimPID}, field{tag: 33, n: &m.PID},
		field{tag: 34, s: &m.Cgroup})
}

// Made reports whether the container was made: it has had a process, or waits to
// be restored.
func (m *Launch) Made() bool { return m.PID != 0 || m.Create.Restore.Images != "" && m.Cgroup != "" }

// Signal is sent to the container's init.
type Signal struct{ Number int64 }

// Tag 2 had older shims signal all processes, which no daemon ever asked for; it
// must not get another meaning.
func (m *Signal) fields() []field { return []field{{tag: 1, n: &m.Number}} }

// Size is that of a console, in cells.
type Size struct{ Width, Height int64 }

func (m *Size) fields() []field { return []field{{tag: 1, n: &m.Width}, {tag: 2, n: &m.Height}} }

// Exec asks for a process in the container.
type Exec struct {
	Terminal bool
	Stdin    bool
}

func (m *Exec) fields() []field { return []field{{tag: 1, b: &m.Terminal}, {tag: 2, b: &m.Stdin}} }

// Attach asks for the container's stdio.
type Attach struct{ Stdin bool }

func (m *Attach) fields() []field { return []field{{tag: 1, b: &m.Stdin}} }

// Dump asks for an image of the container's processes. Both are directories
// that exist: one for the image, one for what the runtime says while it works.
type Dump struct{ Images, Work string }

func (m *Dump) fields() []field { return []field{{tag: 1, s: &m.Images}, {tag: 2, s: &m.Work}} }

// LogHealth is how a container's log fares.
type LogHealth struct {
	Dropped int64 // bytes of records lost to write errors
	Errno   int64 // the last of these errors, 0 when the log is well
	Capped  int64 // bytes of records dropped by LogLimits; since VersionLimits
	Paused  bool  // the container waits for LogLimits; since VersionLimits
}

func (m *LogHealth) fields() []field {
	return []field{{tag: 21, n: &m.Dropped}, {tag: 22, n: &m.Errno}, {tag: 25, n: &m.Capped}, {tag: 26, b: &m.Paused}}
}

// Busy is the runtime command that a shim waits for longest. Since VersionLimits.
type Busy struct {
	Command string // "create", "delete"...; "" when there is none
	Since   int64  // ns since 1970
}

// Reply answers a request. Code is 0 or one of the codes; Message explains it.
// The rest is set where it makes sense.
type Reply struct {
	Code      int64
	Message   string
	Phase     int64
	PID       int64
	StartedAt int64 // ns since 1970
	Log       LogHealth
	Busy      Busy
	Terminal  bool
	Stdin     bool
	Exit      Exit // when Phase is PhaseExited
}

func (m *Reply) fields() []field {
	fs := append(m.Exit.fields(), m.Log.fields()...)
	return append(fs, field{tag: 16, n: &m.Code}, field{tag: 17, s: &m.Message},
		field{tag: 18, n: &m.Phase}, field{tag: 19, n: &m.PID}, field{tag: 20, n: &m.StartedAt},
		field{tag: 23, b: &m.Terminal}, field{tag: 24, b: &m.Stdin},
		field{tag: 27, s: &m.Busy.Command}, field{tag: 28, n: &m.Busy.Since})
}

// Codes of a Reply.
const (
	CodeOK          = 0
	CodeFailed      = 1
	CodeNotFound    = 2
	CodeExists      = 3
	CodeState       = 4 // not in the phase for this
	CodeInvalid     = 5
	CodeUnavailable = 6
	CodeUnknown     = 7 // this shim does not know the request
)

// Phases of a Reply; 0 before a container was asked for.
const (
	PhaseCreating = 1
	PhaseCreated  = 2
	PhaseRunning  = 3
	PhaseExited   = 4
)

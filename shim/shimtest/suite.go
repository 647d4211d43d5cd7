package shimtest

import (
	"context"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/berth-dev/berth/shim"
)

// Life makes, starts and deletes containers.
type Life interface {
	Create(ctx context.Context, r shim.CreateRequest) (shim.Created, error)
	Start(ctx context.Context, id string) (shim.Started, error)
	Delete(ctx context.Context, id string, r shim.Runtime) error
}

// Control acts on containers.
type Control interface {
	Signal(ctx context.Context, id string, sig syscall.Signal) error
	ReopenLog(ctx context.Context, id string) error
	Update(ctx context.Context, id string, r shim.Runtime, res *specs.LinuxResources) error
}

// Watch learns how they fare.
type Watch interface {
	Reconnect(ctx context.Context, id string) (shim.State, error)
	State(ctx context.Context, id string) (shim.State, error)
	Exits() <-chan shim.Exit
}

// Streams are their bytes, and what is left of them.
type Streams interface {
	Exec(ctx context.Context, id string, r shim.ExecRequest) (*shim.Exec, error)
	Attach(ctx context.Context, id string, stdin bool) (*shim.Attached, error)
	LastExit(id string) (x shim.Exit, ok bool, err error)
}

// Shims is a client of shims.
type Shims interface {
	Life
	Control
	Outlook
}

// Outlook is all that comes from a container.
type Outlook interface {
	Watch
	Streams
}

// Subject is what the suite is run on.
type Subject struct {
	Shims Shims
	// Request prepares a container that ends with code 3 on SIGTERM and else
	// goes on; it is deleted after the test.
	Request func(t *testing.T, id string) shim.CreateRequest
	// Ready waits until a started container would end so; nil: it does at once.
	Ready func(t *testing.T, id string)
	// Again ends the client and returns that of the daemon's next life; between
	// the two it kills a container, if one is named.
	Again func(t *testing.T, kill string) Shims
}

// Run runs the suite. make is called once for each test.
func Run(t *testing.T, make func(t *testing.T) *Subject) {
	for name, test := range map[string]func(*testing.T, *Subject){
		"life": life, "created": created, "unknown": unknown, "again": again, "missed": missed,
	} {
		t.Run(name, func(t *testing.T) { test(t, make(t)) })
	}
}

// running makes and starts a container.
func running(t *testing.T, s *Subject, id string) (pid int, at time.Time) {
	t.Helper()
	r := s.Request(t, id)
	c, err := s.Shims.Create(t.Context(), r)
	if err != nil || c.PID <= 0 {
		t.Fatalf("create: %+v, %v", c, err)
	}
	started, err := s.Shims.Start(t.Context(), id)
	if err != nil || started.At.IsZero() || started.PID != c.PID {
		t.Fatalf("start: %+v, %v", started, err)
	}
	if s.Ready != nil {
		s.Ready(t, id)
	}
	return c.PID, started.At
}

func exit(t *testing.T, s *Subject) shim.Exit {
	t.Helper()
	select {
	case e := <-s.Shims.Exits():
		return e
	case <-time.After(time.Minute):
		t.Fatal("no end was reported")
		return shim.Exit{}
	}
}

// want checks an error's kind.
func want(t *testing.T, what string, err error, is func(error) bool) {
	t.Helper()
	if !is(err) {
		t.Errorf("%s: %v", what, err)
	}
}

func life(t *testing.T, s *Subject) {
	ctx, id := t.Context(), "life"
	pid, at := running(t, s, id)
	st, err := s.Shims.State(ctx, id)
	if err != nil || st.Phase != shim.PhaseRunning || st.PID != pid || !st.StartedAt.Equal(at) || st.Exit != nil {
		t.Errorf("running: %+v, %v", st, err)
	}
	_, err = s.Shims.Create(ctx, shim.CreateRequest{ID: id, Runtime: s.Request(t, "other").Runtime})
	want(t, "second create", err, errdefs.IsAlreadyExists)
	_, err = s.Shims.Start(ctx, id)
	want(t, "second start", err, errdefs.IsFailedPrecondition)
	if err := s.Shims.ReopenLog(ctx, id); err != nil {
		t.Error(err)
	}
	if err := s.Shims.Signal(ctx, id, syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	e := exit(t, s)
	if e.ID != id || e.Code != 3 || e.Signal != 0 || e.OOMKilled || e.Lost || !e.StartedAt.Equal(at) || e.At.Before(at) {
		t.Errorf("end: %+v", e)
	}
	st, err = s.Shims.State(ctx, id)
	if err != nil || st.Phase != shim.PhaseExited || st.Exit == nil || st.Exit.Code != 3 || !st.Exit.At.Equal(e.At) {
		t.Errorf("ended: %+v, %v", st, err)
	}
	if last, ok, err := s.Shims.LastExit(id); err != nil || !ok || last.Code != 3 {
		t.Errorf("last exit: %+v, %v", last, ok)
	}
	want(t, "signal after the end", s.Shims.Signal(ctx, id, syscall.SIGTERM), errdefs.IsNotFound)
	for range 2 {
		if err := s.Shims.Delete(ctx, id, s.Request(t, "other").Runtime); err != nil {
			t.Error(err)
		}
	}
	want(t, "start after removal", func() error { _, err := s.Shims.Start(ctx, id); return err }(), errdefs.IsNotFound)
	select {
	case e := <-s.Shims.Exits():
		t.Errorf("reported twice: %+v", e)
	default:
	}
}

func created(t *testing.T, s *Subject) {
	ctx, id := t.Context(), "created"
	if _, err := s.Shims.Create(ctx, s.Request(t, id)); err != nil {
		t.Fatal(err)
	}
	if st, err := s.Shims.State(ctx, id); err != nil || st.Phase != shim.PhaseCreated || !st.StartedAt.IsZero() {
		t.Errorf("created: %+v, %v", st, err)
	}
	_, err := s.Shims.Exec(ctx, id, shim.ExecRequest{Process: &specs.Process{Args: []string{"true"}, Cwd: "/"}})
	want(t, "exec before start", err, errdefs.IsFailedPrecondition)
	if err := s.Shims.Signal(ctx, id, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if e := exit(t, s); e.ID != id || e.Code != 137 || e.Signal != 9 || !e.StartedAt.IsZero() {
		t.Errorf("end: %+v", e)
	}
}

func unknown(t *testing.T, s *Subject) {
	ctx, id := t.Context(), "unknown"
	for name, ask := range map[string]func(context.Context, string) (shim.State, error){"state": s.Shims.State, "reconnect": s.Shims.Reconnect} {
		if st, err := ask(ctx, id); err != nil || st.Phase != shim.PhaseGone {
			t.Errorf("%s: %+v, %v", name, st, err)
		}
	}
	_, err := s.Shims.Start(ctx, id)
	want(t, "start", err, errdefs.IsNotFound)
	want(t, "signal", s.Shims.Signal(ctx, id, syscall.SIGTERM), errdefs.IsNotFound)
	want(t, "reopen", s.Shims.ReopenLog(ctx, id), errdefs.IsNotFound)
	want(t, "update", s.Shims.Update(ctx, id, shim.Runtime{}, &specs.LinuxResources{}), errdefs.IsNotFound)
	_, err = s.Shims.Exec(ctx, id, shim.ExecRequest{Process: &specs.Process{Args: []string{"true"}, Cwd: "/"}})
	want(t, "exec", err, errdefs.IsNotFound)
	_, err = s.Shims.Attach(ctx, id, false)
	want(t, "attach", err, errdefs.IsNotFound)
	_, err = s.Shims.Create(ctx, shim.CreateRequest{ID: "a/b"})
	want(t, "create with a bad id", err, errdefs.IsInvalidArgument)
	if err := s.Shims.Delete(ctx, id, shim.Runtime{}); err != nil {
		t.Error("delete:", err)
	}
	if e, ok, err := s.Shims.LastExit(id); ok || err != nil {
		t.Errorf("last exit: %+v", e)
	}
}

// again: the next daemon finds what runs, and hears of its end.
func again(t *testing.T, s *Subject) {
	id := "again"
	pid, at := running(t, s, id)
	s.Shims = s.Again(t, "")
	st, err := s.Shims.Reconnect(t.Context(), id)
	if err != nil || st.Phase != shim.PhaseRunning || st.PID != pid || !st.StartedAt.Equal(at) {
		t.Fatalf("reconnect: %+v, %v", st, err)
	}
	if err := s.Shims.Signal(t.Context(), id, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if e := exit(t, s); e.ID != id || e.Code != 137 || e.Signal != 9 || !e.StartedAt.Equal(at) {
		t.Errorf("end: %+v", e)
	}
}

// missed: an end that Reconnect tells is not told again.
func missed(t *testing.T, s *Subject) {
	id := "missed"
	_, at := running(t, s, id)
	s.Shims = s.Again(t, id)
	st, err := s.Shims.Reconnect(t.Context(), id)
	if err != nil || st.Phase != shim.PhaseExited || st.Exit == nil || st.Exit.Code != 137 || !st.Exit.StartedAt.Equal(at) || st.Exit.Lost {
		t.Fatalf("reconnect: %+v, %v", st, err)
	}
	select {
	case e := <-s.Shims.Exits():
		t.Errorf("reported twice: %+v", e)
	default:
	}
}

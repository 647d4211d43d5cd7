// Package shimtest serves tests: a scripted stand-in for the shims of a node,
// and the suite of their client's contract, which the real ones pass too.
package shimtest

import (
	"context"
	"fmt"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/berth-dev/berth/shim"
)

// pending is how many ends may wait for the reader of Exits.
const pending = 64

// Fake is a shim.Manager without processes. Containers do only what the test
// says: with End they end, with Set they are in any state. It has no byte
// streams: Exec and Attach only fail, as they would.
type Fake struct {
	// OnSignal is called after a signal reached a container; nil: nothing
	// happens. To be set before the first signal.
	OnSignal func(id string, sig syscall.Signal)

	mu     sync.Mutex
	states map[string]shim.State
	exits  chan shim.Exit
	pid    int
}

// NewFake returns a node without containers.
func NewFake() *Fake {
	return &Fake{states: map[string]shim.State{}, exits: make(chan shim.Exit, pending), pid: 4241}
}

// Again is the daemon's next life: it finds the containers, and is told of no
// end that came before. The fake it is called on is closed.
func (f *Fake) Again() *Fake {
	f.mu.Lock()
	defer f.mu.Unlock()
	close(f.exits)
	return &Fake{OnSignal: f.OnSignal, states: f.states, exits: make(chan shim.Exit, pending), pid: f.pid}
}

// Set puts a container into a state; PhaseGone forgets it.
func (f *Fake) Set(id string, st shim.State) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if st.Phase == shim.PhaseGone {
		delete(f.states, id)
		return
	}
	f.states[id] = st
}

// End ends a container and reports it. The start time is filled in if it is known.
func (f *Fake) End(e shim.Exit) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if st, ok := f.states[e.ID]; ok {
		f.states[e.ID] = ended(st, &e)
	}
	f.exits <- e
}

// Miss ends a container while no daemon looks: nothing is reported.
func (f *Fake) Miss(e shim.Exit) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.states[e.ID] = ended(f.states[e.ID], &e)
}

func ended(st shim.State, e *shim.Exit) shim.State {
	if e.StartedAt.IsZero() {
		e.StartedAt = st.StartedAt
	}
	x := *e
	return shim.State{Phase: shim.PhaseExited, StartedAt: x.StartedAt, Exit: &x}
}

func (f *Fake) state(id string) shim.State {
	f.mu.Lock()
	defer f.mu.Unlock()
	if st, ok := f.states[id]; ok {
		return st
	}
	return shim.State{Phase: shim.PhaseGone}
}

// live fails for a container that has no shim any more.
func (f *Fake) live(verb, id string) (shim.State, error) {
	st := f.state(id)
	if st.Phase != shim.PhaseCreated && st.Phase != shim.PhaseRunning {
		return st, fmt.Errorf("%s container %s: %w", verb, id, errdefs.ErrNotFound)
	}
	return st, nil
}

// Prepare is that of shim.Manager, as are all that follow. Nothing shows of it.
func (f *Fake) Prepare(string) {}

// Create makes a container.
func (f *Fake) Create(_ context.Context, r shim.CreateRequest) (shim.Created, error) {
	if r.ID == "" || filepath.Base(r.ID) != r.ID {
		return shim.Created{}, fmt.Errorf("create container %q: bad id: %w", r.ID, errdefs.ErrInvalidArgument)
	}
	if _, err := f.live("create", r.ID); err == nil {
		return shim.Created{}, fmt.Errorf("create container %s: %w", r.ID, errdefs.ErrAlreadyExists)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	st := shim.State{Phase: shim.PhaseCreated}
	if r.Restore.Images == "" {
		f.pid++
		st.PID = f.pid
	}
	f.states[r.ID] = st
	return shim.Created{PID: st.PID}, nil
}

// Start starts a created container.
func (f *Fake) Start(_ context.Context, id string) (shim.Started, error) {
	st, err := f.live("start", id)
	if err != nil {
		return shim.Started{}, err
	}
	if st.Phase == shim.PhaseRunning {
		return shim.Started{}, fmt.Errorf("start container %s: %w", id, errdefs.ErrFailedPrecondition)
	}
	if st.PID == 0 {
		f.mu.Lock()
		f.pid++
		st.PID = f.pid
		f.mu.Unlock()
	}
	st.Phase, st.StartedAt = shim.PhaseRunning, time.Now()
	f.Set(id, st)
	return shim.Started{At: st.StartedAt, PID: st.PID}, nil
}

// Delete forgets a container.
func (f *Fake) Delete(_ context.Context, id string, _ shim.Runtime) error {
	f.Set(id, shim.State{Phase: shim.PhaseGone})
	return nil
}

// Signal calls OnSignal.
func (f *Fake) Signal(_ context.Context, id string, sig syscall.Signal) error {
	if _, err := f.live("signal", id); err != nil {
		return err
	}
	if f.OnSignal != nil {
		f.OnSignal(id, sig)
	}
	return nil
}

// Update changes nothing.
func (f *Fake) Update(_ context.Context, id string, _ shim.Runtime, _ *specs.LinuxResources) error {
	_, err := f.live("update", id)
	return err
}

// ReopenLog changes nothing.
func (f *Fake) ReopenLog(_ context.Context, id string) error {
	_, err := f.live("reopen log of", id)
	return err
}

// Reconnect returns what the container is now.
func (f *Fake) Reconnect(_ context.Context, id string) (shim.State, error) { return f.state(id), nil }

// State is Reconnect.
func (f *Fake) State(_ context.Context, id string) (shim.State, error) { return f.state(id), nil }

// Exits delivers what End reports.
func (f *Fake) Exits() <-chan shim.Exit { return f.exits }

// LastExit is how a container ended.
func (f *Fake) LastExit(id string) (x shim.Exit, ok bool, err error) {
	if x := f.state(id).Exit; x != nil {
		return *x, true, nil
	}
	return shim.Exit{}, false, nil
}

// Exec fails.
func (f *Fake) Exec(_ context.Context, id string, _ shim.ExecRequest) (*shim.Exec, error) {
	st, err := f.live("exec in", id)
	if err != nil {
		return nil, err
	}
	if st.Phase != shim.PhaseRunning {
		return nil, fmt.Errorf("exec in container %s: %w", id, errdefs.ErrFailedPrecondition)
	}
	return nil, errdefs.ErrNotImplemented
}

// Attach fails.
func (f *Fake) Attach(_ context.Context, id string, _ bool) (*shim.Attached, error) {
	if _, err := f.live("attach to", id); err != nil {
		return nil, err
	}
	return nil, errdefs.ErrNotImplemented
}

// Resize fails: there is no terminal.
func (f *Fake) Resize(_ context.Context, id string, _, _ uint16) error {
	if _, err := f.live("resize", id); err != nil {
		return err
	}
	return fmt.Errorf("resize container %s: %w", id, errdefs.ErrFailedPrecondition)
}

package runtimeservice

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/containerd/errdefs"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-dev/berth/observe"
	"github.com/berth-dev/berth/shim"
	"github.com/berth-dev/berth/store"
	"github.com/berth-dev/berth/store/op"
)

// longestGrace bounds a grace period, so that adding it to the time is safe.
const longestGrace = 10 * 365 * 24 * time.Hour

// stops are the containers that are being stopped.
type stops struct {
	mu     sync.Mutex
	m      map[string]*stopping
	failed map[string]error // why the last stop of a container did not end it
}

// stopping is one container on its way to its end. Calls that come later join
// it and may bring its deadline forward.
type stopping struct {
	deadline time.Time
	step     string        // what it waits for, for people
	sooner   chan struct{} // closed and replaced when the deadline moves
	done     chan struct{}
	err      error
}

func newStops() *stops { return &stops{m: map[string]*stopping{}, failed: map[string]error{}} }

// enter says what a stop waits for from now on.
func (s *stops) enter(st *stopping, step string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	st.step = step
}

// stopInfo is what a status says of a stop that is under way or has failed.
type stopInfo struct {
	Step      string   `json:"step,omitempty"`      // of one under way
	Deadline  string   `json:"deadline,omitempty"`  // when the grace period ends or ended
	Failed    string   `json:"failed,omitempty"`    // why the last one did not end the container
	Processes []string `json:"processes,omitempty"` // that are still there, at most heldMost
}

// look returns what is known about stops of id; nil: nobody stops it.
func (s *stops) look(id string) *stopInfo {
	s.mu.Lock()
	defer s.mu.Unlock()
	st, err := s.m[id], s.failed[id]
	if st == nil && err == nil {
		return nil
	}
	out := &stopInfo{}
	if st != nil {
		out.Step, out.Deadline = st.step, st.deadline.UTC().Format(time.RFC3339Nano)
	}
	if err != nil {
		out.Failed = err.Error()
	}
	return out
}

// unended returns the containers that the last stop did not end.
func (s *stops) unended() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Collect(maps.Keys(s.failed))
}

// forget drops what is remembered of a container that is no more.
func (s *stops) forget(id string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.failed, id)
}

// join returns the stop under way for id, or begins one.
func (s *stops) join(id string, deadline time.Time) (st *stopping, first bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if st = s.m[id]; st != nil {
		if deadline.Before(st.deadline) {
			st.deadline = deadline
			close(st.sooner)
			st.sooner = make(chan struct{})
		}
		return st, false
	}
	st = &stopping{deadline: deadline, step: "it was asked to end and has its grace period", sooner: make(chan struct{}), done: make(chan struct{})}
	s.m[id] = st
	return st, true
}

func (s *stops) when(st *stopping) (time.Time, <-chan struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return st.deadline, st.sooner
}

func (s *stops) finish(id string, st *stopping, err error) {
	s.mu.Lock()
	delete(s.m, id)
	delete(s.failed, id)
	if err != nil {
		s.failed[id] = err
	}
	s.mu.Unlock()
	st.err = err
	close(st.done)
}

// StopContainer asks a container to end and kills it after the grace period of
// timeout seconds. An unknown container, or one that has ended, is no error. Of
// several calls the one that allows the least time wins.
func (c *containers) StopContainer(ctx context.Context, r *runtimeapi.StopContainerRequest) (*runtimeapi.StopContainerResponse, error) {
	rec, err := c.container(ctx, r.GetContainerId())
	if errdefs.IsNotFound(err) {
		return &runtimeapi.StopContainerResponse{}, nil
	}
	if err != nil {
		return nil, fmt.Errorf("stop container %q: %w", r.GetContainerId(), err)
	}
	if err := c.stop(ctx, rec, graceOf(r.GetTimeout())); err != nil {
		return nil, fmt.Errorf("stop container %s: %w", rec.ID, err)
	}
	return &runtimeapi.StopContainerResponse{}, nil
}

func graceOf(seconds int64) time.Duration {
	if seconds <= 0 {
		return 0
	}
	if seconds > int64(longestGrace/time.Second) {
		return longestGrace
	}
	return time.Duration(seconds) * time.Second
}

// stop ends a container. The work goes on when ctx ends, and no lock is held:
// status, exec, log rotation and another stop stay possible.
func (c *containers) stop(ctx context.Context, rec store.Container, grace time.Duration) error {
	rec, err := c.container(ctx, rec.ID)
	if errdefs.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return err
	}
	if containerState(rec, c.cfg.BootID) == runtimeapi.ContainerState_CONTAINER_EXITED {
		return nil
	}
	st, first := c.stops.join(rec.ID, c.clock.Now().Add(grace))
	if first {
		c.tasks.spawn(func(life context.Context) {
			w := observe.Work{Kind: observe.Verb, Name: kindStop, Object: rec.ID, Pod: rec.SandboxID}
			err := observe.Do(observe.Detached(life, ctx), w, func(ctx context.Context) error { return c.end(ctx, rec.ID, st) })
			c.stops.finish(rec.ID, st, err)
		})
	}
	select {
	case <-st.done:
		return st.err
	case <-ctx.Done():
		return fmt.Errorf("it has been asked to end and will be killed after its grace period: %w", ctx.Err())
	}
}

// end brings a container to its end: the stop signal, SIGKILL at the deadline,
// then the removal of its cgroup with all in it.
func (c *containers) end(ctx context.Context, id string, st *stopping) error {
	ended := c.ends.wait(id)
	rec, err := c.db.Container(id)
	if errdefs.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return err
	}
	if rec.Facts.Exit != nil {
		return nil
	}
	// A created container has no program that could heed the signal.
	running := containerState(rec, c.cfg.BootID) == runtimeapi.ContainerState_CONTAINER_RUNNING
	for _, s := range []struct {
		name string
		do   func(ctx context.Context) (over bool, err error)
		skip bool
	}{
		{"ask", func(ctx context.Context) (bool, error) { return c.askAndWait(ctx, rec, ended, st) }, !running},
		{"kill", func(ctx context.Context) (bool, error) { return c.kill(ctx, id, ended, st) }, false},
		{"remove cgroup", func(ctx context.Context) (bool, error) { return c.force(ctx, rec, ended, st) }, false},
	} {
		if s.skip {
			continue
		}
		work, end := observe.Begin(ctx, observe.Work{Kind: observe.Step, Verb: kindStop, Name: s.name})
		over, err := s.do(work)
		end(err)
		if over || err != nil {
			return err
		}
	}
	return nil
}

// kindStop is what observers hear; stopping a container has no journal entry.
const kindStop = "container.stop"

func (c *containers) askAndWait(ctx context.Context, rec store.Container, ended <-chan struct{}, st *stopping) (over bool, err error) {
	if !c.ask(ctx, rec, st) {
		return false, nil
	}
	return c.awaitDeadline(ctx, ended, st)
}

func (c *containers) kill(ctx context.Context, id string, ended <-chan struct{}, st *stopping) (over bool, err error) {
	op.Fault("container.stop", "kill", "before")
	c.stops.enter(st, "its init was killed and has not ended")
	if err := c.signal(ctx, id, syscall.SIGKILL, c.cfg.Limits.KillWait); err != nil && !errdefs.IsNotFound(err) {
		c.cfg.Logger.Warn("could not kill container, its cgroup is next", "container", id, "error", err)
		return false, nil
	}
	return c.awaitEnd(ctx, ended, c.cfg.Limits.KillWait)
}

func (c *containers) force(ctx context.Context, rec store.Container, ended <-chan struct{}, st *stopping) (over bool, err error) {
	c.stops.enter(st, "everything in its cgroup was killed and has not ended")
	if err := c.lastResort(ctx, rec, ended); err != nil {
		return true, c.explainStop(rec, err)
	}
	return true, nil
}

// heldMost is how many processes are named that do not end.
const heldMost = 8

// explainStop adds the processes that are still there.
func (c *containers) explainStop(rec store.Container, err error) error {
	if held := c.held(rec); len(held) > 0 {
		return fmt.Errorf("%w; %s; a process in uninterruptible sleep ends when the device or file system it waits for answers", err, strings.Join(held, "; "))
	}
	return err
}

// held describes the processes of a container.
func (c *containers) held(rec store.Container) []string {
	members, err := c.cgroups.Members(rec.Facts.CgroupPath, heldMost)
	if err != nil {
		return []string{"its processes are not known: " + err.Error()}
	}
	var out []string
	for _, p := range members {
		out = append(out, p.Text())
	}
	return out
}

// Signal sends a signal, by name or number, to the init of a container that is
// created or running.
func (c *containers) Signal(ctx context.Context, id, name string) error {
	full, err := stopSignal(0, name) // images name them in the same ways
	if err != nil {
		return fmt.Errorf("signal container %q: signal %q is unknown: %w", id, name, errdefs.ErrInvalidArgument)
	}
	sig, err := signalNumber(full)
	if err != nil {
		return fmt.Errorf("signal container %q: %w", id, err)
	}
	rec, err := c.alive(ctx, id)
	if err != nil {
		return fmt.Errorf("signal container %q: %w", id, err)
	}
	if err := c.signal(ctx, rec.ID, sig, c.cfg.Limits.KillWait); err != nil {
		return fmt.Errorf("signal container %s: %w", rec.ID, err)
	}
	return nil
}

// signal sends a signal to the container's init. A shim that does not answer
// in time is an error: nothing may wait for it for ever.
func (c *containers) signal(ctx context.Context, id string, sig syscall.Signal, within time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	return c.shim.Signal(ctx, id, sig)
}

// ask sends the stop signal. It reports whether there is a reason to wait.
func (c *containers) ask(ctx context.Context, rec store.Container, st *stopping) bool {
	if at, _ := c.stops.when(st); !c.clock.Now().Before(at) {
		return false
	}
	sig, err := signalNumber(rec.Facts.StopSignal)
	if err != nil {
		sig = syscall.SIGTERM
	}
	op.Fault("container.stop", "ask", "before")
	at, _ := c.stops.when(st)
	if err := c.signal(ctx, rec.ID, sig, min(c.cfg.Limits.KillWait, at.Sub(c.clock.Now()))); err != nil && !errdefs.IsNotFound(err) {
		c.cfg.Logger.Warn("could not send stop signal, killing", "container", rec.ID, "signal", rec.Facts.StopSignal, "error", err)
		return false
	}
	op.Fault("container.stop", "ask", "after")
	return true
}

// awaitDeadline waits for the end or the deadline, wherever that moves.
func (c *containers) awaitDeadline(ctx context.Context, ended <-chan struct{}, st *stopping) (over bool, err error) {
	for {
		at, sooner := c.stops.when(st)
		left := at.Sub(c.clock.Now())
		if left <= 0 {
			return false, nil
		}
		select {
		case <-ended:
			return true, nil
		case <-sooner:
		case <-c.clock.After(left):
		case <-ctx.Done():
			return false, shuttingDown()
		}
	}
}

func (c *containers) awaitEnd(ctx context.Context, ended <-chan struct{}, d time.Duration) (over bool, err error) {
	select {
	case <-ended:
		return true, nil
	case <-c.clock.After(d):
		return false, nil
	case <-ctx.Done():
		return false, shuttingDown()
	}
}

func shuttingDown() error {
	return fmt.Errorf("the daemon is shutting down, repeat the call: %w", errdefs.ErrUnavailable)
}

// lastResort removes the container's processes by its cgroup, and learns from
// the exit record how it ended.
func (c *containers) lastResort(ctx context.Context, rec store.Container, ended <-chan struct{}) error {
	c.cfg.Logger.Warn("container did not end after SIGKILL, removing its cgroup", "container", rec.ID)
	ctx, cancel := context.WithTimeout(ctx, 6*c.cfg.Limits.KillWait)
	defer cancel()
	if err := c.shim.Delete(ctx, rec.ID, c.runtimeOf(rec)); err != nil {
		return fmt.Errorf("container does not end, neither by SIGKILL nor by its cgroup: %w", err)
	}
	select {
	case <-ended:
		return nil
	default:
	}
	st, err := c.shim.Reconnect(ctx, rec.ID)
	switch {
	case err != nil:
		return fmt.Errorf("look for the exit record: %w", err)
	case st.Phase == shim.PhaseExited && st.Exit != nil:
		c.commitExit(ctx, *st.Exit)
	case st.Phase == shim.PhaseGone || st.Phase == shim.PhaseExited:
		c.commitExit(ctx, shim.Exit{ID: rec.ID, Lost: true})
	default:
		return fmt.Errorf("container does not end, neither by SIGKILL nor by its cgroup: %w", errdefs.ErrInternal)
	}
	return nil
}

// runtimeOf returns the OCI runtime a container was made with, as far as the
// configuration still knows it.
func (c *core) runtimeOf(rec store.Container) shim.Runtime {
	if pod, err := c.db.Sandbox(rec.SandboxID); err == nil {
		if h, err := c.handler(pod.Handler); err == nil {
			return h.Runtime
		}
	}
	return c.cfg.Handlers[c.cfg.DefaultHandler].Runtime
}

package runtimeservice

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-dev/berth/observe"
	"github.com/berth-dev/berth/sandbox/spec"
	"github.com/berth-dev/berth/shim"
	"github.com/berth-dev/berth/store"
)

// execs answers the RPCs that run or reach processes in containers.
type execs struct {
	*core
	streams Streams
}

// running returns the container if it is running.
func (c *core) running(ctx context.Context, id string) (store.Container, error) {
	rec, err := c.container(ctx, id)
	if err != nil {
		return rec, err
	}
	return rec, mustRun(rec, c.cfg.BootID)
}

// alive returns a container that is created or running.
func (c *core) alive(ctx context.Context, id string) (store.Container, error) {
	rec, err := c.container(ctx, id)
	if err == nil && containerState(rec, c.cfg.BootID) == runtimeapi.ContainerState_CONTAINER_EXITED {
		err = mustRun(rec, c.cfg.BootID)
	}
	return rec, err
}

// ExecSync runs a command and returns the beginning of its output: what Limits
// allow of each stream, and no more than one reply carries, 16 MiB. At the time-out everything it started is killed, and
// the error is DeadlineExceeded.
func (e *execs) ExecSync(ctx context.Context, r *runtimeapi.ExecSyncRequest) (*runtimeapi.ExecSyncResponse, error) {
	if len(r.GetCmd()) == 0 {
		return nil, fmt.Errorf("exec in container %q: cmd is empty: %w", r.GetContainerId(), errdefs.ErrInvalidArgument)
	}
	rec, err := e.running(ctx, r.GetContainerId())
	if err != nil {
		return nil, fmt.Errorf("exec in container %q: %w", r.GetContainerId(), err)
	}
	work, end := observe.Begin(ctx, observe.Work{Kind: observe.Exec, Name: "sync", Object: rec.ID, Pod: rec.SandboxID})
	out, err := e.sync(work, rec.ID, r)
	end(err)
	if err != nil {
		return nil, fmt.Errorf("exec in container %s: %w", rec.ID, err)
	}
	return out, nil
}

func (e *execs) sync(ctx context.Context, id string, r *runtimeapi.ExecSyncRequest) (*runtimeapi.ExecSyncResponse, error) {
	s, err := e.storedSpec(id)
	if err != nil {
		return nil, err
	}
	proc, err := spec.ExecProcess(s, r.GetCmd(), false)
	if err != nil {
		return nil, err
	}
	if t := graceOf(r.GetTimeout()); t > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeoutCause(ctx, t, fmt.Errorf("the command did not end within %s: %w", t, context.DeadlineExceeded))
		defer cancel()
	}
	x, err := e.shim.Exec(ctx, id, shim.ExecRequest{Process: proc})
	if err != nil {
		return nil, causeOf(ctx, endedMeanwhile(err))
	}
	return runSync(ctx, execution{process: x, stdout: x.Stdout, stderr: x.Stderr}, e.cfg.Limits)
}

// causeOf prefers the reason why ctx ended to what that did to a call.
func causeOf(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return err
}

// process is what runSync needs of a shim.Exec.
type process interface {
	Wait(ctx context.Context) (int32, error)
	Kill(ctx context.Context) error
	Close() error
}

// execution is a process with its output.
type execution struct {
	process
	stdout, stderr *os.File
}

// runSync collects the output of a process until it has ended. Pipes that a
// leftover child holds open are waited for only as long as limits allow.
func runSync(ctx context.Context, x execution, limits Limits) (*runtimeapi.ExecSyncResponse, error) {
	out := &outputs{limit: limits.ExecOutputBytes}
	out.collect(&out.stdout, x.stdout)
	out.collect(&out.stderr, x.stderr)
	code, err := x.Wait(ctx)
	if err != nil {
		err = causeOf(ctx, err)
		err = errors.Join(err, killAll(ctx, x, limits.KillWait))
	}
	out.drain(limits.ExecDrain, x.stdout, x.stderr)
	if cerr := x.Close(); err == nil && cerr != nil {
		err = fmt.Errorf("close exec: %w", cerr)
	}
	if err != nil {
		return nil, err
	}
	stdout, stderr := fit(out.bytes())
	return &runtimeapi.ExecSyncResponse{Stdout: stdout, Stderr: stderr, ExitCode: code}, nil
}

// killAll kills a process and what it started and waits until it has ended.
// Trouble is returned only when the process may still be there.
func killAll(ctx context.Context, x process, wait time.Duration) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), wait)
	defer cancel()
	if err := x.Kill(ctx); err != nil && !errdefs.IsNotFound(err) {
		return fmt.Errorf("kill exec: %w", err)
	}
	if _, err := x.Wait(ctx); err != nil && ctx.Err() != nil {
		return fmt.Errorf("exec does not end after it was killed: %w", ctx.Err())
	}
	return nil
}

// outputs are the collected streams of one exec.
type outputs struct {
	limit          int
	wg             sync.WaitGroup
	mu             sync.Mutex // a reader that outlives the drain may still write
	stdout, stderr bytes.Buffer
}

// collect keeps the first bytes of r and reads the rest away, so that the
// writer never blocks.
func (o *outputs) collect(to *bytes.Buffer, r *os.File) {
	if r == nil {
		return
	}
	o.wg.Go(func() {
		// The end of a stream, by whatever error, is all there is to know.
		_, _ = io.Copy(capped{o, to}, onlyReader{r})
	})
}

// onlyReader hides the file's other methods, so that io.Copy uses our buffer.
type onlyReader struct{ io.Reader }

type capped struct {
	o  *outputs
	to *bytes.Buffer
}

func (c capped) Write(p []byte) (int, error) {
	c.o.mu.Lock()
	defer c.o.mu.Unlock()
	if room := c.o.limit - c.to.Len(); room > 0 {
		c.to.Write(p[:min(room, len(p))])
	}
	return len(p), nil
}

// drain waits for the readers. After d it makes them stop.
func (o *outputs) drain(d time.Duration, files ...*os.File) {
	for _, f := range files {
		if f != nil {
			// A file that knows no deadline is ended by Close, below in the caller.
			_ = f.SetReadDeadline(time.Now().Add(d))
		}
	}
	done := make(chan struct{})
	go func() { o.wg.Wait(); close(done) }()
	select {
	case <-done:
	case <-time.After(d + time.Second):
	}
}

func (o *outputs) bytes() (stdout, stderr []byte) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return bytes.Clone(o.stdout.Bytes()), bytes.Clone(o.stderr.Bytes())
}

// replyBytes is what both streams together may hold: clients take messages of
// 16 MiB, of which the rest needs a little.
const replyBytes = 16<<20 - 4096

// fit cuts the streams to what one reply can carry, the longer one first. Pure.
func fit(a, b []byte) ([]byte, []byte) {
	const half = replyBytes / 2
	switch {
	case len(a)+len(b) <= replyBytes:
		return a, b
	case len(b) <= half:
		return a[:replyBytes-len(b)], b
	case len(a) <= half:
		return a, b[:replyBytes-len(a)]
	}
	return a[:half], b[:half]
}

// Exec returns a URL at which the command can be run with streams.
func (e *execs) Exec(ctx context.Context, r *runtimeapi.ExecRequest) (*runtimeapi.ExecResponse, error) {
	if len(r.GetCmd()) == 0 {
		return nil, fmt.Errorf("exec in container %q: cmd is empty: %w", r.GetContainerId(), errdefs.ErrInvalidArgument)
	}
	if err := checkStreams(r.GetTty(), r.GetStdin(), r.GetStdout(), r.GetStderr()); err != nil {
		return nil, fmt.Errorf("exec in container %q: %w", r.GetContainerId(), err)
	}
	rec, err := e.running(ctx, r.GetContainerId())
	if err != nil {
		return nil, fmt.Errorf("exec in container %q: %w", r.GetContainerId(), err)
	}
	return e.streams.GetExec(&runtimeapi.ExecRequest{ContainerId: rec.ID, Cmd: r.GetCmd(), Tty: r.GetTty(),
		Stdin: r.GetStdin(), Stdout: r.GetStdout(), Stderr: r.GetStderr()})
}

// Attach returns a URL at which the container's own streams can be reached. A
// container that is created has its streams already: who is there before it
// starts misses nothing.
func (e *execs) Attach(ctx context.Context, r *runtimeapi.AttachRequest) (*runtimeapi.AttachResponse, error) {
	if err := checkStreams(r.GetTty(), r.GetStdin(), r.GetStdout(), r.GetStderr()); err != nil {
		return nil, fmt.Errorf("attach to container %q: %w", r.GetContainerId(), err)
	}
	rec, err := e.alive(ctx, r.GetContainerId())
	if err != nil {
		return nil, fmt.Errorf("attach to container %q: %w", r.GetContainerId(), err)
	}
	if r.GetTty() != rec.Config.GetTty() {
		return nil, fmt.Errorf("attach to container %s: tty is %t, the container was made with %t: %w",
			rec.ID, r.GetTty(), rec.Config.GetTty(), errdefs.ErrInvalidArgument)
	}
	return e.streams.GetAttach(&runtimeapi.AttachRequest{ContainerId: rec.ID, Stdin: r.GetStdin(), Tty: r.GetTty(),
		Stdout: r.GetStdout(), Stderr: r.GetStderr()})
}

// checkStreams holds the CRI's rules: one stream at least, and no stderr beside
// a terminal, which has but one output.
func checkStreams(tty, stdin, stdout, stderr bool) error {
	switch {
	case tty && stderr:
		return fmt.Errorf("tty and stderr exclude each other: %w", errdefs.ErrInvalidArgument)
	case !stdin && !stdout && !stderr:
		return fmt.Errorf("one of stdin, stdout and stderr must be set: %w", errdefs.ErrInvalidArgument)
	}
	return nil
}

// PortForward returns a URL at which ports of the pod can be reached.
func (e *execs) PortForward(ctx context.Context, r *runtimeapi.PortForwardRequest) (*runtimeapi.PortForwardResponse, error) {
	rec, err := e.sandbox(ctx, r.GetPodSandboxId())
	if err != nil {
		return nil, fmt.Errorf("forward port of sandbox %q: %w", r.GetPodSandboxId(), err)
	}
	if err := canCreate(rec, e.cfg.BootID); err != nil {
		return nil, fmt.Errorf("forward port: %w", err)
	}
	for _, p := range r.GetPort() {
		if p < 1 || p > 65535 {
			return nil, fmt.Errorf("forward port of sandbox %s: port %d is out of range: %w", rec.ID, p, errdefs.ErrInvalidArgument)
		}
	}
	return e.streams.GetPortForward(&runtimeapi.PortForwardRequest{PodSandboxId: rec.ID, Port: r.GetPort()})
}

// attachments counts who is attached to which container.
type attachments struct {
	mu    sync.Mutex
	count map[string]int
	more  chan struct{} // closed when one is added; nil: nobody waits
}

// enter counts one more, until leave.
func (a *attachments) enter(id string) (leave func()) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.count == nil {
		a.count = map[string]int{}
	}
	a.count[id]++
	if a.more != nil {
		close(a.more)
		a.more = nil
	}
	return func() {
		a.mu.Lock()
		defer a.mu.Unlock()
		if a.count[id]--; a.count[id] == 0 {
			delete(a.count, id)
		}
	}
}

// look says whether anybody is attached, and else what to wait for.
func (a *attachments) look(id string) (bool, <-chan struct{}) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.more == nil {
		a.more = make(chan struct{})
	}
	return a.count[id] > 0, a.more
}

package runtimeservice

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"sync/atomic"
	"time"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
	"k8s.io/cri-streaming/pkg/streaming/remotecommand"
	utilexec "k8s.io/utils/exec"

	"github.com/berth-dev/berth/observe"
	"github.com/berth-dev/berth/sandbox"
	"github.com/berth-dev/berth/sandbox/spec"
	"github.com/berth-dev/berth/shim"
)

// streamDrain is how long output of an ended process is still waited for when
// a child it left behind holds the pipe.
const streamDrain = 2 * time.Second

// Streamer moves the bytes of exec, attach and port-forward sessions. The
// streaming server calls it with containers and sandboxes that the Service has
// found running.
type Streamer struct {
	cfg      StreamerConfig
	shim     shimStreams
	pods     podDialer
	attached attachments
}

// AwaitAttached returns when a client is attached to the container with this
// ID, or with the error of ctx.
func (s *Streamer) AwaitAttached(ctx context.Context, id string) error {
	for {
		there, more := s.attached.look(id)
		if there {
			return nil
		}
		select {
		case <-more:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// StreamerConfig says how sessions are run.
type StreamerConfig struct {
	RunDir   string           // the run-time directory
	KeepExec bool             // let processes go on whose client has gone
	Observer observe.Observer // hears of commands that are run; nil: nobody does
}

// NewStreamer returns a Streamer.
func NewStreamer(cfg StreamerConfig, shims *shim.Manager, pods *sandbox.Manager) *Streamer {
	return &Streamer{cfg: cfg, shim: shims, pods: pods}
}

// Exec runs cmd with the given streams until it ends or out can no longer be
// written to. A code other than 0 is a utilexec.CodeExitError, which the
// streaming server passes on to the client.
//
//nolint:revive // argument-limit: the signature is cri-streaming's
func (s *Streamer) Exec(ctx context.Context, id string, cmd []string, in io.Reader, out, errw io.WriteCloser, tty bool, resize <-chan remotecommand.TerminalSize) error {
	doc, err := readSpec(filepath.Join(s.cfg.RunDir, "containers", id, "config.json"))
	if err != nil {
		return fmt.Errorf("exec in container %s: %w", id, err)
	}
	proc, err := spec.ExecProcess(doc, cmd, tty)
	if err != nil {
		return fmt.Errorf("exec in container %s: %w", id, err)
	}
	ctx, end := observe.Begin(observe.With(ctx, s.cfg.Observer), observe.Work{Kind: observe.Exec, Name: "stream", Object: id})
	defer func() { end(err) }()
	x, err := s.shim.Exec(ctx, id, shim.ExecRequest{Process: proc, Stdin: in != nil})
	if err != nil {
		return fmt.Errorf("exec in container %s: %w", id, err)
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go forEachSize(ctx, resize, func(w, h uint16) { _ = x.Resize(w, h) })
	if in != nil {
		go func() { _, _ = io.Copy(x.Stdin, in); _ = x.Stdin.Close() }()
	}
	outputs := copyOut(cancel, pipePair{out, x.Stdout}, pipePair{errw, x.Stderr})
	code, err := x.Wait(ctx)
	if err != nil {
		s.abandon(ctx, x)
		return fmt.Errorf("exec in container %s: %w", id, err)
	}
	defer func() { _ = x.Close() }()
	for _, o := range outputs {
		o.await(ctx)
	}
	if code != 0 {
		return utilexec.CodeExitError{Err: fmt.Errorf("exit code %d", code), Code: int(code)}
	}
	return nil
}

// abandon leaves a process whose client has gone. Close kills it with all it
// started; if it is to be kept, it goes on without input, its output read away,
// until it or the daemon ends.
func (s *Streamer) abandon(ctx context.Context, x *shim.Exec) {
	if !s.cfg.KeepExec {
		_ = x.Close()
		return
	}
	if x.Stdin != nil {
		_ = x.Stdin.Close()
	}
	go func() {
		_, _ = x.Wait(context.WithoutCancel(ctx))
		_ = x.Close()
	}()
}

func readSpec(path string) (*specs.Spec, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("read runtime specification: %w", err)
	}
	var doc specs.Spec
	if err := json.Unmarshal(b, &doc); err != nil {
		return nil, fmt.Errorf("decode runtime specification %s: %w: %w", path, err, errdefs.ErrDataLoss)
	}
	return &doc, nil
}

// pipePair is an output of a process and where it goes; nil: nowhere.
type pipePair struct {
	to   io.WriteCloser
	from *os.File
}

// outCopy is one output being copied.
type outCopy struct {
	from  *os.File
	done  chan struct{}
	reads atomic.Int64 // begun and ended reads: odd while one waits for data
}

// Read counts, so that an output that is silent can be told from a client that
// is slow.
func (o *outCopy) Read(p []byte) (int, error) {
	o.reads.Add(1)
	defer o.reads.Add(1)
	return o.from.Read(p)
}

// copyOut copies all pairs. gone is called when a client no longer takes what
// it asked for; from then on the output is read away, so that a process that
// is kept does not get stuck.
func copyOut(gone func(), pairs ...pipePair) []*outCopy {
	var all []*outCopy
	for _, p := range pairs {
		if p.from == nil {
			continue
		}
		w := io.Writer(io.Discard)
		if p.to != nil {
			w = &watchedWriter{Writer: p.to, failed: gone}
		}
		o := &outCopy{from: p.from, done: make(chan struct{})}
		all = append(all, o)
		go func() { defer close(o.done); _, _ = io.Copy(w, o) }()
	}
	return all
}

// watchedWriter tells when a write fails, and swallows what comes after.
type watchedWriter struct {
	io.Writer
	failed func()
	broken bool
}

func (w *watchedWriter) Write(p []byte) (int, error) {
	if w.broken {
		return len(p), nil
	}
	if _, err := w.Writer.Write(p); err != nil {
		w.broken = true
		w.failed()
	}
	return len(p), nil
}

// await waits until all output of an ended process has been passed on. It stops
// waiting for a pipe that a leftover child holds open once nothing has come
// through it for streamDrain; a client that takes its time is waited for.
func (o *outCopy) await(ctx context.Context) {
	for {
		before := o.reads.Load()
		select {
		case <-o.done:
			return
		case <-ctx.Done():
			return
		case <-time.After(streamDrain):
		}
		if before%2 == 1 && o.reads.Load() == before {
			_ = o.from.SetReadDeadline(time.Now())
		}
	}
}

func forEachSize(ctx context.Context, sizes <-chan remotecommand.TerminalSize, set func(w, h uint16)) {
	for {
		select {
		case <-ctx.Done():
			return
		case s, ok := <-sizes:
			if !ok {
				return
			}
			if s.Width > 0 && s.Height > 0 {
				set(s.Width, s.Height)
			}
		}
	}
}

// Attach connects the streams to those of the container until it ends or the
// client goes. A client that is cut off because it takes output too slowly, and
// one that is there when the daemon ends, hears so.
//
//nolint:revive // argument-limit: the signature is cri-streaming's
func (s *Streamer) Attach(ctx context.Context, id string, in io.Reader, out, errw io.WriteCloser, _ bool, resize <-chan remotecommand.TerminalSize) error {
	a, err := s.shim.Attach(ctx, id, in != nil)
	if err != nil {
		return fmt.Errorf("attach to container %s: %w", id, err)
	}
	defer s.attached.enter(id)()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go forEachSize(ctx, resize, func(w, h uint16) { _ = s.shim.Resize(ctx, id, w, h) })
	if in != nil && a.Stdin != nil {
		go func() { _, _ = io.Copy(a.Stdin, in); _ = a.Stdin.Close() }()
	}
	var copies errgroup.Group
	follow := func(to io.WriteCloser, from io.Reader) {
		if from == nil {
			return
		}
		w := io.Writer(io.Discard)
		if to != nil {
			w = &watchedWriter{Writer: to, failed: cancel}
		}
		copies.Go(func() error { _, err := io.Copy(w, onlyReader{from}); return err })
	}
	follow(out, a.Stdout)
	follow(errw, a.Stderr)
	done := make(chan error, 1)
	go func() { done <- copies.Wait() }()
	select {
	case err = <-done:
		if err != nil {
			err = fmt.Errorf("output is lost, the client took it too slowly or the shim has gone: %w", err)
		}
	case <-ctx.Done():
		err = ctx.Err()
	}
	if err := errors.Join(err, a.Close()); err != nil {
		return fmt.Errorf("attachment to container %s: %w", id, err)
	}
	return nil
}

// PortForward connects stream to a port inside the pod. Each direction ends on
// its own: an end of input is passed on, and the answer still comes, also when
// the pod takes no more input before that ends.
func (s *Streamer) PortForward(ctx context.Context, id string, port int32, stream io.ReadWriteCloser) error {
	defer stream.Close()
	if port < 1 || port > 65535 {
		return fmt.Errorf("forward port of sandbox %s: port %d is out of range: %w", id, port, errdefs.ErrInvalidArgument)
	}
	conn, err := s.pods.Dial(ctx, id, uint16(port))
	if err != nil {
		return fmt.Errorf("forward port %d of sandbox %s: %w", port, id, err)
	}
	defer conn.Close()
	toPod, toClient := make(chan error, 1), make(chan error, 1)
	sent := &countedReader{Reader: stream}
	go func() {
		_, err := io.Copy(conn, sent)
		toPod <- errors.Join(err, closeWrite(conn))
	}()
	go func() {
		_, err := io.Copy(stream, conn)
		toClient <- err
	}()
	select {
	case <-ctx.Done():
		return nil
	case err = <-toClient:
		if err == nil {
			_ = stream.Close() // our half
			err = sent.await(ctx, toPod)
		}
	case err = <-toPod:
		if err == nil || sent.failed == nil {
			select {
			case err = <-toClient:
			case <-ctx.Done():
				return nil
			}
		}
	}
	if errors.Is(err, unix.ECONNRESET) {
		err = nil // so ends a pod that has answered before it took all of the request
	}
	if err != nil && !errors.Is(err, net.ErrClosed) && !errors.Is(err, io.EOF) {
		return fmt.Errorf("forward port %d of sandbox %s: %w", port, id, err)
	}
	return nil
}

// countedReader counts reads and keeps the error of the last one.
type countedReader struct {
	io.Reader
	reads  atomic.Int64
	failed error // but io.EOF; to be looked at once nobody reads any more
}

func (r *countedReader) Read(p []byte) (int, error) {
	n, err := r.Reader.Read(p)
	r.reads.Add(1)
	if err != nil && !errors.Is(err, io.EOF) {
		r.failed = err
	}
	return n, err
}

// await waits for the end of a direction whose other one has ended. Some
// clients do not say theirs before they hear ours, so it waits only while
// something comes.
func (r *countedReader) await(ctx context.Context, done <-chan error) error {
	for before := int64(-1); before != r.reads.Load(); {
		before = r.reads.Load()
		select {
		case err := <-done:
			if r.failed == nil {
				return nil // it has answered, and need not take the rest
			}
			return err
		case <-ctx.Done():
			return nil
		case <-time.After(streamDrain):
		}
	}
	return nil
}

// closeWrite passes on that no more bytes will come.
func closeWrite(c net.Conn) error {
	if h, ok := c.(interface{ CloseWrite() error }); ok {
		if err := h.CloseWrite(); err != nil && !errors.Is(err, net.ErrClosed) {
			return fmt.Errorf("close one direction: %w", err)
		}
	}
	return nil
}

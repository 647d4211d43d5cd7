package layer

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"os/exec"
	"syscall"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

const (
	aheadBuffers = 4
	aheadSize    = 256 << 10
	// programPays is the packed size from which starting a program is worth it.
	programPays = 4 << 20
)

// ahead decompresses, hashes and bounds the stream on a goroutine of its own,
// a few buffers ahead of the one that writes the files.
type ahead struct {
	packed *counter
	sum    hash.Hash // of all that was read; final after EOF
	full   chan []byte
	empty  chan []byte
	quit   chan struct{} // closed by stop
	ended  chan struct{} // closed when err is final
	err    error         // why the stream ended; EOF at its end
	cur    []byte        // what Read has yet to give out
	back   []byte        // the buffer that cur is a part of
}

// ahead starts the goroutine. It ends after stop, or when the packed stream
// does; a read of the packed stream that hangs is the caller's to end.
func (u *unpacker) ahead(ctx context.Context, packed *counter) *ahead {
	a := &ahead{
		packed: packed, sum: sha256.New(), full: make(chan []byte, aheadBuffers), empty: make(chan []byte, aheadBuffers),
		quit: make(chan struct{}), ended: make(chan struct{}),
	}
	for range aheadBuffers {
		a.empty <- make([]byte, aheadSize)
	}
	go a.run(ctx, u.opts, u.limits)
	return a
}

func (a *ahead) run(ctx context.Context, opts Options, limits Limits) {
	defer close(a.ended)
	defer close(a.full)
	program := opts.Gzip
	if opts.Packed < programPays {
		program = ""
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	plain, err := decompress(ctx, a.packed, program)
	if err != nil {
		a.err = err
		return
	}
	defer plain.Close()
	r := &guard{r: plain, packed: a.packed, limits: limits}
	for {
		var buf []byte
		select {
		case buf = <-a.empty:
		case <-a.quit:
			a.err = errStopped
			return
		}
		n, err := io.ReadFull(r, buf[:aheadSize])
		a.sum.Write(buf[:n])
		if opts.Plain != nil {
			opts.Plain.Add(int64(n))
		}
		if n > 0 {
			a.full <- buf[:n] // there is room for all buffers
		}
		// A stream that is cut off and one that ends look alike to ReadFull;
		// the guard tells them apart.
		if err != nil {
			if a.err = r.err; a.err == nil {
				a.err = err
			}
			return
		}
	}
}

var errStopped = errors.New("unpacking was stopped")

// Read implements io.Reader.
func (a *ahead) Read(p []byte) (int, error) {
	if len(a.cur) == 0 {
		if a.back != nil {
			a.empty <- a.back
			a.back = nil
		}
		buf, ok := <-a.full
		if !ok {
			<-a.ended
			return 0, a.err
		}
		a.cur, a.back = buf, buf
	}
	n := copy(p, a.cur)
	a.cur = a.cur[n:]
	return n, nil
}

// stop lets the goroutine go; it does not wait for it.
func (a *ahead) stop() { close(a.quit) }

// explain prefers the reason the packed stream broke (a download that failed)
// over what the decompressor or tar reader made of it.
func (a *ahead) explain(err error) error {
	return readError(a.packed, err)
}

// program is a decompressor in a process of its own.
type program struct {
	cmd *exec.Cmd
	out *os.File
}

// startProgram unpacks r with a program. It gets no rights: its input is what
// a registry sent. What it puts out is checked against the layer's digest.
func startProgram(ctx context.Context, path string, r io.Reader) (io.ReadCloser, error) {
	out, in, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer in.Close()
	// Fewer turns between the two processes; the default serves as well.
	if c, err := out.SyscallConn(); err == nil {
		_ = c.Control(func(fd uintptr) { _, _ = unix.FcntlInt(fd, unix.F_SETPIPE_SZ, 1<<20) })
	}
	cmd := exec.CommandContext(ctx, path, "-dc")
	cmd.Stdin, cmd.Stdout, cmd.Dir, cmd.Env, cmd.WaitDelay = r, in, "/", []string{}, 10*time.Second
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
	if err := cmd.Start(); err != nil {
		out.Close()
		return nil, fmt.Errorf("start %s: %w", path, err)
	}
	return &program{cmd: cmd, out: out}, nil
}

const nobody = 65534

// Read implements io.Reader.
func (p *program) Read(b []byte) (int, error) {
	n, err := p.out.Read(b)
	if !errors.Is(err, io.EOF) {
		return n, err
	}
	cmd := p.cmd
	if p.cmd = nil; cmd == nil {
		return n, err
	}
	if werr := cmd.Wait(); werr != nil {
		return n, fmt.Errorf("%s cannot unpack the layer: %w: %w", cmd.Path, werr, errdefs.ErrInvalidArgument)
	}
	return n, err
}

// Close ends the program if it runs.
func (p *program) Close() error {
	err := p.out.Close()
	if p.cmd != nil {
		_ = p.cmd.Process.Kill()
		_ = p.cmd.Wait()
	}
	return err
}

package shim

import (
	"context"
	"fmt"
	"io"
	"os"

	"github.com/berth-dev/berth/shim/wire"
)

// Attached is a connection to a container's stdio. Stdout and Stderr end with
// the container. A reader that is too slow loses the connection, never the log.
type Attached struct {
	Stdin  io.WriteCloser // nil unless asked for and the container has one
	Stdout io.Reader
	Stderr io.Reader // nil when the container has a terminal

	link     *link
	out, err *io.PipeWriter
	readers  [2]*io.PipeReader
}

// Attach connects to the container's own stdio: output from now on, and its
// stdin when the container was created with one.
func (m *Manager) Attach(ctx context.Context, id string, stdin bool) (*Attached, error) {
	conn, err := dial(m.runDir(id))
	if err != nil {
		return nil, fmt.Errorf("attach to container %s: %w: %w", id, err, dialKind(err))
	}
	a := &Attached{}
	a.readers[0], a.out = io.Pipe()
	a.readers[1], a.err = io.Pipe()
	a.Stdout = a.readers[0]
	l, _, err := newLink(ctx, conn, false, a.event)
	if err != nil {
		return nil, fmt.Errorf("attach to container %s: %w", id, goneIsNotFound(err))
	}
	a.link = l
	r, _, err := l.call(ctx, wire.KindAttach, wire.Encode(&wire.Attach{Stdin: stdin}), nil)
	if err != nil {
		_ = a.Close()
		return nil, fmt.Errorf("attach to container %s: %w", id, err)
	}
	if !r.Terminal {
		a.Stderr = a.readers[1]
	}
	if r.Stdin {
		a.Stdin = (*attachStdin)(a)
	}
	go func() {
		<-l.done
		// After the ends of stream, if these came, this changes nothing.
		_ = a.out.CloseWithError(io.ErrUnexpectedEOF)
		_ = a.err.CloseWithError(io.ErrUnexpectedEOF)
	}()
	return a, nil
}

// event runs on the link's goroutine: a reader that waits holds it up, the
// socket fills, and the shim cuts the connection when its queue is full.
func (a *Attached) event(f wire.Frame) {
	w := a.out
	switch f.Kind {
	case wire.KindStdout:
	case wire.KindStderr:
		w = a.err
	default:
		return
	}
	if len(f.Body) == 0 {
		_ = w.Close()
		return
	}
	_, _ = w.Write(f.Body)
}

// Close detaches.
func (a *Attached) Close() error {
	_ = a.readers[0].Close()
	_ = a.readers[1].Close()
	a.link.close()
	return nil
}

// attachStdin is the writing side of an attachment.
type attachStdin Attached

// Write sends data to the container.
func (s *attachStdin) Write(b []byte) (int, error) {
	for done := 0; done < len(b); {
		n := min(len(b)-done, wire.MaxData/2)
		if err := s.link.tell(wire.KindStdin, 0, b[done:done+n], nil); err != nil {
			return done, err
		}
		done += n
	}
	return len(b), nil
}

// Close says that no more will come. The container's stdin is closed if it was
// created with StdinOnce.
func (s *attachStdin) Close() error {
	select {
	case <-s.link.done:
		return os.ErrClosed
	default:
		return s.link.tell(wire.KindStdin, 0, nil, nil)
	}
}

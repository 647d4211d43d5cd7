package runtimeservice

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"syscall"
	"testing"
)

// earlyPod is a connection to a pod that takes no input and answers once it has
// refused some. end is how its answer ends.
type earlyPod struct {
	net.Conn // nil: what is not here is not called
	refused  chan struct{}
	answer   *bytes.Reader
	end      error
}

func (p *earlyPod) Dial(context.Context, string, uint16) (net.Conn, error) { return p, nil }

func (p *earlyPod) Write([]byte) (int, error) {
	close(p.refused)
	return 0, &net.OpError{Op: "write", Net: "tcp", Err: syscall.EPIPE}
}

func (p *earlyPod) CloseWrite() error {
	return &net.OpError{Op: "close", Net: "tcp", Err: syscall.ENOTCONN}
}

func (p *earlyPod) Close() error { return nil }

func (p *earlyPod) Read(b []byte) (int, error) {
	<-p.refused
	n, err := p.answer.Read(b)
	if errors.Is(err, io.EOF) {
		err = p.end
	}
	return n, err
}

// upload is a client that goes on sending and takes the answer until its stream
// is closed.
type upload struct {
	bytes.Buffer
	closed, full chan struct{}
	shut         bool
}

func (u *upload) Read(b []byte) (int, error) {
	select {
	case u.full <- struct{}{}:
		return len(b), nil
	case <-u.closed:
		return 0, io.EOF
	}
}

func (u *upload) Write(b []byte) (int, error) {
	if u.shut {
		return 0, net.ErrClosed
	}
	return u.Buffer.Write(b)
}

func (u *upload) Close() error {
	if !u.shut {
		u.shut = true
		close(u.closed)
	}
	return nil
}

// TestForwardEarlyAnswer: a pod that answers and closes while the client still
// sends has its answer passed on whole, however it closes.
func TestForwardEarlyAnswer(t *testing.T) {
	want := bytes.Repeat([]byte("answer "), 100_000)
	for name, end := range map[string]error{"end": io.EOF, "reset": &net.OpError{Op: "read", Net: "tcp", Err: syscall.ECONNRESET}} {
		pod := &earlyPod{refused: make(chan struct{}), answer: bytes.NewReader(want), end: end}
		client := &upload{closed: make(chan struct{}), full: make(chan struct{}, 1)}
		s := &Streamer{pods: pod}
		if err := s.PortForward(t.Context(), "pod", 80, client); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if !bytes.Equal(client.Bytes(), want) {
			t.Errorf("%s: %d of %d bytes arrived", name, client.Len(), len(want))
		}
	}
}

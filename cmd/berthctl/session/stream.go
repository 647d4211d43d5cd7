// Package session is berthctl's commands that live with a container: run, exec,
// attach, logs.
package session

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"

	"golang.org/x/sync/errgroup"
	"k8s.io/cri-streaming/pkg/streaming/remotecommand"
	"k8s.io/streaming/pkg/httpstream"
	"k8s.io/streaming/pkg/httpstream/spdy"

	"github.com/berth-dev/berth/cmd/berthctl/cli"
)

// streams are what a session connects. Those that are nil are left out.
type streams struct {
	in       io.Reader
	out, err io.Writer
	tty      bool
	sizes    <-chan cli.Size // of the terminal; the first one at once
	opened   func()          // called when the session has begun; may be nil
}

// connect opens a streaming URL as the daemon handed it out.
func connect(ctx context.Context, raw string) (httpstream.Connection, error) {
	// The server is on this node: no proxy is between.
	rt, err := spdy.NewRoundTripperWithConfig(spdy.RoundTripperConfig{Proxier: func(*http.Request) (*url.URL, error) { return nil, nil }})
	if err != nil {
		return nil, err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, raw, nil)
	if err != nil {
		return nil, err
	}
	req.Header.Set(httpstream.HeaderProtocolVersion, remotecommand.StreamProtocolV4Name)
	resp, err := rt.RoundTrip(req)
	if err != nil {
		return nil, err
	}
	return rt.NewConnection(resp)
}

// run connects the streams to the session behind a URL until it ends. An exit
// code other than 0 is an ExitError that says nothing more. When ctx ends the
// connection is cut, and the daemon kills the command.
func (s streams) run(ctx context.Context, raw string) error {
	conn, err := connect(ctx, raw)
	if err != nil {
		u, _ := url.Parse(raw) // the token in its path is not for eyes
		return cli.Failed(fmt.Errorf("connect to the streaming server %s: %w", u.Host, errors.Unwrap(err)),
			"Run berthctl on the node itself; `berthctl info` shows where the server listens.")
	}
	defer func() { _ = conn.Close() }()
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	defer stop()
	verdict, err := s.open(conn, remotecommand.StreamTypeError)
	if err != nil {
		return err
	}
	_ = verdict.Close() // our half: it is only read
	var copies errgroup.Group
	if err := s.start(conn, &copies); err != nil {
		return err
	}
	if s.opened != nil {
		s.opened()
	}
	text, rerr := io.ReadAll(verdict)
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if rerr != nil || len(text) == 0 {
		return cli.Failed(errors.New("the connection to the daemon was cut"), "The container goes on, an exec'ed command does not. See `berthctl status`.")
	}
	if err := copies.Wait(); err != nil {
		return cli.Failed(fmt.Errorf("copy output: %w", err), "")
	}
	return decodeVerdict(text)
}

func (s streams) open(conn httpstream.Connection, kind string) (httpstream.Stream, error) {
	st, err := conn.CreateStream(http.Header{remotecommand.StreamType: []string{kind}})
	if err != nil {
		return nil, cli.Failed(fmt.Errorf("open stream %s: %w", kind, err), "Try again; see `berthctl status`.")
	}
	return st, nil
}

// start opens the streams; copies are those of output.
func (s streams) start(conn httpstream.Connection, copies *errgroup.Group) error {
	if s.in != nil {
		st, err := s.open(conn, remotecommand.StreamTypeStdin)
		if err != nil {
			return err
		}
		go func() { // ends with the program: a read of a terminal can't be ended
			_, _ = io.Copy(st, s.in)
			_ = st.Close()
		}()
	}
	for kind, w := range map[string]io.Writer{remotecommand.StreamTypeStdout: s.out, remotecommand.StreamTypeStderr: s.err} {
		if w == nil {
			continue
		}
		st, err := s.open(conn, kind)
		if err != nil {
			return err
		}
		copies.Go(func() error { _, err := io.Copy(w, st); return err })
	}
	if !s.tty {
		return nil
	}
	st, err := s.open(conn, remotecommand.StreamTypeResize)
	if err != nil {
		return err
	}
	go func() {
		enc := json.NewEncoder(st)
		for size := range s.sizes {
			if enc.Encode(remotecommand.TerminalSize{Width: uint16(size.Cols), Height: uint16(size.Rows)}) != nil {
				return
			}
		}
	}()
	return nil
}

// decodeVerdict reads what protocol version 4 ends a session with: a status as
// the Kubernetes API has it.
func decodeVerdict(text []byte) error {
	var v struct {
		Status, Message, Reason string
		Details                 struct {
			Causes []struct{ Reason, Message string }
		}
	}
	if err := json.Unmarshal(text, &v); err != nil {
		return cli.Failed(fmt.Errorf("the daemon ended the session with %q", text), "")
	}
	switch {
	case v.Status == "Success":
		return nil
	case v.Reason == remotecommand.NonZeroExitCodeReason:
		for _, c := range v.Details.Causes {
			if code, err := strconv.Atoi(c.Message); err == nil && c.Reason == remotecommand.ExitCodeCauseType {
				return &cli.ExitError{Code: code}
			}
		}
	}
	return cli.Failed(errors.New(v.Message), "Look at the container with `berthctl containers inspect`.")
}

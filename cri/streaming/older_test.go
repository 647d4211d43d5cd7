package streaming

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"net/url"
	"testing"
	"time"

	"k8s.io/client-go/rest"
	clientexec "k8s.io/client-go/tools/remotecommand"
	"k8s.io/client-go/transport/spdy"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/cri-streaming/pkg/streaming/remotecommand"
	utilexec "k8s.io/utils/exec"
)

// TestOlderProtocols: clients that offer only what came before today's protocols
// get all output, and as much of the end as their protocol tells.
func TestOlderProtocols(t *testing.T) {
	s := serve(t, &script{session: func(_ context.Context, _ io.Reader, out, _ io.WriteCloser, _ bool, _ <-chan remotecommand.TerminalSize) error {
		if _, err := out.Write([]byte("output")); err != nil {
			return err
		}
		return utilexec.CodeExitError{Err: errors.New("exit code 7"), Code: 7}
	}})
	for _, c := range []struct {
		websocket  bool
		protocol   string
		fails      bool // the protocol tells of a failure
		exitStatus bool // and of the exit code
	}{
		{true, remotecommand.StreamProtocolV4Name, true, true},
		{false, remotecommand.StreamProtocolV4Name, true, true},
		{false, remotecommand.StreamProtocolV3Name, true, false},
		{false, remotecommand.StreamProtocolV2Name, true, false},
		{false, remotecommand.StreamProtocolV1Name, false, false},
	} {
		r, err := s.GetExec(&runtimeapi.ExecRequest{ContainerId: "c", Stdout: true})
		if err != nil {
			t.Fatal(err)
		}
		x, err := older(r.GetUrl(), c.websocket, c.protocol)
		if err != nil {
			t.Fatal(err)
		}
		var out bytes.Buffer
		err = x.StreamWithContext(t.Context(), clientexec.StreamOptions{Stdout: &out})
		var exit utilexec.ExitError
		if out.String() != "output" || c.fails && err == nil || c.exitStatus && (!errors.As(err, &exit) || exit.ExitStatus() != 7) {
			t.Errorf("%+v: %q, %v", c, out.String(), err)
		}
	}
}

// older is a client that speaks one protocol.
func older(raw string, websocket bool, protocol string) (clientexec.Executor, error) {
	if websocket {
		return clientexec.NewWebSocketExecutorForProtocols(&rest.Config{}, http.MethodGet, raw, protocol)
	}
	u, err := url.Parse(raw)
	if err != nil {
		return nil, err
	}
	transport, upgrader, err := spdy.RoundTripperFor(&rest.Config{})
	if err != nil {
		return nil, err
	}
	return clientexec.NewSPDYExecutorForProtocols(transport, upgrader, http.MethodPost, u, protocol)
}

// TestIdleSessionEnds: a session without traffic ends, for the client and for
// its process.
func TestIdleSessionEnds(t *testing.T) {
	ended := make(chan struct{}, 8)
	rt := &script{session: func(_ context.Context, in io.Reader, _, _ io.WriteCloser, _ bool, _ <-chan remotecommand.TerminalSize) error {
		_, _ = io.Copy(io.Discard, in)
		ended <- struct{}{}
		return errors.New("the client has gone")
	}}
	s, err := New(Config{IdleTimeout: 200 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- s.Serve(rt) }()
	t.Cleanup(func() {
		if err := errors.Join(s.Shutdown(context.Background()), <-served); err != nil {
			t.Error(err)
		}
	})
	eachProtocol(t, s, &runtimeapi.ExecRequest{ContainerId: "c", Stdin: true, Stdout: true}, func(t *testing.T, x clientexec.Executor) {
		silent, stop := io.Pipe()
		defer stop.Close()
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		err := x.StreamWithContext(ctx, clientexec.StreamOptions{Stdin: silent, Stdout: io.Discard})
		if ctx.Err() != nil {
			t.Fatalf("the client was not told in a minute: %v", err)
		}
		select {
		case <-ended:
		case <-ctx.Done():
			t.Error("the session goes on")
		}
	})
}

package streaming

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/cri-streaming/pkg/streaming/portforward"
	"k8s.io/cri-streaming/pkg/streaming/remotecommand"
	"k8s.io/streaming/pkg/httpstream/wsstream"
)

// Kinds of sessions: the first element of a URL's path.
const (
	kindExec    = "exec"
	kindAttach  = "attach"
	kindForward = "portforward"
)

// handle serves what a token stands for. It counts sessions: http.Server does
// not wait for connections that a protocol upgrade took over.
func (s *Server) handle(w http.ResponseWriter, r *http.Request) {
	s.sessions.Add(1)
	defer s.sessions.Done()
	kind, token, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, "/"), "/")
	if r.Method != http.MethodGet && r.Method != http.MethodPost {
		http.Error(w, "only GET and POST are served", http.StatusMethodNotAllowed)
		return
	}
	c := &call{ctx: r.Context(), server: s}
	request := s.tokens.take(token)
	switch q := request.(type) {
	case *runtimeapi.ExecRequest:
		if kind == kindExec {
			s.serveExec(w, r, c, q)
			return
		}
	case *runtimeapi.AttachRequest:
		if kind == kindAttach {
			s.serveAttach(w, r, c, q)
			return
		}
	case *runtimeapi.PortForwardRequest:
		if kind == kindForward {
			s.serveForward(w, r, c, q)
			return
		}
	}
	http.NotFound(w, r)
}

func (s *Server) serveExec(w http.ResponseWriter, r *http.Request, c *call, q *runtimeapi.ExecRequest) {
	o := remotecommand.Options{Stdin: q.GetStdin(), Stdout: q.GetStdout(), Stderr: q.GetStderr(), TTY: q.GetTty()}
	if wsstream.IsWebSocketRequestWithStreamCloseProtocol(r) {
		s.serveV5(w, r, o, func(st streams) error {
			return c.ExecInContainer(c.ctx, "", "", q.GetContainerId(), q.GetCmd(), st.in, st.out, st.err, o.TTY, st.resize, 0)
		})
		return
	}
	remotecommand.ServeExec(w, r, c, "", "", q.GetContainerId(), q.GetCmd(), &o, s.idle,
		remotecommand.DefaultStreamCreationTimeout, remotecommand.SupportedStreamingProtocols)
}

func (s *Server) serveAttach(w http.ResponseWriter, r *http.Request, c *call, q *runtimeapi.AttachRequest) {
	o := remotecommand.Options{Stdin: q.GetStdin(), Stdout: q.GetStdout(), Stderr: q.GetStderr(), TTY: q.GetTty()}
	if wsstream.IsWebSocketRequestWithStreamCloseProtocol(r) {
		s.serveV5(w, r, o, func(st streams) error {
			return c.AttachContainer(c.ctx, "", "", q.GetContainerId(), st.in, st.out, st.err, o.TTY, st.resize)
		})
		return
	}
	remotecommand.ServeAttach(w, r, c, "", "", q.GetContainerId(), &o, s.idle,
		remotecommand.DefaultStreamCreationTimeout, remotecommand.SupportedStreamingProtocols)
}

func (s *Server) serveForward(w http.ResponseWriter, r *http.Request, c *call, q *runtimeapi.PortForwardRequest) {
	serve := func(w http.ResponseWriter, r *http.Request) {
		portforward.ServePortForward(w, r, c, q.GetPodSandboxId(), "", &portforward.V4Options{Ports: q.GetPort()}, s.idle,
			remotecommand.DefaultStreamCreationTimeout, portforward.SupportedProtocols)
	}
	if wsstream.IsWebSocketRequestWithTunnelingProtocol(r) {
		s.serveTunnel(w, r, serve)
		return
	}
	serve(w, r)
}

// call is one HTTP request, in the forms that the protocols want a runtime to
// have. Its sessions end with the request, whatever context the protocol gives.
type call struct {
	ctx    context.Context
	server *Server
}

func (c *call) runtime() (Runtime, error) {
	if rt := c.server.runtime.Load(); rt != nil {
		return *rt, nil
	}
	return nil, fmt.Errorf("serve stream: the daemon is starting: %w", errdefs.ErrUnavailable)
}

// ExecInContainer implements remotecommand.Executor.
//
//nolint:revive // argument-limit: the signature is cri-streaming's
func (c *call) ExecInContainer(_ context.Context, _, _, id string, cmd []string, in io.Reader, out, stderr io.WriteCloser, tty bool, resize <-chan remotecommand.TerminalSize, _ time.Duration) error {
	rt, err := c.runtime()
	if err != nil {
		return err
	}
	return rt.Exec(c.ctx, id, cmd, in, out, stderr, tty, resize)
}

// AttachContainer implements remotecommand.Attacher.
//
//nolint:revive // argument-limit: the signature is cri-streaming's
func (c *call) AttachContainer(_ context.Context, _, _, id string, in io.Reader, out, stderr io.WriteCloser, tty bool, resize <-chan remotecommand.TerminalSize) error {
	rt, err := c.runtime()
	if err != nil {
		return err
	}
	return rt.Attach(c.ctx, id, in, out, stderr, tty, resize)
}

// PortForward implements portforward.PortForwarder.
func (c *call) PortForward(_ context.Context, pod, _ string, port int32, stream io.ReadWriteCloser) error {
	rt, err := c.runtime()
	if err != nil {
		return err
	}
	return rt.PortForward(c.ctx, pod, port, stream)
}

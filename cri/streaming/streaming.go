// Package streaming serves exec, attach and port-forward over HTTP, with
// one-time URLs. SPDY and the older WebSocket protocols are those of
// k8s.io/cri-streaming; this package adds what today's clients speak, version 5
// and SPDY inside a WebSocket, and owns listener, TLS, URLs and the orderly end.
package streaming

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/cri-streaming/pkg/streaming/remotecommand"
)

// Runtime runs the sessions. Its three methods follow k8s.io/cri-streaming: a
// method returns when its session has ended, and streams that the client did
// not ask for are nil. A command's exit code other than 0 is a k8s.io/utils/exec
// ExitError. ctx ends when the client has gone or the server shuts down.
type Runtime interface {
	Exec(ctx context.Context, container string, cmd []string, in io.Reader, out, stderr io.WriteCloser, tty bool, resize <-chan remotecommand.TerminalSize) error
	Attach(ctx context.Context, container string, in io.Reader, out, stderr io.WriteCloser, tty bool, resize <-chan remotecommand.TerminalSize) error
	PortForward(ctx context.Context, pod string, port int32, stream io.ReadWriteCloser) error
}

// Config says how to serve.
type Config struct {
	Address     string        // IP address; "" is 127.0.0.1
	Port        int           // 0: any free port
	IdleTimeout time.Duration // of a session without traffic; 0: 4 h
	TLSCert     string        // PEM files; both empty: plain HTTP
	TLSKey      string
	Logger      *slog.Logger // nil: discard
}

const defaultIdle = 4 * time.Hour

// Server hands out URLs and serves them.
type Server struct {
	log      *slog.Logger
	idle     time.Duration
	tokens   tokens
	http     *http.Server
	listener net.Listener
	runtime  atomic.Pointer[Runtime] // nil until Serve: URLs are handed out by a service that is part of it
	sessions sync.WaitGroup
	cancel   context.CancelFunc
	base     *url.URL
}

// New takes the port. URLs can be asked for at once; sessions are served after Serve.
func New(cfg Config) (*Server, error) {
	s := &Server{log: cfg.Logger, idle: cfg.IdleTimeout, tokens: tokens{live: map[string]ticket{}, now: time.Now}}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	if s.idle <= 0 {
		s.idle = defaultIdle
	}
	var tlsConf *tls.Config
	if cfg.TLSCert != "" || cfg.TLSKey != "" {
		cert, err := tls.LoadX509KeyPair(cfg.TLSCert, cfg.TLSKey)
		if err != nil {
			return nil, fmt.Errorf("load certificate of streaming server: %w", err)
		}
		tlsConf = &tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS12}
	}
	if err := s.listen(cfg, tlsConf); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(context.Background())
	s.cancel = cancel
	s.http = &http.Server{
		Handler:           http.HandlerFunc(s.handle),
		ReadHeaderTimeout: 30 * time.Second,
		BaseContext:       func(net.Listener) context.Context { return ctx },
		ConnContext:       whileConnected,
		ErrorLog:          slog.NewLogLogger(s.log.Handler(), slog.LevelDebug),
	}
	return s, nil
}

func (s *Server) listen(cfg Config, tlsConf *tls.Config) error {
	host := cfg.Address
	if host == "" {
		host = "127.0.0.1"
	}
	l, err := net.Listen("tcp", net.JoinHostPort(host, strconv.Itoa(cfg.Port)))
	if err != nil {
		return fmt.Errorf("open streaming port (streaming.address, streaming.port): %w", err)
	}
	addr := l.Addr().(*net.TCPAddr)
	hang, err := newHangups()
	if err != nil {
		_ = l.Close()
		return err
	}
	l = watchedListener{l, hang}
	ip := addr.IP
	if ip.IsUnspecified() { // all addresses: the kubelet is on this node
		ip = net.IPv4(127, 0, 0, 1)
	}
	s.base = &url.URL{Scheme: "http", Host: net.JoinHostPort(ip.String(), strconv.Itoa(addr.Port)), Path: "/"}
	if tlsConf != nil {
		s.base.Scheme = "https"
		l = tls.NewListener(l, tlsConf)
	}
	s.listener = l
	return nil
}

// BaseURL is where sessions are served.
func (s *Server) BaseURL() string { return s.base.String() }

// GetExec returns a URL that works once, within a minute. The service has
// validated the request.
func (s *Server) GetExec(r *runtimeapi.ExecRequest) (*runtimeapi.ExecResponse, error) {
	u, err := s.url(kindExec, r)
	return &runtimeapi.ExecResponse{Url: u}, err
}

// GetAttach is GetExec for an attachment.
func (s *Server) GetAttach(r *runtimeapi.AttachRequest) (*runtimeapi.AttachResponse, error) {
	u, err := s.url(kindAttach, r)
	return &runtimeapi.AttachResponse{Url: u}, err
}

// GetPortForward is GetExec for port-forwarding.
func (s *Server) GetPortForward(r *runtimeapi.PortForwardRequest) (*runtimeapi.PortForwardResponse, error) {
	u, err := s.url(kindForward, r)
	return &runtimeapi.PortForwardResponse{Url: u}, err
}

func (s *Server) url(kind string, request any) (string, error) {
	token, err := s.tokens.put(request)
	if err != nil {
		return "", err
	}
	return s.base.JoinPath(kind, token).String(), nil
}

// Serve runs sessions on rt until Shutdown; it then returns nil.
func (s *Server) Serve(rt Runtime) error {
	s.runtime.Store(&rt)
	if err := s.http.Serve(s.listener); err != nil && !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve streams: %w", err)
	}
	return nil
}

// Shutdown stops accepting and ends the sessions: a shell has no end of its
// own to wait for. It waits for their clean-up until ctx ends.
func (s *Server) Shutdown(ctx context.Context) error {
	s.cancel()
	err := s.http.Shutdown(ctx)
	_ = s.listener.Close() // when Serve was never called
	done := make(chan struct{})
	go func() { s.sessions.Wait(); close(done) }()
	select {
	case <-done:
	case <-ctx.Done():
		err = ctx.Err()
	}
	if err != nil {
		_ = s.http.Close()
		return fmt.Errorf("end streaming sessions: %w", err)
	}
	return nil
}

// Health connects to the listener.
func (s *Server) Health(ctx context.Context) error {
	c, err := new(net.Dialer).DialContext(ctx, "tcp", s.base.Host)
	if err != nil {
		return fmt.Errorf("check streaming server: %w", err)
	}
	return c.Close()
}

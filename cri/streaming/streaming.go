// Package streaming serves exec, attach and port-forward over HTTP, with
// one-time URLs. The protocols (SPDY and WebSocket) are those of
// k8s.io/cri-streaming; this package owns the listener, TLS and the orderly end.
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

	"github.com/containerd/errdefs"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	cristreaming "k8s.io/cri-streaming/pkg/streaming"
	"k8s.io/cri-streaming/pkg/streaming/remotecommand"
)

// Runtime runs the sessions. Its three methods follow k8s.io/cri-streaming.
type Runtime = cristreaming.Runtime

// Config says how to serve.
type Config struct {
	Address     string        // IP address; "" is 127.0.0.1
	Port        int           // 0: any free port
	IdleTimeout time.Duration // of a session without traffic; 0: 4 h
	TLSCert     string        // PEM files; both empty: plain HTTP
	TLSKey      string
	Logger      *slog.Logger // nil: discard
}

// Server hands out URLs and serves them.
type Server struct {
	log      *slog.Logger
	inner    cristreaming.Server
	http     *http.Server
	listener net.Listener
	runtime  *lateRuntime
	sessions sync.WaitGroup
	cancel   context.CancelFunc
	base     *url.URL
}

// New takes the port. URLs can be asked for at once; sessions are served after Serve.
func New(cfg Config) (*Server, error) {
	s := &Server{log: cfg.Logger, runtime: &lateRuntime{}}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	conf := cristreaming.DefaultConfig
	if cfg.IdleTimeout > 0 {
		conf.StreamIdleTimeout = cfg.IdleTimeout
	}
	if cfg.TLSCert != "" || cfg.TLSKey != "" {
		cert, err := tls.LoadX509KeyPair(cfg.TLSCert, cfg.TLSKey)
		if err != nil {
			return nil, fmt.Errorf("load certificate of streaming server: %w", err)
		}
		conf.TLSConfig = &tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS12}
	}
	if err := s.listen(cfg, conf.TLSConfig); err != nil {
		return nil, err
	}
	conf.BaseURL, conf.Addr = s.base, s.listener.Addr().String()
	inner, err := cristreaming.NewServer(conf, s.runtime)
	if err != nil {
		_ = s.listener.Close()
		return nil, fmt.Errorf("build streaming server: %w", err)
	}
	s.inner = inner
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
	l = watchedListener{l}
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

// handle counts sessions: http.Server does not wait for connections that a
// protocol upgrade took over.
func (s *Server) handle(w http.ResponseWriter, r *http.Request) {
	s.sessions.Add(1)
	defer s.sessions.Done()
	s.inner.ServeHTTP(w, r)
}

// BaseURL is where sessions are served.
func (s *Server) BaseURL() string { return s.base.String() }

// GetExec validates the request and returns a URL that works once, within a minute.
func (s *Server) GetExec(r *runtimeapi.ExecRequest) (*runtimeapi.ExecResponse, error) {
	return s.inner.GetExec(r)
}

// GetAttach validates the request and returns a URL that works once, within a minute.
func (s *Server) GetAttach(r *runtimeapi.AttachRequest) (*runtimeapi.AttachResponse, error) {
	return s.inner.GetAttach(r)
}

// GetPortForward validates the request and returns a URL that works once, within a minute.
func (s *Server) GetPortForward(r *runtimeapi.PortForwardRequest) (*runtimeapi.PortForwardResponse, error) {
	return s.inner.GetPortForward(r)
}

// Serve runs sessions on rt until Shutdown; it then returns nil.
func (s *Server) Serve(rt Runtime) error {
	s.runtime.bind(rt)
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

// lateRuntime lets URLs be handed out by a service that is itself the runtime.
type lateRuntime struct{ rt atomic.Pointer[Runtime] }

func (l *lateRuntime) bind(rt Runtime) { l.rt.Store(&rt) }

func (l *lateRuntime) get() (Runtime, error) {
	if rt := l.rt.Load(); rt != nil {
		return *rt, nil
	}
	return nil, fmt.Errorf("serve stream: the daemon is starting: %w", errdefs.ErrUnavailable)
}

//nolint:revive // argument-limit: the signature is cri-streaming's
func (l *lateRuntime) Exec(ctx context.Context, id string, cmd []string, in io.Reader, out, stderr io.WriteCloser, tty bool, resize <-chan remotecommand.TerminalSize) error {
	rt, err := l.get()
	if err != nil {
		return err
	}
	return rt.Exec(ctx, id, cmd, in, out, stderr, tty, resize)
}

//nolint:revive // argument-limit: the signature is cri-streaming's
func (l *lateRuntime) Attach(ctx context.Context, id string, in io.Reader, out, stderr io.WriteCloser, tty bool, resize <-chan remotecommand.TerminalSize) error {
	rt, err := l.get()
	if err != nil {
		return err
	}
	return rt.Attach(ctx, id, in, out, stderr, tty, resize)
}

func (l *lateRuntime) PortForward(ctx context.Context, pod string, port int32, stream io.ReadWriteCloser) error {
	rt, err := l.get()
	if err != nil {
		return err
	}
	return rt.PortForward(ctx, pod, port, stream)
}

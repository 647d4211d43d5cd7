// Package cri is the edge of the daemon: it serves the Container Runtime
// Interface on a unix socket and knows nothing of what is behind the services
// it is given. Errors get their gRPC codes here and nowhere else.
package cri

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"path/filepath"

	"github.com/containerd/errdefs"
	"google.golang.org/grpc"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-dev/berth/cri/unixsock"
	"github.com/berth-dev/berth/observe"
)

// MaxMessage is the largest message in bytes, both ways; the kubelet's client
// uses the same limit.
const MaxMessage = 16 << 20

// SocketMode is who may use the CRI socket: whoever does controls the node.
const SocketMode fs.FileMode = 0o660

// Config says where to serve.
type Config struct {
	Socket string       // absolute path
	Logger *slog.Logger // nil: discard
	// Observer hears of every call, and through its context of all that the
	// call does; nil: nobody does.
	Observer observe.Observer
	// About returns the IDs of the pod and the object that a request is about,
	// "" where there is none; nil: they are not told to the observer.
	About func(request any) (pod, object string)
	// Options are further options of the gRPC server.
	Options []grpc.ServerOption
}

// Validate reports the first setting that cannot work.
func (c Config) Validate() error {
	if !filepath.IsAbs(c.Socket) {
		return fmt.Errorf("CRI socket %q is not an absolute path: %w", c.Socket, errdefs.ErrInvalidArgument)
	}
	return nil
}

// Services are the two halves of the CRI.
type Services struct {
	Runtime runtimeapi.RuntimeServiceServer
	Image   runtimeapi.ImageServiceServer
}

// Server is the CRI's gRPC server.
type Server struct {
	log      *slog.Logger
	grpc     *grpc.Server
	listener net.Listener
	draining context.Context
	drain    context.CancelFunc
	observer observe.Observer
	about    func(request any) (pod, object string)
}

// New takes the socket, so that a second daemon fails early; clients that
// connect wait until Serve.
func New(cfg Config, services Services) (*Server, error) {
	if err := cfg.Validate(); err != nil {
		return nil, fmt.Errorf("configure CRI server: %w", err)
	}
	if services.Runtime == nil || services.Image == nil {
		return nil, fmt.Errorf("configure CRI server: a service is missing: %w", errdefs.ErrInvalidArgument)
	}
	l, err := unixsock.Listen(cfg.Socket, SocketMode)
	if err != nil {
		return nil, fmt.Errorf("open CRI socket: %w", err)
	}
	s := &Server{log: cfg.Logger, listener: l, observer: cfg.Observer, about: cfg.About}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	s.draining, s.drain = context.WithCancel(context.Background())
	s.grpc = grpc.NewServer(append([]grpc.ServerOption{
		grpc.MaxRecvMsgSize(MaxMessage),
		grpc.MaxSendMsgSize(MaxMessage),
		grpc.UnaryInterceptor(s.unary),
		grpc.StreamInterceptor(s.stream),
	}, cfg.Options...)...)
	runtimeapi.RegisterRuntimeServiceServer(s.grpc, services.Runtime)
	runtimeapi.RegisterImageServiceServer(s.grpc, services.Image)
	return s, nil
}

// Serve answers calls until Shutdown; it then returns nil.
func (s *Server) Serve() error {
	err := s.grpc.Serve(s.listener)
	if err == nil || errors.Is(err, grpc.ErrServerStopped) || s.draining.Err() != nil {
		return nil
	}
	return fmt.Errorf("serve CRI: %w", err)
}

// Shutdown stops accepting, ends streams, and lets unary calls finish until
// ctx ends; it then cuts them off and returns DeadlineExceeded. The socket is removed.
func (s *Server) Shutdown(ctx context.Context) error {
	s.drain()
	done := make(chan struct{})
	go func() { s.grpc.GracefulStop(); close(done) }()
	select {
	case <-done:
		_ = s.listener.Close() // when Serve was never called
		return nil
	case <-ctx.Done():
	}
	// Stop cancels the calls' contexts but waits for their handlers, which may
	// be stuck in the kernel; the caller must not wait for those.
	go s.grpc.Stop()
	_ = s.listener.Close()
	return fmt.Errorf("drain CRI calls: some were cut off: %w", ctx.Err())
}

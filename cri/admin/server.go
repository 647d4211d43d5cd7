// Package admin is the daemon's second API: what berthctl asks beyond the CRI.
// It listens on a unix socket that only root may open.
package admin

//go:generate protoc --go_out=. --go_opt=paths=source_relative --go-grpc_out=. --go-grpc_opt=paths=source_relative admin.proto images.proto

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"path/filepath"
	"runtime/pprof"
	"time"

	"github.com/containerd/errdefs"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/berth-dev/berth/cri/unixsock"
)

// SocketMode keeps the admin socket to root.
const SocketMode fs.FileMode = 0o600

// maxProfile is the longest cpu profile.
const maxProfile = 300 * time.Second

// Source knows what the daemon is and does.
type Source interface {
	Info(ctx context.Context) (*InfoResponse, error)
	Operations() []*Operation
	Config() *ConfigResponse
}

// Sources are the parts of the daemon that answer.
type Sources struct {
	Source
	Repairer
	Quarantiner
	Insight
	Puller
	Signaller
	Attachments
	Images ImagesServer // nil: not served
}

// Config says where to serve.
type Config struct {
	Socket string       // absolute path
	Logger *slog.Logger // nil: discard
}

// Server is the admin API's gRPC server.
type Server struct {
	UnimplementedAdminServer
	source   Sources
	log      *slog.Logger
	grpc     *grpc.Server
	listener net.Listener
}

// New takes the socket.
func New(cfg Config, source Sources) (*Server, error) {
	if !filepath.IsAbs(cfg.Socket) || source.Source == nil || source.Repairer == nil || source.Quarantiner == nil || source.Insight == nil || source.Puller == nil || source.Signaller == nil || source.Attachments == nil {
		return nil, fmt.Errorf("configure admin server: socket %q must be absolute and all sources given: %w",
			cfg.Socket, errdefs.ErrInvalidArgument)
	}
	l, err := unixsock.Listen(cfg.Socket, SocketMode)
	if err != nil {
		return nil, fmt.Errorf("open admin socket: %w", err)
	}
	s := &Server{source: source, log: cfg.Logger, listener: l}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	s.grpc = grpc.NewServer(grpc.UnaryInterceptor(unaryCode), grpc.StreamInterceptor(streamCode))
	RegisterAdminServer(s.grpc, s)
	if source.Images != nil {
		RegisterImagesServer(s.grpc, source.Images)
	}
	return s, nil
}

// Serve answers calls until Close; it then returns nil.
func (s *Server) Serve() error {
	if err := s.grpc.Serve(s.listener); err != nil && !errors.Is(err, grpc.ErrServerStopped) {
		return fmt.Errorf("serve admin API: %w", err)
	}
	return nil
}

// Close ends all calls and removes the socket.
func (s *Server) Close() error {
	s.grpc.Stop()
	_ = s.listener.Close() // when Serve was never called
	return nil
}

// Info describes the daemon.
func (s *Server) Info(ctx context.Context, _ *InfoRequest) (*InfoResponse, error) {
	return s.source.Info(ctx)
}

// Operations lists journaled verbs that have begun and not ended.
func (s *Server) Operations(context.Context, *OperationsRequest) (*OperationsResponse, error) {
	return &OperationsResponse{Operations: s.source.Operations()}, nil
}

// Config returns the configuration in force.
func (s *Server) Config(context.Context, *ConfigRequest) (*ConfigResponse, error) {
	return s.source.Config(), nil
}

// Profile streams a profile in pprof's format.
func (s *Server) Profile(r *ProfileRequest, stream grpc.ServerStreamingServer[ProfileChunk]) error {
	w := chunks{stream}
	if r.GetName() == "cpu" {
		return cpuProfile(stream.Context(), w, time.Duration(r.GetSeconds())*time.Second)
	}
	p := pprof.Lookup(r.GetName())
	if p == nil {
		return status.Errorf(codes.InvalidArgument, "profile %q is unknown; use cpu, heap, goroutine, allocs, mutex, block or threadcreate", r.GetName())
	}
	return p.WriteTo(w, 0)
}

func cpuProfile(ctx context.Context, w chunks, d time.Duration) error {
	if d < time.Second || d > maxProfile {
		return status.Errorf(codes.InvalidArgument, "a cpu profile takes 1 to %d seconds", int(maxProfile.Seconds()))
	}
	if err := pprof.StartCPUProfile(w); err != nil {
		return status.Error(codes.FailedPrecondition, err.Error())
	}
	defer pprof.StopCPUProfile()
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return status.FromContextError(ctx.Err()).Err()
	}
}

// chunks writes to a stream of profile chunks.
type chunks struct {
	stream grpc.ServerStreamingServer[ProfileChunk]
}

func (c chunks) Write(p []byte) (int, error) {
	const size = 64 << 10
	for at := 0; at < len(p); at += size {
		if err := c.stream.Send(&ProfileChunk{Data: p[at:min(at+size, len(p))]}); err != nil {
			return at, err
		}
	}
	return len(p), nil
}

// unaryCode and streamCode give the errors of all calls their gRPC codes.
func unaryCode(ctx context.Context, req any, _ *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
	resp, err := next(ctx, req)
	return resp, withCode(err)
}

func streamCode(srv any, stream grpc.ServerStream, _ *grpc.StreamServerInfo, next grpc.StreamHandler) error {
	return withCode(next(srv, stream))
}

// codesOf are the codes of the sentinels that the sources wrap.
var codesOf = []struct {
	sentinel error
	code     codes.Code
}{
	{errdefs.ErrFailedPrecondition, codes.FailedPrecondition},
	{errdefs.ErrAlreadyExists, codes.AlreadyExists},
	{errdefs.ErrUnavailable, codes.Unavailable},
	{errdefs.ErrPermissionDenied, codes.PermissionDenied},
	{errdefs.ErrNotFound, codes.NotFound},
	{errdefs.ErrInvalidArgument, codes.InvalidArgument},
	{errdefs.ErrResourceExhausted, codes.ResourceExhausted},
	{errdefs.ErrOutOfRange, codes.OutOfRange},
	{context.Canceled, codes.Canceled},
	{context.DeadlineExceeded, codes.DeadlineExceeded},
}

// withCode is the error with its code. One that has a code keeps it.
func withCode(err error) error {
	if _, ok := status.FromError(err); ok { // nil, too
		return err
	}
	for _, c := range codesOf {
		if errors.Is(err, c.sentinel) {
			return status.Error(c.code, err.Error())
		}
	}
	return status.Error(codes.Internal, err.Error())
}

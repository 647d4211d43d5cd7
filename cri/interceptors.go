package cri

import (
	"context"
	"fmt"
	"log/slog"
	"path"
	"runtime/debug"
	"time"

	"github.com/containerd/errdefs"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/berth-dev/berth/observe"
)

// unary is the chain around every unary call: access log, error table, panic recovery.
func (s *Server) unary(ctx context.Context, req any, info *grpc.UnaryServerInfo, next grpc.UnaryHandler) (resp any, err error) {
	began := time.Now()
	ctx, end := s.observe(ctx, info.FullMethod, req)
	defer func() { end(err); s.access(ctx, info.FullMethod, began, err) }()
	if resp, err = s.guarded(ctx, req, info.FullMethod, next); err == nil {
		err = tooLarge(info.FullMethod, resp)
	}
	return resp, toStatus(err)
}

// observe tells the observer of a call. Its request is nil for a stream.
func (s *Server) observe(ctx context.Context, method string, req any) (context.Context, observe.End) {
	w := observe.Work{Kind: observe.Call, Name: path.Base(method)}
	if s.about != nil && req != nil {
		w.Pod, w.Object = s.about(req)
	}
	return observe.Begin(observe.With(ctx, s.observer), w)
}

func (s *Server) guarded(ctx context.Context, req any, method string, next grpc.UnaryHandler) (resp any, err error) {
	defer s.recoverInto(ctx, method, &err)
	return next(ctx, req)
}

// stream is the same chain around every streaming call. The call's context
// ends when the server drains: a stream of events has no end of its own.
func (s *Server) stream(srv any, ss grpc.ServerStream, info *grpc.StreamServerInfo, next grpc.StreamHandler) (err error) {
	began := time.Now()
	ctx, end := s.observe(ss.Context(), info.FullMethod, nil)
	defer func() { end(err); s.access(ctx, info.FullMethod, began, err) }()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(s.draining, cancel)()
	err = s.guardedStream(srv, &drainedStream{ServerStream: ss, ctx: ctx}, info.FullMethod, next)
	if err != nil && s.draining.Err() != nil && ss.Context().Err() == nil {
		err = fmt.Errorf("the daemon is stopping; connect again: %w", errdefs.ErrUnavailable)
	}
	return toStatus(err)
}

func (s *Server) guardedStream(srv any, ss grpc.ServerStream, method string, next grpc.StreamHandler) (err error) {
	defer s.recoverInto(ss.Context(), method, &err)
	return next(srv, ss)
}

// recoverInto turns a panic into an Internal error and logs the stack: one bad
// request must not take the node's runtime down.
func (s *Server) recoverInto(ctx context.Context, method string, err *error) {
	if p := recover(); p != nil {
		s.log.ErrorContext(ctx, "call panicked", "method", method, "panic", p, "stack", string(debug.Stack()))
		*err = fmt.Errorf("serve %s: panic: %v; the daemon's log has the stack: %w", method, p, errdefs.ErrInternal)
	}
}

// access logs a call: at debug when it went well or its client asked for what
// is not there or went away, at info when it failed, and as a warning when the
// fault is the node's.
func (s *Server) access(ctx context.Context, method string, began time.Time, err error) {
	st := status.Convert(err)
	level := accessLevel(st.Code())
	if !s.log.Enabled(ctx, level) {
		return
	}
	attrs := []any{"method", method, "duration", time.Since(began).Round(time.Microsecond), "code", st.Code().String()}
	if err != nil {
		attrs = append(attrs, "error", st.Message())
	}
	s.log.Log(ctx, level, "call", attrs...)
}

func accessLevel(code codes.Code) slog.Level {
	switch code {
	case codes.OK, codes.NotFound, codes.Canceled:
		return slog.LevelDebug
	case codes.Unknown, codes.Internal, codes.DataLoss:
		return slog.LevelWarn
	}
	return slog.LevelInfo
}

// drainedStream replaces the context of a stream.
type drainedStream struct {
	grpc.ServerStream
	ctx context.Context
}

// Context ends with the call or when the server drains.
func (d *drainedStream) Context() context.Context { return d.ctx }

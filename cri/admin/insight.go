package admin

import (
	"context"
	"errors"

	"github.com/containerd/errdefs"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// Insight knows what has happened on the node and what it waits for.
type Insight interface {
	// Events sends the events after a number to send, and with follow goes on
	// until ctx ends. OutOfRange: some of them are kept no longer.
	Events(ctx context.Context, r *EventsRequest, send func(*Event) error) error
	// Metrics returns the metrics in the text format of Prometheus.
	Metrics() ([]byte, error)
	// Explain tells of one pod, or of all that are remembered. NotFound.
	Explain(pod string) (*ExplainResponse, error)
}

// Signaller sends signals.
type Signaller interface {
	// Signal sends a signal, by name or number, to a container's first
	// process. NotFound, InvalidArgument, FailedPrecondition.
	Signal(ctx context.Context, id, signal string) error
}

// Attachments knows who is attached to containers.
type Attachments interface {
	// AwaitAttached returns when a client is attached to a container, or with
	// the error of ctx.
	AwaitAttached(ctx context.Context, id string) error
}

// AwaitAttached returns when a client is attached to a container.
func (s *Server) AwaitAttached(ctx context.Context, r *AwaitAttachedRequest) (*AwaitAttachedResponse, error) {
	return &AwaitAttachedResponse{}, s.source.AwaitAttached(ctx, r.GetContainerId())
}

// SignalContainer sends a signal to a container.
func (s *Server) SignalContainer(ctx context.Context, r *SignalContainerRequest) (*SignalContainerResponse, error) {
	return &SignalContainerResponse{}, s.source.Signal(ctx, r.GetContainerId(), r.GetSignal())
}

// Events reads the journal of events.
func (s *Server) Events(r *EventsRequest, out grpc.ServerStreamingServer[Event]) error {
	return coded(s.source.Events(out.Context(), r, out.Send))
}

// Metrics returns the daemon's metrics.
func (s *Server) Metrics(_ context.Context, _ *MetricsRequest) (*MetricsResponse, error) {
	text, err := s.source.Metrics()
	return &MetricsResponse{Text: text}, coded(err)
}

// Explain says where the time of a pod went.
func (s *Server) Explain(_ context.Context, r *ExplainRequest) (*ExplainResponse, error) {
	out, err := s.source.Explain(r.GetPod())
	return out, coded(err)
}

// coded gives the errors of an Insight their codes.
func coded(err error) error {
	if err == nil {
		return nil
	}
	if _, ok := status.FromError(err); ok {
		return err
	}
	code := codes.Internal
	switch {
	case errdefs.IsNotFound(err):
		code = codes.NotFound
	case errdefs.IsInvalidArgument(err):
		code = codes.InvalidArgument
	case errdefs.IsOutOfRange(err):
		code = codes.OutOfRange
	case errdefs.IsUnavailable(err):
		code = codes.Unavailable
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return status.FromContextError(err).Err()
	}
	return status.Error(code, err.Error())
}

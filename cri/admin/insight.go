package admin

import (
	"context"

	"google.golang.org/grpc"
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
	return s.source.Events(out.Context(), r, out.Send)
}

// Metrics returns the daemon's metrics.
func (s *Server) Metrics(_ context.Context, _ *MetricsRequest) (*MetricsResponse, error) {
	text, err := s.source.Metrics()
	return &MetricsResponse{Text: text}, err
}

// Explain says where the time of a pod went.
func (s *Server) Explain(_ context.Context, r *ExplainRequest) (*ExplainResponse, error) {
	return s.source.Explain(r.GetPod())
}

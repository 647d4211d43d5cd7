package admin

import (
	"context"

	"google.golang.org/grpc"
)

// Puller pulls images and tells how far it is. Errors carry gRPC codes; what
// send returns ends the call.
type Puller interface {
	PullImage(ctx context.Context, r *PullImageRequest, send func(*PullImageEvent) error) error
	WatchPulls(ctx context.Context, send func(*WatchPullsResponse) error) error
}

// PullImage pulls an image and tells how far it is.
func (s *Server) PullImage(r *PullImageRequest, stream grpc.ServerStreamingServer[PullImageEvent]) error {
	return s.source.PullImage(stream.Context(), r, stream.Send)
}

// WatchPulls tells how far all pulls are.
func (s *Server) WatchPulls(_ *WatchPullsRequest, stream grpc.ServerStreamingServer[WatchPullsResponse]) error {
	return s.source.WatchPulls(stream.Context(), stream.Send)
}

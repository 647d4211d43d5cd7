package admin

import (
	"context"
	"errors"

	"github.com/containerd/errdefs"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// Repairer knows what is not in order, and puts it in order.
type Repairer interface {
	Recovery() *RecoveryResponse
	// Reconcile does what it says unless dry is set. What failed is part of
	// the answer; an error says that the node could not be looked at.
	Reconcile(ctx context.Context, dry bool) (*ReconcileResponse, error)
}

// Quarantiner keeps the records that were set aside.
type Quarantiner interface {
	Quarantined() []*QuarantinedRecord
	// DropQuarantined fails with NotFound or InvalidArgument.
	DropQuarantined(ctx context.Context, name string) error
}

// Recovery lists the objects that are being recovered.
func (s *Server) Recovery(context.Context, *RecoveryRequest) (*RecoveryResponse, error) {
	return s.source.Recovery(), nil
}

// Reconcile compares records with the node and repairs what differs.
func (s *Server) Reconcile(ctx context.Context, r *ReconcileRequest) (*ReconcileResponse, error) {
	out, err := s.source.Reconcile(ctx, r.GetDryRun())
	return out, repairStatus(err)
}

// Quarantine lists the records that were set aside.
func (s *Server) Quarantine(context.Context, *QuarantineRequest) (*QuarantineResponse, error) {
	return &QuarantineResponse{Records: s.source.Quarantined()}, nil
}

// DropQuarantined deletes a record that was set aside.
func (s *Server) DropQuarantined(ctx context.Context, r *DropQuarantinedRequest) (*DropQuarantinedResponse, error) {
	if err := s.source.DropQuarantined(ctx, r.GetName()); err != nil {
		return nil, repairStatus(err)
	}
	return &DropQuarantinedResponse{}, nil
}

// unaryStatus and streamStatus give errors their gRPC codes.
func unaryStatus(ctx context.Context, req any, _ *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
	resp, err := next(ctx, req)
	return resp, repairStatus(err)
}

func streamStatus(srv any, stream grpc.ServerStream, _ *grpc.StreamServerInfo, next grpc.StreamHandler) error {
	return repairStatus(next(srv, stream))
}

func repairStatus(err error) error {
	if _, ok := status.FromError(err); ok { // nil, too
		return err
	}
	switch {
	case errors.Is(err, errdefs.ErrFailedPrecondition):
		return status.Error(codes.FailedPrecondition, err.Error())
	case errors.Is(err, errdefs.ErrAlreadyExists):
		return status.Error(codes.AlreadyExists, err.Error())
	case errors.Is(err, errdefs.ErrUnavailable):
		return status.Error(codes.Unavailable, err.Error())
	case errors.Is(err, errdefs.ErrPermissionDenied):
		return status.Error(codes.PermissionDenied, err.Error())
	case errors.Is(err, errdefs.ErrNotFound):
		return status.Error(codes.NotFound, err.Error())
	case errors.Is(err, errdefs.ErrInvalidArgument):
		return status.Error(codes.InvalidArgument, err.Error())
	case errors.Is(err, errdefs.ErrResourceExhausted):
		return status.Error(codes.ResourceExhausted, err.Error())
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return status.FromContextError(err).Err()
	}
	return status.Error(codes.Internal, err.Error())
}

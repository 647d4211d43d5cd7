package cri

import (
	"context"
	"errors"
	"syscall"

	"github.com/containerd/errdefs"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// mapping is one row of the error table.
type mapping struct {
	sentinel error
	code     codes.Code
}

// errorTable is the one place where errors become gRPC codes. The first row
// that matches wins: an error that says what is wrong with the request is
// listed before one that says only that the call ended.
func errorTable() []mapping {
	return []mapping{
		{errdefs.ErrInvalidArgument, codes.InvalidArgument},
		{errdefs.ErrNotFound, codes.NotFound},
		{errdefs.ErrAlreadyExists, codes.AlreadyExists},
		{errdefs.ErrPermissionDenied, codes.PermissionDenied},
		{errdefs.ErrUnauthenticated, codes.Unauthenticated},
		{errdefs.ErrResourceExhausted, codes.ResourceExhausted},
		// What the kernel says when disk, inodes, quota, descriptors, processes or
		// memory have run out.
		{syscall.ENOSPC, codes.ResourceExhausted},
		{syscall.EDQUOT, codes.ResourceExhausted},
		{syscall.EMFILE, codes.ResourceExhausted},
		{syscall.ENFILE, codes.ResourceExhausted},
		{syscall.EAGAIN, codes.ResourceExhausted},
		{syscall.ENOMEM, codes.ResourceExhausted},
		{errdefs.ErrFailedPrecondition, codes.FailedPrecondition},
		{errdefs.ErrConflict, codes.Aborted},
		{errdefs.ErrAborted, codes.Aborted},
		{errdefs.ErrNotModified, codes.FailedPrecondition},
		{errdefs.ErrOutOfRange, codes.OutOfRange},
		{errdefs.ErrNotImplemented, codes.Unimplemented},
		{errdefs.ErrDataLoss, codes.DataLoss},
		{errdefs.ErrUnavailable, codes.Unavailable},
		{context.DeadlineExceeded, codes.DeadlineExceeded},
		{context.Canceled, codes.Canceled},
		{errdefs.ErrInternal, codes.Internal},
		{errdefs.ErrUnknown, codes.Unknown},
	}
}

// Status gives an error of Berth's verbs the gRPC code that the CRI's calls
// have for it; the admin API's calls of the same verbs use it.
func Status(err error) error { return toStatus(err) }

// toStatus gives an error its gRPC code and keeps its text. An error that
// carries a gRPC status already keeps that; one without a known sentinel is Unknown.
func toStatus(err error) error {
	if err == nil {
		return nil
	}
	if s, ok := status.FromError(err); ok {
		return s.Err()
	}
	for _, m := range errorTable() {
		if errors.Is(err, m.sentinel) {
			return status.Error(m.code, err.Error())
		}
	}
	return status.Error(codes.Unknown, err.Error())
}

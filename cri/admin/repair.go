package admin

import "context"

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
	return s.source.Reconcile(ctx, r.GetDryRun())
}

// Quarantine lists the records that were set aside.
func (s *Server) Quarantine(context.Context, *QuarantineRequest) (*QuarantineResponse, error) {
	return &QuarantineResponse{Records: s.source.Quarantined()}, nil
}

// DropQuarantined deletes a record that was set aside.
func (s *Server) DropQuarantined(ctx context.Context, r *DropQuarantinedRequest) (*DropQuarantinedResponse, error) {
	return &DropQuarantinedResponse{}, s.source.DropQuarantined(ctx, r.GetName())
}

package main

import (
	"context"
	"fmt"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-dev/berth/cri/admin"
	"github.com/berth-dev/berth/imageservice"
	"github.com/berth-dev/berth/runtimeservice/recovery"
)

// recover begins to bring everything into a known state, beside the calls that
// are served from now on.
func (n *node) recover(ctx context.Context) {
	begun := time.Now()
	images := recovery.Work{Kind: "images", Doing: "compare disk and records", Run: n.images.Recover}
	if err := n.runtime.Recover(ctx, images); err != nil {
		n.log.Error("recovery is incomplete", "error", err)
	}
	go func() {
		<-n.runtime.Settled()
		n.log.Info("recovery is through", "took", time.Since(begun))
	}()
}

// collectNetworks has the network plugins collect garbage, at first when what an
// earlier daemon left has been settled.
func (n *node) collectNetworks(ctx context.Context) {
	select {
	case <-n.runtime.Settled():
	case <-ctx.Done():
		return
	}
	n.network.KeepCollecting(ctx, func() (attached []string) {
		for _, s := range n.db.Sandboxes() {
			if s.Facts.Network.Attached {
				attached = append(attached, s.ID)
			}
		}
		return attached
	})
}

// recoveredImages holds calls that change images back until disk and records
// have been compared. What is asked is answered from the records.
type recoveredImages struct {
	*imageservice.Service
	wait func(ctx context.Context) error
}

// PullImage pulls an image.
func (s recoveredImages) PullImage(ctx context.Context, r *runtimeapi.PullImageRequest) (*runtimeapi.PullImageResponse, error) {
	if err := s.wait(ctx); err != nil {
		return nil, fmt.Errorf("pull image %q: %w", r.GetImage().GetImage(), err)
	}
	return s.Service.PullImage(ctx, r)
}

// RemoveImage removes an image.
func (s recoveredImages) RemoveImage(ctx context.Context, r *runtimeapi.RemoveImageRequest) (*runtimeapi.RemoveImageResponse, error) {
	if err := s.wait(ctx); err != nil {
		return nil, fmt.Errorf("remove image %q: %w", r.GetImage().GetImage(), err)
	}
	return s.Service.RemoveImage(ctx, r)
}

// Recovery lists what is being recovered, for the admin API.
func (n *node) Recovery() *admin.RecoveryResponse {
	all, settled := n.runtime.Recovery()
	out := &admin.RecoveryResponse{Settled: settled}
	for _, s := range all {
		o := &admin.Recovering{Kind: s.Kind, Id: s.ID, Doing: s.Doing, Since: s.Since.UnixNano(), Failures: int64(s.Failures)}
		if s.Err != nil {
			o.Error = s.Err.Error()
		}
		if !s.Next.IsZero() {
			o.Next = s.Next.UnixNano()
		}
		out.Objects = append(out.Objects, o)
	}
	return out
}

// Reconcile compares records with the node and the image store, for the admin API.
func (n *node) Reconcile(ctx context.Context, dry bool) (*admin.ReconcileResponse, error) {
	select {
	case <-n.runtime.Settled():
	case <-ctx.Done():
		return nil, fmt.Errorf("wait for the recovery after the start: %w", ctx.Err())
	}
	all, err := n.runtime.Reconcile(ctx, dry)
	if len(all) == 0 && err != nil {
		return nil, err
	}
	out := &admin.ReconcileResponse{}
	for _, r := range all {
		a := &admin.ReconcileAction{Kind: r.Kind, Id: r.ID, Action: r.Action, Reason: r.Reason}
		if r.Err != nil {
			a.Error = r.Err.Error()
		}
		out.Actions = append(out.Actions, a)
	}
	files, err := n.images.Reconcile(ctx, dry)
	if err != nil && len(files) == 0 {
		return nil, err
	}
	for _, f := range files {
		a := &admin.ReconcileAction{Kind: "images", Id: f.Name, Action: f.Do, Reason: f.Reason}
		if f.Err != nil {
			a.Error = f.Err.Error()
		}
		out.Actions = append(out.Actions, a)
	}
	return out, nil // the answer tells what failed
}

// Quarantined lists the records that were set aside, for the admin API.
func (n *node) Quarantined() (out []*admin.QuarantinedRecord) {
	for _, q := range n.db.Quarantined() {
		out = append(out, &admin.QuarantinedRecord{Name: q.Name(), Bucket: q.Bucket, Key: q.Key, Reason: q.Reason,
			FoundAt: q.FoundAt.UnixNano(), Data: q.Data})
	}
	return out
}

// DropQuarantined deletes a record that was set aside, for the admin API.
func (n *node) DropQuarantined(ctx context.Context, name string) error {
	if err := n.db.DropQuarantined(ctx, name); err != nil {
		return err
	}
	n.log.Warn("dropped a record from the quarantine", "name", name)
	return nil
}

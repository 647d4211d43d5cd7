package imageservice

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/opencontainers/go-digest"
)

// partialAge is how long an interrupted download is kept for resumption.
const partialAge = 7 * 24 * time.Hour

// Recover brings disk and index together after a start: it empties staging,
// deletes layer directories without a record and records without a directory,
// then collects what no image or container needs. It must run before the
// first pull. An image that lost a layer counts as absent, so that the next
// pull fetches just that layer. Layers of a boot that ended with a power cut
// are verified in the background; what needs one waits for it. An error says what
// was not done; it may be tried again, beside pulls, and leaves their files alone.
func (s *Service) Recover(ctx context.Context) error {
	suspects, err := s.boot.begin(s.cfg.StateDir, s.db.Layers())
	errs := []error{err, s.recoverMounts()}
	_, err = s.Reconcile(ctx, false)
	errs = append(errs, err, s.collect(ctx, true), s.dropUnpacked(), s.blobs.SweepIngest(ctx, partialAge))
	if len(suspects) > 0 {
		go s.verifySuspects(context.WithoutCancel(ctx), suspects)
	}
	s.boot.pass()
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("recover images: %w", err)
	}
	return nil
}

// dropUnpacked deletes fetched blobs whose layers have been unpacked: the crash
// came between the commit and that.
func (s *Service) dropUnpacked() error {
	var errs []error
	for _, l := range s.db.Layers() {
		if d := digest.Digest(l.Blob); d.Validate() == nil {
			errs = append(errs, s.blobs.DropPartial(d))
		}
	}
	return errors.Join(errs...)
}

package imageservice

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/berth-dev/berth/store"
)

// partialAge is how long an interrupted download is kept for resumption.
const partialAge = 7 * 24 * time.Hour

// Recover brings disk and index together after a start: it empties staging,
// deletes layer directories without a record and records without a directory,
// then collects what no image or container needs. It must run before the
// first pull. An image that lost a layer counts as absent, so that the next
// pull fetches just that layer.
func (s *Service) Recover(ctx context.Context) error {
	var errs []error
	entries, err := os.ReadDir(s.staging())
	errs = append(errs, err)
	for _, e := range entries {
		errs = append(errs, os.RemoveAll(filepath.Join(s.staging(), e.Name())))
	}
	errs = append(errs, s.matchLayers(ctx), s.collect(ctx, true), s.dropUnpacked(), s.blobs.SweepIngest(ctx, partialAge))
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

// matchLayers compares layers/ with the records.
func (s *Service) matchLayers(ctx context.Context) error {
	known := map[string]bool{"empty": true}
	var lost []string
	for _, l := range s.db.Layers() {
		dir := s.layerDir(l.ChainID)
		if _, err := os.Stat(filepath.Join(dir, "layer.json")); err != nil {
			s.cfg.Logger.Warn("layer has no files; images that need it must be pulled again", "layer", l.ChainID, "error", err)
			lost = append(lost, l.ChainID)
			continue
		}
		known[filepath.Base(dir)] = true
	}
	var errs []error
	if len(lost) > 0 {
		errs = append(errs, s.db.Commit(ctx, store.Change{DeleteLayers: lost}))
	}
	entries, err := os.ReadDir(filepath.Join(s.cfg.StateDir, "layers"))
	errs = append(errs, err)
	for _, e := range entries {
		if known[e.Name()] {
			continue
		}
		s.cfg.Logger.Warn("deleting a layer directory without a record", "dir", e.Name())
		errs = append(errs, s.discard(filepath.Join(s.cfg.StateDir, "layers", e.Name())))
	}
	return errors.Join(errs...)
}

package imageservice

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-dev/berth/observe"
	"github.com/berth-dev/berth/store"
	"github.com/berth-dev/berth/store/op"
)

// RemoveImage removes the image with all its tags and digests, whichever of
// them was named. Containers made from it keep running: their layers go with
// the last of them. An image that is not there is no error.
func (s *Service) RemoveImage(ctx context.Context, req *runtimeapi.RemoveImageRequest) (*runtimeapi.RemoveImageResponse, error) {
	img, err := s.find(req.GetImage().GetImage(), req.GetImage().GetRuntimeHandler())
	if errdefs.IsNotFound(err) {
		return &runtimeapi.RemoveImageResponse{}, nil
	}
	if err != nil {
		return nil, fmt.Errorf("remove image: %w", err)
	}
	ctx = context.WithoutCancel(ctx) // half a removal serves nobody
	op.Fault("image.remove", "commit", "before")
	s.commitMu.Lock()
	err = s.db.Commit(ctx, store.Change{DeleteImages: []string{img.ID}})
	s.commitMu.Unlock()
	if err != nil {
		return nil, fmt.Errorf("remove image %s: %w", img.ID, err)
	}
	op.Fault("image.remove", "commit", "after")
	s.mu.Lock()
	for _, l := range img.Layers {
		s.held.condemned[l] = true
	}
	s.mu.Unlock()
	if err := s.collect(ctx, false); err != nil {
		// The image is gone; what is left on disk goes with the next collection.
		s.cfg.Logger.Warn("files of a removed image were not all deleted", "id", img.ID, "error", err)
	}
	s.cfg.Logger.Info("removed image", "id", img.ID, "tags", img.RepoTags)
	return &runtimeapi.RemoveImageResponse{}, nil
}

// Collect deletes layers and blobs that no image, container or pull needs.
// Layers of a pull that failed within the last hour stay for its repetition.
func (s *Service) Collect(ctx context.Context) error { return s.collect(ctx, false) }

func (s *Service) collect(ctx context.Context, all bool) error {
	return observe.Do(ctx, observe.Work{Kind: observe.Verb, Name: "image.gc"}, func(ctx context.Context) error {
		return s.collectNow(ctx, all)
	})
}

func (s *Service) collectNow(ctx context.Context, all bool) error {
	victims, blobs, err := s.condemn(ctx, all)
	if err != nil {
		return fmt.Errorf("collect layers: %w", err)
	}
	op.Fault("image.gc", "delete", "before")
	var errs []error
	for _, dir := range victims {
		errs = append(errs, os.RemoveAll(dir))
	}
	for _, b := range blobs {
		errs = append(errs, s.blobs.Remove(b))
	}
	op.Fault("image.gc", "delete", "after")
	return errors.Join(errs...)
}

// condemn takes what nobody needs out of the index and out of layers/, and
// returns what to delete. Pulls and mounts wait meanwhile, not while files
// are deleted.
func (s *Service) condemn(ctx context.Context, all bool) (dirs []string, blobs []digest.Digest, err error) {
	s.commitMu.Lock()
	defer s.commitMu.Unlock()
	s.mu.Lock()
	defer s.mu.Unlock()
	f, gone, err := s.facts()
	if err != nil {
		return nil, nil, err
	}
	victims, rest := plan(f, all, time.Now())
	if len(victims) > 0 {
		if err := s.db.Commit(ctx, store.Change{DeleteLayers: victims}); err != nil {
			return nil, nil, err
		}
		op.Fault("image.gc", "commit", "after")
	}
	for _, v := range victims {
		delete(s.held.condemned, v)
		gone = append(gone, s.layerDir(v))
	}
	for _, dir := range gone {
		hidden, err := s.hide(dir)
		if err != nil {
			return dirs, nil, err
		}
		dirs = append(dirs, hidden)
	}
	f.layers = rest
	blobs, err = s.unusedBlobs(f)
	return dirs, blobs, err
}

// facts gathers what a collection decides on, and what of the quarantine
// nobody uses any more. commitMu and mu are held.
func (s *Service) facts() (f facts, free []string, err error) {
	f = facts{images: s.db.Images(), layers: s.db.Layers(), containers: s.db.Containers(), held: s.held}
	lost, err := s.quarantined()
	var away []store.Layer
	for _, note := range lost {
		away = append(away, note.Layer)
	}
	for dir, note := range lost {
		if note.unread {
			note.Users = s.usersOf(note.Layer.ChainID, away)
		}
		if note.free(f.containers, s.held) {
			free = append(free, dir)
		} else {
			f.lost = append(f.lost, note.Layer)
		}
	}
	slices.Sort(free)
	return f, free, err
}

// plan decides which layers go: those nobody needs that belonged to a removed
// image, or are old, or all.
func plan(f facts, all bool, now time.Time) (victims []string, rest []store.Layer) {
	used := inUse(f)
	for _, l := range f.layers {
		due := all || f.held.condemned[l.ChainID] || now.Sub(l.UnpackedAt) > orphanAge
		if due && !used[l.ChainID] {
			victims = append(victims, l.ChainID)
		} else {
			rest = append(rest, l)
		}
	}
	return victims, rest
}

func (s *Service) unusedBlobs(f facts) ([]digest.Digest, error) {
	have, err := s.blobs.Blobs()
	if err != nil {
		return nil, err
	}
	used := blobsInUse(f)
	var unused []digest.Digest
	for _, b := range have {
		if !used[b] {
			unused = append(unused, b)
		}
	}
	return unused, nil
}

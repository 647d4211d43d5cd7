package imageservice

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"

	"github.com/berth-dev/berth/imageservice/manifest"
	"github.com/berth-dev/berth/imageservice/registry"
	"github.com/berth-dev/berth/store"
)

// repairFromBlobs unpacks again what an image lacks from blobs that were kept.
func (s *Service) repairFromBlobs(ctx context.Context, img store.Image) error {
	raw, err := s.blobs.Read(digest.Digest(img.Manifest), s.cfg.ManifestBytes)
	if err != nil {
		return err
	}
	m, err := manifest.Parse(raw, "")
	if err != nil || m.Manifest == nil {
		return fmt.Errorf("manifest of image %s: %w: %w", img.ID, errors.Join(err), errdefs.ErrDataLoss)
	}
	t := target{digest: digest.Digest(img.Manifest), raw: raw, manifest: *m.Manifest}
	release := s.lease(nil, t.blobs())
	defer release()
	if d := m.Manifest.Config.Digest; d.Algorithm().FromBytes(img.Config) == d {
		if err := s.blobs.Put(d, img.Config); err != nil {
			return err
		}
	}
	_, err = s.install(ctx, t, nil, nil)
	return err
}

// repair fetches what an image lacks, by its digests and without credentials,
// unless its blobs were kept.
func (s *Service) repair(ctx context.Context, img store.Image) error {
	local := s.repairFromBlobs(ctx, img)
	if local == nil {
		return nil
	}
	errs := []error{local, fmt.Errorf("image %s has no repo digest to fetch it by: %w", img.ID, errdefs.ErrFailedPrecondition)}
	for _, name := range slices.Concat(img.RepoDigests, img.Elsewhere) {
		platform, bare, found := strings.Cut(name, " ")
		if !found {
			platform, bare = "", name
		}
		ref, err := ParseRef(bare)
		if ref.Platform = platform; err == nil {
			_, err = s.pull(ctx, ref, registry.Credentials{})
		}
		if err == nil {
			return nil
		}
		errs = append(errs, err)
	}
	return errs[len(errs)-1]
}

// suspectEvery is how often one image is checked because containers fail.
const suspectEvery = 10 * time.Minute

// Suspect says that a container of the image failed in a way that damage
// explains: the image is checked in the background, and repaired.
func (s *Service) Suspect(_ context.Context, imageID string) {
	s.mu.Lock()
	last, now := s.held.suspected[imageID], time.Now()
	due := last.IsZero() || now.Sub(last) > suspectEvery
	if due {
		maps.DeleteFunc(s.held.suspected, func(_ string, at time.Time) bool { return now.Sub(at) > suspectEvery })
		s.held.suspected[imageID] = now
	}
	s.mu.Unlock()
	if !due {
		return
	}
	go func() {
		<-s.boot.recovered // which would take what a repair has staged
		r, err := s.Check(context.Background(), CheckRequest{Images: []string{imageID}, Repair: true}, func(string, string) {})
		if err != nil && !errdefs.IsNotFound(err) {
			s.cfg.Logger.Warn("image of a failing container was not checked", "image", imageID, "error", err)
		}
		for _, p := range r.Problems {
			s.cfg.Logger.Error("image of a failing container is damaged", "image", imageID, "kind", p.Kind, "name", p.Name, "detail", p.Detail, "done", p.Fixed)
		}
	}()
}

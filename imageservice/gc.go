package imageservice

import (
	"context"
	"errors"
	"io/fs"
	"slices"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/berth-dev/berth/store"
)

// Collection is what a collection deletes, or would.
type Collection struct {
	Layers     []store.Layer
	Blobs      []digest.Digest
	Quarantine []string // directories
	Bytes      uint64   // of the layers
	// Kept are layers that nothing needs but that may be asked for again: a pull
	// that failed brought them less than an hour ago.
	Kept []store.Layer
}

// CollectPlan says what a collection would delete now: mark and plan, without
// the sweep. With all, layers of failed pulls go as well.
func (s *Service) CollectPlan(all bool) (Collection, error) {
	s.commitMu.Lock()
	defer s.commitMu.Unlock()
	s.mu.Lock()
	defer s.mu.Unlock()
	f, free, err := s.facts()
	if err != nil {
		return Collection{}, err
	}
	victims, rest := plan(f, all, time.Now())
	out := Collection{Quarantine: free}
	dead := map[string]bool{}
	for _, v := range victims {
		dead[v] = true
	}
	for _, l := range f.layers {
		if dead[l.ChainID] {
			out.Layers = append(out.Layers, l)
			out.Bytes += l.UsageBytes
		}
	}
	used := inUse(f)
	for _, l := range rest {
		if !used[l.ChainID] {
			out.Kept = append(out.Kept, l)
		}
	}
	f.layers = rest
	out.Blobs, err = s.unusedBlobs(f)
	return out, err
}

// CollectNow deletes what nothing needs, and says what that was. What a pull or
// container came to need since the plan was made stays: the sweep decides anew.
func (s *Service) CollectNow(ctx context.Context, all bool) (Collection, error) {
	c, err := s.CollectPlan(all)
	if err != nil {
		return c, err
	}
	return c, s.collect(context.WithoutCancel(ctx), all)
}

// LayerUse is a layer and who needs it.
type LayerUse struct {
	Layer              store.Layer
	Images, Containers []string // IDs; containers stand on it, or mount an image that does
	Orphan             bool     // nothing needs it: no image, container, mount or pull
}

// LayerUses tells of all layers.
func (s *Service) LayerUses() ([]LayerUse, error) {
	f, err := s.factsNow()
	if err != nil {
		return nil, err
	}
	return layerUses(f), nil
}

func (s *Service) factsNow() (facts, error) {
	s.commitMu.Lock()
	defer s.commitMu.Unlock()
	s.mu.Lock()
	defer s.mu.Unlock()
	f, _, err := s.facts()
	return f, err
}

// layerUses is the pure part of LayerUses.
func layerUses(f facts) (out []LayerUse) {
	used, parent := inUse(f), parents(append(slices.Clone(f.lost), f.layers...))
	images, containers := map[string][]string{}, map[string][]string{}
	for _, img := range f.images {
		for _, chain := range img.Layers {
			images[chain] = append(images[chain], img.ID)
		}
	}
	for _, c := range f.containers {
		own := map[string]bool{}
		for _, use := range append([]store.ImageUse{c.Facts.Image}, c.Facts.Volumes...) {
			for l := use.TopLayer; l != "" && !own[l] && !f.held.gone[c.ID]; l = parent[l] {
				own[l] = true
				containers[l] = append(containers[l], c.ID)
			}
		}
	}
	for _, l := range f.layers {
		out = append(out, LayerUse{Layer: l, Images: images[l.ChainID], Containers: containers[l.ChainID], Orphan: !used[l.ChainID]})
	}
	slices.SortFunc(out, func(a, b LayerUse) int { return a.Layer.UnpackedAt.Compare(b.Layer.UnpackedAt) })
	return out
}

// BlobUse is content as it was fetched, and who names it.
type BlobUse struct {
	Digest digest.Digest
	Bytes  int64
	Kind   string   // "manifest", "config", "layer", "unknown"
	Images []string // IDs
	Orphan bool     // nothing needs it
}

// BlobUses tells of all blobs.
func (s *Service) BlobUses() ([]BlobUse, error) {
	f, err := s.factsNow()
	if err != nil {
		return nil, err
	}
	blobs, err := s.blobs.Blobs()
	if err != nil {
		return nil, err
	}
	var out []BlobUse
	used := blobsInUse(f)
	for _, d := range blobs {
		size, err := s.blobs.Size(d)
		if errors.Is(err, fs.ErrNotExist) {
			continue // a collection took it meanwhile
		}
		if err != nil {
			return nil, err
		}
		b := BlobUse{Digest: d, Bytes: size, Orphan: !used[d]}
		b.Kind, b.Images = kindOf(f, d)
		out = append(out, b)
	}
	return out, nil
}

// kindOf says what a blob is, and which images name it.
func kindOf(f facts, d digest.Digest) (kind string, images []string) {
	kind = "unknown"
	chains := map[string]bool{}
	for _, l := range f.layers {
		if l.Blob == d.String() {
			kind, chains[l.ChainID] = "layer", true
		}
	}
	for _, img := range f.images {
		switch i := slices.Index(imageBlobs(img), d); {
		case i == 0:
			kind, images = "manifest", append(images, img.ID)
		case i > 0:
			kind, images = "config", append(images, img.ID)
		case slices.ContainsFunc(img.Layers, func(c string) bool { return chains[c] }):
			images = append(images, img.ID)
		}
	}
	return kind, images
}

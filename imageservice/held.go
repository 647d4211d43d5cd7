package imageservice

import (
	"slices"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/berth-dev/berth/store"
)

// held says what must not be collected although no record says so. It is
// guarded by Service.mu.
type held struct {
	flights map[digest.Digest]*flight // layers under way, by chain ID
	layers  map[string]int            // chain IDs in use by pulls
	blobs   map[digest.Digest]int     // digests in use by pulls
	mounts  map[string][]string       // container ID -> chain IDs, from Mount to Remove
	gone    map[string]bool           // containers whose root file system was removed
	// condemned layers belong to images that were removed while a container
	// still used them.
	condemned map[string]bool
	imports   int                  // archives being read into staging
	suspected map[string]time.Time // images checked because containers failed, by ID
}

func newHeld() held {
	return held{
		flights: map[digest.Digest]*flight{},
		layers:  map[string]int{}, blobs: map[digest.Digest]int{}, mounts: map[string][]string{},
		gone: map[string]bool{}, condemned: map[string]bool{}, suspected: map[string]time.Time{},
	}
}

// lease protects layers and blobs until the returned function runs.
func (s *Service) lease(layers []digest.Digest, blobs []digest.Digest) (release func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, l := range layers {
		s.held.layers[l.String()]++
	}
	for _, b := range blobs {
		s.held.blobs[b]++
	}
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		for _, l := range layers {
			if s.held.layers[l.String()]--; s.held.layers[l.String()] <= 0 {
				delete(s.held.layers, l.String())
			}
		}
		for _, b := range blobs {
			if s.held.blobs[b]--; s.held.blobs[b] <= 0 {
				delete(s.held.blobs, b)
			}
		}
	}
}

// facts is what collection decides on.
type facts struct {
	images     []store.Image
	layers     []store.Layer
	containers []store.Container
	lost       []store.Layer // in quarantine
	held       held
}

// inUse returns the chain IDs something needs: images, containers and their
// ancestors, mounts, pulls.
func inUse(f facts) map[string]bool {
	used := map[string]bool{}
	parent := parents(append(slices.Clone(f.lost), f.layers...))
	for _, img := range f.images {
		for _, c := range img.Layers {
			used[c] = true
		}
	}
	for _, c := range f.containers {
		if f.held.gone[c.ID] {
			continue
		}
		for _, use := range append([]store.ImageUse{c.Facts.Image}, c.Facts.Volumes...) {
			for l := use.TopLayer; l != "" && !used[l]; l = parent[l] {
				used[l] = true
			}
		}
	}
	for _, chains := range f.held.mounts {
		for _, c := range chains {
			used[c] = true
		}
	}
	for c := range f.held.layers {
		used[c] = true
	}
	return used
}

// blobsInUse returns the digests of blobs that images, kept layers or pulls need.
func blobsInUse(f facts) map[digest.Digest]bool {
	used := map[digest.Digest]bool{}
	for _, img := range f.images {
		for _, d := range imageBlobs(img) {
			used[d] = true
		}
	}
	for _, l := range f.layers {
		used[digest.Digest(l.Blob)] = true
	}
	for b := range f.held.blobs {
		used[b] = true
	}
	return used
}

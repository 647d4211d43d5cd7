// Package manifest reads image indexes, manifests and configurations from
// bytes a registry served. It decides, it does no I/O.
package manifest

import (
	"encoding/json"
	"fmt"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Docker's names for what OCI standardized.
const (
	dockerList     = "application/vnd.docker.distribution.manifest.list.v2+json"
	dockerManifest = "application/vnd.docker.distribution.manifest.v2+json"
	dockerV1       = "application/vnd.docker.distribution.manifest.v1"
)

// MaxLayers is what overlayfs can stack.
const MaxLayers = 500

// Parsed is an index or a manifest; exactly one of the fields is set.
type Parsed struct {
	Index    *ocispec.Index
	Manifest *ocispec.Manifest
}

// Parse reads an index or a manifest. served is the media type the registry
// gave, used when the document does not name its own. Errors are
// InvalidArgument, or NotImplemented for types Berth does not know.
func Parse(raw []byte, served string) (Parsed, error) {
	var probe struct {
		MediaType     string          `json:"mediaType"`
		SchemaVersion int             `json:"schemaVersion"`
		Manifests     json.RawMessage `json:"manifests"`
		Config        json.RawMessage `json:"config"`
		Layers        json.RawMessage `json:"layers"`
	}
	if err := json.Unmarshal(raw, &probe); err != nil {
		return Parsed{}, fmt.Errorf("manifest is not JSON: %w: %w", err, errdefs.ErrInvalidArgument)
	}
	if probe.Manifests != nil && (probe.Config != nil || probe.Layers != nil) {
		return Parsed{}, fmt.Errorf("document is an index and a manifest at the same time: %w", errdefs.ErrInvalidArgument)
	}
	mt := probe.MediaType
	if mt == "" {
		mt = served
	}
	switch {
	case probe.SchemaVersion == 1 || strings.HasPrefix(mt, dockerV1):
		return Parsed{}, fmt.Errorf("manifest has Docker schema 1, which no runtime supports any more; push the image again with a current tool: %w", errdefs.ErrNotImplemented)
	case mt == ocispec.MediaTypeImageIndex || mt == dockerList || probe.Manifests != nil:
		var index ocispec.Index
		if err := json.Unmarshal(raw, &index); err != nil {
			return Parsed{}, fmt.Errorf("read index: %w: %w", err, errdefs.ErrInvalidArgument)
		}
		return Parsed{Index: &index}, checkIndex(index)
	case mt == ocispec.MediaTypeImageManifest || mt == dockerManifest || probe.Config != nil:
		var m ocispec.Manifest
		if err := json.Unmarshal(raw, &m); err != nil {
			return Parsed{}, fmt.Errorf("read manifest: %w: %w", err, errdefs.ErrInvalidArgument)
		}
		return Parsed{Manifest: &m}, checkManifest(m)
	}
	return Parsed{}, fmt.Errorf("media type %.100q is neither an image manifest nor an index: %w", mt, errdefs.ErrNotImplemented)
}

func checkIndex(index ocispec.Index) error {
	for _, d := range index.Manifests {
		if err := checkDescriptor(d); err != nil {
			return err
		}
	}
	return nil
}

func checkManifest(m ocispec.Manifest) error {
	if err := checkDescriptor(m.Config); err != nil {
		return fmt.Errorf("config: %w", err)
	}
	if len(m.Layers) > MaxLayers {
		return fmt.Errorf("image has %d layers, overlayfs can stack %d: %w", len(m.Layers), MaxLayers, errdefs.ErrResourceExhausted)
	}
	for i, d := range m.Layers {
		if err := checkDescriptor(d); err != nil {
			return fmt.Errorf("layer %d: %w", i, err)
		}
	}
	return nil
}

// checkDescriptor refuses what must not become a file name or a buffer size.
func checkDescriptor(d ocispec.Descriptor) error {
	if err := d.Digest.Validate(); err != nil {
		return fmt.Errorf("digest %.100q: %w: %w", string(d.Digest), err, errdefs.ErrInvalidArgument)
	}
	if d.Digest.Algorithm() != digest.SHA256 && d.Digest.Algorithm() != digest.SHA512 {
		return fmt.Errorf("digest %.100q: only sha256 and sha512 are supported: %w", string(d.Digest), errdefs.ErrInvalidArgument)
	}
	if d.Size < 0 {
		return fmt.Errorf("descriptor %s has size %d: %w", d.Digest, d.Size, errdefs.ErrInvalidArgument)
	}
	return nil
}

// Select returns the entry of the index that fits the platform best;
// NotFound lists what there is.
func Select(index ocispec.Index, want platforms.MatchComparer) (ocispec.Descriptor, error) {
	var best *ocispec.Descriptor
	var have []string
	for i := range index.Manifests {
		d := &index.Manifests[i]
		if d.Platform == nil {
			// An index of one manifest often leaves the platform out.
			if best == nil && len(index.Manifests) == 1 {
				best = d
			}
			continue
		}
		have = append(have, platforms.Format(*d.Platform))
		if !want.Match(*d.Platform) {
			continue
		}
		if best == nil || best.Platform == nil || want.Less(*d.Platform, *best.Platform) {
			best = d
		}
	}
	if best == nil {
		if len(have) > 16 {
			have = append(have[:16], "...")
		}
		return ocispec.Descriptor{}, fmt.Errorf("image has no manifest for this platform, only for %q: %w", have, errdefs.ErrNotFound)
	}
	return *best, nil
}

// layerType reports whether mt is a file system layer. The suffix is not
// relied on: builders gzip under the plain name and push zstd under the gzip
// one, so the packing is read from the first bytes.
func layerType(mt string) bool {
	switch mt {
	case ocispec.MediaTypeImageLayer, ocispec.MediaTypeImageLayerGzip, ocispec.MediaTypeImageLayerZstd,
		"application/vnd.oci.image.layer.nondistributable.v1.tar",
		"application/vnd.oci.image.layer.nondistributable.v1.tar+gzip",
		"application/vnd.oci.image.layer.nondistributable.v1.tar+zstd",
		"application/vnd.docker.image.rootfs.diff.tar",
		"application/vnd.docker.image.rootfs.diff.tar.gzip",
		"application/vnd.docker.image.rootfs.diff.tar.zstd",
		"application/vnd.docker.image.rootfs.foreign.diff.tar.gzip":
		return true
	}
	return false
}

package manifest

import (
	"encoding/json"
	"fmt"
	"path"
	"path/filepath"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Image is what an image configuration says, checked against its manifest.
type Image struct {
	Config   ocispec.Image // zero for an artifact
	Artifact string        // type of an artifact; "" for a container image
	Layers   []Layer       // as in the manifest, bottom first
}

// ChainIDs returns the layers' names, bottom first.
func (i Image) ChainIDs() []digest.Digest {
	out := make([]digest.Digest, len(i.Layers))
	for n, l := range i.Layers {
		out[n] = l.ChainID
	}
	return out
}

// Layer is one layer as it is unpacked.
type Layer struct {
	ChainID digest.Digest // names it together with all below it
	DiffID  digest.Digest // of its plain bytes; "" when nobody says: an artifact's
	// File is the path that the blob itself becomes, for an artifact's blob
	// that is no file system layer. "" unpacks the blob.
	File string
}

// ParseConfig reads an image configuration and pairs it with the layers of m.
// A manifest whose configuration is none of an image is an artifact. Layers
// that Berth cannot unpack are NotImplemented.
func ParseConfig(raw []byte, m ocispec.Manifest) (Image, error) {
	var cfg ocispec.Image
	if err := json.Unmarshal(raw, &cfg); err != nil {
		if !configType(m.Config.MediaType) {
			return artifact(m), nil
		}
		return Image{}, fmt.Errorf("read image configuration: %w: %w", err, errdefs.ErrInvalidArgument)
	}
	ids := cfg.RootFS.DiffIDs
	if !configType(m.Config.MediaType) && !unpackable(m.Layers) {
		return artifact(m), nil // some tools give it the configuration of an image
	}
	if len(ids) == 0 && (len(m.Layers) > 0 || m.ArtifactType != "" || cfg.OS == "") {
		if m.ArtifactType == "" && configType(m.Config.MediaType) {
			return Image{}, fmt.Errorf("image configuration names no layers, the manifest %d: %w", len(m.Layers), errdefs.ErrInvalidArgument)
		}
		return artifact(m), nil
	}
	if len(ids) != len(m.Layers) {
		return Image{}, fmt.Errorf("image configuration names %d layers, the manifest %d: %w", len(ids), len(m.Layers), errdefs.ErrInvalidArgument)
	}
	img := Image{Config: cfg}
	for i, id := range ids {
		if err := id.Validate(); err != nil || id.Algorithm() != digest.SHA256 {
			return Image{}, fmt.Errorf("diff ID %.100q is not a sha256 digest: %w", string(id), errdefs.ErrInvalidArgument)
		}
		if mt := m.Layers[i].MediaType; !layerType(mt) {
			return Image{}, fmt.Errorf("layer %d has type %.100q, which is not a file system layer: %w", i, mt, errdefs.ErrNotImplemented)
		}
		img.Layers = append(img.Layers, Layer{DiffID: id})
	}
	for i, chain := range identity.ChainIDs(append([]digest.Digest(nil), ids...)) {
		img.Layers[i].ChainID = chain
	}
	return img, nil
}

func unpackable(layers []ocispec.Descriptor) bool {
	for _, l := range layers {
		if !layerType(l.MediaType) {
			return false
		}
	}
	return true
}

// configType reports whether mt is that of an image configuration.
func configType(mt string) bool {
	return mt == ocispec.MediaTypeImageConfig || mt == "application/vnd.docker.container.image.v1+json" || mt == ""
}

// artifact gives each blob a layer of its own: a file system layer is unpacked,
// anything else becomes a file. Chain IDs are made of what decides the
// content, and cannot be those of an image.
func artifact(m ocispec.Manifest) Image {
	img := Image{Artifact: m.ArtifactType}
	if img.Artifact == "" {
		img.Artifact = m.Config.MediaType
	}
	var below digest.Digest
	for _, d := range m.Layers {
		l := Layer{}
		if !layerType(d.MediaType) {
			l.File = fileName(d)
		}
		l.ChainID = digest.FromString("artifact\n" + below.String() + "\n" + d.Digest.String() + "\n" + l.File)
		below = l.ChainID
		img.Layers = append(img.Layers, l)
	}
	return img
}

// fileName is the path of a blob in its artifact: its title when that is a path
// below the root, or else its digest.
func fileName(d ocispec.Descriptor) string {
	title := d.Annotations[ocispec.AnnotationTitle]
	if p := path.Clean(title); title != "" && p != "." && filepath.IsLocal(p) && !strings.ContainsAny(p, "\x00\n") && partsFit(p) {
		return p
	}
	return d.Digest.Algorithm().String() + "-" + d.Digest.Encoded()
}

func partsFit(p string) bool {
	for part := range strings.SplitSeq(p, "/") {
		if len(part) > 255 {
			return false
		}
	}
	return len(p) < 4096
}

package images

import (
	"bytes"
	"io"
	"runtime"

	"github.com/google/go-containerregistry/pkg/compression"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// Compression of a layer blob.
type Compression int

// Compressions that registries serve. Zstd exists with OCI media types only.
const (
	Gzip Compression = iota
	Zstd
	Plain
)

// Layer is one layer of a Spec.
type Layer struct {
	Files       []File
	Compression Compression
}

func (l Layer) build(docker bool) (v1.Layer, error) {
	b, err := Tar(l.Files)
	if err != nil {
		return nil, err
	}
	if l.Compression == Plain {
		mt := types.OCIUncompressedLayer
		if docker {
			mt = types.DockerUncompressedLayer
		}
		return static.NewLayer(b, mt), nil
	}
	opts := []tarball.LayerOption{tarball.WithMediaType(types.OCILayer)}
	switch {
	case l.Compression == Zstd:
		opts = []tarball.LayerOption{tarball.WithCompression(compression.ZStd), tarball.WithMediaType(types.OCILayerZStd)}
	case docker:
		opts = []tarball.LayerOption{tarball.WithMediaType(types.DockerLayer)}
	}
	opts = append(opts, tarball.WithCompressedCaching)
	return tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(b)), nil }, opts...)
}

func hostArch() string { return runtime.GOARCH }

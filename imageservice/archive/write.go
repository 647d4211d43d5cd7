package archive

import (
	"archive/tar"
	"encoding/json"
	"fmt"
	"io"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Source opens blobs.
type Source interface {
	// Open returns the bytes of a blob; the archive's reader checks them.
	Open(d ocispec.Descriptor) (io.ReadCloser, error)
}

// Write writes images as an OCI layout that docker reads as well.
func Write(w io.Writer, images []Image, blobs Source) error {
	out := writer{tar: tar.NewWriter(w), blobs: blobs, done: map[digest.Digest]bool{}}
	if err := out.bytes(ocispec.ImageLayoutFile, []byte(`{"imageLayoutVersion":"`+ocispec.ImageLayoutVersion+`"}`)); err != nil {
		return err
	}
	index := ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex, Manifests: []ocispec.Descriptor{}}
	var docker []dockerEntry
	for _, img := range images {
		if err := out.image(img); err != nil {
			return err
		}
		d := ocispec.Descriptor{MediaType: img.Manifest.MediaType, Digest: img.Digest, Size: int64(len(img.Raw))}
		if d.MediaType == "" {
			d.MediaType = ocispec.MediaTypeImageManifest
		}
		e := dockerEntry{Config: blobName(img.Manifest.Config.Digest), RepoTags: img.Names, Layers: []string{}}
		for _, l := range img.Manifest.Layers {
			e.Layers = append(e.Layers, blobName(l.Digest))
		}
		docker = append(docker, e)
		if len(img.Names) == 0 {
			index.Manifests = append(index.Manifests, d)
		}
		for _, name := range img.Names {
			d.Annotations = map[string]string{annotationName: name, ocispec.AnnotationRefName: name}
			index.Manifests = append(index.Manifests, d)
		}
	}
	for name, doc := range map[string]any{"index.json": index, "manifest.json": docker} {
		raw, err := json.Marshal(doc)
		if err != nil {
			return err
		}
		if err := out.bytes(name, raw); err != nil {
			return err
		}
	}
	return out.tar.Close()
}

type dockerEntry struct {
	Config   string
	RepoTags []string
	Layers   []string
}

type writer struct {
	tar   *tar.Writer
	blobs Source
	done  map[digest.Digest]bool
}

func (w *writer) image(img Image) error {
	for _, d := range append([]ocispec.Descriptor{img.Manifest.Config}, img.Manifest.Layers...) {
		if w.done[d.Digest] {
			continue
		}
		w.done[d.Digest] = true
		if err := w.blob(d); err != nil {
			return err
		}
	}
	if w.done[img.Digest] {
		return nil
	}
	w.done[img.Digest] = true
	return w.bytes(blobName(img.Digest), img.Raw)
}

func (w *writer) blob(d ocispec.Descriptor) error {
	rc, err := w.blobs.Open(d)
	if err != nil {
		return fmt.Errorf("blob %s: %w", d.Digest, err)
	}
	defer rc.Close()
	if err := w.header(blobName(d.Digest), d.Size); err != nil {
		return err
	}
	sum := d.Digest.Algorithm().Digester()
	if _, err := io.Copy(io.MultiWriter(w.tar, sum.Hash()), rc); err != nil {
		return fmt.Errorf("blob %s: %w", d.Digest, err)
	}
	if sum.Digest() != d.Digest {
		return fmt.Errorf("blob %s has other bytes, with digest %s", d.Digest, sum.Digest())
	}
	return w.tar.Flush() // an error when the blob is shorter than its size
}

func (w *writer) bytes(name string, raw []byte) error {
	if err := w.header(name, int64(len(raw))); err != nil {
		return err
	}
	_, err := w.tar.Write(raw)
	return err
}

func (w *writer) header(name string, size int64) error {
	return w.tar.WriteHeader(&tar.Header{Name: name, Mode: 0o644, Size: size, Typeflag: tar.TypeReg, Format: tar.FormatPAX})
}

// Package archive reads and writes images as tar archives: OCI layouts and
// docker's archives. What it reads is hostile until proven otherwise: entries
// become numbered files in a spool directory, whatever they are called, and
// documents are bounded. It does not look into layers.
package archive

import (
	"archive/tar"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

const (
	maxEntries  = 100_000
	maxName     = 4096
	maxDocument = 8 << 20

	// annotationName is how containerd and docker name an image in a layout.
	annotationName = "io.containerd.image.name"
)

// Archive is what an archive holds, spooled.
type Archive struct {
	dir   string
	files map[string]file // by clean name
}

type file struct {
	spool  string
	size   int64
	digest digest.Digest // sha256 of the content
}

// Image is one image of an archive.
type Image struct {
	Names    []string      // as the archive has them: references, or tags alone
	Top      digest.Digest // of what the name stands for: index or manifest
	Raw      []byte        // manifest
	Digest   digest.Digest // of Raw
	Manifest ocispec.Manifest
}

// Read spools a tar into dir, which exists and is empty; the caller deletes it.
// Errors: InvalidArgument for what is no archive of images, ResourceExhausted
// for a full disk or too many entries; errors of r pass.
func Read(ctx context.Context, r io.Reader, dir string) (*Archive, error) {
	a := &Archive{dir: dir, files: map[string]file{}}
	links := map[string]string{}
	tr := tar.NewReader(r)
	for n := 0; ; n++ {
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		hdr, err := tr.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, archiveError(err)
		}
		if n >= maxEntries || len(hdr.Name) > maxName {
			return nil, fmt.Errorf("read archive: more than %d entries, or a name of more than %d bytes: %w", maxEntries, maxName, errdefs.ErrResourceExhausted)
		}
		name := clean(hdr.Name)
		switch hdr.Typeflag {
		case tar.TypeReg:
			if a.files[name], err = spool(tr, filepath.Join(dir, strconv.Itoa(n))); err != nil {
				return nil, archiveError(err)
			}
		case tar.TypeSymlink: // docker's older archives share layers so
			links[name] = clean(path.Join(path.Dir(name), hdr.Linkname))
		case tar.TypeLink:
			links[name] = clean(hdr.Linkname)
		}
	}
	for name, target := range links {
		if f, ok := a.files[target]; ok {
			a.files[name] = f
		}
	}
	return a, nil
}

func clean(name string) string { return strings.TrimPrefix(path.Clean("/"+name), "/") }

func archiveError(err error) error {
	switch {
	case errors.Is(err, tar.ErrHeader), errors.Is(err, io.ErrUnexpectedEOF):
		return fmt.Errorf("not a whole tar archive: %w: %w", err, errdefs.ErrInvalidArgument)
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		return fmt.Errorf("%w (free space on the state directory's file system): %w", err, errdefs.ErrResourceExhausted)
	}
	return fmt.Errorf("read archive: %w", err)
}

func spool(r io.Reader, to string) (file, error) {
	f, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return file{}, err
	}
	sum := digest.SHA256.Digester()
	n, err := io.Copy(io.MultiWriter(f, sum.Hash()), r)
	if err = errors.Join(err, f.Close()); err != nil {
		return file{}, err
	}
	return file{spool: to, size: n, digest: sum.Digest()}, nil
}

// document reads a small file of the archive.
func (a *Archive) document(name string) ([]byte, error) {
	f, ok := a.files[clean(name)]
	if !ok {
		return nil, fmt.Errorf("archive has no %.200q: %w", name, errdefs.ErrInvalidArgument)
	}
	if f.size > maxDocument {
		return nil, fmt.Errorf("%.200q has more than %d bytes: %w", name, maxDocument, errdefs.ErrResourceExhausted)
	}
	return os.ReadFile(f.spool)
}

func blobName(d digest.Digest) string { return "blobs/" + d.Algorithm().String() + "/" + d.Encoded() }

// Open opens a blob, which may have been under any name.
func (a *Archive) Open(d digest.Digest) (*os.File, error) {
	f, ok := a.find(d)
	if !ok {
		return nil, fmt.Errorf("archive has no blob %s: %w", d, errdefs.ErrNotFound)
	}
	return os.Open(f.spool)
}

// Size returns a blob's size in bytes; -1: the archive does not have it.
func (a *Archive) Size(d digest.Digest) int64 {
	f, ok := a.find(d)
	if !ok {
		return -1
	}
	return f.size
}

func (a *Archive) find(d digest.Digest) (file, bool) {
	if f, ok := a.files[blobName(d)]; ok {
		return f, true
	}
	for _, f := range a.files {
		if f.digest == d {
			return f, true
		}
	}
	return file{}, false
}

// Images lists what the archive holds. choose picks one manifest of an index.
func (a *Archive) Images(choose func(ocispec.Index) (ocispec.Descriptor, error)) ([]Image, error) {
	if _, ok := a.files["index.json"]; ok {
		return a.layout(choose)
	}
	if _, ok := a.files["manifest.json"]; ok {
		return a.docker()
	}
	return nil, fmt.Errorf("archive has neither index.json (OCI layout) nor manifest.json (docker): %w", errdefs.ErrInvalidArgument)
}

func (a *Archive) layout(choose func(ocispec.Index) (ocispec.Descriptor, error)) ([]Image, error) {
	raw, err := a.document("index.json")
	if err != nil {
		return nil, err
	}
	var index ocispec.Index
	if err := json.Unmarshal(raw, &index); err != nil {
		return nil, fmt.Errorf("index.json: %w: %w", err, errdefs.ErrInvalidArgument)
	}
	byTop := map[digest.Digest]int{}
	var out []Image
	for _, d := range index.Manifests {
		if err := d.Digest.Validate(); err != nil {
			return nil, fmt.Errorf("index.json: digest %.100q: %w: %w", string(d.Digest), err, errdefs.ErrInvalidArgument)
		}
		at, ok := byTop[d.Digest]
		if !ok {
			img, err := a.manifest(d, choose)
			if err != nil {
				return nil, err
			}
			at = len(out)
			byTop[d.Digest] = at
			out = append(out, img)
		}
		for _, key := range []string{annotationName, ocispec.AnnotationRefName} {
			if name := d.Annotations[key]; name != "" {
				out[at].Names = append(out[at].Names, name)
				break
			}
		}
	}
	return out, nil
}

// manifest follows a descriptor through indexes to a manifest.
func (a *Archive) manifest(d ocispec.Descriptor, choose func(ocispec.Index) (ocispec.Descriptor, error)) (Image, error) {
	img := Image{Top: d.Digest}
	for range 4 {
		if err := d.Digest.Validate(); err != nil {
			return img, fmt.Errorf("digest %.100q: %w: %w", string(d.Digest), err, errdefs.ErrInvalidArgument)
		}
		raw, err := a.document(blobName(d.Digest))
		if err != nil {
			return img, err
		}
		if d.Digest.Algorithm().FromBytes(raw) != d.Digest {
			return img, fmt.Errorf("blob %s of the archive has other bytes: %w", d.Digest, errdefs.ErrDataLoss)
		}
		var probe struct {
			ocispec.Index
			Config json.RawMessage `json:"config"`
		}
		if err := json.Unmarshal(raw, &probe); err != nil {
			return img, fmt.Errorf("manifest %s: %w: %w", d.Digest, err, errdefs.ErrInvalidArgument)
		}
		if probe.Config != nil || probe.Manifests == nil {
			img.Raw, img.Digest = raw, d.Digest
			if err := json.Unmarshal(raw, &img.Manifest); err != nil {
				return img, fmt.Errorf("manifest %s: %w: %w", d.Digest, err, errdefs.ErrInvalidArgument)
			}
			return img, nil
		}
		if d, err = choose(probe.Index); err != nil {
			return img, err
		}
	}
	return img, fmt.Errorf("indexes are nested more than 4 deep: %w", errdefs.ErrInvalidArgument)
}

// docker makes OCI manifests of what docker's manifest.json lists.
func (a *Archive) docker() ([]Image, error) {
	raw, err := a.document("manifest.json")
	if err != nil {
		return nil, err
	}
	var list []struct {
		Config   string
		RepoTags []string
		Layers   []string
	}
	if err := json.Unmarshal(raw, &list); err != nil {
		return nil, fmt.Errorf("manifest.json: %w: %w", err, errdefs.ErrInvalidArgument)
	}
	var out []Image
	for _, e := range list {
		m := ocispec.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest, Layers: []ocispec.Descriptor{}}
		if m.Config, err = a.describe(e.Config, ocispec.MediaTypeImageConfig); err != nil {
			return nil, err
		}
		for _, l := range e.Layers {
			d, err := a.describe(l, ocispec.MediaTypeImageLayer)
			if err != nil {
				return nil, err
			}
			m.Layers = append(m.Layers, d)
		}
		img := Image{Names: e.RepoTags, Manifest: m}
		if img.Raw, err = json.Marshal(m); err != nil {
			return nil, err
		}
		img.Digest = digest.FromBytes(img.Raw)
		img.Top = img.Digest
		out = append(out, img)
	}
	return out, nil
}

func (a *Archive) describe(name, mediaType string) (ocispec.Descriptor, error) {
	f, ok := a.files[clean(name)]
	if !ok {
		return ocispec.Descriptor{}, fmt.Errorf("archive has no %.200q: %w", name, errdefs.ErrInvalidArgument)
	}
	return ocispec.Descriptor{MediaType: mediaType, Digest: f.digest, Size: f.size}, nil
}

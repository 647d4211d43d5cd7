// Package adopt reads the image stores of containerd and CRI-O. It writes to
// none of them, and trusts nothing in them: all that it passes on is compared
// with its digest on the way.
package adopt

import (
	"archive/tar"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/berth-dev/berth/imageservice/manifest"
)

// maxDocument bounds indexes, manifests and configurations, in bytes.
const maxDocument = 8 << 20

// Image is what one digest of a store stands for, or why it cannot be taken over.
type Image struct {
	Names  []string // references, normalized; sorted
	Pinned bool
	ID     digest.Digest // of the configuration, or of an artifact's manifest
	Layers []Layer       // bottom first
	Reason string        // why not; empty when it can

	top       digest.Digest
	documents []document // index, manifest, configuration
}

// Layer is a layer of an image in the form the store has it in.
type Layer struct {
	ChainID digest.Digest
	digest  digest.Digest // of the bytes that open gives
	size    int64
	open    func() (io.ReadCloser, error)
}

type document struct {
	digest digest.Digest
	raw    []byte
}

// Store is another runtime's store of images.
type Store interface {
	// Images lists what the store has, with a reason where it cannot be taken over.
	Images() ([]Image, error)
	// Close lets go of the store.
	Close() error
}

// Open opens the store of containerd or crio at its root directory. NotFound:
// there is none; Unavailable: its owner runs and must be stopped.
func Open(runtime, root string) (Store, error) {
	switch runtime {
	case "containerd":
		return openContainerd(root)
	case "crio":
		return openContainers(root)
	}
	return nil, fmt.Errorf("runtime %q has no store known here: %w", runtime, errdefs.ErrInvalidArgument)
}

// Bytes is how much Write writes for the layers, without those in have.
func (i Image) Bytes(have map[string]bool) (n int64) {
	for _, l := range i.Layers {
		if !have[l.ChainID.String()] {
			n += l.size
		}
	}
	return n
}

// Write writes the image as an OCI layout, without the layers whose chain IDs are
// in have. DataLoss: bytes in the store are not what their digest says.
func (i Image) Write(w io.Writer, have map[string]bool) error {
	t := tar.NewWriter(w)
	index := ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex}
	for _, name := range i.Names {
		index.Manifests = append(index.Manifests, ocispec.Descriptor{
			Digest: i.top, Size: int64(len(i.documents[0].raw)), Annotations: map[string]string{"io.containerd.image.name": name},
		})
	}
	raw, err := json.Marshal(index)
	if err != nil {
		return err
	}
	files := map[string][]byte{"index.json": raw, ocispec.ImageLayoutFile: []byte(`{"imageLayoutVersion":"` + ocispec.ImageLayoutVersion + `"}`)}
	for _, d := range i.documents {
		files[blobName(d.digest)] = d.raw
	}
	for name, raw := range files {
		if err := header(t, name, int64(len(raw))); err != nil {
			return err
		}
		if _, err := t.Write(raw); err != nil {
			return err
		}
	}
	done := map[digest.Digest]bool{}
	for _, l := range i.Layers {
		if have[l.ChainID.String()] || done[l.digest] {
			continue
		}
		done[l.digest] = true
		if err := l.write(t); err != nil {
			return err
		}
	}
	return t.Close()
}

func (l Layer) write(t *tar.Writer) error {
	r, err := l.open()
	if err != nil {
		return fmt.Errorf("layer %s: %w", l.digest, err)
	}
	defer r.Close()
	if err := header(t, blobName(l.digest), l.size); err != nil {
		return err
	}
	sum := l.digest.Algorithm().Digester()
	n, err := io.Copy(io.MultiWriter(t, sum.Hash()), r)
	if errors.Is(err, tar.ErrWriteTooLong) {
		err, n = nil, l.size+1
	}
	if err != nil {
		return fmt.Errorf("layer %s: %w", l.digest, err)
	}
	if n != l.size || sum.Digest() != l.digest {
		return fmt.Errorf("layer %s: the store has other bytes: %w", l.digest, errdefs.ErrDataLoss)
	}
	return nil
}

func header(t *tar.Writer, name string, size int64) error {
	return t.WriteHeader(&tar.Header{Name: name, Mode: 0o644, Size: size, Typeflag: tar.TypeReg, Format: tar.FormatPAX})
}

func blobName(d digest.Digest) string { return "blobs/" + d.Algorithm().String() + "/" + d.Encoded() }

// blobs reads a document of a store whole.
type blobs interface {
	document(d digest.Digest) ([]byte, error)
}

// resolve follows what a name stands for to a manifest for this node and its
// configuration, and returns the manifest's layers with their names.
func (i *Image) resolve(from blobs) ([]ocispec.Descriptor, manifest.Image, error) {
	none := manifest.Image{}
	d := i.top
	for range 4 {
		raw, err := i.read(from, d)
		if err != nil {
			return nil, none, fmt.Errorf("manifest: %w", err)
		}
		parsed, err := manifest.Parse(raw, "")
		if err != nil {
			return nil, none, err
		}
		if parsed.Manifest == nil {
			next, err := manifest.Select(*parsed.Index, platforms.DefaultStrict())
			if err != nil {
				return nil, none, err
			}
			d = next.Digest
			continue
		}
		m := *parsed.Manifest
		config, err := i.read(from, m.Config.Digest)
		if err != nil {
			return nil, none, fmt.Errorf("configuration: %w", err)
		}
		img, err := manifest.ParseConfig(config, m)
		if i.ID = m.Config.Digest; img.Artifact != "" {
			i.ID = d
		}
		return m.Layers, img, err
	}
	return nil, none, fmt.Errorf("indexes are nested more than 4 deep: %w", errdefs.ErrInvalidArgument)
}

// read reads a document and keeps it.
func (i *Image) read(from blobs, d digest.Digest) ([]byte, error) {
	if err := d.Validate(); err != nil {
		return nil, fmt.Errorf("digest %.100q: %w", string(d), err)
	}
	raw, err := from.document(d)
	if err != nil {
		return nil, err
	}
	if d.Algorithm().FromBytes(raw) != d {
		return nil, fmt.Errorf("%s: the store has other bytes: %w", d, errdefs.ErrDataLoss)
	}
	i.documents = append(i.documents, document{d, raw})
	return raw, nil
}

// byTop gathers names by what they stand for. Names that no registry knows, and
// digests of something else, are left out and returned.
type byTop struct {
	images map[digest.Digest]*Image
	left   []Image
}

func (b *byTop) add(name string, top digest.Digest, pinned bool) {
	img := b.images[top]
	if img == nil {
		img = &Image{top: top}
		if b.images == nil {
			b.images = map[digest.Digest]*Image{}
		}
		b.images[top] = img
	}
	img.Pinned = img.Pinned || pinned
	if digest.Digest(name).Validate() == nil {
		return // containerd's name for an image's ID
	}
	named, err := reference.ParseDockerRef(name)
	if err != nil {
		b.left = append(b.left, Image{Names: []string{name}, Reason: "its name is no reference: " + err.Error()})
		return
	}
	if d, ok := named.(reference.Digested); ok && d.Digest() != top {
		b.left = append(b.left, Image{Names: []string{name}, Reason: "its name says another digest than its content has, " + top.String()})
		return
	}
	if !slices.Contains(img.Names, named.String()) {
		img.Names = append(img.Names, named.String())
	}
}

// list returns the images that have names, in order, each seen to by fill.
func (b *byTop) list(fill func(*Image) error) []Image {
	out := b.left
	for _, img := range b.images {
		if len(img.Names) == 0 {
			continue // dangling: nobody can ask for it, and the kubelet would remove it
		}
		slices.Sort(img.Names)
		if err := fill(img); err != nil {
			img.Reason = err.Error()
		}
		out = append(out, *img)
	}
	slices.SortFunc(out, func(x, y Image) int { return strings.Compare(x.Names[0], y.Names[0]) })
	return out
}

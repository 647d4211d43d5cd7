package imageservice

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/berth-dev/berth/imageservice/archive"
	"github.com/berth-dev/berth/imageservice/content"
	"github.com/berth-dev/berth/imageservice/manifest"
	"github.com/berth-dev/berth/imageservice/registry"
	"github.com/berth-dev/berth/store"
)

// ImportOptions say more of an archive.
type ImportOptions struct {
	Name string // of the one image of an archive that names none
	// Pulled says that a registry has the images, as another runtime of the node
	// pulled them: packed layers are kept no longer than a pull keeps them, layers
	// that are here need not be in the archive, and one may be in it as its plain
	// tar, under that one's digest.
	Pulled bool
}

// Import reads an archive of images (OCI layout or docker's, as a tar) and
// commits them as a pull does. Unless they were pulled, the packed layers stay in
// the store: there may be no registry to have them from again.
func (s *Service) Import(ctx context.Context, r io.Reader, opts ImportOptions) ([]store.Image, error) {
	s.mu.Lock()
	s.held.imports++
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		s.held.imports--
		s.mu.Unlock()
	}()
	dir, err := os.MkdirTemp(s.staging(), "import-")
	if err != nil {
		return nil, fmt.Errorf("import images: %w", diskError(err))
	}
	defer func() { _ = os.RemoveAll(dir) }() // what is left goes with the next start
	a, err := archive.Read(ctx, r, dir)
	if err != nil {
		return nil, fmt.Errorf("import images: %w", err)
	}
	found, err := a.Images(func(i ocispec.Index) (ocispec.Descriptor, error) { return manifest.Select(i, s.platform) })
	if err != nil {
		return nil, fmt.Errorf("import images: %w", err)
	}
	if len(found) == 1 && opts.Name != "" {
		found[0].Names = []string{opts.Name}
	}
	var out []store.Image
	for _, img := range found {
		rec, err := s.importOne(ctx, a, img, opts.Pulled)
		if err != nil {
			return out, fmt.Errorf("import image %s: %w", strings.Join(img.Names, ", "), err)
		}
		out = append(out, rec)
	}
	return out, nil
}

func (s *Service) importOne(ctx context.Context, a *archive.Archive, img archive.Image, pulled bool) (store.Image, error) {
	refs, err := importRefs(img.Names)
	if err != nil {
		return store.Image{}, err
	}
	parsed, err := manifest.Parse(img.Raw, ocispec.MediaTypeImageManifest)
	if err != nil {
		return store.Image{}, err
	}
	t := target{top: img.Top, digest: img.Digest, raw: img.Raw, manifest: *parsed.Manifest}
	release := s.lease(nil, t.blobs())
	defer release()
	keep := []ocispec.Descriptor{t.manifest.Config}
	if !pulled {
		keep = append(keep, t.manifest.Layers...)
	}
	for _, d := range keep {
		if err := s.keepBlob(ctx, d, archiveSource{a: a, d: d.Digest}); err != nil {
			return store.Image{}, err
		}
	}
	return s.install(ctx, t, refs, a)
}

// contents returns what is unpacked for the layers: where the archive has a layer
// only as its plain tar, that.
func contents(a *archive.Archive, layers []ocispec.Descriptor, ids []manifest.Layer) []ocispec.Descriptor {
	out := slices.Clone(layers)
	for i := range out {
		if a.Size(out[i].Digest) >= 0 || ids[i].DiffID == "" {
			continue
		}
		if size := a.Size(ids[i].DiffID); size >= 0 {
			out[i] = ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayer, Digest: ids[i].DiffID, Size: size}
		}
	}
	return out
}

// importRefs reads an archive's names; a bare tag names nothing.
func importRefs(names []string) ([]Ref, error) {
	var out []Ref
	for _, n := range names {
		if !strings.ContainsAny(n, "/:@") {
			continue // a layout's ref.name may be a tag alone
		}
		ref, err := ParseRef(n)
		if err != nil {
			return nil, err
		}
		out = append(out, ref)
	}
	return out, nil
}

// install unpacks and commits an image whose configuration is in the store, and
// its layers there or in the archive; a may be nil.
func (s *Service) install(ctx context.Context, t target, refs []Ref, a *archive.Archive) (store.Image, error) {
	raw, err := s.blobs.Read(t.manifest.Config.Digest, s.cfg.ConfigBytes)
	if err != nil {
		return store.Image{}, err
	}
	parsed, err := manifest.ParseConfig(raw, t.manifest)
	if err != nil {
		return store.Image{}, err
	}
	if err := s.blobs.Put(t.digest, t.raw); err != nil {
		return store.Image{}, err
	}
	img := t.record(raw, parsed)
	layers := t.manifest.Layers
	source := func(d ocispec.Descriptor) content.Source { return absent{d} }
	if a != nil {
		layers = contents(a, layers, parsed.Layers)
		source = func(d ocispec.Descriptor) content.Source { return archiveSource{a: a, d: d.Digest} }
	}
	release := s.lease(parsed.ChainIDs(), digests(layers))
	defer release()
	flights, _ := s.acquire(layers, parsed.Layers, source)
	defer s.release(flights)
	for _, f := range flights {
		if err := f.wait(ctx); err != nil {
			return store.Image{}, err
		}
	}
	err = s.commit(context.WithoutCancel(ctx), flights, func() store.Change { return s.name(&img, t.top, refs...) })
	return img, err
}

func digests(all []ocispec.Descriptor) (out []digest.Digest) {
	for _, d := range all {
		out = append(out, d.Digest)
	}
	return out
}

// keepBlob brings a blob into the store, verified, and keeps it.
func (s *Service) keepBlob(ctx context.Context, d ocispec.Descriptor, src content.Source) error {
	dl, _ := s.blobs.Fetch(d, src)
	defer dl.Release()
	if err := dl.Wait(ctx); err != nil {
		return err
	}
	return dl.Keep()
}

// archiveSource reads a blob from an archive.
type archiveSource struct {
	a *archive.Archive
	d digest.Digest
}

// Open implements content.Source.
func (s archiveSource) Open(_ context.Context, from, to int64) (content.Part, error) {
	f, err := s.a.Open(s.d)
	if err != nil {
		return content.Part{}, err
	}
	return content.Part{Body: section{io.NewSectionReader(f, from, to-from), f}, Start: from, End: to}, nil
}

// section is a part of a file, which it closes.
type section struct {
	io.Reader
	io.Closer
}

// Reject implements content.Source: there is no other place.
func (archiveSource) Reject() bool { return false }

// absent is the source of a blob that must be here already.
type absent struct{ d ocispec.Descriptor }

// Open implements content.Source.
func (a absent) Open(context.Context, int64, int64) (content.Part, error) {
	return content.Part{}, fmt.Errorf("blob %s is not in the store: %w", a.d.Digest, errdefs.ErrNotFound)
}

// Reject implements content.Source.
func (absent) Reject() bool { return false }

// Export writes images as an OCI layout that docker reads as well. Layers whose
// packed form was discarded after unpacking are fetched again from the image's
// registry, without credentials; an image's digests do not change by export.
func (s *Service) Export(ctx context.Context, names []string, w io.Writer) error {
	var out []archive.Image
	src := exportSource{s: s, ctx: ctx, from: map[digest.Digest]store.Image{}}
	for _, name := range names {
		img, err := s.find(name, "")
		if err != nil {
			return fmt.Errorf("export: %w", err)
		}
		raw, err := s.blobs.Read(digest.Digest(img.Manifest), s.cfg.ManifestBytes)
		if err != nil {
			return fmt.Errorf("export image %s: %w", img.ID, err)
		}
		m, err := manifest.Parse(raw, "")
		if err != nil || m.Manifest == nil {
			return fmt.Errorf("export image %s: its manifest: %w: %w", img.ID, errors.Join(err), errdefs.ErrDataLoss)
		}
		names := slices.Clone(img.RepoTags)
		out = append(out, archive.Image{Names: names, Top: digest.Digest(img.Manifest), Raw: raw, Digest: digest.Digest(img.Manifest), Manifest: *m.Manifest})
		for _, d := range (target{digest: digest.Digest(img.Manifest), manifest: *m.Manifest}).blobs() {
			src.from[d] = img
		}
	}
	var held []digest.Digest
	for d := range src.from {
		held = append(held, d)
	}
	release := s.lease(nil, held)
	defer release()
	if err := archive.Write(w, out, src); err != nil {
		return fmt.Errorf("export images: %w", err)
	}
	return nil
}

// exportSource opens blobs of the store, and fetches those that are not there.
type exportSource struct {
	s    *Service
	ctx  context.Context
	from map[digest.Digest]store.Image
}

// Open implements archive.Source.
func (e exportSource) Open(d ocispec.Descriptor) (io.ReadCloser, error) {
	img := e.from[d.Digest]
	if d.Digest.Algorithm().FromBytes(img.Config) == d.Digest && int64(len(img.Config)) == d.Size {
		return io.NopCloser(strings.NewReader(string(img.Config))), nil
	}
	var src content.Source = absent{d}
	_, digests := img.Names()
	for _, name := range digests {
		ref, err := ParseRef(name)
		if err != nil {
			continue
		}
		sess, err := e.s.registry.Open(e.ctx, registry.Target{Domain: ref.Domain, Path: ref.Path})
		if err != nil {
			continue
		}
		defer sess.Close()
		src = sess.Blob(d)
		break
	}
	dl, _ := e.s.blobs.Fetch(d, src)
	if err := dl.Wait(e.ctx); err != nil {
		dl.Release()
		return nil, fmt.Errorf("the packed layer was discarded after unpacking (image.keep_blobs keeps them) and cannot be fetched again: %w", err)
	}
	return &exported{Reader: dl.Reader(e.ctx), dl: dl}, nil
}

// exported is a blob that was opened for an export.
type exported struct {
	io.Reader
	dl *content.Download
}

// Close lets go of the blob and deletes it unless it is kept.
func (x *exported) Close() error {
	err := x.dl.Discard()
	x.dl.Release()
	return err
}

// Tag gives an image one more name, which it takes from any other image, and
// returns it normalized.
func (s *Service) Tag(ctx context.Context, image, name string) (string, error) {
	ref, err := ParseRef(name)
	if err != nil {
		return "", fmt.Errorf("tag image %q: %w", image, err)
	}
	if ref.Tag == "" {
		return "", fmt.Errorf("tag image %q: %q is no tag: %w", image, name, errdefs.ErrInvalidArgument)
	}
	img, err := s.find(image, "")
	if err != nil {
		return "", fmt.Errorf("tag image: %w", err)
	}
	s.commitMu.Lock()
	defer s.commitMu.Unlock()
	if img, err = s.db.Image(img.ID); err != nil {
		return "", fmt.Errorf("tag image: %w", err)
	}
	img.RepoTags = with(img.RepoTags, ref.String())
	if err := s.db.Commit(ctx, store.Change{PutImages: []store.Image{img}}); err != nil {
		return "", fmt.Errorf("tag image %s: %w", img.ID, err)
	}
	s.cfg.Logger.Info("tagged image", "id", img.ID, "tag", ref.String(), "pulled", img.PulledAt.Format(time.RFC3339))
	return ref.String(), nil
}

package imageservice

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"syscall"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-dev/berth/imageservice/content"
	"github.com/berth-dev/berth/imageservice/manifest"
	"github.com/berth-dev/berth/imageservice/registry"
	"github.com/berth-dev/berth/observe"
	"github.com/berth-dev/berth/store"
)

// PullImage fetches an image and returns its ID. What an interrupted or failed
// pull fetched serves the next one.
//
// Errors: InvalidArgument (reference), NotFound, Unauthenticated,
// PermissionDenied, Unavailable (registry does not answer), DataLoss (wrong
// bytes), ResourceExhausted (limit or full disk), NotImplemented (media type
// Berth cannot unpack).
func (s *Service) PullImage(ctx context.Context, req *runtimeapi.PullImageRequest) (*runtimeapi.PullImageResponse, error) {
	spec := req.GetImage()
	if h := spec.GetRuntimeHandler(); s.cfg.KnownHandler != nil && !s.cfg.KnownHandler(h) {
		return nil, fmt.Errorf("pull image %q: unknown runtime handler %q: %w", spec.GetImage(), h, errdefs.ErrInvalidArgument)
	}
	ref, err := ParseRef(spec.GetImage())
	if err != nil {
		return nil, fmt.Errorf("pull image: %w", err)
	}
	ref.Platform = s.others[spec.GetRuntimeHandler()]
	creds, err := registry.FromCRI(req.GetAuth())
	if err != nil {
		return nil, fmt.Errorf("pull image %s: %w", ref, err)
	}
	start := time.Now()
	work, end := observe.Begin(ctx, observe.Work{Kind: observe.Verb, Name: "image.pull"})
	img, err := s.pull(work, ref, creds)
	end(err)
	if err != nil {
		return nil, pullError(ref, err)
	}
	s.cfg.Logger.Info("pulled image", "ref", ref.String(), "id", img.ID, "bytes", img.SizeBytes, "took", time.Since(start))
	return &runtimeapi.PullImageResponse{ImageRef: img.ID}, nil
}

// pull fetches an image for all to see.
func (s *Service) pull(ctx context.Context, ref Ref, creds registry.Credentials) (img store.Image, err error) {
	run := s.pulls.begin(ref.String(), tracer(ctx))
	defer func() { s.pulls.end(run, err) }()
	return s.fetch(ctx, ref, creds, run)
}

func (s *Service) fetch(ctx context.Context, ref Ref, creds registry.Credentials, run *run) (store.Image, error) {
	sess, err := s.registry.Open(ctx, registry.Target{Domain: ref.Domain, Path: ref.Path, Creds: creds, Trace: run.trace})
	if err != nil {
		return store.Image{}, err
	}
	defer sess.Close()
	if img, ok, err := s.unchanged(ctx, sess, ref); err != nil || ok {
		return img, err
	}
	work, end := observe.Begin(ctx, observe.Work{Kind: observe.Step, Verb: "image.pull", Name: "resolve"})
	t, err := s.resolve(work, sess, ref)
	end(err)
	if err != nil {
		return store.Image{}, err
	}
	release := s.lease(nil, t.blobs())
	defer release()
	raw, err := s.configBlob(ctx, sess, t.manifest.Config)
	if err != nil {
		return store.Image{}, fmt.Errorf("image configuration: %w", err)
	}
	parsed, err := manifest.ParseConfig(raw, t.manifest)
	if err == nil {
		err = fits(ref.Platform, parsed)
	}
	if err != nil {
		return store.Image{}, err
	}
	if err := s.blobs.Put(t.digest, t.raw); err != nil {
		return store.Image{}, err
	}
	img := t.record(raw, parsed)
	if err := s.verify(ctx, sess, ref, t, &img); err != nil {
		return store.Image{}, err
	}
	releaseLayers := s.lease(parsed.ChainIDs(), nil)
	defer releaseLayers()
	source := func(d ocispec.Descriptor) content.Source { return sess.Blob(d) }
	for {
		flights, joined := s.acquire(t.manifest.Layers, parsed.Layers, source)
		run.show(flights)
		work, end := observe.Begin(ctx, observe.Work{Kind: observe.Step, Verb: "image.pull", Name: "layers"})
		got, err := s.land(work, flights, img, ref, t.top)
		end(err)
		s.release(flights)
		if err != nil && joined && ctx.Err() == nil {
			continue // it was another pull that failed; now with our own session
		}
		return got, err
	}
}

// land waits for the layers and commits the image. Layers that arrived are
// committed even when others failed: the next pull finds them.
func (s *Service) land(ctx context.Context, flights []*flight, img store.Image, ref Ref, top digest.Digest) (store.Image, error) {
	var failed error
	for _, f := range flights {
		if err := f.wait(ctx); err != nil && failed == nil {
			failed = err
		}
	}
	if failed != nil {
		if err := s.commit(context.WithoutCancel(ctx), flights, nil); err != nil {
			s.cfg.Logger.Warn("layers of a failed pull were not kept", "ref", ref.String(), "error", err)
		}
		return store.Image{}, failed
	}
	err := s.commit(context.WithoutCancel(ctx), flights, func() store.Change { return s.name(&img, top, ref) })
	return img, err
}

// unchanged answers a pull of something the node has with one HEAD request:
// the registry still decides who may pull what. Registries count only GETs. Some
// answer no HEAD; what they say to a GET counts.
func (s *Service) unchanged(ctx context.Context, sess *registry.Session, ref Ref) (store.Image, bool, error) {
	if _, ok := s.db.ImageByRef(ref.key(ref.String())); !ok {
		return store.Image{}, false, nil
	}
	d, err := sess.Head(ctx, ref.Object())
	if err != nil || d == "" {
		return store.Image{}, false, ctx.Err()
	}
	img, ok := s.db.ImageByRef(ref.key(ref.Name() + "@" + d.String()))
	if !ok || !s.complete(img) || !s.blobs.Has(digest.Digest(img.Manifest)) || s.permitted(img) != nil {
		return store.Image{}, false, nil
	}
	err = s.commit(ctx, nil, func() store.Change {
		if _, err := s.db.Image(img.ID); err != nil {
			ok = false // removed meanwhile
			return store.Change{}
		}
		return s.name(&img, d, ref)
	})
	return img, ok && err == nil, err
}

// target is what a reference stands for.
type target struct {
	top      digest.Digest // of what the reference names: index or manifest
	digest   digest.Digest // of the manifest
	raw      []byte
	manifest ocispec.Manifest
}

func (t target) blobs() []digest.Digest {
	all := []digest.Digest{t.digest, t.manifest.Config.Digest}
	for _, l := range t.manifest.Layers {
		all = append(all, l.Digest)
	}
	return all
}

// record is the image's record without names.
func (t target) record(config []byte, parsed manifest.Image) store.Image {
	img := store.Image{
		ID: t.manifest.Config.Digest.String(), Manifest: t.digest.String(), Config: config, PulledAt: time.Now(),
		SizeBytes: uint64(len(t.raw)) + uint64(len(config)), Artifact: parsed.Artifact,
	}
	if img.Artifact != "" {
		img.ID = img.Manifest // many artifacts share the one empty configuration
	}
	for i, l := range t.manifest.Layers {
		img.SizeBytes += uint64(l.Size)
		img.Layers = append(img.Layers, parsed.Layers[i].ChainID.String())
	}
	return img
}

// matcher picks manifests for the platform; "" is the node's.
func (s *Service) matcher(platform string) platforms.MatchComparer {
	if platform == "" {
		return s.platform
	}
	return platforms.Only(platforms.MustParse(platform)) // New has parsed it
}

// fits refuses an image of one manifest that is for another platform than a
// handler's. For the node's own it is up to whoever named the image.
func fits(platform string, img manifest.Image) error {
	if platform == "" || img.Artifact != "" || platforms.Only(platforms.MustParse(platform)).Match(platforms.Normalize(img.Config.Platform)) {
		return nil
	}
	return fmt.Errorf("image is for %s, the runtime handler for %s: %w", platforms.Format(img.Config.Platform), platform, errdefs.ErrNotFound)
}

// resolve reads the manifest for the reference's platform, through indexes.
func (s *Service) resolve(ctx context.Context, sess *registry.Session, ref Ref) (target, error) {
	object := ref.Object()
	var t target
	for depth := range 4 {
		m, err := sess.Manifest(ctx, object, s.cfg.ManifestBytes)
		if err != nil {
			return target{}, err
		}
		d := m.Digest
		if depth == 0 {
			// A sha512 reference keeps the name the user gave it.
			if t.top = d; ref.Digest != "" {
				t.top = ref.Digest
			}
		}
		parsed, err := manifest.Parse(m.Raw, m.MediaType)
		if err != nil {
			return target{}, err
		}
		if parsed.Manifest != nil {
			t.digest, t.raw, t.manifest = d, m.Raw, *parsed.Manifest
			return t, nil
		}
		next, err := manifest.Select(*parsed.Index, s.matcher(ref.Platform))
		if err != nil {
			return target{}, err
		}
		object = next.Digest.String()
	}
	return target{}, fmt.Errorf("indexes are nested more than 4 deep: %w", errdefs.ErrInvalidArgument)
}

// configBlob fetches a small blob whole and keeps it.
func (s *Service) configBlob(ctx context.Context, sess *registry.Session, desc ocispec.Descriptor) ([]byte, error) {
	if desc.Size > s.cfg.ConfigBytes {
		return nil, fmt.Errorf("%d bytes are more than the limit of %d: %w", desc.Size, s.cfg.ConfigBytes, errdefs.ErrResourceExhausted)
	}
	for {
		dl, joined := s.blobs.Fetch(desc, sess.Blob(desc))
		err := dl.Wait(ctx)
		if err == nil {
			err = dl.Keep()
		}
		again := err != nil && ctx.Err() == nil && (joined || dl.Again())
		dl.Release()
		if again {
			continue
		}
		if err != nil {
			return nil, err
		}
		return s.blobs.Read(desc.Digest, s.cfg.ConfigBytes)
	}
}

// name adds the references to the image's names and keeps what its record had.
// The store takes a tag that moved away from its old image. commitMu is held.
func (s *Service) name(img *store.Image, top digest.Digest, refs ...Ref) store.Change {
	if old, err := s.db.Image(img.ID); err == nil {
		img.RepoTags, img.RepoDigests, img.Elsewhere = old.RepoTags, old.RepoDigests, old.Elsewhere
		img.Verified = remembered(img.Verified, old.Verified)
	}
	for _, ref := range refs {
		tags, digests := &img.RepoTags, &img.RepoDigests
		if ref.Platform != "" {
			tags, digests = &img.Elsewhere, &img.Elsewhere
		}
		*digests = with(*digests, ref.key(ref.Name()+"@"+top.String()))
		if ref.Tag != "" {
			*tags = with(*tags, ref.key(ref.String()))
		}
	}
	return store.Change{PutImages: []store.Image{*img}}
}

// with returns the sorted list with v in it; the list itself is not changed.
func with(list []string, v string) []string {
	if slices.Contains(list, v) {
		return list
	}
	list = append(slices.Clone(list), v)
	slices.Sort(list)
	return list
}

func diskError(err error) error {
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		return fmt.Errorf("%w (free space or inodes on the state directory's file system): %w", err, errdefs.ErrResourceExhausted)
	}
	return err
}

package imageservice

import (
	"context"
	"encoding/json"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	rt "github.com/berth-dev/berth/imageservice/registrytest"
	"github.com/berth-dev/berth/store"
)

// A whole ID that no image has is an image that is not there, not a bad
// reference: RemoveImage of it is no error, ImageStatus of it is empty.
func TestUnknownWholeIDIsNotFound(t *testing.T) {
	db, err := store.Open(store.Config{Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = db.Close() }()
	s := &Service{db: db}
	for _, id := range []string{strings.Repeat("0", 64), "sha256:" + strings.Repeat("0", 64)} {
		spec := &runtimeapi.ImageSpec{Image: id}
		if _, err := s.Resolve(context.Background(), spec); !errdefs.IsNotFound(err) {
			t.Errorf("Resolve(%s): %v, want not found", id, err)
		}
		r, err := s.ImageStatus(context.Background(), &runtimeapi.ImageStatusRequest{Image: spec})
		if err != nil || r.GetImage() != nil {
			t.Errorf("ImageStatus(%s) = %v, %v, want an empty answer", id, r, err)
		}
	}
}

// The answer for one image is the same under every name it has.
func TestImageStatusDoesNotDependOnTheName(t *testing.T) {
	db, err := store.Open(store.Config{Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = db.Close() }()
	img := store.Image{ID: "sha256:" + strings.Repeat("a", 64), Config: []byte("{}"), RepoTags: []string{"docker.io/library/a:1", "docker.io/library/a:2"}}
	if err := db.Commit(context.Background(), store.Change{PutImages: []store.Image{img}}); err != nil {
		t.Fatal(err)
	}
	s := &Service{db: db}
	var first string
	for _, name := range []string{"a:1", "docker.io/library/a:2", img.ID, img.ID[7:], img.ID[7:20]} {
		r, err := s.ImageStatus(context.Background(), &runtimeapi.ImageStatusRequest{Image: &runtimeapi.ImageSpec{Image: name}})
		if err != nil || r.GetImage().GetId() != img.ID {
			t.Fatalf("ImageStatus(%s) = %v, %v", name, r, err)
		}
		if got := r.GetImage().String(); first == "" {
			first = got
		} else if got != first {
			t.Errorf("ImageStatus(%s) = %s, want %s", name, got, first)
		}
	}
}

// TestIntegrationPlatformsByHandler: one name stands for an image of its own on
// the platform of a runtime handler, from the list of manifests to the removal.
func TestIntegrationPlatformsByHandler(t *testing.T) {
	needRoot(t)
	reg := rt.New(t, false)
	native := small(t, reg, "app", "native", "amd64")
	foreign := smallFor(t, reg, "app", "foreign", "arm64")
	both := func(tag string, list ...rt.Image) {
		index := ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex}
		for i, img := range list {
			d := img.Manifest
			d.Platform = &ocispec.Platform{OS: "linux", Architecture: []string{"amd64", "arm64"}[i]}
			index.Manifests = append(index.Manifests, d)
		}
		reg.PushManifest(t, "app", tag, index.MediaType, index)
	}
	both("v1", native, foreign)
	n := newNode(t, func(c *Config) {
		c.Platforms = map[string]string{"": "", "runc": "linux/amd64", "qemu": "linux/arm64"}
	})
	spec := func(name, handler string) *runtimeapi.ImageSpec {
		return &runtimeapi.ImageSpec{Image: name, RuntimeHandler: handler}
	}
	ref, ctx := reg.Host()+"/app:v1", context.Background()
	pull := func(name, handler string) (string, error) {
		r, err := n.PullImage(ctx, &runtimeapi.PullImageRequest{Image: spec(name, handler)})
		return r.GetImageRef(), err
	}
	status := func(name, handler string) string {
		t.Helper()
		r, err := n.ImageStatus(ctx, &runtimeapi.ImageStatusRequest{Image: spec(name, handler)})
		if err != nil {
			t.Fatal(err)
		}
		return r.GetImage().GetId()
	}
	n.mustPull(t, ref)
	if got := status(ref, "qemu"); got != "" {
		t.Errorf("the node's image is there for the handler: %s", got)
	}
	for range 2 { // the second time it is here
		if got, err := pull(ref, "qemu"); err != nil || got != foreign.ID.String() {
			t.Errorf("pulled for the handler: %s, %v", got, err)
		}
		if got, err := pull(ref, "runc"); err != nil || got != native.ID.String() {
			t.Errorf("pulled for the node's platform: %s, %v", got, err)
		}
	}
	digest := reg.Host() + "/app@" + foreign.Manifest.Digest.String()
	if got, err := pull(digest, "qemu"); err != nil || got != foreign.ID.String() {
		t.Errorf("pulled by its digest: %s, %v", got, err)
	}
	for handler, want := range map[string]string{"": native.ID.String(), "runc": native.ID.String(), "qemu": foreign.ID.String()} {
		img, err := n.Resolve(ctx, spec(ref, handler))
		if got := status(ref, handler); got != want || err != nil || img.ID != want {
			t.Errorf("%s for %q is %s, resolved %s, %v; want %s", ref, handler, got, img.ID, err, want)
		}
		r, err := n.ListImages(ctx, &runtimeapi.ListImagesRequest{Filter: &runtimeapi.ImageFilter{Image: spec(ref, handler)}})
		if err != nil || len(r.GetImages()) != 1 || r.GetImages()[0].GetId() != want || !slices.Contains(r.GetImages()[0].GetRepoTags(), ref) {
			t.Errorf("listed for %q: %v, %v", handler, r, err)
		}
	}
	// An ID is an ID, and a name of one manifest must fit.
	if got := status(foreign.ID.String(), ""); got != foreign.ID.String() {
		t.Errorf("by ID: %s", got)
	}
	if _, err := pull(reg.Host()+"/app:native", "qemu"); !errdefs.IsNotFound(err) {
		t.Errorf("an image for another platform than the handler's: %v", err)
	}
	// The tag moves on one platform only.
	next := smallFor(t, reg, "app", "next", "arm64")
	both("v1", native, next)
	if got, err := pull(ref, "qemu"); err != nil || got != next.ID.String() {
		t.Errorf("the tag moved: %s, %v", got, err)
	}
	if a, b := status(ref, ""), status(ref, "qemu"); a != native.ID.String() || b != next.ID.String() {
		t.Errorf("after the tag moved: %s and %s", a, b)
	}
	// Damage is repaired with the image's own platform.
	rec, _ := n.db.Image(next.ID.String())
	if err := n.quarantine(ctx, rec.Layers[0], "test"); err != nil {
		t.Fatal(err)
	}
	if err := n.repair(ctx, rec); err != nil || status(ref, "qemu") != next.ID.String() {
		t.Errorf("repair: %v", err)
	}
	if _, err := n.RemoveImage(ctx, &runtimeapi.RemoveImageRequest{Image: spec(ref, "qemu")}); err != nil {
		t.Fatal(err)
	}
	if a, b := status(ref, ""), status(ref, "qemu"); a != native.ID.String() || b != "" {
		t.Errorf("after the removal: %s and %s", a, b)
	}
}

// smallFor is small for an architecture.
func smallFor(t *testing.T, reg *rt.Server, repo, tag, arch string) rt.Image {
	t.Helper()
	l := rt.Pack(t, rt.Tar(t, file("f", tag)), "gzip")
	c := ocispec.Image{Platform: ocispec.Platform{OS: "linux", Architecture: arch}}
	c.RootFS.Type, c.RootFS.DiffIDs = "layers", append(c.RootFS.DiffIDs, l.DiffID)
	raw, err := json.Marshal(c)
	if err != nil {
		t.Fatal(err)
	}
	m := ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest,
		Config: reg.PushBlob(t, repo, ocispec.MediaTypeImageConfig, raw),
		Layers: []ocispec.Descriptor{reg.PushBlob(t, repo, l.MediaType, l.Packed)},
	}
	return rt.Image{ID: m.Config.Digest, Manifest: reg.PushManifest(t, repo, tag, m.MediaType, m), Layers: m.Layers}
}

package imageservice

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	rt "github.com/berth-dev/berth/imageservice/registrytest"
	"github.com/berth-dev/berth/store"
)

// pushArtifact pushes blobs as an artifact: the title of each, then its bytes.
func pushArtifact(t *testing.T, reg *rt.Server, repo, tag string, blobs ...[2]string) ocispec.Descriptor {
	t.Helper()
	m := ocispec.Manifest{MediaType: ocispec.MediaTypeImageManifest, ArtifactType: "application/x.chart"}
	m.SchemaVersion = 2
	m.Config = reg.PushBlob(t, repo, "application/vnd.oci.empty.v1+json", []byte("{}"))
	for _, b := range blobs {
		d := reg.PushBlob(t, repo, "text/plain", []byte(b[1]))
		d.Annotations = map[string]string{ocispec.AnnotationTitle: b[0]}
		m.Layers = append(m.Layers, d)
	}
	return reg.PushManifest(t, repo, tag, m.MediaType, m)
}

func (n *node) lend(t *testing.T, cid, ref string) string {
	t.Helper()
	rec, err := n.Resolve(context.Background(), &runtimeapi.ImageSpec{Image: ref})
	if err != nil {
		t.Fatal(err)
	}
	target := t.TempDir()
	t.Cleanup(func() { _ = unix.Unmount(target, unix.MNT_DETACH) })
	for range 2 { // idempotent
		if err := n.Lend(context.Background(), cid, rec, target, store.RootView{}); err != nil {
			t.Fatal(err)
		}
	}
	return target
}

func TestIntegrationArtifact(t *testing.T) {
	needRoot(t)
	reg := rt.New(t, false)
	one := pushArtifact(t, reg, "app", "one", [2]string{"notes.txt", "hello"}, [2]string{"sub/model.bin", noise(8192)})
	two := pushArtifact(t, reg, "app", "two", [2]string{"other.txt", "hello"})
	n := newNode(t, nil)
	ids := []string{n.mustPull(t, reg.Host()+"/app:one"), n.mustPull(t, reg.Host()+"/app:two")}
	if ids[0] != one.Digest.String() || ids[1] != two.Digest.String() {
		t.Errorf("IDs %v: artifacts with one configuration must not be one image", ids)
	}
	n.clean(t, 3)
	target := n.lend(t, strings.Repeat("ab", 32), ids[0])
	for name, size := range map[string]int64{"notes.txt": 5, "sub/model.bin": 8192} {
		st, err := os.Stat(filepath.Join(target, name))
		if err != nil || st.Size() != size || st.Mode() != 0o644 {
			t.Errorf("%s: %v, %v", name, st, err)
		}
	}
	if err := os.WriteFile(filepath.Join(target, "x"), nil, 0o600); !errors.Is(err, unix.EROFS) {
		t.Errorf("write: %v, want a read-only file system", err)
	}
	n.remove(t, ids[1])
	n.clean(t, 2)
}

func TestIntegrationLentImageOutlivesRemoval(t *testing.T) {
	needRoot(t)
	reg := rt.New(t, false)
	img := threeLayers(t, reg, "app", "v1")
	n := newNode(t, nil)
	ref := reg.Host() + "/app:v1"
	n.mustPull(t, ref)
	cid := strings.Repeat("cd", 32)
	rec, _ := n.db.Image(img.ID.String())
	target := n.lend(t, cid, ref)
	got, err := os.ReadFile(filepath.Join(target, "etc/b"))
	if err != nil || string(got) != "zstd" {
		t.Errorf("%q, %v", got, err)
	}
	// A daemon that starts again knows the volume by the container's record.
	c := store.Container{ID: cid, SandboxID: strings.Repeat("ef", 32), Config: &runtimeapi.ContainerConfig{}}
	c.Facts.Volumes = []store.ImageUse{{ID: rec.ID, TopLayer: rec.Layers[2]}}
	if err := n.db.Commit(context.Background(), store.Change{PutContainers: []store.Container{c}}); err != nil {
		t.Fatal(err)
	}
	again, err := New(n.cfg, n.db)
	if err != nil {
		t.Fatal(err)
	}
	n.Service = again
	n.remove(t, ref)
	if err := n.Recover(context.Background()); err != nil {
		t.Fatal(err)
	}
	n.clean(t, 3)
	if err := errors.Join(n.Unmount(context.Background(), cid, target), n.Remove(context.Background(), cid),
		n.db.Commit(context.Background(), store.Change{DeleteContainers: []string{cid}}), n.Collect(context.Background())); err != nil {
		t.Fatal(err)
	}
	if err := n.Recover(context.Background()); err != nil {
		t.Fatal(err)
	}
	n.clean(t, 0)
	if err := n.Lend(context.Background(), cid, rec, t.TempDir(), store.RootView{}); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("lend without layers: %v", err)
	}
	if err := n.Lend(context.Background(), cid, store.Image{}, t.TempDir(), store.RootView{}); !errdefs.IsInvalidArgument(err) {
		t.Errorf("lend an image without files: %v", err)
	}
}

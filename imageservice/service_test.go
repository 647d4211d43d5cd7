package imageservice

import (
	"archive/tar"
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/pem"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	rt "github.com/berth-dev/berth/imageservice/registrytest"
	"github.com/berth-dev/berth/store"
)

func needRoot(t *testing.T) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root: makes device nodes, trusted xattrs and mounts")
	}
}

type node struct {
	*Service
	db    *store.DB
	dir   string
	hosts string
}

func newNode(t *testing.T, change func(*Config)) *node {
	t.Helper()
	n := &node{dir: t.TempDir(), hosts: t.TempDir()}
	var err error
	if n.db, err = store.Open(store.Config{Dir: n.dir}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { n.db.Close() })
	cfg := Config{StateDir: n.dir, Settings: Settings{HostsDirs: []string{n.hosts}}, Platform: "linux/amd64"}
	cfg.Registry.Retries = 1
	if change != nil {
		change(&cfg)
	}
	if n.Service, err = New(cfg, n.db); err != nil {
		t.Fatal(err)
	}
	if err := n.Recover(context.Background()); err != nil {
		t.Fatal(err)
	}
	return n
}

func (n *node) tryPull(ref string, auth *runtimeapi.AuthConfig) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	r, err := n.PullImage(ctx, &runtimeapi.PullImageRequest{Image: &runtimeapi.ImageSpec{Image: ref}, Auth: auth})
	return r.GetImageRef(), err
}

func (n *node) mustPull(t *testing.T, ref string) string {
	t.Helper()
	id, err := n.tryPull(ref, nil)
	if err != nil {
		t.Fatal(err)
	}
	return id
}

func (n *node) image(t *testing.T, ref string) *runtimeapi.Image {
	t.Helper()
	r, err := n.ImageStatus(context.Background(), &runtimeapi.ImageStatusRequest{Image: &runtimeapi.ImageSpec{Image: ref}, Verbose: true})
	if err != nil {
		t.Fatal(err)
	}
	return r.GetImage()
}

func (n *node) remove(t *testing.T, ref string) {
	t.Helper()
	if _, err := n.RemoveImage(context.Background(), &runtimeapi.RemoveImageRequest{Image: &runtimeapi.ImageSpec{Image: ref}}); err != nil {
		t.Fatal(err)
	}
}

// clean fails when files are left that no record owns.
func (n *node) clean(t *testing.T, wantLayers int) {
	t.Helper()
	staged, _ := os.ReadDir(filepath.Join(n.dir, "staging"))
	if len(staged) != 0 {
		t.Errorf("staging holds %v", staged)
	}
	layers, _ := os.ReadDir(filepath.Join(n.dir, "layers"))
	if len(layers)-1 != wantLayers || len(n.db.Layers()) != wantLayers {
		t.Errorf("%d layer directories, %d records, want %d", len(layers)-1, len(n.db.Layers()), wantLayers)
	}
}

func file(name, body string) rt.File { return rt.File{Header: tar.Header{Name: name}, Body: body} }

func dir(name string, mode int64) rt.File {
	return rt.File{Header: tar.Header{Name: name, Typeflag: tar.TypeDir, Mode: mode}}
}

func noise(n int) string {
	b := make([]byte, n/2)
	_, _ = rand.Read(b)
	return hex.EncodeToString(b)
}

// threeLayers pushes an image with one layer of each packing.
func threeLayers(t *testing.T, reg *rt.Server, repo, tag string) rt.Image {
	return reg.Push(t, repo, tag, ocispec.ImageConfig{User: "1000:50"},
		rt.Pack(t, rt.Tar(t, dir("./", 0o750), dir("etc/", 0o711), file("etc/a", "lower"), file("etc/gone", "x"), dir("old/", 0o755), file("old/x", "x")), "gzip"),
		rt.Pack(t, rt.Tar(t, file("etc/.wh.gone", ""), file("etc/b", "zstd"), dir("old/", 0o755), file("old/.wh..wh..opq", ""), file("old/y", "y")), "zstd"),
		rt.Pack(t, rt.Tar(t, rt.File{Header: tar.Header{Name: "etc/hard", Linkname: "etc/a", Typeflag: tar.TypeLink}}, file("top", noise(4096))), ""))
}

func TestIntegrationPullMountRemove(t *testing.T) {
	needRoot(t)
	reg := rt.New(t, false)
	img := threeLayers(t, reg, "lib/app", "v1")
	n := newNode(t, nil)
	ref := reg.Host() + "/lib/app:v1"
	id := n.mustPull(t, ref)
	if id != img.ID.String() {
		t.Errorf("image_ref %s, want the configuration's digest %s", id, img.ID)
	}
	for _, name := range []string{ref, id, id[7:20], id[:20], reg.Host() + "/lib/app@" + img.Manifest.Digest.String(),
		reg.Host() + "/lib/app:other@" + img.Manifest.Digest.String()} {
		got := n.image(t, name)
		if got.GetId() != id || got.GetUid().GetValue() != 1000 || got.GetSize() == 0 {
			t.Errorf("status of %q: %v", name, got)
		}
	}
	n.clean(t, 3)

	target := t.TempDir()
	rec, err := n.Resolve(context.Background(), &runtimeapi.ImageSpec{Image: ref})
	if err != nil {
		t.Fatal(err)
	}
	cid := strings.Repeat("ab", 32)
	t.Cleanup(func() { _ = unix.Unmount(target, unix.MNT_DETACH) })
	for range 2 { // idempotent
		if err := n.Mount(context.Background(), cid, rec, target, store.RootView{}); err != nil {
			t.Fatal(err)
		}
	}
	checkTree(t, target)
	if err := os.WriteFile(filepath.Join(target, "written"), []byte(strings.Repeat("w", 100_000)), 0o600); err != nil {
		t.Fatal(err)
	}
	info, err := n.ImageFsInfo(context.Background(), nil)
	if err != nil || info.ContainerFilesystems[0].UsedBytes.Value < 100_000 || info.ImageFilesystems[0].InodesUsed.Value < 12 {
		t.Errorf("fs info %v, %v", info, err)
	}

	n.remove(t, ref)
	if n.image(t, id) != nil {
		t.Error("removed image is still there")
	}
	checkTree(t, target) // the container keeps its layers
	upper, lower, err := n.WritableLayer(cid, rec.Layers[len(rec.Layers)-1])
	if _, lost := os.Stat(filepath.Join(upper, "written")); err != nil || lost != nil || !slices.Equal(lower, n.stack(rec, store.RootView{}).Lower) {
		t.Errorf("writable layer %s over %v: %v, %v", upper, lower, lost, err)
	}
	n.clean(t, 3)
	for range 2 {
		if err := n.Unmount(context.Background(), cid, target); err != nil {
			t.Fatal(err)
		}
		if err := n.Remove(context.Background(), cid); err != nil {
			t.Fatal(err)
		}
	}
	n.clean(t, 0)
	n.remove(t, ref) // no error
	blobs, _ := n.blobs.Usage()
	if blobs != 0 {
		t.Errorf("%d bytes of blobs left", blobs)
	}
	if _, err := os.Stat(filepath.Join(n.dir, "containers", cid)); !os.IsNotExist(err) {
		t.Errorf("writable layer is left: %v", err)
	}
}

// checkTree checks the merged view of threeLayers.
func checkTree(t *testing.T, root string) {
	t.Helper()
	for name, want := range map[string]string{"etc/a": "lower", "etc/b": "zstd", "etc/hard": "lower", "old/y": "y"} {
		got, err := os.ReadFile(filepath.Join(root, name))
		if err != nil || string(got) != want {
			t.Errorf("%s: %q, %v", name, got, err)
		}
	}
	for _, name := range []string{"etc/gone", "old/x"} {
		if _, err := os.Lstat(filepath.Join(root, name)); !os.IsNotExist(err) {
			t.Errorf("%s is there: %v", name, err)
		}
	}
	for name, want := range map[string]os.FileMode{".": 0o750, "etc": 0o711} {
		fi, err := os.Stat(filepath.Join(root, name))
		if err != nil || fi.Mode().Perm() != want {
			t.Errorf("%s: mode %v, %v; want %o", name, fi.Mode(), err, want)
		}
	}
	var a, h unix.Stat_t
	_ = unix.Stat(filepath.Join(root, "etc/a"), &a)
	_ = unix.Stat(filepath.Join(root, "etc/hard"), &h)
	if a.Ino != h.Ino {
		t.Error("hard link to a lower layer's file has an inode of its own")
	}
}

func TestIntegrationConcurrentPullsShareDownloads(t *testing.T) {
	needRoot(t)
	reg := rt.New(t, false)
	img := threeLayers(t, reg, "app", "v1")
	n := newNode(t, nil)
	var wg sync.WaitGroup
	for range 10 {
		wg.Go(func() {
			if _, err := n.tryPull(reg.Host()+"/app:v1", nil); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	for _, l := range img.Layers {
		if c := reg.Count("GET", "/blobs/"+l.Digest.String()); c != 1 {
			t.Errorf("layer %s was fetched %d times", l.Digest, c)
		}
	}
	n.clean(t, 3)
	before := reg.Count("GET", "/manifests/")
	n.mustPull(t, reg.Host()+"/app:v1")
	if reg.Count("GET", "/manifests/") != before {
		t.Error("a pull of something unchanged fetched the manifest again")
	}
	for _, code := range []int{http.StatusForbidden, http.StatusMethodNotAllowed, http.StatusNotImplemented} {
		reg.Inject(func(w http.ResponseWriter, r *http.Request, _ http.Handler) bool {
			if r.Method == http.MethodHead {
				w.WriteHeader(code)
			}
			return r.Method == http.MethodHead
		})
		n.mustPull(t, reg.Host()+"/app:v1") // a registry that answers no HEAD
	}
	reg.Inject(rt.Status(http.StatusForbidden, ""))
	if _, err := n.tryPull(reg.Host()+"/app:v1", nil); err == nil {
		t.Error("the registry lets nobody pull, and a pull of what is there succeeded")
	}
}

func TestIntegrationIndexAndMovedTag(t *testing.T) {
	needRoot(t)
	reg := rt.New(t, false)
	one := threeLayers(t, reg, "app", "amd")
	other := one.Manifest
	one.Manifest.Platform = &ocispec.Platform{OS: "linux", Architecture: "amd64"}
	other.Platform = &ocispec.Platform{OS: "linux", Architecture: "s390x"}
	index := ocispec.Index{MediaType: ocispec.MediaTypeImageIndex, Manifests: []ocispec.Descriptor{other, one.Manifest}}
	index.SchemaVersion = 2
	d := reg.PushManifest(t, "app", "multi", index.MediaType, index)
	n := newNode(t, nil)
	id := n.mustPull(t, reg.Host()+"/app:multi")
	if got := n.image(t, id).GetRepoDigests(); len(got) != 1 || !strings.HasSuffix(got[0], d.Digest.String()) {
		t.Errorf("repo digests %v, want the index's %s", got, d.Digest)
	}
	index.Manifests = []ocispec.Descriptor{other}
	reg.PushManifest(t, "app", "wrong", index.MediaType, index)
	if _, err := n.tryPull(reg.Host()+"/app:wrong", nil); !errdefs.IsNotFound(err) || !strings.Contains(err.Error(), "s390x") {
		t.Errorf("wrong platform: %v", err)
	}
	reg.Push(t, "app", "multi", ocispec.ImageConfig{}, rt.Pack(t, rt.Tar(t, file("new", "new")), "gzip"))
	id2 := n.mustPull(t, reg.Host()+"/app:multi")
	if id2 == id || len(n.image(t, id).GetRepoTags()) != 0 || len(n.image(t, id2).GetRepoTags()) != 1 {
		t.Errorf("tag did not move: old %v new %v", n.image(t, id), n.image(t, id2))
	}
}

func TestIntegrationTLSAndMirrors(t *testing.T) {
	needRoot(t)
	mirror, upstream := rt.New(t, false), rt.New(t, true)
	threeLayers(t, mirror, "app", "v1")
	threeLayers(t, upstream, "app", "v2")
	n := newNode(t, nil)
	hostsDir := filepath.Join(n.hosts, "registry.test")
	if err := os.MkdirAll(hostsDir, 0o755); err != nil {
		t.Fatal(err)
	}
	cert := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: upstream.Certificate().Raw})
	_ = os.WriteFile(filepath.Join(hostsDir, "ca.pem"), cert, 0o600)
	write := func(s string) { _ = os.WriteFile(filepath.Join(hostsDir, "hosts.toml"), []byte(s), 0o600) }
	// A dead mirror, a live one, and the upstream behind TLS with its own CA.
	write(fmt.Sprintf("server = %q\nca = \"ca.pem\"\n[host.\"http://127.0.0.1:1\"]\n[host.%q]\n", upstream.URL, mirror.URL))
	var leaked atomic.Bool
	mirror.Inject(func(_ http.ResponseWriter, r *http.Request, _ http.Handler) bool {
		if r.Header.Get("Authorization") != "" {
			leaked.Store(true)
		}
		return false
	})
	for _, tag := range []string{"v1", "v2"} {
		if _, err := n.tryPull("registry.test/app:"+tag, &runtimeapi.AuthConfig{RegistryToken: "secret-token"}); err != nil {
			t.Errorf("pull %s: %v", tag, err)
		}
	}
	if leaked.Load() {
		t.Error("credentials went to a mirror")
	}
	write("server = [")
	if _, err := n.tryPull("registry.test/app:v1", nil); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("broken hosts.toml: %v", err)
	}
}

func TestIntegrationRecover(t *testing.T) {
	needRoot(t)
	reg := rt.New(t, false)
	threeLayers(t, reg, "app", "v1")
	n := newNode(t, nil)
	id := n.mustPull(t, reg.Host()+"/app:v1")
	victim := n.db.Layers()[0]
	_ = os.RemoveAll(n.layerDir(victim.ChainID))
	for _, d := range []string{"staging/layer-1/fs", "layers/" + strings.Repeat("0", 64) + "/fs"} {
		_ = os.MkdirAll(filepath.Join(n.dir, d), 0o755)
	}
	if err := n.Recover(context.Background()); err != nil {
		t.Fatal(err)
	}
	n.clean(t, 2)
	if n.image(t, id) != nil {
		t.Error("image with a missing layer is reported")
	}
	before := reg.Count("GET", "/blobs/")
	if n.mustPull(t, reg.Host()+"/app:v1") != id {
		t.Error("other image")
	}
	if got := reg.Count("GET", "/blobs/") - before; got != 1 {
		t.Errorf("%d blobs fetched to repair one layer", got)
	}
	n.clean(t, 3)
}

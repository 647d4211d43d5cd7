package imageservice

import (
	"bytes"
	"context"
	"encoding/json"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	rt "github.com/berth-dev/berth/imageservice/registrytest"
)

func TestIntegrationExportImport(t *testing.T) {
	needRoot(t)
	reg := rt.New(t, false)
	threeLayers(t, reg, "app", "v1")
	pushArtifact(t, reg, "app", "art", [2]string{"notes.txt", "hello"})
	n := newNode(t, nil)
	ref, art := reg.Host()+"/app:v1", reg.Host()+"/app:art"
	id, artID := n.mustPull(t, ref), n.mustPull(t, art)
	var out bytes.Buffer
	if err := n.Export(context.Background(), []string{ref, art}, &out); err != nil {
		t.Fatal(err)
	}
	before, _ := n.blobs.Usage()
	n.remove(t, id)
	n.remove(t, artID)
	n.clean(t, 0)

	reg.Inject(func(w http.ResponseWriter, _ *http.Request, _ http.Handler) bool {
		w.WriteHeader(http.StatusInternalServerError)
		return true
	})
	got, err := n.Import(context.Background(), bytes.NewReader(out.Bytes()), ImportOptions{})
	if err != nil || len(got) != 2 || got[0].ID != id || got[1].ID != artID {
		t.Fatalf("imported %v, %v; want %s and %s", got, err, id, artID)
	}
	n.clean(t, 4)
	if img := n.image(t, ref); img.GetId() != id || !slices.Contains(img.GetRepoTags(), ref) {
		t.Errorf("status of the imported image: %v", img)
	}
	if after, _ := n.blobs.Usage(); after <= before {
		t.Errorf("blobs take %d bytes after the import, %d before: the layers were not kept", after, before)
	}
	// A registry is not needed for the repair, nor for another export.
	rec, _ := n.db.Image(id)
	if err := os.Truncate(n.layerDir(rec.Layers[0])+"/fs/etc/a", 0); err != nil {
		t.Fatal(err)
	}
	if r := n.check(t, CheckRequest{Repair: true}); len(r.Problems) != 2 || r.Problems[1].Fixed != "fetched again" {
		t.Errorf("repair from kept blobs: %+v", r.Problems)
	}
	if r := n.check(t, CheckRequest{Deep: true}); len(r.Problems) != 0 {
		t.Errorf("after the repair: %+v", r.Problems)
	}
	var again bytes.Buffer
	if err := n.Export(context.Background(), []string{id}, &again); err != nil {
		t.Fatal(err)
	}
	if got, err := n.Import(context.Background(), &again, ImportOptions{Name: "other.test/x:1"}); err != nil || !slices.Contains(got[0].RepoTags, "other.test/x:1") || !slices.Contains(got[0].RepoTags, ref) {
		t.Errorf("import under another name: %v, %v", got, err)
	}
}

func TestIntegrationImportRefusals(t *testing.T) {
	needRoot(t)
	reg := rt.New(t, false)
	threeLayers(t, reg, "app", "v1")
	n := newNode(t, nil)
	n.mustPull(t, reg.Host()+"/app:v1")
	var out bytes.Buffer
	if err := n.Export(context.Background(), []string{reg.Host() + "/app:v1"}, &out); err != nil {
		t.Fatal(err)
	}
	n.remove(t, reg.Host()+"/app:v1")
	whole := out.Bytes()
	for _, cut := range []int{0, 100, 512, len(whole) / 2, len(whole) - 3000} {
		if got, err := n.Import(context.Background(), bytes.NewReader(whole[:cut]), ImportOptions{}); err == nil {
			t.Errorf("an archive cut after %d of %d bytes was imported: %v", cut, len(whole), got)
		}
		n.clean(t, 0)
	}
	// A flipped bit anywhere in the layers is found by their digests.
	for at := 2000; at < len(whole)-4000; at += len(whole) / 7 {
		bad := slices.Clone(whole)
		bad[at] ^= 0x10
		if got, err := n.Import(context.Background(), bytes.NewReader(bad), ImportOptions{}); err == nil {
			// Padding and times of the tar's own headers are not content.
			if r := n.check(t, CheckRequest{Deep: true}); len(r.Problems) > 0 {
				t.Errorf("flipped byte %d: %v, %+v", at, got, r.Problems)
			}
			n.remove(t, got[0].ID)
		}
		if err := n.Collect(context.Background()); err != nil {
			t.Fatal(err)
		}
	}
}

func TestIntegrationTagMountDescribe(t *testing.T) {
	needRoot(t)
	reg := rt.New(t, false)
	threeLayers(t, reg, "app", "v1")
	reg.Push(t, "other", "v1", ocispec.ImageConfig{}, rt.Pack(t, rt.Tar(t, file("x", "y")), "gzip"))
	n := newNode(t, nil)
	id, other := n.mustPull(t, reg.Host()+"/app:v1"), n.mustPull(t, reg.Host()+"/other:v1")
	ctx := context.Background()
	if name, err := n.Tag(ctx, id, "app:stable"); err != nil || name != "docker.io/library/app:stable" || n.image(t, "app:stable").GetId() != id {
		t.Errorf("tag: %q, %v", name, err)
	}
	if _, err := n.Tag(ctx, other, "app:stable"); err != nil || n.image(t, "app:stable").GetId() != other || len(n.image(t, id).GetRepoTags()) != 1 {
		t.Errorf("a tag that moves: %v", err)
	}
	for _, bad := range []string{"UPPER", "app@sha256:" + strings.Repeat("0", 64), ""} {
		if _, err := n.Tag(ctx, id, bad); !errdefs.IsInvalidArgument(err) {
			t.Errorf("tag %q: %v", bad, err)
		}
	}
	target := t.TempDir()
	t.Cleanup(func() { _ = unix.Unmount(target, unix.MNT_DETACH) })
	if err := n.MountAt(ctx, id, target); err != nil {
		t.Fatal(err)
	}
	if err := n.MountAt(ctx, id, target); !errdefs.IsAlreadyExists(err) {
		t.Errorf("mount twice: %v", err)
	}
	d, err := n.Describe([]string{id})
	if err != nil || len(d) != 1 || len(d[0].Layers) != 3 || len(d[0].Mounts) != 1 {
		t.Errorf("%+v, %v", d, err)
	}
	// The mount outlives the image and the daemon.
	n.remove(t, id)
	again, err := New(n.cfg, n.db)
	if err == nil {
		err = again.Recover(ctx)
	}
	if err != nil {
		t.Fatal(err)
	}
	n.Service = again
	if raw, err := os.ReadFile(filepath.Join(target, "etc/b")); err != nil || string(raw) != "zstd" {
		t.Errorf("mounted file: %q, %v", raw, err)
	}
	n.clean(t, 4)
	if err := n.UnmountAt(ctx, target); err != nil {
		t.Fatal(err)
	}
	if err := n.UnmountAt(ctx, target); !errdefs.IsNotFound(err) {
		t.Errorf("unmount twice: %v", err)
	}
	if c, err := n.CollectNow(ctx, true); err != nil || len(c.Layers)+len(n.db.Layers()) < 1 {
		t.Errorf("%+v, %v", c, err)
	}
	n.clean(t, 1)
	if err := n.MountAt(ctx, other, "relative"); !errdefs.IsInvalidArgument(err) {
		t.Errorf("relative target: %v", err)
	}
}

// The plan says what the sweep does, and no more.
func TestIntegrationCollectPlan(t *testing.T) {
	needRoot(t)
	reg := rt.New(t, false)
	img := threeLayers(t, reg, "app", "v1")
	n := newNode(t, nil)
	id := n.mustPull(t, reg.Host()+"/app:v1")
	if c, err := n.CollectPlan(true); err != nil || len(c.Layers)+len(c.Blobs)+len(c.Kept) != 0 {
		t.Errorf("a store without garbage: %+v, %v", c, err)
	}
	// A failed pull leaves layers that wait.
	reg.Inject(func(w http.ResponseWriter, r *http.Request, _ http.Handler) bool {
		if strings.HasSuffix(r.URL.Path, img.Layers[2].Digest.String()) {
			w.WriteHeader(http.StatusNotFound)
			return true
		}
		return false
	})
	n.remove(t, id)
	if _, err := n.tryPull(reg.Host()+"/app:v1", nil); err == nil {
		t.Fatal("pulled without a layer")
	}
	c, err := n.CollectPlan(false)
	if err != nil || len(c.Layers) != 0 || len(c.Kept) != 2 || len(n.db.Layers()) != 2 {
		t.Errorf("after a failed pull: %+v, %v", c, err)
	}
	plan, err := n.CollectPlan(true)
	if err != nil || len(plan.Layers) != 2 || plan.Bytes == 0 || len(n.db.Layers()) != 2 {
		t.Errorf("plan: %+v, %v", plan, err)
	}
	did, err := n.CollectNow(context.Background(), true)
	if err != nil || len(did.Layers) != 2 {
		t.Errorf("sweep: %+v, %v", did, err)
	}
	n.clean(t, 0)
	if r, err := n.ImageFsInfo(context.Background(), &runtimeapi.ImageFsInfoRequest{}); err != nil || r.ImageFilesystems[0].InodesUsed.Value > 1 {
		t.Errorf("an empty store uses %v, %v", r, err)
	}
}

// TestIntegrationImportPulled: an archive of what another runtime pulled. Layers may
// be plain or missing, and nothing packed stays.
func TestIntegrationImportPulled(t *testing.T) {
	needRoot(t)
	reg := rt.New(t, false)
	plain := [][]byte{rt.Tar(t, file("a", "one")), rt.Tar(t, file("b", "two"))}
	img := reg.Push(t, "app", "v1", ocispec.ImageConfig{}, rt.Pack(t, plain[0], "gzip"), rt.Pack(t, plain[1], "gzip"))
	n := newNode(t, nil)
	ref := reg.Host() + "/app:v1"
	id := n.mustPull(t, ref)
	rec, _ := n.db.Image(id)
	raw, err := n.blobs.Read(img.Manifest.Digest, 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	index, _ := json.Marshal(ocispec.Index{Manifests: []ocispec.Descriptor{{
		Digest: img.Manifest.Digest, Size: img.Manifest.Size, Annotations: map[string]string{"io.containerd.image.name": ref},
	}}})
	blob := func(body []byte, d digest.Digest) rt.File { return file("blobs/sha256/"+d.Encoded(), string(body)) }
	bring := func(pulled bool, layers ...rt.File) error {
		all := append([]rt.File{file("index.json", string(index)), blob(raw, img.Manifest.Digest), blob(rec.Config, img.ID)}, layers...)
		got, err := n.Import(context.Background(), bytes.NewReader(rt.Tar(t, all...)), ImportOptions{Pulled: pulled})
		if err == nil && (len(got) != 1 || got[0].ID != id || !slices.Equal(got[0].RepoDigests, rec.RepoDigests)) {
			t.Errorf("imported %+v, want what was pulled: %+v", got, rec)
		}
		return err
	}
	zero, one := blob(plain[0], digest.FromBytes(plain[0])), blob(plain[1], digest.FromBytes(plain[1]))
	n.remove(t, id)
	n.clean(t, 0)
	if err := bring(false, zero, one); !errdefs.IsNotFound(err) {
		t.Errorf("plain layers of an image that no registry has: %v", err)
	}
	if err := bring(true, zero, blob(rt.Tar(t, file("b", "2")), digest.FromBytes(plain[1]))); !errdefs.IsDataLoss(err) {
		t.Errorf("another plain layer: %v", err)
	}
	if err := n.Collect(context.Background()); err != nil {
		t.Fatal(err)
	}
	if err := bring(true, zero, one); err != nil {
		t.Fatal(err)
	}
	if err := bring(true); err != nil {
		t.Errorf("layers that are here: %v", err)
	}
	blobs, err := n.BlobUses()
	if err != nil || len(blobs) != 2 || n.image(t, ref).GetId() != id {
		t.Errorf("blobs %+v, %v, want manifest and configuration alone", blobs, err)
	}
	if r := n.check(t, CheckRequest{Deep: true}); len(r.Problems) != 0 {
		t.Errorf("after the import: %+v", r.Problems)
	}
	n.remove(t, id)
	n.clean(t, 0)
	if err := bring(true, zero); !errdefs.IsNotFound(err) {
		t.Errorf("a layer is nowhere: %v", err)
	}
}

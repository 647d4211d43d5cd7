package imageservice

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	rt "github.com/berth-dev/berth/imageservice/registrytest"
	"github.com/berth-dev/berth/store"
)

func (n *node) check(t *testing.T, req CheckRequest) CheckReport {
	t.Helper()
	r, err := n.Check(context.Background(), req, func(string, string) {})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// overwrite keeps the size of a file.
func overwrite(t *testing.T, path string) {
	t.Helper()
	raw, err := os.ReadFile(path)
	if err == nil {
		raw[len(raw)/2] ^= 1
		err = os.WriteFile(path, raw, 0)
	}
	if err != nil {
		t.Fatal(err)
	}
}

func TestIntegrationCheckAndHeal(t *testing.T) {
	needRoot(t)
	reg := rt.New(t, false)
	threeLayers(t, reg, "app", "v1")
	n := newNode(t, nil)
	id := n.mustPull(t, reg.Host()+"/app:v1")
	img, _ := n.db.Image(id)
	if r := n.check(t, CheckRequest{Deep: true}); len(r.Problems) != 0 || r.Layers != 3 || r.Images != 1 || r.Blobs != 2 || r.Bytes < 4096 {
		t.Fatalf("a whole store: %+v", r)
	}
	bottom, top := n.layerDir(img.Layers[0]), n.layerDir(img.Layers[2])
	for _, d := range []struct {
		name, dir string
		deep      bool
		do        func(dir string) error
	}{
		{"emptied file", bottom, false, func(d string) error { return os.Truncate(d+"/fs/etc/a", 0) }},
		{"lost file", bottom, false, func(d string) error { return os.Remove(d + "/fs/old/x") }},
		{"changed mode", bottom, false, func(d string) error { return os.Chmod(d+"/fs/etc/a", 0o600) }},
		{"changed owner", top, false, func(d string) error { return os.Chown(d+"/fs/top", 1, 1) }},
		{"added file", top, false, func(d string) error { return os.WriteFile(d+"/fs/x", nil, 0o600) }},
		{"lost files", top, false, func(d string) error { return os.RemoveAll(d + "/fs") }},
		{"changed content", top, true, func(d string) error { overwrite(t, d+"/fs/top"); return nil }},
		{"copied-up content", top, true, func(d string) error { overwrite(t, d+"/fs/etc/a"); return nil }},
		{"cut inventory", top, false, func(d string) error { return os.Truncate(d+"/files.gz", 40) }},
		{"lost inventory", top, false, func(d string) error { return os.Remove(d + "/files.gz") }},
		{"torn record", top, false, func(d string) error { return os.Truncate(d+"/layer.json", 9) }},
		{"lost opaque mark", n.layerDir(img.Layers[1]), false, func(d string) error { return unix.Removexattr(d+"/fs/old", "trusted.overlay.opaque") }},
	} {
		if err := d.do(d.dir); err != nil {
			t.Fatalf("%s: %v", d.name, err)
		}
		if shallow := n.check(t, CheckRequest{}); (len(shallow.Problems) == 0) != d.deep {
			t.Errorf("%s: a quick look finds %v", d.name, shallow.Problems)
		}
		before := reg.Count("GET", "/blobs/")
		r := n.check(t, CheckRequest{Images: []string{id}, Deep: true, Repair: true})
		if len(r.Problems) != 2 || r.Problems[0].Kind != "layer" || r.Problems[1].Fixed != "fetched again" {
			t.Errorf("%s: %+v", d.name, r.Problems)
		}
		if got := reg.Count("GET", "/blobs/") - before; got != 1 {
			t.Errorf("%s: %d blobs fetched to repair one layer", d.name, got)
		}
		if r := n.check(t, CheckRequest{Deep: true}); len(r.Problems) != 0 {
			t.Errorf("%s: after the repair %+v", d.name, r.Problems)
		}
	}
	n.clean(t, 3)
	if err := n.Collect(context.Background()); err != nil {
		t.Fatal(err)
	}
	if left, _ := os.ReadDir(n.quarantineDir()); len(left) != 0 {
		t.Errorf("quarantine that nobody uses holds %v", left)
	}
}

func TestIntegrationCheckBlobsAndOrphans(t *testing.T) {
	needRoot(t)
	reg := rt.New(t, false)
	threeLayers(t, reg, "app", "v1")
	n := newNode(t, nil)
	id := n.mustPull(t, reg.Host()+"/app:v1")
	img, _ := n.db.Image(id)
	blob := func(d string) string { return filepath.Join(n.dir, "content/blobs/sha256", digest.Digest(d).Encoded()) }
	overwrite(t, blob(img.Manifest))
	overwrite(t, blob(id))
	stray := digest.FromString("stray")
	for _, p := range []string{"layers/" + strings.Repeat("0", 64) + "/fs", "staging/x", "content/ingest/.put-1", "content/blobs/sha256/short"} {
		if err := os.MkdirAll(filepath.Join(n.dir, p), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := n.blobs.Put(stray, []byte("stray")); err != nil {
		t.Fatal(err)
	}
	if r := n.check(t, CheckRequest{}); len(r.Problems) != 7 {
		t.Errorf("found %+v", r.Problems)
	}
	_ = n.check(t, CheckRequest{Repair: true})
	if r := n.check(t, CheckRequest{}); len(r.Problems) != 0 {
		t.Errorf("after the repair %+v", r.Problems)
	}
	if got := reg.Count("GET", "/blobs/"+id); got != 1 {
		t.Errorf("the configuration was fetched %d times; its bytes are in the record", got)
	}
	n.clean(t, 3)
}

// runOn makes a container of the image, mounted at the returned directory.
func (n *node) runOn(t *testing.T, img store.Image) (id, target string) {
	t.Helper()
	id, target = strings.Repeat("ab", 32), t.TempDir()
	t.Cleanup(func() { _ = unix.Unmount(target, unix.MNT_DETACH) })
	c := store.Container{ID: id, SandboxID: strings.Repeat("ef", 32), Config: &runtimeapi.ContainerConfig{}}
	c.Facts.Image = store.ImageUse{ID: img.ID, TopLayer: img.Layers[len(img.Layers)-1]}
	if err := errors.Join(n.Mount(context.Background(), id, img, target, store.RootView{}), n.db.Commit(context.Background(), store.Change{PutContainers: []store.Container{c}})); err != nil {
		t.Fatal(err)
	}
	return id, target
}

// restart recovers as the next daemon does: it knows records, not mounts.
func (n *node) restart(t *testing.T) {
	t.Helper()
	again, err := New(n.cfg, n.db)
	if err == nil {
		err = again.Recover(context.Background())
	}
	if err != nil {
		t.Fatal(err)
	}
	n.Service = again
}

// TestIntegrationQuarantineCutShort: whatever a crash or a failure leaves of a
// quarantine, a running container keeps its files, no record lacks them, and
// they go with the container.
func TestIntegrationQuarantineCutShort(t *testing.T) {
	needRoot(t)
	for name, cut := range map[string]func(t *testing.T, n *node, chain string){
		"files moved, record there": func(t *testing.T, n *node, chain string) {
			rec, err := n.db.Layer(chain)
			if err == nil {
				n.mu.Lock()
				_, err = n.shelve(rec, nil, "test")
				n.mu.Unlock()
			}
			if err != nil {
				t.Fatal(err)
			}
		},
		"record gone, files there": func(t *testing.T, n *node, chain string) {
			if err := n.db.Commit(context.Background(), store.Change{DeleteLayers: []string{chain}}); err != nil {
				t.Fatal(err)
			}
		},
		"copy of the record gone": func(t *testing.T, n *node, chain string) {
			if err := os.Remove(n.layerDir(chain) + "/layer.json"); err != nil {
				t.Fatal(err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			reg := rt.New(t, false)
			threeLayers(t, reg, "app", "v1")
			n := newNode(t, nil)
			img, _ := n.db.Image(n.mustPull(t, reg.Host()+"/app:v1"))
			cid, target := n.runOn(t, img)
			cut(t, n, img.Layers[1])
			n.restart(t)
			n.restart(t) // and nothing that the first left goes by the second
			checkTree(t, target)
			if _, err := n.db.Layer(img.Layers[1]); err == nil {
				t.Error("the record of the layer is left")
			}
			n.mustPull(t, reg.Host()+"/app:v1")
			checkTree(t, target)
			if err := errors.Join(n.Unmount(context.Background(), cid, target), n.Remove(context.Background(), cid)); err != nil {
				t.Fatal(err)
			}
			if left, _ := os.ReadDir(n.quarantineDir()); len(left) != 0 {
				t.Errorf("quarantine holds %v", left)
			}
			n.clean(t, 3)
		})
	}
}

// A store that refuses leaves the layer where it was.
func TestIntegrationQuarantineRefused(t *testing.T) {
	needRoot(t)
	reg := rt.New(t, false)
	threeLayers(t, reg, "app", "v1")
	n := newNode(t, nil)
	img, _ := n.db.Image(n.mustPull(t, reg.Host()+"/app:v1"))
	if err := n.db.Close(); err != nil {
		t.Fatal(err)
	}
	if err := n.quarantine(context.Background(), img.Layers[1], "test"); err == nil {
		t.Error("a closed store took a change")
	}
	if _, err := os.Stat(n.layerDir(img.Layers[1]) + "/layer.json"); err != nil {
		t.Errorf("the layer: %v", err)
	}
	if left, _ := os.ReadDir(n.quarantineDir()); len(left) != 0 {
		t.Errorf("quarantine holds %v", left)
	}
}

// A container that runs on a damaged layer keeps it until it is removed.
func TestIntegrationQuarantineKeepsWhatRuns(t *testing.T) {
	t.Run("note", func(t *testing.T) { quarantineKeepsWhatRuns(t, false) })
	t.Run("damaged note", func(t *testing.T) { quarantineKeepsWhatRuns(t, true) })
}

func quarantineKeepsWhatRuns(t *testing.T, damaged bool) {
	needRoot(t)
	reg := rt.New(t, false)
	threeLayers(t, reg, "app", "v1")
	n := newNode(t, nil)
	id := n.mustPull(t, reg.Host()+"/app:v1")
	img, _ := n.db.Image(id)
	cid, target := n.runOn(t, img)
	if err := os.WriteFile(n.layerDir(img.Layers[1])+"/fs/etc/extra", nil, 0o600); err != nil {
		t.Fatal(err)
	}
	reg.Inject(func(w http.ResponseWriter, _ *http.Request, _ http.Handler) bool {
		w.WriteHeader(http.StatusInternalServerError)
		return true
	})
	r := n.check(t, CheckRequest{Repair: true})
	if len(r.Problems) != 2 || !strings.Contains(r.Problems[1].Fixed, "not fetched again") {
		t.Errorf("without the registry: %+v", r.Problems)
	}
	if n.image(t, id) != nil {
		t.Error("an image that lacks a layer is reported")
	}
	if notes, _ := filepath.Glob(filepath.Join(n.quarantineDir(), "*", fileNote)); damaged {
		if len(notes) != 1 || os.Truncate(notes[0], 20) != nil {
			t.Fatal(notes)
		}
	}
	n.remove(t, id)
	n.restart(t)
	checkTree(t, target)
	n.clean(t, 2)
	if err := errors.Join(n.Unmount(context.Background(), cid, target), n.Remove(context.Background(), cid), n.Recover(context.Background())); err != nil {
		t.Fatal(err)
	}
	n.clean(t, 0)
	if left, _ := os.ReadDir(n.quarantineDir()); len(left) != 0 {
		t.Errorf("quarantine holds %v", left)
	}
}

// What the operator has mounted on the node keeps a damaged layer, too.
func TestIntegrationQuarantineKeepsNodeMounts(t *testing.T) {
	needRoot(t)
	reg := rt.New(t, false)
	threeLayers(t, reg, "app", "v1")
	n := newNode(t, nil)
	img, _ := n.db.Image(n.mustPull(t, reg.Host()+"/app:v1"))
	target := t.TempDir()
	if err := n.MountAt(t.Context(), img.ID, target); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(target, unix.MNT_DETACH) })
	if err := n.quarantine(t.Context(), img.Layers[1], "test"); err != nil {
		t.Fatal(err)
	}
	n.restart(t)
	if _, err := os.ReadFile(filepath.Join(target, "etc/b")); err != nil {
		t.Error("the mount has lost a file:", err)
	}
	if err := n.UnmountAt(t.Context(), target); err != nil {
		t.Fatal(err)
	}
	if left, _ := os.ReadDir(n.quarantineDir()); len(left) != 0 {
		t.Errorf("quarantine holds %v", left)
	}
}

func TestDoubtAfter(t *testing.T) {
	file := func(f bootFile) []byte { raw, _ := json.Marshal(f); return raw }
	for name, tt := range map[string]struct {
		raw  []byte
		want []string
	}{
		"new store":               {nil, nil},
		"torn":                    {[]byte("{"), []string{anyBoot}},
		"empty":                   {[]byte{}, []string{anyBoot}},
		"same boot":               {file(bootFile{BootID: "now"}), nil},
		"orderly":                 {file(bootFile{BootID: "a", Clean: true}), nil},
		"power cut":               {file(bootFile{BootID: "a"}), []string{"a"}},
		"two power cuts":          {file(bootFile{BootID: "b", Doubt: []string{"a"}}), []string{"a", "b"}},
		"orderly, not verified":   {file(bootFile{BootID: "b", Clean: true, Doubt: []string{"a"}}), []string{"a"}},
		"same boot, not verified": {file(bootFile{BootID: "now", Doubt: []string{"a"}}), []string{"a"}},
	} {
		if got := doubtAfter(tt.raw, "now"); !reflect.DeepEqual(got, tt.want) {
			t.Errorf("%s: %v, want %v", name, got, tt.want)
		}
	}
	layers := []store.Layer{{ChainID: "1", BootID: "a"}, {ChainID: "2", BootID: "now"}, {ChainID: "3"}}
	if got := inDoubt(layers, []string{"a"}, "now"); !reflect.DeepEqual(got, []string{"1"}) {
		t.Errorf("in doubt %v", got)
	}
	if got := inDoubt(layers, []string{anyBoot}, "now"); !reflect.DeepEqual(got, []string{"1", "3"}) {
		t.Errorf("in doubt %v", got)
	}
}

func TestIntegrationUncleanBoot(t *testing.T) {
	needRoot(t)
	reg := rt.New(t, false)
	threeLayers(t, reg, "app", "v1")
	reg.Push(t, "other", "v1", ocispec.ImageConfig{}, rt.Pack(t, rt.Tar(t, file("x", "y")), "gzip"))
	n := newNode(t, nil)
	n.boot.id = "before"
	if err := n.Recover(context.Background()); err != nil {
		t.Fatal(err)
	}
	id := n.mustPull(t, reg.Host()+"/app:v1")
	img, _ := n.db.Image(id)
	mount := func() error { return n.tryMount(t, img) }
	n.restart(t)
	if err := mount(); err != nil {
		t.Errorf("mount of verified layers: %v", err)
	}
	// Only content has changed: a quick look would not see it.
	if err := writeBoot(n.dir, bootFile{BootID: "before"}); err != nil {
		t.Fatal(err)
	}
	overwrite(t, n.layerDir(img.Layers[2])+"/fs/top")
	n.restart(t)
	if err := mount(); !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), "pull it again") {
		t.Errorf("mount of a damaged layer after a power cut: %v", err)
	}
	n.mustPull(t, reg.Host()+"/app:v1")
	if err := mount(); err != nil {
		t.Errorf("mount after the repair: %v", err)
	}
	n.endsWithoutDoubt(t)
}

// tryMount mounts an image for a container, and takes the mount away again.
func (n *node) tryMount(t *testing.T, img store.Image) error {
	target, id := t.TempDir(), strings.Repeat("ab", 32)
	t.Cleanup(func() { _ = unix.Unmount(target, unix.MNT_DETACH) })
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	return errors.Join(n.Mount(ctx, id, img, target, store.RootView{}), n.Unmount(ctx, id, target), n.Remove(ctx, id))
}

// endsWithoutDoubt: an orderly end leaves none.
func (n *node) endsWithoutDoubt(t *testing.T) {
	t.Helper()
	if err := n.Close(); err != nil {
		t.Fatal(err)
	}
	raw, err := os.ReadFile(filepath.Join(n.dir, fileBoot))
	if err != nil || doubtAfter(raw, "after") != nil {
		t.Errorf("after an orderly end: %s, %v", raw, err)
	}
}

// TestIntegrationDoubtIsTriedAgain has a damaged layer in doubt and no room for it
// in quarantine: it is refused, and tried again by whoever asks next.
func TestIntegrationDoubtIsTriedAgain(t *testing.T) {
	needRoot(t)
	reg := rt.New(t, false)
	threeLayers(t, reg, "app", "v1")
	n := newNode(t, nil)
	n.boot.id = "before"
	img, _ := n.db.Image(n.mustPull(t, reg.Host()+"/app:v1"))
	for _, err := range []error{
		writeBoot(n.dir, bootFile{BootID: "before"}), os.MkdirAll(n.quarantineDir(), 0o711),
		unix.Mount("tmpfs", n.quarantineDir(), "tmpfs", 0, "nr_inodes=1"),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() { _ = unix.Unmount(n.quarantineDir(), unix.MNT_DETACH) })
	overwrite(t, n.layerDir(img.Layers[2])+"/fs/top")
	n.restart(t)
	mount := func() error { return n.tryMount(t, img) }
	for range 2 {
		if err := mount(); !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), "cannot be verified") {
			t.Errorf("mount of a layer in doubt: %v", err)
		}
	}
	if err := unix.Unmount(n.quarantineDir(), 0); err != nil {
		t.Fatal(err)
	}
	if err := mount(); !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), "pull it again") {
		t.Errorf("mount once there is room: %v", err)
	}
	n.mustPull(t, reg.Host()+"/app:v1")
	if err := mount(); err != nil {
		t.Errorf("mount after the repair: %v", err)
	}
	n.endsWithoutDoubt(t)
}

// TestIntegrationRecoverAgain: a recovery that fails can be tried again, and
// leaves alone what pulls have staged since; repairs wait for the first.
func TestIntegrationRecoverAgain(t *testing.T) {
	needRoot(t)
	reg := rt.New(t, false)
	threeLayers(t, reg, "app", "v1")
	n := newNode(t, nil)
	img, _ := n.db.Image(n.mustPull(t, reg.Host()+"/app:v1"))
	again, err := New(n.cfg, n.db)
	if err != nil {
		t.Fatal(err)
	}
	inTheWay, old, staged := filepath.Join(n.cfg.StateDir, fileBoot+".tmp"), filepath.Join(n.staging(), "layer-old"), filepath.Join(n.staging(), "layer-new")
	for _, err := range []error{os.Mkdir(inTheWay, 0o700), os.Mkdir(old, 0o700), os.RemoveAll(n.layerDir(img.Layers[2]))} {
		if err != nil {
			t.Fatal(err)
		}
	}
	fetched := reg.Count("GET", "/blobs/")
	again.Suspect(context.Background(), img.ID)
	time.Sleep(20 * time.Millisecond) // in which nothing may happen
	if got := reg.Count("GET", "/blobs/"); got != fetched {
		t.Error("a repair did not wait for the recovery")
	}
	if err := again.Recover(t.Context()); err == nil || !strings.Contains(err.Error(), "note the boot") {
		t.Errorf("a boot that cannot be noted: %v", err)
	}
	if _, err := os.Stat(old); err == nil {
		t.Error("what a crash had staged is left")
	}
	release := again.lease(nil, imageBlobs(img)) // as a pull does
	for _, err := range []error{os.Remove(inTheWay), os.Mkdir(staged, 0o700), again.Recover(t.Context())} {
		if err != nil {
			t.Fatal(err)
		}
	}
	if _, err := os.Stat(staged); err != nil {
		t.Errorf("what a pull has staged: %v", err)
	}
	if raw, err := os.ReadFile(filepath.Join(n.cfg.StateDir, fileBoot)); err != nil || !strings.Contains(string(raw), again.boot.id) {
		t.Errorf("boot file: %s, %v", raw, err)
	}
	release()
	for n.Service = again; n.image(t, img.ID) == nil; time.Sleep(10 * time.Millisecond) {
		if t.Context().Err() != nil {
			t.Fatal("the image was not repaired")
		}
	}
}

func TestIntegrationSuspect(t *testing.T) {
	needRoot(t)
	reg := rt.New(t, false)
	threeLayers(t, reg, "app", "v1")
	n := newNode(t, nil)
	id := n.mustPull(t, reg.Host()+"/app:v1")
	img, _ := n.db.Image(id)
	file := n.layerDir(img.Layers[0]) + "/fs/etc/a"
	if err := os.Truncate(file, 0); err != nil {
		t.Fatal(err)
	}
	n.Suspect(context.Background(), id)
	for {
		if st, err := os.Stat(file); err == nil && st.Size() > 0 && n.image(t, id) != nil {
			break
		}
		if t.Context().Err() != nil {
			t.Fatal("the image was not repaired")
		}
		time.Sleep(10 * time.Millisecond)
	}
	layers := reg.Count("GET", "/blobs/")
	n.Suspect(context.Background(), id) // too soon: not checked again
	if n.held.suspected[id].IsZero() || reg.Count("GET", "/blobs/") != layers {
		t.Error("checked at every failure")
	}
}

func TestIntegrationUsageIsTheSumOfRecords(t *testing.T) {
	needRoot(t)
	reg := rt.New(t, false)
	threeLayers(t, reg, "app", "v1")
	reg.Push(t, "other", "v1", ocispec.ImageConfig{}, rt.Pack(t, rt.Tar(t, file("x", noise(1<<20))), "gzip"))
	n := newNode(t, nil)
	sum := func() (b, i uint64) {
		for _, l := range n.db.Layers() {
			b, i = b+l.UsageBytes, i+l.UsageInodes
		}
		return b, i
	}
	for _, step := range []func(){
		func() { n.mustPull(t, reg.Host()+"/app:v1") },
		func() { n.mustPull(t, reg.Host()+"/other:v1") },
		func() { n.remove(t, reg.Host()+"/app:v1") },
	} {
		step()
		b, i := n.db.LayerUsage()
		if wb, wi := sum(); b != wb || i != wi {
			t.Errorf("usage %d, %d; the records say %d, %d", b, i, wb, wi)
		}
	}
	// What is left is one layer: compare with the disk.
	var blocks int64
	inodes := uint64(0)
	dir := n.layerDir(n.db.Layers()[0].ChainID)
	_ = filepath.Walk(dir, func(_ string, fi os.FileInfo, err error) error {
		if err != nil {
			t.Fatal(err)
		}
		blocks += (max(fi.Size(), 1) + 4095) &^ 4095
		inodes++
		return nil
	})
	if b, i := n.db.LayerUsage(); int64(b) != blocks || i != inodes {
		t.Errorf("counted %d bytes and %d inodes, the disk has %d and %d", b, i, blocks, inodes)
	}
}

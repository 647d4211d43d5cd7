package imageservice

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	rt "github.com/berth-dev/berth/imageservice/registrytest"
	"github.com/berth-dev/berth/store"
)

// smallDisk is a file system of 16 MiB with a file that takes its free space.
type smallDisk struct{ dir, ballast string }

// newSmallDisk makes one in a file, and mounts it.
func newSmallDisk(t *testing.T) smallDisk {
	t.Helper()
	needRoot(t)
	image, dir := filepath.Join(t.TempDir(), "disk"), t.TempDir()
	for _, c := range [][]string{
		{"truncate", "-s", "16M", image},
		{"mkfs.ext4", "-q", "-b", "1024", "-N", "2000", "-m", "0", "-O", "^has_journal", image},
		{"mount", "-o", "loop", image, dir},
	} {
		if out, err := exec.Command(c[0], c[1:]...).CombinedOutput(); err != nil {
			t.Skipf("cannot make a small file system: %v: %v: %s", c, err, out)
		}
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Errorf("unmount the small file system: %v", err)
			_ = unix.Unmount(dir, unix.MNT_DETACH)
		}
	})
	return smallDisk{dir: filepath.Join(dir, "state"), ballast: filepath.Join(dir, "ballast")}
}

// leave fills the disk up to so many free KiB; all of it is free with a
// negative number.
func (d smallDisk) leave(t *testing.T, kib int64) {
	t.Helper()
	if err := os.RemoveAll(d.ballast); err != nil {
		t.Fatal(err)
	}
	unix.Sync() // blocks of deleted files, and those that are only promised
	if kib < 0 {
		return
	}
	var st unix.Statfs_t
	if err := unix.Statfs(filepath.Dir(d.ballast), &st); err != nil {
		t.Fatal(err)
	}
	size := int64(st.Bavail)*st.Bsize - kib<<10
	f, err := os.Create(d.ballast)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	// What the file's own map of blocks takes is not known beforehand.
	for ; size > 0; size -= 1 << 10 {
		if err := unix.Fallocate(int(f.Fd()), 0, 0, size); err == nil {
			return
		}
	}
}

// node is a node whose database is on the disk, too.
func (d smallDisk) node(t *testing.T) *node {
	t.Helper()
	db, err := store.Open(store.Config{Dir: d.dir})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	s, err := New(Config{StateDir: d.dir, Platform: "linux/amd64", Settings: Settings{HostsDirs: []string{}}}, db)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Recover(context.Background()); err != nil {
		t.Fatal(err)
	}
	return &node{Service: s, db: db, dir: d.dir}
}

// consistent fails unless records and files agree and nothing is half done.
func (n *node) consistent(t *testing.T, kib int64) {
	t.Helper()
	if staged, _ := os.ReadDir(n.staging()); len(staged) > 0 {
		t.Errorf("%d KiB free: staging holds %v", kib, staged)
	}
	for _, l := range n.db.Layers() {
		if _, err := os.Stat(filepath.Join(n.layerDir(l.ChainID), "layer.json")); err != nil {
			t.Errorf("%d KiB free: a layer is recorded and not there: %v", kib, err)
		}
	}
	for _, img := range n.db.Images() {
		if !n.complete(img) {
			t.Errorf("%d KiB free: image %s lacks layers", kib, img.ID)
		}
	}
}

// TestIntegrationImportDiskFullAnywhere: an import onto a disk that is full
// after any number of bytes fails with ResourceExhausted and leaves no half
// image, or succeeds; once there is room it works.
func TestIntegrationImportDiskFullAnywhere(t *testing.T) {
	reg := rt.New(t, false)
	d := newSmallDisk(t)
	threeLayers(t, reg, "app", "v1")
	other := newNode(t, nil)
	ref := reg.Host() + "/app:v1"
	other.mustPull(t, ref)
	var tar bytes.Buffer
	if err := other.Export(context.Background(), []string{ref}, &tar); err != nil {
		t.Fatal(err)
	}
	n := d.node(t)
	failed, done := 0, 0
	for kib := int64(0); done < 2 && kib < 2048; kib += 7 {
		d.leave(t, kib)
		_, err := n.Import(context.Background(), bytes.NewReader(tar.Bytes()), ImportOptions{})
		switch {
		case err == nil:
			done++
		case errdefs.IsResourceExhausted(err):
			failed++
			if len(n.db.Images()) > 0 {
				t.Errorf("%d KiB free: an image after %v", kib, err)
			}
		default:
			t.Errorf("%d KiB free: %v, want ResourceExhausted", kib, err)
		}
		d.leave(t, -1)
		n.consistent(t, kib)
		if err == nil {
			n.remove(t, ref)
		}
		if _, err := n.CollectNow(context.Background(), true); err != nil {
			t.Fatal(err)
		}
		n.clean(t, 0)
	}
	if failed < 3 || done == 0 {
		t.Errorf("%d sizes failed, %d were enough", failed, done)
	}
	t.Logf("%d sizes of the free space were too small, %d were enough", failed, done)
}

// TestIntegrationQuarantineDiskFullAnywhere: on a full disk a damaged layer is
// taken out of use or stays where it is, and nothing between; once there is
// room it is, and fetched again.
func TestIntegrationQuarantineDiskFullAnywhere(t *testing.T) {
	reg := rt.New(t, false)
	d := newSmallDisk(t)
	img := threeLayers(t, reg, "app", "v1")
	n := d.node(t)
	ref := reg.Host() + "/app:v1"
	failed, done := 0, 0
	for kib := int64(0); done < 2 && kib < 1024; kib++ {
		n.mustPull(t, ref)
		rec, err := n.db.Image(img.ID.String())
		if err != nil {
			t.Fatal(err)
		}
		top := rec.Layers[len(rec.Layers)-1]
		d.leave(t, kib)
		err = n.quarantine(context.Background(), top, "test")
		_, missing := n.db.Layer(top)
		switch {
		case err == nil:
			done++
			if missing == nil {
				t.Errorf("%d KiB free: the layer is still in use", kib)
			}
		case errdefs.IsResourceExhausted(err), errors.Is(err, unix.ENOSPC):
			failed++
		default:
			t.Errorf("%d KiB free: %v, want it to say that the disk is full", kib, err)
		}
		if _, gone := os.Stat(n.layerDir(top)); missing == nil && gone != nil {
			t.Errorf("%d KiB free: the layer is in use and not there", kib)
		}
		d.leave(t, -1)
		if err := n.quarantine(context.Background(), top, "test"); err != nil {
			t.Errorf("%d KiB free: once there is room: %v", kib, err)
		}
		if _, err := n.CollectNow(context.Background(), true); err != nil {
			t.Fatal(err)
		}
		if left, _ := os.ReadDir(n.quarantineDir()); len(left) > 0 {
			t.Errorf("%d KiB free: quarantine holds %v, which nobody uses", kib, left)
		}
	}
	n.mustPull(t, ref)
	n.consistent(t, -1)
	n.clean(t, 3)
	if done == 0 {
		t.Errorf("%d sizes failed, %d were enough", failed, done)
	}
	t.Logf("%d sizes of the free space were too small, %d were enough", failed, done)
}

// TestIntegrationTokensRunOut: a token is good for one object, so that each
// manifest, configuration and layer of a pull finds the token it has refused.
// Each costs one more token and one more request.
func TestIntegrationTokensRunOut(t *testing.T) {
	needRoot(t)
	reg := rt.New(t, false)
	threeLayers(t, reg, "app", "v1")
	var issued atomic.Int64
	var mu sync.Mutex
	seen := map[string]bool{} // objects that were asked for
	reg.Inject(func(w http.ResponseWriter, r *http.Request, _ http.Handler) bool {
		if r.URL.Path == "/token" {
			fmt.Fprintf(w, `{"token":"t%d","expires_in":3600}`, issued.Add(1))
			return true
		}
		mu.Lock()
		defer mu.Unlock()
		if r.Header.Get("Authorization") == fmt.Sprintf("Bearer t%d", issued.Load()) && seen[r.URL.Path] {
			return false
		}
		if !seen[r.URL.Path] {
			seen[r.URL.Path] = true
			issued.Add(1) // the one in use is good no more
		}
		w.Header().Set("WWW-Authenticate", fmt.Sprintf(`Bearer realm="%s/token",service="reg"`, reg.URL))
		w.WriteHeader(http.StatusUnauthorized)
		return true
	})
	n := newNode(t, func(c *Config) { c.Pull.Downloads, c.Pull.Connections, c.Pull.PerBlob = 1, 1, 1 })
	n.mustPull(t, reg.Host()+"/app:v1")
	n.clean(t, 3)
	if got := int64(reg.Count("GET", "/token")); got != 5 {
		t.Errorf("%d tokens were fetched for a manifest, a configuration and three layers", got)
	}
	if got := reg.Count("GET", "/v2/"); got != 10 {
		t.Errorf("%d requests, want each object refused once and served once", got)
	}
}

package imageservice

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-dev/berth/imageservice/registry"
	rt "github.com/berth-dev/berth/imageservice/registrytest"
	"github.com/berth-dev/berth/store"
)

// TestIntegrationPassingFaults: what passes by itself fails no pull.
func TestIntegrationPassingFaults(t *testing.T) {
	needRoot(t)
	for name, script := range map[string]func(rt.Image) rt.Fault{
		"429 with Retry-After": func(rt.Image) rt.Fault { return rt.On("/manifests/", rt.Times(1, rt.Status(429, "1"))) },
		"500 of a layer":       func(i rt.Image) rt.Fault { return rt.OnBlob(i.Layers[1].Digest, rt.Times(1, rt.Status(500, ""))) },
		"connections that break": func(i rt.Image) rt.Fault {
			return rt.Either(rt.OnBlob(i.Layers[0].Digest, rt.Times(2, rt.Cut(100))), rt.OnBlob(i.Layers[2].Digest, rt.Times(1, rt.Cut(1000))))
		},
		"a layer that hangs": func(i rt.Image) rt.Fault { return rt.OnBlob(i.Layers[1].Digest, rt.Times(1, rt.Hang())) },
	} {
		t.Run(name, func(t *testing.T) {
			reg := rt.New(t, false)
			img := threeLayers(t, reg, "app", "v1")
			n := newNode(t, func(c *Config) {
				c.Pull.Host.Stall, c.Pull.Host.FirstByte = time.Second, time.Second
				c.Registry.Retries = 5 // a busy machine may add to what the script breaks
			})
			reg.Inject(script(img))
			n.mustPull(t, reg.Host()+"/app:v1")
			n.clean(t, 3)
			if s := n.PullStats(); s.Registry.Retries+s.Breaks == 0 || s.Pulls != 1 || s.Failed != 0 || s.LayersFetched != 3 {
				t.Errorf("counters: %+v", s)
			}
		})
	}
}

func TestIntegrationSlowDrip(t *testing.T) {
	needRoot(t)
	reg := rt.New(t, false)
	img := threeLayers(t, reg, "app", "v1")
	n := newNode(t, func(c *Config) { c.Pull.Host = registry.Limits{Stall: time.Second, MinRate: 10_000} })
	reg.Inject(rt.OnBlob(img.Layers[2].Digest, rt.Drip(20*time.Millisecond)))
	if _, err := n.tryPull(reg.Host()+"/app:v1", nil); !errdefs.IsUnavailable(err) || !strings.Contains(err.Error(), "bytes per second") {
		t.Errorf("got %v", err)
	}
	reg.Inject(nil)
	n.mustPull(t, reg.Host()+"/app:v1")
	n.clean(t, 3)
}

// allocated returns the bytes this process has allocated so far.
func allocated() int64 {
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.TotalAlloc)
}

// TestIntegrationHugeAnswers: a manifest of 100 MB and a configuration and a
// layer without an end are refused, and neither read nor kept in memory beyond
// their limits: what the pull allocates in its whole course is bounded.
func TestIntegrationHugeAnswers(t *testing.T) {
	needRoot(t)
	for name, pick := range map[string]func(rt.Image, rt.Fault) rt.Fault{
		"manifest": func(_ rt.Image, f rt.Fault) rt.Fault { return rt.On("/manifests/", f) },
		"config":   func(i rt.Image, f rt.Fault) rt.Fault { return rt.OnBlob(i.ID, f) },
		"layer":    func(i rt.Image, f rt.Fault) rt.Fault { return rt.OnBlob(i.Layers[0].Digest, f) },
	} {
		t.Run(name, func(t *testing.T) {
			reg := rt.New(t, false)
			img := threeLayers(t, reg, "app", "v1")
			n := newNode(t, nil)
			var sent atomic.Int64
			reg.Inject(pick(img, rt.Endless(100<<20, &sent)))
			before := allocated()
			_, err := n.tryPull(reg.Host()+"/app:v1", nil)
			if !errdefs.IsResourceExhausted(err) && !errdefs.IsDataLoss(err) {
				t.Errorf("got %v", err)
			}
			// The manifest's limit is 4 MiB, read into a slice that grows; with
			// what the kernel holds for the connection.
			if used := allocated() - before; used > 48<<20 || sent.Load() > 48<<20 {
				t.Errorf("%d MiB allocated, %d MiB taken", used>>20, sent.Load()>>20)
			}
			reg.Inject(nil)
			n.mustPull(t, reg.Host()+"/app:v1")
			n.clean(t, 3)
		})
	}
}

// TestIntegrationManyLayers: a manifest with 10,000 layers is refused before
// anything of it is fetched.
func TestIntegrationManyLayers(t *testing.T) {
	reg := rt.New(t, false)
	m := ocispec.Manifest{MediaType: ocispec.MediaTypeImageManifest}
	m.SchemaVersion = 2
	m.Config = reg.PushBlob(t, "app", ocispec.MediaTypeImageConfig, []byte("{}"))
	for i := range 10_000 {
		m.Layers = append(m.Layers, ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayerGzip, Digest: digest.FromString(fmt.Sprint(i)), Size: 10})
	}
	reg.PushManifest(t, "app", "v1", m.MediaType, m)
	n := newNode(t, nil)
	_, err := n.tryPull(reg.Host()+"/app:v1", nil)
	if err == nil || errdefs.IsNotFound(err) || reg.Count("GET", "/blobs/") != 0 {
		t.Errorf("got %v after %d blobs", err, reg.Count("GET", "/blobs/"))
	}
}

// TestIntegrationDiskFullAnywhere: a pull onto a disk that is full after any
// number of bytes fails with ResourceExhausted or succeeds, commits no half
// image, leaves nothing in staging, and works once there is room.
func TestIntegrationDiskFullAnywhere(t *testing.T) {
	needRoot(t)
	reg := rt.New(t, false)
	threeLayers(t, reg, "app", "v1")
	n := newNode(t, nil)
	failed, done := 0, 0
	for kib := 64; done < 2 && kib < 4096; kib += 24 {
		small := t.TempDir()
		if err := unix.Mount("tmpfs", small, "tmpfs", 0, fmt.Sprintf("size=%dk", kib)); err != nil {
			t.Skipf("cannot mount a small tmpfs: %v", err)
		}
		err := func() error {
			defer unix.Unmount(small, unix.MNT_DETACH)
			s, err := New(Config{StateDir: small, Platform: "linux/amd64"}, n.db)
			if err != nil {
				return err
			}
			_, perr := (&node{Service: s}).tryPull(reg.Host()+"/app:v1", nil)
			images, layers := len(n.db.Images()), len(n.db.Layers())
			staged, _ := os.ReadDir(filepath.Join(small, "staging"))
			if perr != nil && (images > 0 || len(staged) > 0) {
				t.Errorf("%d KiB: %d images, %d layers, staging holds %v after %v", kib, images, layers, staged, perr)
			}
			for _, l := range n.db.Layers() {
				if _, err := os.Stat(filepath.Join(s.layerDir(l.ChainID), "layer.json")); err != nil {
					t.Errorf("%d KiB: a layer is recorded and not there: %v", kib, err)
				}
			}
			if perr == nil {
				r, err := s.RemoveImage(context.Background(), &runtimeapi.RemoveImageRequest{Image: &runtimeapi.ImageSpec{Image: reg.Host() + "/app:v1"}})
				if err != nil {
					t.Error(r, err)
				}
			}
			return perr
		}()
		// What failed half way may have left whole layers; the next round's disk is another one.
		var chains []string
		for _, l := range n.db.Layers() {
			chains = append(chains, l.ChainID)
		}
		n.forget(t, chains)
		switch {
		case err == nil:
			done++
		case errdefs.IsResourceExhausted(err):
			failed++
		default:
			t.Errorf("%d KiB: got %v, want ResourceExhausted", kib, err)
		}
	}
	if failed == 0 || done == 0 {
		t.Errorf("%d sizes failed, %d were enough", failed, done)
	}
	t.Logf("%d sizes of the disk were too small, %d were enough", failed, done)
}

// forget deletes the records of layers, as if the disk had never had them.
func (n *node) forget(t *testing.T, chains []string) {
	t.Helper()
	if err := n.db.Commit(context.Background(), store.Change{DeleteLayers: chains}); err != nil {
		t.Fatal(err)
	}
}

// TestIntegrationRestartResumes: a daemon that died in the middle of a layer
// goes on where it was, in a new process.
func TestIntegrationRestartResumes(t *testing.T) {
	needRoot(t)
	reg := rt.New(t, false)
	l := rt.Pack(t, rt.Tar(t, file("big", noise(2<<20))), "")
	img := reg.Push(t, "app", "v1", ocispec.ImageConfig{}, l)
	n := newNode(t, nil)
	reg.Inject(rt.OnBlob(img.Layers[0].Digest, rt.Either(rt.Times(1, rt.Cut(1_500_000)), rt.Status(500, ""))))
	if _, err := n.tryPull(reg.Host()+"/app:v1", nil); !errdefs.IsUnavailable(err) {
		t.Fatalf("got %v", err)
	}
	reg.Inject(nil)
	// Another Service on the same directory is what a new process is.
	again, err := New(n.cfg, n.db)
	if err != nil {
		t.Fatal(err)
	}
	if err := again.Recover(context.Background()); err != nil {
		t.Fatal(err)
	}
	n.Service = again
	n.mustPull(t, reg.Host()+"/app:v1")
	s := n.PullStats()
	if s.BytesResumed != 1_500_000 || s.BytesFetched > int64(len(l.Packed))-1_500_000+10_000 {
		t.Errorf("%d bytes resumed, %d fetched, of %d", s.BytesResumed, s.BytesFetched, len(l.Packed))
	}
}

// TestIntegrationProgress: a pull is seen while it runs, and every host it
// tries is told, with where its credentials are from.
func TestIntegrationProgress(t *testing.T) {
	needRoot(t)
	reg := rt.New(t, false)
	img := threeLayers(t, reg, "app", "v1")
	n := newNode(t, nil)
	dir := filepath.Join(n.hosts, "registry.test")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "hosts.toml"), []byte(fmt.Sprintf("server = %q\n[host.\"http://127.0.0.1:1\"]\n", reg.URL)), 0o600); err != nil {
		t.Fatal(err)
	}
	waits, goOn := make(chan bool), make(chan bool)
	reg.Inject(rt.OnBlob(img.Layers[2].Digest, func(http.ResponseWriter, *http.Request, http.Handler) bool {
		waits <- true
		<-goOn
		return false
	}))
	var mu sync.Mutex
	var tried []registry.Attempt
	ctx := WithTrace(context.Background(), func(a registry.Attempt) {
		mu.Lock()
		defer mu.Unlock()
		tried = append(tried, a)
	})
	ended := make(chan error, 1)
	go func() {
		_, err := n.PullImage(ctx, &runtimeapi.PullImageRequest{Image: &runtimeapi.ImageSpec{Image: "registry.test/app:v1"}})
		ended <- err
	}()
	<-waits
	all := n.Pulls()
	if len(all) != 1 || all[0].Ref != "registry.test/app:v1" || len(all[0].Layers) != 3 || all[0].Layers[2].Phase != PhaseWaiting || all[0].Layers[2].Size != img.Layers[2].Size {
		t.Errorf("progress: %+v", all)
	}
	close(goOn)
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
	if len(n.Pulls()) != 0 {
		t.Error("a pull that has ended is still shown")
	}
	mu.Lock()
	defer mu.Unlock()
	if len(tried) < 6 || tried[0].Host != "127.0.0.1:1" || tried[0].Err == nil || tried[1].Host != reg.Host() || tried[1].Err != nil || tried[1].Credentials != "not asked for any" {
		t.Errorf("tried: %+v", tried)
	}
	dead := 0
	for _, a := range tried {
		if a.Host == "127.0.0.1:1" {
			dead++
		}
	}
	if dead != 1 {
		t.Errorf("the dead mirror was tried %d times", dead)
	}
}

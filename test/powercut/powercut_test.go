package powercut

import (
	"archive/tar"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-dev/berth/imageservice"
	rt "github.com/berth-dev/berth/imageservice/registrytest"
	"github.com/berth-dev/berth/store"
)

const diskSize = 96 << 20

// inside marks the test process that has a mount namespace of its own.
const inside = "BERTH_POWERCUT_INSIDE"

func TestIntegrationPowerCut(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root")
	}
	for _, need := range []string{"/dev/fuse", "/dev/loop-control"} {
		if _, err := os.Stat(need); err != nil {
			t.Skip(err)
		}
	}
	if os.Getenv(inside) == "" {
		cmd := exec.CommandContext(t.Context(), "/proc/self/exe", "-test.run=^TestIntegrationPowerCut$", "-test.v", "-test.timeout=30m")
		cmd.Env = append(os.Environ(), inside+"=1")
		cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS}
		out, err := cmd.CombinedOutput()
		t.Logf("%s", out)
		if err != nil {
			t.Fatal(err)
		}
		return
	}
	for _, kind := range []string{"ext4", "xfs"} {
		t.Run(kind, func(t *testing.T) {
			mkfs, err := exec.LookPath("mkfs." + kind)
			if err != nil {
				t.Skip(err)
			}
			cutEverywhere(t, kind, mkfs)
		})
	}
}

func cutEverywhere(t *testing.T, kind, mkfs string) {
	w := newWorld(t, kind)
	base, log := w.record(t, mkfs)
	writes, flushes := 0, 0
	for _, e := range log {
		if e.data != nil {
			writes++
		}
		if e.flush {
			flushes++
		}
	}
	seed := rand.Uint64()
	dice := rand.New(rand.NewPCG(seed, 0))
	points := choose(log, dice)
	t.Logf("%s: %d writes, %d flushes; %d power cuts, seed %d", kind, writes, flushes, len(points), seed)
	for i, n := range points {
		how := []loss{keepAll, keepNone, keepSome}[i%3]
		if err := w.start(cut(base, log, n, how, dice), notes(log, n), i%4 == 0); err != nil {
			t.Fatalf("%s: power cut after event %d of %d, loss %d, seed %d: %v", kind, n, len(log), how, seed, err)
		}
	}
	w.sabotage(t, base, log, dice)
}

// choose returns the points of the log to cut at: a sample, or all with
// BERTH_POWERCUT=full, each with every kind of loss.
func choose(log []event, dice *rand.Rand) []int {
	var all []int
	for n := range len(log) + 1 {
		all = append(all, n, n, n)
	}
	if os.Getenv("BERTH_POWERCUT") == "full" {
		return all
	}
	const sample = 45
	out := []int{len(log), len(log), len(log)}
	for range sample {
		out = append(out, dice.IntN(len(log)+1))
	}
	return out
}

// world is a registry and a place to mount disks at.
type world struct {
	kind string
	reg  *rt.Server
	dir  string // mount point
	img  string // disk to start from
}

func newWorld(t *testing.T, kind string) *world {
	w := &world{kind: kind, reg: rt.New(t, false), dir: filepath.Join(t.TempDir(), "mnt"), img: filepath.Join(t.TempDir(), "disk")}
	if err := os.Mkdir(w.dir, 0o700); err != nil {
		t.Fatal(err)
	}
	layer := func(n int, how string) rt.Layer {
		files := []rt.File{{Header: tar.Header{Name: fmt.Sprintf("d%d/", n), Typeflag: tar.TypeDir}}}
		for i := range 12 {
			b := make([]byte, 1+dice(n, i)%40_000)
			for j := range b {
				b[j] = byte(dice(n+i, j))
			}
			files = append(files, rt.File{Header: tar.Header{Name: fmt.Sprintf("d%d/f%d", n, i)}, Body: hex.EncodeToString(b)})
		}
		return rt.Pack(t, rt.Tar(t, files...), how)
	}
	shared := layer(1, "gzip")
	w.reg.Push(t, "a", "v1", ocispec.ImageConfig{}, shared, layer(2, "zstd"))
	w.reg.Push(t, "b", "v1", ocispec.ImageConfig{}, shared, layer(3, "gzip"), layer(4, ""))
	w.reg.Push(t, "c", "v1", ocispec.ImageConfig{}, layer(5, "gzip"))
	return w
}

// dice gives equal numbers for equal arguments.
func dice(a, b int) int { return int(rand.New(rand.NewPCG(uint64(a), uint64(b))).Uint64() >> 33) }

// record lets a node work, and returns the disk before and what was written.
func (w *world) record(t *testing.T, mkfs string) ([]byte, []event) {
	d, err := serve(filepath.Join(t.TempDir(), "fuse"), diskSize)
	if err != nil {
		t.Skip("no FUSE here: ", err)
	}
	defer d.close()
	args := map[string][]string{
		"ext4": {"-q", "-F", "-E", "lazy_itable_init=0,lazy_journal_init=0,nodiscard", d.path()},
		"xfs":  {"-q", "-f", "-K", d.path()},
	}[w.kind]
	if out, err := exec.CommandContext(t.Context(), mkfs, args...).CombinedOutput(); err != nil {
		t.Skipf("%s: %v: %s", mkfs, err, out)
	}
	if err := w.mount(d.path()); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Unmount(w.dir, 0) }()
	n, err := w.open()
	if err != nil {
		t.Fatal(err)
	}
	defer n.db.Close()
	var base []byte
	for _, step := range []struct {
		name string
		do   func() error
	}{
		{"pull a", func() error { return n.pull("a") }},
		{"base", func() error { unix.Sync(); return nil }},
		{"pull b", func() error { return n.pull("b") }},
		{"remove a", func() error { return n.remove("a") }},
		{"pull c", func() error { return n.pull("c") }},
		{"remove b", func() error { return n.remove("b") }},
		{"pull b again", func() error { return n.pull("b") }},
	} {
		d.note("begin " + step.name)
		if err := step.do(); err != nil {
			t.Fatalf("%s: %v", step.name, err)
		}
		d.note("end " + step.name)
		if step.name == "base" {
			base = d.begin()
		}
	}
	return base, d.recorded()
}

// mount mounts a disk; the loop device goes with it.
func (w *world) mount(path string) error {
	opts := map[string]string{"ext4": "loop", "xfs": "loop,nouuid"}[w.kind]
	if out, err := exec.CommandContext(context.Background(), "mount", "-t", w.kind, "-o", opts, path, w.dir).CombinedOutput(); err != nil {
		return fmt.Errorf("mount %s: %w: %s", path, err, out)
	}
	return nil
}

// node is the image side of a node.
type node struct {
	*imageservice.Service
	db *store.DB
	w  *world
}

func (w *world) open() (*node, error) {
	db, err := store.Open(store.Config{Dir: filepath.Join(w.dir, "state")})
	if err != nil {
		return nil, err
	}
	cfg := imageservice.Config{StateDir: filepath.Join(w.dir, "state"), Settings: imageservice.Settings{HostsDirs: []string{}}, Platform: "linux/amd64"}
	s, err := imageservice.New(cfg, db)
	if err == nil {
		err = s.Recover(context.Background())
	}
	if err != nil {
		return nil, errors.Join(err, db.Close())
	}
	return &node{Service: s, db: db, w: w}, nil
}

func (n *node) ref(name string) *runtimeapi.ImageSpec {
	return &runtimeapi.ImageSpec{Image: n.w.reg.Host() + "/" + name + ":v1"}
}

func (n *node) pull(name string) error {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	_, err := n.PullImage(ctx, &runtimeapi.PullImageRequest{Image: n.ref(name)})
	return err
}

func (n *node) remove(name string) error {
	_, err := n.RemoveImage(context.Background(), &runtimeapi.RemoveImageRequest{Image: n.ref(name)})
	return err
}

func (n *node) has(name string) (bool, error) {
	r, err := n.ImageStatus(context.Background(), &runtimeapi.ImageStatusRequest{Image: n.ref(name)})
	return r.GetImage() != nil, err
}

// start starts a node on the disk and looks at it.
func (w *world) start(disk []byte, done map[string]bool, repeat bool) (err error) {
	if err := os.WriteFile(w.img, disk, 0o600); err != nil {
		return err
	}
	if err := w.mount(w.img); err != nil {
		return err
	}
	defer func() {
		if uerr := unix.Unmount(w.dir, 0); uerr != nil {
			err = errors.Join(err, uerr, unix.Unmount(w.dir, unix.MNT_DETACH))
		}
	}()
	n, err := w.open()
	if err != nil {
		return fmt.Errorf("the node does not start: %w", err)
	}
	defer func() { err = errors.Join(err, n.db.Close()) }()
	if err := n.whole(done); err != nil || !repeat {
		return err
	}
	// The client asks again, and gets what it asked for.
	for _, name := range []string{"a", "b", "c"} {
		if err := n.pull(name); err != nil {
			return fmt.Errorf("pull %s again: %w", name, err)
		}
	}
	return n.clean()
}

// whole checks that each image is there or not, as it must be, and that nothing
// on the disk is half there.
func (n *node) whole(done map[string]bool) error {
	for _, x := range []struct {
		name  string
		verbs []string // what was done to it, in order: pull and remove
	}{
		{"a", []string{"pull a", "remove a"}},
		{"b", []string{"pull b", "remove b", "pull b again"}},
		{"c", []string{"pull c"}},
	} {
		may := map[bool]bool{x.name == "a": true} // the base has a
		for _, v := range x.verbs {
			present := strings.HasPrefix(v, "pull")
			switch {
			case done["end "+v]:
				may = map[bool]bool{present: true}
			case done["begin "+v]:
				may[present] = true
			}
		}
		got, err := n.has(x.name)
		if err != nil {
			return err
		}
		if !may[got] {
			return fmt.Errorf("image %s: present is %v, after %q", x.name, got, x.verbs)
		}
	}
	return n.clean()
}

func (n *node) clean() error {
	r, err := n.Check(context.Background(), imageservice.CheckRequest{Deep: true}, func(string, string) {})
	if err != nil {
		return err
	}
	if len(r.Problems) > 0 {
		return fmt.Errorf("after the start: %+v", r.Problems)
	}
	if lost, err := filepath.Glob(filepath.Join(n.w.dir, "state/quarantine/*")); err != nil || len(lost) > 0 {
		return fmt.Errorf("half layers were found: %v, %w", lost, err)
	}
	return nil
}

// sabotage shows that the look finds what a disk that lies does: flushed
// content is lost. Of the writes of a pull, every file's data is left out.
func (w *world) sabotage(t *testing.T, base []byte, log []event, dice *rand.Rand) {
	lying := slices.Clone(log)
	for i := range lying {
		lying[i].flush = false
	}
	for range 40 {
		if err := w.start(cut(base, lying, len(lying), keepSome, dice), notes(log, len(log)), false); err != nil {
			t.Logf("a disk that ignores flushes is found out: %.300v", err)
			return
		}
	}
	t.Error("a disk that ignores flushes is not found out: the test cannot fail")
}

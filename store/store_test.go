package store

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	bolt "go.etcd.io/bbolt"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/testing/protocmp"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

var epoch = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

func testID(n int) string { return fmt.Sprintf("%064x", n) }

func sandbox(n int) Sandbox {
	return Sandbox{
		ID: testID(n), Handler: "runc",
		Config: &runtimeapi.PodSandboxConfig{
			Metadata: &runtimeapi.PodSandboxMetadata{Name: fmt.Sprint("pod", n), Namespace: "ns", Uid: fmt.Sprint("uid", n)},
			Labels:   map[string]string{"app": "web"},
		},
		Facts: SandboxFacts{
			CreatedAt: epoch.Add(time.Duration(n) * time.Second), BootID: "boot",
			Namespaces: map[string]string{"net": "/run/ns/net"},
			Network:    NetworkFacts{Attached: true, IPs: []string{"10.0.0.1"}, Result: []byte(`{}`)},
		},
	}
}

func container(n, sandboxN int) Container {
	return Container{
		ID: testID(n), SandboxID: testID(sandboxN),
		Config: &runtimeapi.ContainerConfig{Metadata: &runtimeapi.ContainerMetadata{Name: fmt.Sprint("c", n)}, Command: []string{"sh"}},
		Facts: ContainerFacts{
			CreatedAt: epoch.Add(time.Duration(n) * time.Second), PID: 7,
			Exit:      &Exit{Code: 137, Signal: 9, FinishedAt: epoch, Reason: "Error"},
			Resources: &runtimeapi.LinuxContainerResources{CpuShares: 5, Unified: map[string]string{"a": "b"}},
		},
	}
}

func image(n int, tags ...string) Image {
	return Image{ID: "sha256:" + testID(n), RepoTags: tags, Config: []byte(`{"os":"linux"}`), PulledAt: epoch.Add(time.Duration(n) * time.Second)}
}

func openTest(t testing.TB, dir string) *DB {
	t.Helper()
	db, err := Open(Config{Dir: dir, Version: "test"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := db.Close(); err != nil {
			t.Error(err)
		}
	})
	return db
}

func mustCommit(t testing.TB, db *DB, c Change) {
	t.Helper()
	if err := db.Commit(context.Background(), c); err != nil {
		t.Fatal(err)
	}
}

func reopen(t *testing.T, db *DB, dir string) *DB {
	t.Helper()
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	return openTest(t, dir)
}

func diff(a, b any) string { return cmp.Diff(a, b, protocmp.Transform()) }

func TestEverythingSurvivesReopen(t *testing.T) {
	dir := t.TempDir()
	db := openTest(t, dir)
	op := Op{ID: "op1", Kind: "k", Subject: "s", Payload: []byte("state"), StartedAt: epoch}
	if err := db.BeginOp(context.Background(), op); err != nil {
		t.Fatal(err)
	}
	if err := db.BeginOp(context.Background(), op); !errdefs.IsAlreadyExists(err) {
		t.Errorf("second BeginOp: %v", err)
	}
	want := Change{
		PutSandboxes:  []Sandbox{sandbox(1), sandbox(2)},
		PutContainers: []Container{container(3, 1), container(4, 1), {ID: "bare", SandboxID: testID(2)}},
		PutImages:     []Image{image(5, "docker.io/library/a:1")},
		PutLayers:     []Layer{{ChainID: "sha256:aa", Parent: "sha256:bb", UsageBytes: 9, UnpackedAt: epoch}},
	}
	mustCommit(t, db, want)
	for _, round := range []string{"fresh", "reopened"} {
		if d := diff(want.PutSandboxes, db.Sandboxes()); d != "" {
			t.Error(round, d)
		}
		// The bare container has no creation time: it is the oldest.
		if d := diff([]Container{want.PutContainers[2], want.PutContainers[0], want.PutContainers[1]}, db.Containers()); d != "" {
			t.Error(round, d)
		}
		if d := diff(want.PutContainers[:2], db.ContainersOf(testID(1))); d != "" {
			t.Error(round, d)
		}
		if d := diff(want.PutImages, db.Images()); d != "" {
			t.Error(round, d)
		}
		if d := diff(want.PutLayers, db.Layers()); d != "" {
			t.Error(round, d)
		}
		if d := diff([]Op{op}, db.Ops()); d != "" {
			t.Error(round, d)
		}
		if s, ok := db.SandboxByName("pod1_ns_uid1_0"); !ok || s.ID != testID(1) {
			t.Error(round, "sandbox by name", s.ID, ok)
		}
		if c, ok := db.ContainerByName("c3_" + testID(1) + "_0"); !ok || c.ID != testID(3) {
			t.Error(round, "container by name", c.ID, ok)
		}
		db = reopen(t, db, dir)
	}
	mustCommit(t, db, Change{
		DeleteSandboxes: []string{testID(1), "unknown"}, DeleteContainers: []string{testID(3), testID(4), "bare"},
		DeleteImages: []string{want.PutImages[0].ID}, DeleteLayers: []string{"sha256:aa"}, EndOps: []string{"op1", "unknown"},
	})
	db = reopen(t, db, dir)
	if n := len(db.Containers()) + len(db.Images()) + len(db.Layers()) + len(db.Ops()) + len(db.Quarantined()); n != 0 || len(db.Sandboxes()) != 1 {
		t.Error("left after deletion:", n, len(db.Sandboxes()))
	}
}

func TestNamesAreUnique(t *testing.T) {
	dir := t.TempDir()
	db := openTest(t, dir)
	mustCommit(t, db, Change{PutSandboxes: []Sandbox{sandbox(1)}, PutContainers: []Container{container(3, 1)}})
	rival := sandbox(1)
	rival.ID = testID(9)
	err := db.Commit(context.Background(), Change{PutSandboxes: []Sandbox{sandbox(2), rival}})
	if !errdefs.IsAlreadyExists(err) || !strings.Contains(err.Error(), testID(1)) {
		t.Fatalf("got %v", err)
	}
	rivalC := container(3, 1)
	rivalC.ID = testID(8)
	if err := db.Commit(context.Background(), Change{PutContainers: []Container{rivalC}}); !errdefs.IsAlreadyExists(err) {
		t.Fatalf("got %v", err)
	}
	if n := len(db.Sandboxes()); n != 1 {
		t.Errorf("a failed change left %d sandboxes", n)
	}
	mustCommit(t, db, Change{PutSandboxes: []Sandbox{sandbox(1)}}) // an update keeps its name
	mustCommit(t, db, Change{DeleteSandboxes: []string{testID(1)}, PutSandboxes: []Sandbox{rival}})
	if s, _ := db.SandboxByName(SandboxName(rival)); s.ID != rival.ID {
		t.Errorf("name belongs to %q", s.ID)
	}
	db = reopen(t, db, dir)
	if s, _ := db.SandboxByName(SandboxName(rival)); s.ID != rival.ID {
		t.Errorf("after reopen the name belongs to %q", s.ID)
	}
	if err := db.Commit(context.Background(), Change{PutSandboxes: []Sandbox{{}}}); !errdefs.IsInvalidArgument(err) {
		t.Errorf("record without ID: %v", err)
	}
}

func TestLookup(t *testing.T) {
	db := openTest(t, t.TempDir())
	a, b := sandbox(1), sandbox(2)
	a.ID, b.ID = "abc1"+a.ID[4:], "abc2"+b.ID[4:]
	mustCommit(t, db, Change{PutSandboxes: []Sandbox{a, b}, PutImages: []Image{image(0xbeef, "r/x:1", "r/y:1")}})
	for _, tc := range []struct {
		query, want string
		is          func(error) bool
	}{
		{a.ID, a.ID, nil},
		{"abc2", b.ID, nil},
		{"abc", "", errdefs.IsInvalidArgument},
		{"", "", errdefs.IsInvalidArgument},
		{"ff", "", errdefs.IsNotFound},
	} {
		got, err := db.Sandbox(tc.query)
		if got.ID != tc.want || (tc.is == nil) != (err == nil) || tc.is != nil && !tc.is(err) {
			t.Errorf("Sandbox(%q) = %q, %v", tc.query, got.ID, err)
		}
	}
	id := image(0xbeef).ID
	for _, q := range []string{id, id[7:], id[:70], "000"} {
		if i, err := db.Image(q); err != nil || i.ID != id {
			t.Errorf("Image(%q) = %q, %v", q, i.ID, err)
		}
	}
	// A tag that moves leaves the image that had it.
	mustCommit(t, db, Change{PutImages: []Image{image(7, "r/x:1")}})
	if i, ok := db.ImageByRef("r/x:1"); !ok || i.ID != image(7).ID {
		t.Error("tag did not move")
	}
	if i, _ := db.Image(id); diff(i.RepoTags, []string{"r/y:1"}) != "" {
		t.Errorf("old image still has %v", i.RepoTags)
	}
	mustCommit(t, db, Change{DeleteImages: []string{id}})
	if _, ok := db.ImageByRef("r/y:1"); ok {
		t.Error("reference of a deleted image")
	}
}

func TestListOrderAndClaims(t *testing.T) {
	db := openTest(t, t.TempDir())
	for _, n := range []int{5, 2, 9, 1} {
		mustCommit(t, db, Change{PutSandboxes: []Sandbox{sandbox(n)}})
	}
	moved := sandbox(2)
	moved.Facts.CreatedAt = epoch.Add(time.Hour)
	before := db.Sandboxes()
	mustCommit(t, db, Change{PutSandboxes: []Sandbox{moved}, DeleteSandboxes: []string{testID(9)}})
	var got []string
	for _, s := range db.Sandboxes() {
		got = append(got, s.ID)
	}
	if d := diff(got, []string{testID(1), testID(5), testID(2)}); d != "" {
		t.Error(d)
	}
	if len(before) != 4 || before[1].ID != testID(2) {
		t.Error("a list taken earlier has changed")
	}
	if err := db.BeginOp(context.Background(), Op{ID: "o"}); err != nil {
		t.Fatal(err)
	}
	if db.ClaimOp("o") || db.ClaimOp("unknown") {
		t.Error("claimed a running or unknown entry")
	}
	if db.ReleaseOp("o"); !db.ClaimOp("o") {
		t.Error("could not claim a released entry")
	}
}

func TestBadRecordsAreSetAside(t *testing.T) {
	dir := t.TempDir()
	db := openTest(t, dir)
	mustCommit(t, db, Change{PutSandboxes: []Sandbox{sandbox(1), sandbox(2)}, PutContainers: []Container{container(3, 1)}, PutImages: []Image{image(4)}})
	badProto, err := sealWith([]byte{0xff, 0xff}, containerJSON{})
	if err != nil {
		t.Fatal(err)
	}
	if err := db.bolt.Update(func(tx *bolt.Tx) error {
		sb := tx.Bucket([]byte(bucketSandboxes))
		torn := append([]byte{}, sb.Get([]byte(testID(1)))...)
		torn[len(torn)/2] ^= 1
		return errors.Join(
			sb.Put([]byte(testID(1)), torn),
			tx.Bucket([]byte(bucketContainers)).Put([]byte(testID(3)), badProto),
			tx.Bucket([]byte(bucketImages)).Put([]byte(image(4).ID), []byte{9, 0, 0, 0, 0, 0}),
			tx.Bucket([]byte(bucketOps)).Put([]byte("o"), seal(envelope{facts: []byte("{")})),
		)
	}); err != nil {
		t.Fatal(err)
	}
	must(t, os.RemoveAll(filepath.Join(dir, "images"))) // else it would be healed
	for _, round := range []string{"found", "kept"} {
		db = reopen(t, db, dir)
		if n := len(db.Quarantined()); n != 4 {
			t.Fatalf("%s: quarantined %v", round, db.Quarantined())
		}
		if len(db.Sandboxes()) != 1 || len(db.Containers()) != 0 || len(db.Images()) != 0 || len(db.Ops()) != 0 {
			t.Errorf("%s: a bad record is served", round)
		}
	}
	again := sandbox(1)
	again.ID = testID(11)
	mustCommit(t, db, Change{PutSandboxes: []Sandbox{again}}) // the name is free again
}

func TestSecondDaemonIsRefused(t *testing.T) {
	dir := t.TempDir()
	openTest(t, dir)
	_, err := Open(Config{Dir: dir, LockTimeout: 20 * time.Millisecond})
	if !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), dir) || !strings.Contains(err.Error(), fmt.Sprint("pid ", os.Getpid())) {
		t.Errorf("got %v", err)
	}
}

func TestJSONRoundTrip(t *testing.T) {
	s, c := sandbox(1), container(2, 1)
	for _, v := range []interface {
		MarshalJSON() ([]byte, error)
	}{s, c, Sandbox{ID: "x"}, Container{ID: "x", Config: &runtimeapi.ContainerConfig{}}} {
		b, err := v.MarshalJSON()
		if err != nil {
			t.Fatal(err)
		}
		switch want := v.(type) {
		case Sandbox:
			var got Sandbox
			if err := got.UnmarshalJSON(b); err != nil || diff(want, got) != "" {
				t.Error(err, diff(want, got))
			}
		case Container:
			var got Container
			if err := got.UnmarshalJSON(b); err != nil || diff(want, got) != "" {
				t.Error(err, diff(want, got))
			}
		}
	}
}

func TestConcurrentUse(t *testing.T) {
	db := openTest(t, t.TempDir())
	var wg sync.WaitGroup
	for w := range 4 {
		wg.Go(func() {
			for i := range 20 {
				n := 1000*w + i + 1
				if err := db.Commit(context.Background(), Change{PutSandboxes: []Sandbox{sandbox(n)}, PutContainers: []Container{container(n, n)}}); err != nil {
					t.Error(err)
				}
				db.Sandboxes()
				db.ContainersOf(testID(n))
				if _, err := db.Container(testID(n)); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	if n := len(db.Containers()); n != 80 {
		t.Error(n)
	}
}

func TestIntegrationDiskFull(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root to mount a small tmpfs")
	}
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=256k"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	})
	db := openTest(t, dir)
	mustCommit(t, db, Change{PutSandboxes: []Sandbox{sandbox(1)}})
	big := image(2)
	big.Config = bytes.Repeat([]byte("x"), 1<<20)
	err := db.Commit(context.Background(), Change{PutImages: []Image{big}, DeleteSandboxes: []string{testID(1)}})
	if !errdefs.IsResourceExhausted(err) || !strings.Contains(err.Error(), "no space") {
		t.Errorf("got %v", err)
	}
	if len(db.Sandboxes()) != 1 || len(db.Images()) != 0 {
		t.Error("a failed commit changed what is read")
	}
	mustCommit(t, db, Change{PutSandboxes: []Sandbox{sandbox(3)}})
	db = reopen(t, db, dir)
	if len(db.Sandboxes()) != 2 || len(db.Images()) != 0 {
		t.Error("a failed commit changed the disk")
	}
}

func FuzzRecord(f *testing.F) {
	s, _ := sandboxCodec().encode(sandbox(1))
	c, _ := containerCodec().encode(container(2, 1))
	i, _ := imageCodec().encode(image(3, "r/x:1"))
	for _, seed := range [][]byte{s, c, i, {}, {1, 0, 0, 0, 0}} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		if e, err := unseal(data); err == nil {
			if again, err := unseal(seal(e)); err != nil || !bytes.Equal(again.blob, e.blob) || !bytes.Equal(again.facts, e.facts) {
				t.Error("envelope does not survive", err)
			}
		}
		// A right checksum lets the fuzzer past it, to the decoders.
		if len(data) < headerSize {
			return
		}
		fixed := seal(envelope{blob: data[:len(data)/2], facts: data[len(data)/2:]})
		for _, b := range [][]byte{data, fixed} {
			_, _ = sandboxCodec().decode("x", b)
			_, _ = containerCodec().decode("x", b)
			_, _ = imageCodec().decode("x", b)
			_, _ = layerCodec().decode("x", b)
			_, _ = opCodec().decode("x", b)
		}
	})
}

func BenchmarkCommit(b *testing.B) {
	dir := b.TempDir()
	for i := range 1000 {
		if err := os.MkdirAll(filepath.Join(dir, "containers", testID(i)), 0o700); err != nil {
			b.Fatal(err)
		}
	}
	db := openTest(b, dir)
	b.ResetTimer()
	for i := range b.N {
		mustCommit(b, db, Change{PutContainers: []Container{container(i%1000, 1)}})
	}
}

// BenchmarkRecordFile is what the copy in an object's directory adds to a commit.
func BenchmarkRecordFile(b *testing.B) {
	dir := b.TempDir()
	if err := os.MkdirAll(filepath.Join(dir, "containers", testID(1)), 0o700); err != nil {
		b.Fatal(err)
	}
	db := openTest(b, dir)
	c := Change{PutContainers: []Container{container(1, 1)}}
	mustCommit(b, db, c)
	b.ReportAllocs()
	for b.Loop() {
		db.files.follow(c, db.index)
	}
}

func BenchmarkList1000(b *testing.B) {
	db := openTest(b, b.TempDir())
	var c Change
	for i := range 1000 {
		c.PutContainers = append(c.PutContainers, container(i, 1))
	}
	mustCommit(b, db, c)
	b.ReportAllocs()
	for b.Loop() {
		if len(db.Containers()) != 1000 {
			b.Fatal("short list")
		}
	}
}

package reconcile

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/berth-dev/berth/store"
)

func set(ids ...string) map[string]bool {
	out := map[string]bool{}
	for _, id := range ids {
		out[id] = true
	}
	return out
}

func TestPlan(t *testing.T) {
	runs := store.Container{ID: "runs"}
	ended := store.Container{ID: "ended", Facts: store.ContainerFacts{Exit: &store.Exit{}}}
	recs := []store.Container{runs, ended}
	for name, tc := range map[string]struct {
		w    World
		want []string
	}{
		"nothing":                      {World{}, nil},
		"all is as recorded":           {World{Bundles: set("runs", "ended"), States: set("runs", "ended"), Mounts: set("runs"), Runc: map[string]string{"runs": "runc"}}, nil},
		"an ended one is mounted":      {World{Mounts: set("ended")}, []string{"unmount root file system ended"}},
		"a known one is being changed": {World{Mounts: set("ended"), Busy: set("ended")}, nil},
		"an unknown one is being made": {World{Bundles: set("x"), States: set("x"), Mounts: set("x"), Busy: set("x")}, nil},
		"orphans of every kind": {
			World{Bundles: set("b", "m"), Mounts: set("m"), States: set("s", "b"), Runc: map[string]string{"r": "runc"}},
			[]string{"remove b", "remove m", "remove r", "remove s"},
		},
	} {
		var got []string
		for _, a := range Plan(recs, tc.w) {
			got = append(got, fmt.Sprint(a.Do, " ", a.ID))
			if a.Why == "" {
				t.Errorf("%s: %v has no reason", name, a)
			}
		}
		if d := cmp.Diff(tc.want, got); d != "" {
			t.Errorf("%s:\n%s", name, d)
		}
	}
}

func TestObserveSeesOnlyOurs(t *testing.T) {
	dir, id := t.TempDir(), strings.Repeat("0a", 32)
	for _, d := range []string{"b/" + id + "/rootfs", "b/" + strings.ToUpper(id), "b/other", "s/" + id, "r/" + id} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "s", strings.Repeat("0b", 32)), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	places := Places{
		Bundles: filepath.Join(dir, "b"), States: filepath.Join(dir, "s"),
		Runc: map[string]string{"runc": filepath.Join(dir, "r"), "none": filepath.Join(dir, "none")},
	}
	got, err := Observe(places, func() []store.Op { return []store.Op{{Subject: "busy"}} })
	if err != nil {
		t.Fatal(err)
	}
	want := World{Bundles: set(id), States: set(id), Mounts: set(), Runc: map[string]string{id: "runc"}, Busy: set("busy")}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
}

// The root of a handler may be the one of another program, whose containers have
// names like Berth's: only those that say they are Berth's are.
func TestObserveLeavesContainersOfOthers(t *testing.T) {
	dir := t.TempDir()
	link := filepath.Join(t.TempDir(), "run")
	if err := os.Symlink(dir, link); err != nil {
		t.Fatal(err)
	}
	id := func(n int) string { return fmt.Sprintf("%064x", n) }
	bundles, root := filepath.Join(dir, "b"), filepath.Join(dir, "r")
	runc := func(n int, bundle string) (string, string) {
		return filepath.Join(id(n), "state.json"), fmt.Sprintf(`{"id":%q,"config":{"labels":["bundle=%s","bundle=%s"]}}`, id(n), "/a/"+id(n), bundle)
	}
	files := map[string]string{}
	add := func(path, text string) { files[filepath.Join(root, path)] = text }
	add(runc(1, filepath.Join(bundles, id(1))))
	add(runc(2, "/run/containerd/io.containerd.runtime.v2.task/moby/"+id(2)))
	add(filepath.Join(id(3), "status"), fmt.Sprintf(`{"bundle":%q}`, filepath.Join(bundles, id(3))))
	add(filepath.Join(id(4), "status"), `{"bundle":"/run/crio"}`)
	add(filepath.Join(id(5), "state.json"), `{`)
	add(filepath.Join(id(6), "exec.fifo"), "")
	add(runc(7, filepath.Join(bundles, id(1))))
	add(filepath.Join(id(8), "state.json"), strings.Repeat(" ", stateLimit)+"{}")
	add(filepath.Join(id(9), "exec.fifo"), "") // died early, with a directory of ours
	files[filepath.Join(dir, "s", id(9), "exit")] = ""
	for path, text := range files {
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Mkdir(bundles, 0o700); err != nil {
		t.Fatal(err)
	}
	places := Places{Bundles: filepath.Join(link, "b"), States: filepath.Join(dir, "s"), Runc: map[string]string{"runc": root}}
	w, err := Observe(places, func() []store.Op { return nil })
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(map[string]string{id(1): "runc", id(3): "runc", id(9): "runc"}, w.Runc); d != "" {
		t.Error(d)
	}
}

// BenchmarkPlan1000 compares a node of a thousand containers, where nothing is wrong.
func BenchmarkPlan1000(b *testing.B) {
	w := World{Bundles: map[string]bool{}, States: map[string]bool{}, Mounts: map[string]bool{}, Runc: map[string]string{}}
	var recs []store.Container
	for i := range 1000 {
		id := fmt.Sprintf("%064x", i)
		recs = append(recs, store.Container{ID: id})
		w.Bundles[id], w.States[id], w.Mounts[id], w.Runc[id] = true, true, true, "runc"
	}
	b.ReportAllocs()
	for b.Loop() {
		if len(Plan(recs, w)) != 0 {
			b.Fatal("something is wrong")
		}
	}
}

// BenchmarkObserve1000 reads the directories of a node of a thousand containers,
// as a start does before it compares.
func BenchmarkObserve1000(b *testing.B) {
	dir := b.TempDir()
	for i := range 1000 {
		id := fmt.Sprintf("%064x", i)
		for _, d := range []string{"b/" + id + "/rootfs", "s/" + id, "r/" + id} {
			if err := os.MkdirAll(filepath.Join(dir, d), 0o700); err != nil {
				b.Fatal(err)
			}
		}
	}
	places := Places{Bundles: filepath.Join(dir, "b"), States: filepath.Join(dir, "s"), Runc: map[string]string{"runc": filepath.Join(dir, "r")}}
	b.ReportAllocs()
	for b.Loop() {
		w, err := Observe(places, func() []store.Op { return nil })
		if err != nil || len(w.Bundles) != 1000 || len(w.States) != 1000 || len(w.Runc) != 1000 {
			b.Fatalf("%d, %d, %d, %v", len(w.Bundles), len(w.States), len(w.Runc), err)
		}
	}
}

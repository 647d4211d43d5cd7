package nri

import (
	"context"
	"path/filepath"
	"testing"
	"time"

	"github.com/containerd/nri/pkg/adaptation"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-dev/berth/store"
)

func newManager(t testing.TB, records store.Change) *Manager {
	t.Helper()
	db, err := store.Open(store.Config{Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = db.Close() })
	if err := db.Commit(t.Context(), records); err != nil {
		t.Fatal(err)
	}
	m, err := New(Config{PluginDir: filepath.Join(t.TempDir(), "none"), RegistrationTime: time.Second, RequestTime: time.Second, BootID: "b"}, db)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = m.Close(t.Context()) })
	return m
}

func podRecord(id string) store.Sandbox {
	return store.Sandbox{ID: id, Config: &runtimeapi.PodSandboxConfig{Metadata: &runtimeapi.PodSandboxMetadata{Name: id}}}
}

func containerRecord(id, pod string) store.Container {
	return store.Container{ID: id, SandboxID: pod, Config: &runtimeapi.ContainerConfig{Metadata: &runtimeapi.ContainerMetadata{Name: id}},
		Facts: store.ContainerFacts{BootID: "b"}}
}

// noSpecs is a node without specifications.
type noSpecs struct{ Runtime }

func (noSpecs) StoredSpec(string) (*specs.Spec, error) { return &specs.Spec{}, nil }

// life tells everything of a pod with one container.
func life(tb testing.TB, m *Manager, pod store.Sandbox, c store.Container) {
	ctx, doc := tb.Context(), &specs.Spec{}
	if err := m.RunPod(ctx, pod); err != nil {
		tb.Fatal(err)
	}
	if a, err := m.CreateContainer(ctx, c, doc); a != nil || err != nil {
		tb.Fatal(a, err)
	}
	m.ContainerCreated(ctx, c)
	if err := m.StartContainer(ctx, c); err != nil {
		tb.Fatal(err)
	}
	m.ContainerStarted(ctx, c)
	m.ContainerStopped(ctx, c)
	m.RemoveContainer(ctx, c)
	m.StopPod(ctx, pod)
	m.RemovePod(ctx, pod)
}

// TestViewForgets proves that what is gone costs nothing any more, with
// plugins or without, and that a daemon without plugins may have no Manager.
func TestViewForgets(t *testing.T) {
	m := newManager(t, store.Change{})
	if err := m.Start(noSpecs{}); err != nil {
		t.Fatal(err)
	}
	pod := podRecord("pod")
	life(t, m, pod, containerRecord("c", "pod"))
	if err := m.RunPod(t.Context(), pod); err != nil {
		t.Fatal(err)
	}
	if _, err := m.CreateContainer(t.Context(), containerRecord("d", "pod"), &specs.Spec{}); err != nil {
		t.Fatal(err)
	}
	m.UndoContainer(t.Context(), "d")
	m.UndoContainer(t.Context(), "never seen")
	m.UndoPod(t.Context(), "pod")
	m.UndoPod(t.Context(), "never seen")
	if len(m.view.pods)+len(m.view.containers) != 0 {
		t.Errorf("the view keeps %d pods and %d containers", len(m.view.pods), len(m.view.containers))
	}
	var off *Manager
	life(t, off, pod, containerRecord("c", "pod"))
	off.UndoContainer(t.Context(), "c")
	off.UndoPod(t.Context(), "pod")
	if err := off.Start(nil); err != nil {
		t.Error(err)
	}
	if err := off.Close(t.Context()); err != nil {
		t.Error(err)
	}
}

// TestSnapshot says with what a plugin is synchronised that joins now.
func TestSnapshot(t *testing.T) {
	ended := containerRecord("ended", "pod")
	ended.Facts.Exit = &store.Exit{}
	gone := containerRecord("gone", "pod")
	m := newManager(t, store.Change{
		PutSandboxes:  []store.Sandbox{podRecord("pod"), podRecord("removed")},
		PutContainers: []store.Container{containerRecord("made", "pod"), ended, gone},
	})
	if err := m.Start(noSpecs{}); err != nil {
		t.Fatal(err)
	}
	ctx := t.Context()
	if _, err := m.CreateContainer(ctx, containerRecord("being made", "pod"), &specs.Spec{}); err != nil {
		t.Fatal(err)
	}
	if err := m.RunPod(ctx, podRecord("being run")); err != nil {
		t.Fatal(err)
	}
	// Told that it goes: no more a matter of plugins, although the record is there.
	m.RemoveContainer(ctx, gone)
	// Recovery removes without telling.
	if err := m.db.Commit(ctx, store.Change{DeleteSandboxes: []string{"removed"}}); err != nil {
		t.Fatal(err)
	}
	pods, containers := m.snapshot()
	got := map[string]bool{}
	for _, p := range pods {
		got[p.GetId()] = true
	}
	for _, c := range containers {
		got[c.GetId()] = true
	}
	for _, id := range []string{"pod", "being run", "made", "being made"} {
		if !got[id] {
			t.Errorf("%s is missing", id)
		}
	}
	if len(got) != 4 {
		t.Errorf("got %v", got)
	}
}

// BenchmarkNoPlugins is what a pod with one container costs while no plugin is
// connected.
func BenchmarkNoPlugins(b *testing.B) {
	m := newManager(b, store.Change{})
	if err := m.Start(noSpecs{}); err != nil {
		b.Fatal(err)
	}
	pod, c := podRecord("pod"), containerRecord("c", "pod")
	for b.Loop() {
		life(b, m, pod, c)
	}
}

// TestStartForNobody starts without installed plugins: no specification is read
// for nobody, and the plugin that joins first is told of everything all the same.
func TestStartForNobody(t *testing.T) {
	m := newManager(t, store.Change{
		PutSandboxes:  []store.Sandbox{podRecord("pod")},
		PutContainers: []store.Container{containerRecord("c", "pod")},
	})
	read := 0
	if err := m.Start(countedSpecs{n: &read}); err != nil {
		t.Fatal(err)
	}
	if read != 0 {
		t.Errorf("%d specifications were read for no plugin", read)
	}
	var pods, containers int
	err := m.synchronise(t.Context(), func(_ context.Context, p []*adaptation.PodSandbox, c []*adaptation.Container) ([]*adaptation.ContainerUpdate, error) {
		pods, containers = len(p), len(c)
		return nil, nil
	})
	if err != nil || pods != 1 || containers != 1 || read != 1 {
		t.Errorf("the first plugin was told of %d pods and %d containers, %d specifications were read: %v", pods, containers, read, err)
	}
}

type countedSpecs struct {
	Runtime
	n *int
}

func (s countedSpecs) StoredSpec(string) (*specs.Spec, error) { *s.n++; return &specs.Spec{}, nil }

package runtimeservice

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-dev/berth/sandbox"
	"github.com/berth-dev/berth/shim"
	"github.com/berth-dev/berth/store"
)

// fakeNode stands in for all that lies under the service.
type fakeNode struct {
	mute    atomic.Bool // shims do not answer
	mu      sync.Mutex
	calls   []string
	exits   chan shim.Exit
	db      *store.DB
	runGate chan struct{}                                  // RunPodSandbox waits for it when set
	fail    map[string]error                               // by call name
	onKill  func(id string, sig syscall.Signal)            // after a signal
	states  map[string]shim.State                          // for Reconnect
	created func(shim.CreateRequest) (shim.Created, error) // instead of success
}

func (n *fakeNode) note(call, id string) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.calls = append(n.calls, call)
	return n.fail[call]
}

func (n *fakeNode) count(call string) int {
	n.mu.Lock()
	defer n.mu.Unlock()
	c := 0
	for _, s := range n.calls {
		if s == call {
			c++
		}
	}
	return c
}

type fakePods struct{ *fakeNode }

func (p fakePods) Run(ctx context.Context, rec store.Sandbox) (store.Sandbox, error) {
	if p.runGate != nil {
		<-p.runGate
	}
	if err := p.note("run", rec.ID); err != nil {
		return rec, err
	}
	rec.Facts.CreatedAt = time.Now()
	return rec, p.db.Commit(ctx, store.Change{PutSandboxes: []store.Sandbox{rec}})
}

func (p fakePods) Stop(ctx context.Context, id string) error {
	if err := p.note("stop", id); err != nil {
		return err
	}
	rec, err := p.db.Sandbox(id)
	if err != nil {
		return err
	}
	rec.Facts.StoppedAt = time.Now()
	return p.db.Commit(ctx, store.Change{PutSandboxes: []store.Sandbox{rec}})
}

func (p fakePods) Remove(ctx context.Context, id string) error {
	return p.db.Commit(ctx, store.Change{DeleteSandboxes: []string{id}})
}

func (p fakePods) Files(store.Sandbox) sandbox.Files  { return sandbox.Files{} }
func (p fakePods) NetworkReady(context.Context) error { return p.note("network", "") }

type fakeShim struct{ *fakeNode }

// hang is what a call on a shim that does not answer does.
func (n *fakeNode) hang(ctx context.Context) error {
	if !n.mute.Load() {
		return nil
	}
	<-ctx.Done()
	return ctx.Err()
}

func (s fakeShim) Create(ctx context.Context, r shim.CreateRequest) (shim.Created, error) {
	if err := s.hang(ctx); err != nil {
		return shim.Created{}, err
	}
	if err := s.note("create", r.ID); err != nil {
		return shim.Created{}, err
	}
	if s.created != nil {
		return s.created(r)
	}
	return shim.Created{PID: 4242}, nil
}

func (s fakeShim) Start(_ context.Context, id string) (time.Time, error) {
	return time.Now(), s.note("start", id)
}

func (s fakeShim) Delete(_ context.Context, id string, _ shim.Runtime) error {
	s.mute.Store(false) // a deleted container has no shim to wait for
	return s.note("delete", id)
}

func (s fakeShim) Signal(ctx context.Context, id string, sig syscall.Signal, _ bool) error {
	if err := s.hang(ctx); err != nil {
		return err
	}
	if err := s.note("signal "+sig.String(), id); err != nil {
		return err
	}
	if s.onKill != nil {
		s.onKill(id, sig)
	}
	return nil
}

func (s fakeShim) Update(_ context.Context, id string, _ shim.Runtime, _ *specs.LinuxResources) error {
	return s.note("update", id)
}
func (s fakeShim) ReopenLog(_ context.Context, id string) error { return s.note("reopen", id) }
func (s fakeShim) Exits() <-chan shim.Exit                      { return s.exits }
func (s fakeShim) State(ctx context.Context, id string) (shim.State, error) {
	return s.Reconnect(ctx, id)
}

func (s fakeShim) Reconnect(ctx context.Context, id string) (shim.State, error) {
	if err := s.hang(ctx); err != nil {
		return shim.State{}, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if st, ok := s.states[id]; ok {
		return st, nil
	}
	return shim.State{Phase: shim.PhaseGone}, nil
}

func (s fakeShim) Exec(context.Context, string, shim.ExecRequest) (*shim.Exec, error) {
	return nil, errdefs.ErrNotImplemented
}

func (s fakeShim) Attach(context.Context, string, bool) (*shim.Attached, error) {
	return nil, errdefs.ErrNotImplemented
}
func (s fakeShim) Resize(context.Context, string, uint16, uint16) error { return nil }

// fakeRootFS makes a directory with the files that the tests need.
type fakeRootFS struct{ *fakeNode }

func (r fakeRootFS) Mount(_ context.Context, id string, _ store.Image, target string) error {
	if err := os.MkdirAll(filepath.Join(target, "etc"), 0o755); err != nil {
		return err
	}
	return r.note("mount", id)
}

func (r fakeRootFS) Unmount(_ context.Context, id, target string) error {
	_ = os.RemoveAll(filepath.Join(target, "etc"))
	return r.note("unmount", id)
}
func (r fakeRootFS) Remove(_ context.Context, id string) error { return r.note("rmlayer", id) }

type fakeImages struct{}

func (fakeImages) Resolve(_ context.Context, s *runtimeapi.ImageSpec) (store.Image, error) {
	if s.GetImage() != "img" {
		return store.Image{}, fmt.Errorf("image %q: %w", s.GetImage(), errdefs.ErrNotFound)
	}
	return store.Image{ID: "sha256:1234", Layers: []string{"sha256:aa"}, RepoDigests: []string{"r/img@sha256:77"},
		Config: []byte(`{"architecture":"amd64","os":"linux","config":{"Cmd":["/bin/sh"],"StopSignal":"SIGUSR1"}}`)}, nil
}

// fakeClock moves only when told to.
type fakeClock struct {
	mu     sync.Mutex
	now    time.Time
	timers []fakeTimer
}

type fakeTimer struct {
	at time.Time
	ch chan time.Time
}

func (c *fakeClock) Now() time.Time { c.mu.Lock(); defer c.mu.Unlock(); return c.now }

func (c *fakeClock) After(d time.Duration) <-chan time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	t := fakeTimer{c.now.Add(d), make(chan time.Time, 1)}
	c.timers = append(c.timers, t)
	return t.ch
}

func (c *fakeClock) waiting() int { c.mu.Lock(); defer c.mu.Unlock(); return len(c.timers) }

func (c *fakeClock) advance(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(d)
	var rest []fakeTimer
	for _, t := range c.timers {
		if t.at.After(c.now) {
			rest = append(rest, t)
			continue
		}
		t.ch <- c.now
	}
	c.timers = rest
}

// newTestService returns a service over a real store and a fake node.
func newTestService(t *testing.T) (*Service, *fakeNode) {
	t.Helper()
	dir := t.TempDir()
	db, err := store.Open(store.Config{Dir: filepath.Join(dir, "state")})
	if err != nil {
		t.Fatal(err)
	}
	n := &fakeNode{exits: make(chan shim.Exit), db: db, fail: map[string]error{}, states: map[string]shim.State{}}
	c := newCore(Config{RunDir: filepath.Join(dir, "run"), StateDir: filepath.Join(dir, "state"), BootID: "boot",
		Handlers: map[string]Handler{"runc": {}}, DefaultHandler: "runc"})
	c.db, c.images, c.rootfs = db, fakeImages{}, fakeRootFS{n}
	c.pod = podDeps{fakePods{n}, fakePods{n}}
	c.shim = shimDeps{fakeShim{n}, fakeShim{n}, fakeShim{n}, fakeShim{n}}
	s := newService(c, nil)
	c.tasks.spawn(s.consumeExits)
	t.Cleanup(func() {
		if err := s.Close(context.Background()); err != nil {
			t.Error(err)
		}
		if err := db.Close(); err != nil {
			t.Error(err)
		}
	})
	return s, n
}

func podRequest(name string) *runtimeapi.RunPodSandboxRequest {
	return &runtimeapi.RunPodSandboxRequest{Config: &runtimeapi.PodSandboxConfig{
		Metadata: &runtimeapi.PodSandboxMetadata{Name: name, Namespace: "default", Uid: "u-" + name},
	}}
}

func mustPod(t *testing.T, s *Service, name string) string {
	t.Helper()
	r, err := s.RunPodSandbox(t.Context(), podRequest(name))
	if err != nil {
		t.Fatal(err)
	}
	return r.GetPodSandboxId()
}

func containerRequest(pod, name string) *runtimeapi.CreateContainerRequest {
	return &runtimeapi.CreateContainerRequest{PodSandboxId: pod, Config: &runtimeapi.ContainerConfig{
		Metadata: &runtimeapi.ContainerMetadata{Name: name},
		Image:    &runtimeapi.ImageSpec{Image: "img"},
	}}
}

func mustContainer(t *testing.T, s *Service, pod, name string, start bool) string {
	t.Helper()
	r, err := s.CreateContainer(t.Context(), containerRequest(pod, name))
	if err != nil {
		t.Fatal(err)
	}
	if start {
		if _, err := s.StartContainer(t.Context(), &runtimeapi.StartContainerRequest{ContainerId: r.GetContainerId()}); err != nil {
			t.Fatal(err)
		}
	}
	return r.GetContainerId()
}

func statusFor(t *testing.T, s *Service, id string) *runtimeapi.ContainerStatus {
	t.Helper()
	r, err := s.ContainerStatus(t.Context(), &runtimeapi.ContainerStatusRequest{ContainerId: id, Verbose: true})
	if err != nil {
		t.Fatal(err)
	}
	return r.GetStatus()
}

// eventually waits for a condition that another goroutine brings about.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(30 * time.Second); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("waited in vain: %s", what)
		}
	}
}

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
	"github.com/berth-dev/berth/shim/shimtest"
	"github.com/berth-dev/berth/store"
)

// fakeNode stands in for all that lies under the service.
type fakeNode struct {
	mute atomic.Bool // shims do not answer

	namespaces map[string]string // of sandboxes
	mu         sync.Mutex
	calls      []string
	shims      *shimtest.Fake
	db         *store.DB
	runGate    chan struct{}                                  // RunPodSandbox waits for it when set
	fail       map[string]error                               // by call name
	trouble    []shim.LogTrouble                              // of containers' logs
	handler    string                                         // that an image was last looked up for
	lost       chan string                                    // sandboxes whose holder has ended
	created    func(shim.CreateRequest) (shim.Created, error) // instead of success
}

func (n *fakeNode) note(call, id string) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.calls = append(n.calls, call)
	return n.fail[call]
}

func (n *fakeNode) setFail(call string, err error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.fail[call] = err
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
	rec.Facts.CreatedAt, rec.Facts.Namespaces = time.Now(), p.namespaces
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

// Nothing is ever left of a fake sandbox.
func (p fakePods) Resume(_ context.Context, id string) error { return p.note("resume", id) }
func (p fakePods) Examine(context.Context) ([]sandbox.Action, error) {
	return nil, p.note("examine", "")
}
func (p fakePods) Settle(_ context.Context, id string) error { return p.note("settle", id) }

func (p fakePods) WatchHolders() <-chan string { return p.lost }

func (p fakePods) Files(store.Sandbox) sandbox.Files { return sandbox.Files{} }
func (p fakePods) Limit(_ context.Context, s store.Sandbox, _, _ *runtimeapi.LinuxContainerResources) error {
	return p.note("limit", s.ID)
}
func (p fakePods) NetworkReady(context.Context) (string, error) {
	return "a note", p.note("network", "")
}

// fakeShim notes calls on the fake shims, and fails or hangs as the test says.
type fakeShim struct {
	*shimtest.Fake
	*fakeNode
}

// LastExit fails when the test says so.
func (s fakeShim) LastExit(id string) (shim.Exit, bool, error) {
	if err := s.note("last exit", id); err != nil {
		return shim.Exit{}, false, err
	}
	return s.Fake.LastExit(id)
}

// hang is what a call on a shim that does not answer does.
func (n *fakeNode) hang(ctx context.Context) error {
	if !n.mute.Load() {
		return nil
	}
	<-ctx.Done()
	return ctx.Err()
}

func (s fakeShim) Prepare(id string) { _ = s.note("prepare", id) }

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
	return s.Fake.Create(ctx, r)
}

func (s fakeShim) LogTrouble(context.Context) []shim.LogTrouble { return s.trouble }

func (s fakeShim) LogLosses(context.Context) shim.LogLosses {
	return shim.LogLosses{Containers: s.trouble}
}

func (s fakeShim) Start(ctx context.Context, id string) (shim.Started, error) {
	if err := s.note("start", id); err != nil {
		return shim.Started{}, err
	}
	return s.Fake.Start(ctx, id)
}

func (s fakeShim) Delete(ctx context.Context, id string, r shim.Runtime) error {
	s.mute.Store(false) // a deleted container has no shim to wait for
	if err := s.note("delete", id); err != nil {
		return err
	}
	return s.Fake.Delete(ctx, id, r)
}

func (s fakeShim) Signal(ctx context.Context, id string, sig syscall.Signal) error {
	if err := s.hang(ctx); err != nil {
		return err
	}
	if err := s.note("signal "+sig.String(), id); err != nil {
		return err
	}
	return s.Fake.Signal(ctx, id, sig)
}

func (s fakeShim) Update(ctx context.Context, id string, r shim.Runtime, res *specs.LinuxResources) error {
	if err := s.note("update", id); err != nil {
		return err
	}
	return s.Fake.Update(ctx, id, r, res)
}

func (s fakeShim) State(ctx context.Context, id string) (shim.State, error) {
	return s.Reconnect(ctx, id)
}

func (s fakeShim) Reconnect(ctx context.Context, id string) (shim.State, error) {
	if err := s.hang(ctx); err != nil {
		return shim.State{}, err
	}
	return s.Fake.Reconnect(ctx, id)
}

// Freeze always fails: that it works takes a real shim.
func (s fakeShim) Freeze(_ context.Context, id string) (*shim.Frozen, error) {
	if err := s.note("freeze", id); err != nil {
		return nil, err
	}
	return nil, errdefs.ErrUnavailable
}

func (s fakeShim) Thawed(_ context.Context, id string) error { return s.note("thawed", id) }

// fakeRootFS makes a directory with the files that the tests need.
type fakeRootFS struct{ *fakeNode }

func (r fakeRootFS) Mount(_ context.Context, id string, _ store.Image, target string, _ store.RootView) error {
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

type fakeImages struct{ *fakeNode }

func (i fakeImages) Resolve(_ context.Context, s *runtimeapi.ImageSpec) (store.Image, error) {
	i.mu.Lock()
	i.handler = s.GetRuntimeHandler()
	i.mu.Unlock()
	if s.GetImage() != "img" {
		return store.Image{}, fmt.Errorf("image %q: %w", s.GetImage(), errdefs.ErrNotFound)
	}
	return store.Image{ID: "sha256:1234", Layers: []string{"sha256:aa"}, RepoDigests: []string{"r/img@sha256:77"},
		Config: []byte(`{"architecture":"amd64","os":"linux","config":{"Cmd":["/bin/sh"],"StopSignal":"SIGUSR1"}}`)}, nil
}

func (fakeImages) Lend(context.Context, string, store.Image, string, store.RootView) error {
	return errdefs.ErrNotImplemented
}

func (fakeImages) Suspect(context.Context, string) {}

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
	n := &fakeNode{shims: shimtest.NewFake(), db: db, fail: map[string]error{}}
	c := newCore(Config{RunDir: filepath.Join(dir, "run"), StateDir: filepath.Join(dir, "state"), BootID: "boot",
		Handlers: map[string]Handler{"runc": {}}, DefaultHandler: "runc"}, nil)
	c.db, c.images, c.rootfs = db, fakeImages{n}, fakeRootFS{n}
	c.pod = podDeps{fakePods{n}, fakePods{n}, fakePods{n}, fakePods{n}}
	shims := fakeShim{n.shims, n}
	c.shim = shimDeps{shims, shims, shims, shims, shims, shims, shims, shims}
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

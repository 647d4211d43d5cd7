package suite

import (
	"context"
	"fmt"
	"net"
	"os"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/containerd/nri/pkg/api"
	"github.com/containerd/nri/pkg/stub"
	"github.com/containerd/ttrpc"
)

// told is one thing that a plugin heard: "RunPodSandbox POD",
// "CreateContainer CONTAINER", or "sync ID" for what it was synchronised with.
type told struct{ event, id string }

// plugin is a node resource plugin that lives in the test's process. It
// records what it hears; the functions may answer, and may block.
type plugin struct {
	name, idx string
	stub      stub.Stub
	conn      net.Conn
	synced    chan struct{}
	closed    chan struct{}

	onSync    func(context.Context)
	onEvent   func(ctx context.Context, event, id string) error
	onCreate  func(*api.Container) (*api.ContainerAdjustment, []*api.ContainerUpdate)
	onUpdate  func(*api.Container, *api.LinuxResources) []*api.ContainerUpdate
	onStop    func(*api.Container) []*api.ContainerUpdate
	onChecked func(*api.ValidateContainerAdjustmentRequest) error

	mu         sync.Mutex
	heard      []told
	pods       map[string]*api.PodSandbox
	containers map[string]*api.Container
	states     map[string]api.ContainerState // at the event of that name
}

// connect starts the plugin and waits until it is synchronised.
func (p *plugin) connect(t *testing.T, socket string, opts ...stub.Option) *plugin {
	t.Helper()
	must(t, p.dial(t, socket, opts...))
	select {
	case <-p.synced:
	case <-time.After(patience):
		t.Fatalf("plugin %s is not synchronised", p.name)
	}
	return p
}

// dial starts the plugin; an error says that it was not let in.
func (p *plugin) dial(t *testing.T, socket string, opts ...stub.Option) (err error) {
	t.Helper()
	p.synced, p.closed = make(chan struct{}), make(chan struct{})
	p.pods, p.containers, p.states = map[string]*api.PodSandbox{}, map[string]*api.Container{}, map[string]api.ContainerState{}
	var closed sync.Once
	p.stub, err = stub.New(p, append([]stub.Option{
		stub.WithLogger(quiet{}), stub.WithPluginName(p.name), stub.WithPluginIdx(p.idx), stub.WithSocketPath(socket),
		stub.WithOnClose(func() { closed.Do(func() { close(p.closed) }) }),
		stub.WithDialer(func(path string) (net.Conn, error) {
			c, err := net.Dial("unix", path)
			p.conn = c
			return c, err
		}),
	}, opts...)...)
	if err != nil {
		return err
	}
	t.Cleanup(p.stub.Stop)
	return p.stub.Start(t.Context())
}

func (p *plugin) note(ctx context.Context, event, id string, pod *api.PodSandbox, c *api.Container) error {
	p.mu.Lock()
	p.heard = append(p.heard, told{event, id})
	if pod != nil {
		p.pods[pod.GetId()] = pod
	}
	if c != nil {
		p.containers[c.GetId()] = c
		p.states[event+" "+id] = c.GetState()
	}
	p.mu.Unlock()
	if p.onEvent != nil {
		return p.onEvent(ctx, event, id)
	}
	return nil
}

// events are the names of what the plugin heard of an object, in order.
func (p *plugin) events(id string) (out []string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, h := range p.heard {
		if h.id == id {
			out = append(out, h.event)
		}
	}
	return out
}

// learned counts how often the plugin was told that an object exists.
func (p *plugin) learned(id string) (n int) {
	for _, e := range p.events(id) {
		if e == "sync" || e == "CreateContainer" || e == "RunPodSandbox" {
			n++
		}
	}
	return n
}

func (p *plugin) seen(id string) *api.Container {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.containers[id]
}

func (p *plugin) pod(id string) *api.PodSandbox {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.pods[id]
}

// state is the container's state as the event said it.
func (p *plugin) state(event, id string) api.ContainerState {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.states[event+" "+id]
}

func (p *plugin) all() []told {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.heard)
}

// shared is a value that a story changes while its plugins read it.
type shared[T any] struct {
	mu sync.Mutex
	v  T
}

func (s *shared[T]) set(v T) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.v = v
}

func (s *shared[T]) get() T {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.v
}

func (p *plugin) Synchronize(ctx context.Context, pods []*api.PodSandbox, containers []*api.Container) ([]*api.ContainerUpdate, error) {
	for _, s := range pods {
		_ = p.note(ctx, "sync", s.GetId(), s, nil)
	}
	for _, c := range containers {
		_ = p.note(ctx, "sync", c.GetId(), nil, c)
	}
	if p.onSync != nil {
		p.onSync(ctx)
	}
	close(p.synced)
	return nil, nil
}

func (p *plugin) RunPodSandbox(ctx context.Context, s *api.PodSandbox) error {
	return p.note(ctx, "RunPodSandbox", s.GetId(), s, nil)
}

func (p *plugin) UpdatePodSandbox(ctx context.Context, s *api.PodSandbox, _, _ *api.LinuxResources) error {
	return p.note(ctx, "UpdatePodSandbox", s.GetId(), s, nil)
}

func (p *plugin) PostUpdatePodSandbox(ctx context.Context, s *api.PodSandbox) error {
	return p.note(ctx, "PostUpdatePodSandbox", s.GetId(), s, nil)
}

func (p *plugin) StopPodSandbox(ctx context.Context, s *api.PodSandbox) error {
	return p.note(ctx, "StopPodSandbox", s.GetId(), s, nil)
}

func (p *plugin) RemovePodSandbox(ctx context.Context, s *api.PodSandbox) error {
	return p.note(ctx, "RemovePodSandbox", s.GetId(), s, nil)
}

func (p *plugin) CreateContainer(ctx context.Context, s *api.PodSandbox, c *api.Container) (*api.ContainerAdjustment, []*api.ContainerUpdate, error) {
	if err := p.note(ctx, "CreateContainer", c.GetId(), s, c); err != nil {
		return nil, nil, err
	}
	if p.onCreate == nil {
		return nil, nil, nil
	}
	a, u := p.onCreate(c)
	return a, u, nil
}

func (p *plugin) PostCreateContainer(ctx context.Context, s *api.PodSandbox, c *api.Container) error {
	return p.note(ctx, "PostCreateContainer", c.GetId(), s, c)
}

func (p *plugin) StartContainer(ctx context.Context, s *api.PodSandbox, c *api.Container) error {
	return p.note(ctx, "StartContainer", c.GetId(), s, c)
}

func (p *plugin) PostStartContainer(ctx context.Context, s *api.PodSandbox, c *api.Container) error {
	return p.note(ctx, "PostStartContainer", c.GetId(), s, c)
}

func (p *plugin) UpdateContainer(ctx context.Context, s *api.PodSandbox, c *api.Container, r *api.LinuxResources) ([]*api.ContainerUpdate, error) {
	if err := p.note(ctx, "UpdateContainer", c.GetId(), s, c); err != nil || p.onUpdate == nil {
		return nil, err
	}
	return p.onUpdate(c, r), nil
}

func (p *plugin) PostUpdateContainer(ctx context.Context, s *api.PodSandbox, c *api.Container) error {
	return p.note(ctx, "PostUpdateContainer", c.GetId(), s, c)
}

func (p *plugin) StopContainer(ctx context.Context, s *api.PodSandbox, c *api.Container) ([]*api.ContainerUpdate, error) {
	if err := p.note(ctx, "StopContainer", c.GetId(), s, c); err != nil || p.onStop == nil {
		return nil, err
	}
	return p.onStop(c), nil
}

func (p *plugin) RemoveContainer(ctx context.Context, s *api.PodSandbox, c *api.Container) error {
	return p.note(ctx, "RemoveContainer", c.GetId(), s, c)
}

func (p *plugin) ValidateContainerAdjustment(_ context.Context, r *api.ValidateContainerAdjustmentRequest) error {
	if p.onChecked == nil {
		return nil
	}
	return p.onChecked(r)
}

// quiet keeps the stub's log out of the test's.
type quiet struct{}

func (quiet) Debugf(context.Context, string, ...any) {}
func (quiet) Infof(context.Context, string, ...any)  {}
func (quiet) Warnf(context.Context, string, ...any)  {}
func (quiet) Errorf(context.Context, string, ...any) {}

func (n *node) nri() string { return n.own.Dir("run", "nri.sock") }

// evicting makes the plugin's answers to CreateContainer evict a container: the
// stub has no call for it.
func evicting(id func() string) stub.Option {
	return stub.WithTTRPCOptions(nil, []ttrpc.ServerOpt{ttrpc.WithUnaryServerInterceptor(
		func(ctx context.Context, unmarshal ttrpc.Unmarshaler, _ *ttrpc.UnaryServerInfo, next ttrpc.Method) (any, error) {
			out, err := next(ctx, unmarshal)
			if r, ok := out.(*api.CreateContainerResponse); ok && err == nil && id() != "" {
				r.Evict = append(r.Evict, &api.ContainerEviction{ContainerId: id(), Reason: "a story"})
			}
			return out, err
		})})
}

// pluginEnv makes the test's program the plugin that nriInstalled installs: it
// adds what its configuration says to each container's environment.
const pluginEnv = "BERTH_TEST_PLUGIN"

type installed struct{ config string }

func (p *installed) Configure(_ context.Context, config, _, _ string) (api.EventMask, error) {
	p.config = config
	return api.MustParseEventMask("CreateContainer"), nil
}

func (p *installed) CreateContainer(context.Context, *api.PodSandbox, *api.Container) (*api.ContainerAdjustment, []*api.ContainerUpdate, error) {
	a := &api.ContainerAdjustment{}
	a.AddEnv("INSTALLED", p.config)
	return a, nil, nil
}

func TestMain(m *testing.M) {
	if os.Getenv(pluginEnv) == "" {
		os.Exit(m.Run())
	}
	s, err := stub.New(&installed{})
	if err == nil {
		err = s.Run(context.Background())
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

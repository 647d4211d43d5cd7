package chaos

import (
	"context"
	"errors"
	"flag"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/klog/v2"

	"github.com/berth-dev/berth/test/harness"
	"github.com/berth-dev/berth/test/images"
)

// patience bounds every wait; it is long because machines are slow and shared.
const patience = 2 * time.Minute

const image = images.HostPlain + "/probe:1"

var binDir = flag.String("bin", "", "directory of berthd and berth-shim; empty: bin of the module")

// size is how much there is to do.
type size struct {
	pods, writers, fast int // writers of which so many write in long bursts
	rounds, probers     int
	sessions            int // of each kind, open at each kill
}

func sizeOf() size {
	if os.Getenv("BERTH_CHAOS") == "full" {
		return size{pods: 10, writers: 60, fast: 4, rounds: 20, probers: 4, sessions: 6}
	}
	return size{pods: 2, writers: 4, fast: 1, rounds: 3, probers: 1, sessions: 1}
}

func full() bool { return os.Getenv("BERTH_CHAOS") == "full" }

// node is the node that is killed.
type node struct {
	t     *testing.T
	h     *harness.Node
	rt    runtimeapi.RuntimeServiceClient
	flags string // directory that all containers see, for files that tell them to go on
}

func open(t *testing.T) *node {
	klog.SetLogger(klog.Logger{}) // the streaming clients tell of every cut connection
	programs, err := harness.Find(*binDir)
	must(t, err)
	if missing := programs.Missing(true); len(missing) > 0 {
		t.Skip("cannot run a node here:\n  " + strings.Join(missing, "\n  "))
	}
	parts, err := images.LoadParts(t.Context())
	if errors.Is(err, images.ErrNoBusybox) {
		t.Skip(err)
	}
	must(t, err)
	all, err := images.Catalog(parts)
	must(t, err)
	n := &node{t: t, flags: t.TempDir()}
	n.h, err = harness.New(harness.Config{Programs: programs})
	must(t, err)
	t.Cleanup(n.close)
	reg, err := images.Serve(map[string]any{"probe:1": all["probe:1"]}, harness.ListenIn(n.h.Space().NetNS()))
	must(t, err)
	t.Cleanup(func() { reg.Close() })
	must(t, reg.WriteHosts(n.h.HostsDir()))
	must(t, n.h.Start(t.Context()))
	conn, err := n.h.Conn()
	must(t, err)
	n.rt = runtimeapi.NewRuntimeServiceClient(conn)
	_, err = runtimeapi.NewImageServiceClient(conn).PullImage(t.Context(), &runtimeapi.PullImageRequest{Image: &runtimeapi.ImageSpec{Image: image}})
	must(t, err)
	return n
}

// close ends what a failed test left, and everything else.
func (n *node) close() {
	if n.t.Failed() {
		n.t.Logf("end of the daemon's log:\n%s", n.h.LogTail())
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if len(n.h.Shims()) > 0 {
		if n.h.PID() == 0 {
			_ = n.h.Start(ctx)
		}
		if r, err := n.rt.ListPodSandbox(ctx, &runtimeapi.ListPodSandboxRequest{}); err == nil {
			for _, p := range r.GetItems() {
				_ = n.removePod(ctx, p.GetId())
			}
		}
	}
	if err := n.h.Close(); err != nil {
		n.t.Error(err)
	}
}

func (n *node) removePod(ctx context.Context, id string) error {
	if _, err := n.rt.StopPodSandbox(ctx, &runtimeapi.StopPodSandboxRequest{PodSandboxId: id}); err != nil {
		return err
	}
	_, err := n.rt.RemovePodSandbox(ctx, &runtimeapi.RemovePodSandboxRequest{PodSandboxId: id})
	return err
}

type pod struct {
	id     string
	config *runtimeapi.PodSandboxConfig
}

// runPods makes pods; every other one shares its PID namespace.
func (n *node) runPods(count int) []*pod {
	pods := make([]*pod, count)
	var g errgroup.Group
	for i := range pods {
		name := "chaos-" + strconv.Itoa(i)
		pods[i] = &pod{config: &runtimeapi.PodSandboxConfig{
			Metadata:     &runtimeapi.PodSandboxMetadata{Name: name, Namespace: "chaos", Uid: name},
			LogDirectory: n.t.TempDir(),
			Linux: &runtimeapi.LinuxPodSandboxConfig{SecurityContext: &runtimeapi.LinuxSandboxSecurityContext{
				NamespaceOptions: &runtimeapi.NamespaceOption{Pid: runtimeapi.NamespaceMode(1 - i%2)},
			}},
		}}
		g.Go(func() error {
			r, err := n.rt.RunPodSandbox(n.t.Context(), &runtimeapi.RunPodSandboxRequest{Config: pods[i].config})
			pods[i].id = r.GetPodSandboxId()
			return err
		})
	}
	must(n.t, g.Wait())
	return pods
}

// container is one of a pod's, with what must become of it.
type container struct {
	n      *node
	id     string
	name   string
	log    string
	code   int32
	reason string
}

// start runs a container; command is nil for the image's program with args.
func (n *node) start(p *pod, c *container, limit int64, command, args []string) error {
	c.n, c.log = n, filepath.Join(p.config.GetLogDirectory(), c.name+".log")
	cfg := &runtimeapi.ContainerConfig{
		Metadata: &runtimeapi.ContainerMetadata{Name: c.name},
		Image:    &runtimeapi.ImageSpec{Image: image},
		Command:  command, Args: args,
		LogPath: c.name + ".log",
		Mounts:  []*runtimeapi.Mount{{HostPath: n.flags, ContainerPath: "/flags", Readonly: true}},
		Linux: &runtimeapi.LinuxContainerConfig{
			Resources: &runtimeapi.LinuxContainerResources{MemoryLimitInBytes: limit},
			SecurityContext: &runtimeapi.LinuxContainerSecurityContext{
				NamespaceOptions: p.config.GetLinux().GetSecurityContext().GetNamespaceOptions(),
			},
		},
	}
	r, err := n.rt.CreateContainer(n.t.Context(), &runtimeapi.CreateContainerRequest{PodSandboxId: p.id, Config: cfg, SandboxConfig: p.config})
	if err != nil {
		return err
	}
	c.id = r.GetContainerId()
	_, err = n.rt.StartContainer(n.t.Context(), &runtimeapi.StartContainerRequest{ContainerId: c.id})
	return err
}

// tell makes the file that a container waits for.
func (c *container) tell() {
	must(c.n.t, os.WriteFile(filepath.Join(c.n.flags, c.name), nil, 0o644))
}

// ended checks that the container has ended as it was to.
func (c *container) ended() {
	c.n.t.Helper()
	var s *runtimeapi.ContainerStatus
	eventually(c.n.t, c.name+" ends", func() bool {
		r, err := c.n.rt.ContainerStatus(c.n.t.Context(), &runtimeapi.ContainerStatusRequest{ContainerId: c.id})
		must(c.n.t, err)
		s = r.GetStatus()
		return s.GetState() == runtimeapi.ContainerState_CONTAINER_EXITED
	})
	if s.GetExitCode() != c.code || s.GetReason() != c.reason {
		c.n.t.Errorf("%s ended with %d %s, must be %d %s", c.name, s.GetExitCode(), s.GetReason(), c.code, c.reason)
	}
	if s.GetFinishedAt() < s.GetStartedAt() || s.GetStartedAt() < s.GetCreatedAt() {
		c.n.t.Errorf("%s: created %d, started %d, finished %d", c.name, s.GetCreatedAt(), s.GetStartedAt(), s.GetFinishedAt())
	}
}

// each calls f for all at once and fails the test on the first error.
func each[T any](t *testing.T, all []T, f func(T) error) {
	t.Helper()
	var g errgroup.Group
	g.SetLimit(8)
	for _, x := range all {
		g.Go(func() error { return f(x) })
	}
	must(t, g.Wait())
}

// eventually waits until ok, and fails the test when that never comes.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		if ok() {
			return
		}
	}
	t.Fatalf("after %v: not true that %s", patience, what)
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// counter counts by name; it is safe for concurrent use.
type counter struct {
	mu sync.Mutex
	m  map[string]int
}

func (c *counter) add(name string, n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.m == nil {
		c.m = map[string]int{}
	}
	c.m[name] += n
}

package crash

import (
	"context"
	"crypto/rand"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

const (
	running = runtimeapi.ContainerState_CONTAINER_RUNNING
	exited  = runtimeapi.ContainerState_CONTAINER_EXITED
	ready   = runtimeapi.PodSandboxState_SANDBOX_READY
)

// counting writes lines until it is asked to end.
const counting = `trap 'echo bye; exit 7' TERM; i=0; while :; do echo line $i; i=$((i+1)); sleep 0.05; done`

// pod is a sandbox of the workload.
type pod struct {
	n      *node
	config *runtimeapi.PodSandboxConfig
	cgroup string
	logs   string
	id, ip string
	plain  bool // containers without an image volume, which earlier Berths lacked

	handler string
}

func (n *node) newPod(pid runtimeapi.NamespaceMode) *pod {
	name := strings.ToLower(rand.Text()[:12])
	p := &pod{n: n, cgroup: "berth-crash-" + name, logs: n.t.TempDir()}
	p.config = &runtimeapi.PodSandboxConfig{
		Metadata:     &runtimeapi.PodSandboxMetadata{Name: name, Namespace: "crash", Uid: name},
		LogDirectory: p.logs,
		PortMappings: []*runtimeapi.PortMapping{{ContainerPort: 80, HostPort: 8080}},
		Linux: &runtimeapi.LinuxPodSandboxConfig{
			CgroupParent: "/" + p.cgroup,
			SecurityContext: &runtimeapi.LinuxSandboxSecurityContext{
				NamespaceOptions: &runtimeapi.NamespaceOption{Pid: pid},
			},
		},
	}
	return p
}

func (p *pod) run() {
	p.n.t.Helper()
	p.n.must("run sandbox", func(ctx context.Context) error {
		r, err := p.n.rt.RunPodSandbox(ctx, &runtimeapi.RunPodSandboxRequest{Config: p.config, RuntimeHandler: p.handler})
		p.id = r.GetPodSandboxId()
		return err
	})
	p.ip = p.status().GetNetwork().GetIp()
	if p.ip == "" {
		p.n.t.Error("the sandbox has no address")
	}
}

func (p *pod) status() (s *runtimeapi.PodSandboxStatus) {
	p.n.t.Helper()
	p.n.must("status of sandbox", func(ctx context.Context) error {
		r, err := p.n.rt.PodSandboxStatus(ctx, &runtimeapi.PodSandboxStatusRequest{PodSandboxId: p.id})
		s = r.GetStatus()
		return err
	})
	return s
}

func (p *pod) stop() {
	p.n.t.Helper()
	p.n.must("stop sandbox", func(ctx context.Context) error {
		_, err := p.n.rt.StopPodSandbox(ctx, &runtimeapi.StopPodSandboxRequest{PodSandboxId: p.id})
		return err
	})
}

func (p *pod) remove() {
	p.n.t.Helper()
	p.n.must("remove sandbox", func(ctx context.Context) error {
		_, err := p.n.rt.RemovePodSandbox(ctx, &runtimeapi.RemovePodSandboxRequest{PodSandboxId: p.id})
		return err
	})
}

// lists checks that the daemon knows exactly this pod and these containers.
func (p *pod) lists(want map[string]runtimeapi.ContainerState) {
	p.n.t.Helper()
	p.n.must("lists", func(ctx context.Context) error {
		pods, err := p.n.rt.ListPodSandbox(ctx, &runtimeapi.ListPodSandboxRequest{})
		if err != nil {
			return err
		}
		if items := pods.GetItems(); len(items) != 1 || items[0].GetId() != p.id || items[0].GetState() != ready {
			p.n.t.Errorf("sandboxes are %v, want just %s", items, p.id)
		}
		cs, err := p.n.rt.ListContainers(ctx, &runtimeapi.ListContainersRequest{})
		if err != nil {
			return err
		}
		got := map[string]runtimeapi.ContainerState{}
		for _, c := range cs.GetContainers() {
			got[c.GetId()] = c.GetState()
		}
		if fmt.Sprint(got) != fmt.Sprint(want) {
			p.n.t.Errorf("containers are %v, want %v", got, want)
		}
		return nil
	})
	if s := p.status(); s.GetState() != ready || s.GetNetwork().GetIp() != p.ip {
		p.n.t.Errorf("sandbox is %v at %q, was ready at %q", s.GetState(), s.GetNetwork().GetIp(), p.ip)
	}
}

// container is one of a pod's.
type container struct {
	p    *pod
	name string
	id   string
}

// create makes a container; logs, if given, is mounted at /logs.
func (p *pod) create(name, script string, logs ...string) *container {
	p.n.t.Helper()
	c := &container{p: p, name: name}
	cfg := p.containerConfig(name, script)
	for _, dir := range logs {
		cfg.Mounts = append(cfg.Mounts, &runtimeapi.Mount{ContainerPath: "/logs", HostPath: dir, Readonly: true})
	}
	p.n.must("create container "+name, func(ctx context.Context) error {
		r, err := p.n.rt.CreateContainer(ctx, &runtimeapi.CreateContainerRequest{PodSandboxId: p.id, Config: cfg, SandboxConfig: p.config})
		c.id = r.GetContainerId()
		return err
	})
	return c
}

func (p *pod) containerConfig(name, script string) *runtimeapi.ContainerConfig {
	cfg := &runtimeapi.ContainerConfig{
		Metadata: &runtimeapi.ContainerMetadata{Name: name},
		Image:    &runtimeapi.ImageSpec{Image: testImage},
		Command:  []string{"/bin/sh", "-c", script},
		LogPath:  name + ".log",
		Mounts:   []*runtimeapi.Mount{{ContainerPath: "/image", Image: &runtimeapi.ImageSpec{Image: testImage}, Readonly: true}},
		Linux: &runtimeapi.LinuxContainerConfig{
			Resources: &runtimeapi.LinuxContainerResources{MemoryLimitInBytes: 64 << 20},
			SecurityContext: &runtimeapi.LinuxContainerSecurityContext{
				NamespaceOptions: p.config.GetLinux().GetSecurityContext().GetNamespaceOptions(),
			},
		},
	}
	if p.plain {
		cfg.Mounts = nil
	}
	return cfg
}

// start starts the container. A start that was carried out and not answered is
// refused when it is repeated, as the CRI has it; the state then tells.
func (c *container) start() {
	c.p.n.t.Helper()
	before := c.p.n.lives
	err := c.p.n.call(func(ctx context.Context) error {
		_, err := c.p.n.rt.StartContainer(ctx, &runtimeapi.StartContainerRequest{ContainerId: c.id})
		return err
	})
	if err == nil {
		return
	}
	if s := c.status(); c.p.n.lives == before || s.GetStartedAt() == 0 {
		c.p.n.t.Fatalf("start container %s: %v; it is %v", c.name, err, s)
	}
}

func (c *container) status() (s *runtimeapi.ContainerStatus) {
	c.p.n.t.Helper()
	c.p.n.must("status of container "+c.name, func(ctx context.Context) error {
		r, err := c.p.n.rt.ContainerStatus(ctx, &runtimeapi.ContainerStatusRequest{ContainerId: c.id})
		s = r.GetStatus()
		return err
	})
	return s
}

// ends waits for the container's end and checks code and reason.
func (c *container) ends(code int32, reason string) {
	c.p.n.t.Helper()
	var s *runtimeapi.ContainerStatus
	c.p.n.eventually("container "+c.name+" ends", func() bool {
		s = c.status()
		return s.GetState() == exited
	})
	if s.GetExitCode() != code || s.GetReason() != reason || s.GetFinishedAt() == 0 {
		c.p.n.t.Errorf("container %s ended with %d, %s, want %d, %s: %v", c.name, s.GetExitCode(), s.GetReason(), code, reason, s)
	}
}

func (c *container) stop(grace int64) {
	c.p.n.t.Helper()
	c.p.n.must("stop container "+c.name, func(ctx context.Context) error {
		_, err := c.p.n.rt.StopContainer(ctx, &runtimeapi.StopContainerRequest{ContainerId: c.id, Timeout: grace})
		return err
	})
}

func (c *container) remove() {
	c.p.n.t.Helper()
	c.p.n.must("remove container "+c.name, func(ctx context.Context) error {
		_, err := c.p.n.rt.RemoveContainer(ctx, &runtimeapi.RemoveContainerRequest{ContainerId: c.id})
		return err
	})
}

// log returns the messages in the container's log.
func (c *container) log() (out []string) {
	c.p.n.t.Helper()
	b, err := os.ReadFile(filepath.Join(c.p.logs, c.name+".log"))
	if os.IsNotExist(err) {
		return nil
	}
	must(c.p.n.t, err)
	for l := range strings.Lines(string(b)) {
		f := strings.SplitN(strings.TrimSuffix(l, "\n"), " ", 4)
		if len(f) != 4 {
			c.p.n.t.Fatalf("not a CRI log line: %q", l)
		}
		out = append(out, f[3])
	}
	return out
}

// counted checks that a counting container's log has each line once.
func (c *container) counted(last ...string) {
	c.p.n.t.Helper()
	got := c.log()
	want := []string{}
	for i := range len(got) - len(last) {
		want = append(want, fmt.Sprint("line ", i))
	}
	if want = append(want, last...); !slices.Equal(got, want) {
		c.p.n.t.Errorf("the log is %q", got)
	}
}

func (n *node) pull() {
	n.t.Helper()
	n.must("pull image", func(ctx context.Context) error {
		_, err := n.im.PullImage(ctx, &runtimeapi.PullImageRequest{Image: &runtimeapi.ImageSpec{Image: testImage}})
		return err
	})
}

// workload uses every verb once and checks the world after each.
func (n *node) workload(pid runtimeapi.NamespaceMode) {
	n.t.Helper()
	n.pull()
	n.damage()
	p := n.newPod(pid)
	p.run()
	a := p.create("a", counting)
	a.start()
	b := p.create("b", "echo last words; exit 42")
	b.start()
	b.ends(42, "Error")
	if got := b.log(); !slices.Equal(got, []string{"last words"}) {
		n.t.Errorf("log of b is %q", got)
	}
	n.update(a)
	p.update()
	c := p.create("c", "true")
	n.badStart(c)
	p.lists(map[string]runtimeapi.ContainerState{a.id: running, b.id: exited, c.id: exited})
	n.exec(a)
	a.counted()
	a.stop(20)
	a.ends(7, "Error")
	a.counted("bye")
	b.remove()
	c.remove()
	d := p.create("d", "trap '' TERM; while :; do sleep 1; done")
	d.start()
	d.stop(0)
	d.ends(137, "Error")
	p.lists(map[string]runtimeapi.ContainerState{a.id: exited, d.id: exited})
	p.stop()
	if s := p.status(); s.GetState() == ready {
		n.t.Error("a stopped sandbox is ready")
	}
	p.remove()
	n.removeImage()
	n.must("lists", func(ctx context.Context) error {
		pods, err := n.rt.ListPodSandbox(ctx, &runtimeapi.ListPodSandboxRequest{})
		if len(pods.GetItems()) > 0 {
			n.t.Errorf("sandboxes are left: %v", pods.GetItems())
		}
		return err
	})
	n.clean(p.cgroup)
	n.noImages()
}

func (n *node) update(c *container) {
	n.t.Helper()
	n.must("update container", func(ctx context.Context) error {
		_, err := n.rt.UpdateContainerResources(ctx, &runtimeapi.UpdateContainerResourcesRequest{
			ContainerId: c.id, Linux: &runtimeapi.LinuxContainerResources{MemoryLimitInBytes: 48 << 20}})
		return err
	})
	if got := c.status().GetResources().GetLinux().GetMemoryLimitInBytes(); got != 48<<20 {
		n.t.Errorf("memory limit is %d after an update", got)
	}
}

// update limits the pod, whose cgroup is Berth's own.
func (p *pod) update() {
	p.n.t.Helper()
	p.n.must("update sandbox", func(ctx context.Context) error {
		_, err := p.n.rt.UpdatePodSandboxResources(ctx, &runtimeapi.UpdatePodSandboxResourcesRequest{
			PodSandboxId: p.id, Resources: &runtimeapi.LinuxContainerResources{MemoryLimitInBytes: 96 << 20}})
		return err
	})
	file := filepath.Join("/sys/fs/cgroup/memory", p.cgroup, "memory.limit_in_bytes")
	if _, err := os.Stat("/sys/fs/cgroup/memory"); err != nil {
		file = filepath.Join("/sys/fs/cgroup", p.cgroup, "memory.max")
	}
	if got, err := os.ReadFile(file); err != nil || strings.TrimSpace(string(got)) != strconv.Itoa(96<<20) {
		p.n.t.Errorf("memory limit of the pod after an update: %s, %v", got, err)
	}
}

// badStart makes runc fail to start a container, of which nothing may go on.
func (n *node) badStart(c *container) {
	n.t.Helper()
	n.sabotage("runc", "start", "fail")
	if err := n.call(func(ctx context.Context) error {
		_, err := n.rt.StartContainer(ctx, &runtimeapi.StartContainerRequest{ContainerId: c.id})
		return err
	}); err == nil {
		n.t.Error("a start that fails is reported as a success")
	}
	n.sabotage("runc", "start", "")
	c.ends(128, "StartError")
	n.eventually("the shim of what did not start is gone", func() bool {
		c.status() // which starts a daemon that died again
		return n.h.Shims()[c.id] == 0
	})
}

func (n *node) exec(c *container) {
	n.t.Helper()
	n.must("exec", func(ctx context.Context) error {
		r, err := n.rt.ExecSync(ctx, &runtimeapi.ExecSyncRequest{ContainerId: c.id, Cmd: []string{"echo", "ahoy"}, Timeout: 30})
		if err == nil && string(r.GetStdout()) != "ahoy\n" {
			n.t.Errorf("exec printed %q", r.GetStdout())
		}
		return err
	})
}

func (n *node) removeImage() {
	n.t.Helper()
	n.must("remove image", func(ctx context.Context) error {
		_, err := n.im.RemoveImage(ctx, &runtimeapi.RemoveImageRequest{Image: &runtimeapi.ImageSpec{Image: testImage}})
		return err
	})
}

// noImages checks that neither records nor files of images are left.
func (n *node) noImages() {
	n.t.Helper()
	n.must("list images", func(ctx context.Context) error {
		r, err := n.im.ListImages(ctx, &runtimeapi.ListImagesRequest{})
		if len(r.GetImages()) > 0 {
			n.t.Errorf("images are left: %v", r.GetImages())
		}
		return err
	})
	for _, dir := range []string{"layers", "content"} {
		files(n.t, n.h.Dir("state", dir))
	}
}

// files reports all files below a directory as left behind.
func files(t *testing.T, dir string) {
	t.Helper()
	_ = filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() {
			t.Errorf("left behind: %s", path)
		}
		return nil
	})
}

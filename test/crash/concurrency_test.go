package crash

import (
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// stayer runs until it is asked to end.
const stayer = `trap 'exit 7' TERM; while :; do sleep 0.2; done`

// client makes random calls.
type client struct {
	n *node
	m *model
	r *rand.Rand
}

// TestIntegrationManyClients lets clients make random calls on the same few pods
// and containers of a daemon that is built with the race detector. Every answer
// is checked against a model of the CRI's state machine.
func TestIntegrationManyClients(t *testing.T) {
	clients, d := 24, 10*time.Second
	if full() {
		clients, d = 200, 2*time.Minute
	}
	n := openRace(t)
	n.pull()
	m, seed := newModel(), newRand(t)
	end := time.Now().Add(d)
	var wg sync.WaitGroup
	for range clients {
		c := &client{n: n, m: m, r: rand.New(rand.NewPCG(seed.Uint64(), 0))}
		wg.Go(func() {
			for time.Now().Before(end) {
				c.one()
			}
		})
	}
	wg.Wait()
	total := 0
	for _, k := range slices.Sorted(maps.Keys(m.answers)) {
		t.Logf("%6d %s", m.answers[k], k)
		total += m.answers[k]
	}
	t.Logf("%d clients, %v: %d answers checked", clients, d, total)
	for _, w := range m.wrong {
		t.Error("wrong answer: ", w)
	}
	n.removeAll()
	log, err := os.ReadFile(n.h.Dir("berthd.log"))
	must(t, err)
	if i := strings.Index(string(log), "WARNING: DATA RACE"); i >= 0 {
		t.Errorf("%.6000s", log[i:])
	}
}

// openRace is open with a daemon that is built with the race detector and
// without fault points.
func openRace(t *testing.T) *node {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "race")
	must(t, os.Mkdir(dir, 0o755))
	cmd := exec.Command("go", "build", "-race", "-o", filepath.Join(dir, "berthd"), "github.com/berth-dev/berth/cmd/berthd")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=1")
	if _, err := exec.LookPath("gcc"); err != nil {
		t.Skipf("cannot build with the race detector here: %v", err)
	}
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build with the race detector: %v\n%s", err, out)
	}
	return openFrom(t, "", dir)
}

// one makes one random call.
func (c *client) one() {
	ctx, cancel := context.WithTimeout(c.n.t.Context(), 2*patience)
	defer cancel()
	switch k := c.r.IntN(100); {
	case k < 8:
		c.runPod(ctx)
	case k < 26:
		c.createContainer(ctx)
	case k < 30:
		c.endPod(ctx)
	case k < 44:
		c.check(c.m.lists(ctx, c.n.rt))
	case k < 54:
		c.podStatus(ctx)
	default:
		if o := c.m.pick(true, c.r.IntN); o != nil {
			c.onContainer(ctx, o)
		} else {
			c.createContainer(ctx)
		}
	}
	c.m.forget(3)
}

func (c *client) check(err error) {
	if err != nil {
		c.m.mu.Lock()
		defer c.m.mu.Unlock()
		c.m.fail("list: %v", err)
	}
}

func (c *client) runPod(ctx context.Context) {
	name := fmt.Sprintf("model%d", c.r.IntN(8))
	lows := c.m.lows()
	r, err := c.n.rt.RunPodSandbox(ctx, &runtimeapi.RunPodSandboxRequest{Config: &runtimeapi.PodSandboxConfig{
		Metadata: &runtimeapi.PodSandboxMetadata{Name: name, Namespace: "model", Uid: name}, LogDirectory: filepath.Join(c.n.tools, name),
		Linux: &runtimeapi.LinuxPodSandboxConfig{CgroupParent: "/berth-crash-" + filepath.Base(c.n.h.Dir()) + "-" + name},
	}})
	if err != nil {
		c.m.refusedNew("run sandbox", name, nil, lows, err)
		return
	}
	c.m.found(r.GetPodSandboxId(), name, nil, lows)
	c.count("run sandbox OK")
}

func (c *client) count(what string) {
	c.m.mu.Lock()
	defer c.m.mu.Unlock()
	c.m.answers[what]++
}

func (c *client) createContainer(ctx context.Context) {
	pod := c.m.pick(false, c.r.IntN)
	if pod == nil {
		c.runPod(ctx)
		return
	}
	name := fmt.Sprintf("c%d", c.r.IntN(3))
	full := pod.id + "/" + name
	lows := c.m.lows()
	r, err := c.n.rt.CreateContainer(ctx, &runtimeapi.CreateContainerRequest{PodSandboxId: pod.id, Config: &runtimeapi.ContainerConfig{
		Metadata: &runtimeapi.ContainerMetadata{Name: name}, Image: &runtimeapi.ImageSpec{Image: testImage},
		Command: []string{"/bin/sh", "-c", stayer}, LogPath: name + ".log",
	}})
	if err != nil {
		c.m.refusedNew("create container", full, pod, lows, err)
		return
	}
	c.m.found(r.GetContainerId(), full, pod, lows)
	c.count("create container OK")
}

// endPod stops or removes a pod. Both are always right, and done when answered.
func (c *client) endPod(ctx context.Context) {
	o := c.m.pick(false, c.r.IntN)
	if o == nil {
		return
	}
	if c.r.IntN(2) == 0 {
		x := c.m.begin("stop sandbox", o, ended)
		_, err := c.n.rt.StopPodSandbox(ctx, &runtimeapi.StopPodSandboxRequest{PodSandboxId: o.id})
		x.answered(err, ended, always())
		return
	}
	x := c.m.begin("remove sandbox", o, gone)
	_, err := c.n.rt.RemovePodSandbox(ctx, &runtimeapi.RemovePodSandboxRequest{PodSandboxId: o.id})
	x.answered(err, gone, always())
}

func (c *client) podStatus(ctx context.Context) {
	o := c.m.pick(false, c.r.IntN)
	if o == nil {
		return
	}
	x := c.m.begin("status of sandbox", o, live)
	r, err := c.n.rt.PodSandboxStatus(ctx, &runtimeapi.PodSandboxStatusRequest{PodSandboxId: o.id})
	if !x.answered(err, live, asking()) {
		return
	}
	s := r.GetStatus()
	c.m.saw("status of sandbox", o, x.low, podLevel(s.GetState()))
	if (s.GetState() == ready) != (s.GetNetwork().GetIp() != "") {
		c.m.mu.Lock()
		defer c.m.mu.Unlock()
		c.m.fail("sandbox %s is %v and has the address %q", o.name, s.GetState(), s.GetNetwork().GetIp())
	}
}

// onContainer makes one call on a container.
func (c *client) onContainer(ctx context.Context, o *object) {
	rt := c.n.rt
	switch c.r.IntN(9) {
	case 0, 1:
		c.start(ctx, o)
	case 2:
		x := c.m.begin("stop container", o, ended)
		_, err := rt.StopContainer(ctx, &runtimeapi.StopContainerRequest{ContainerId: o.id, Timeout: int64(c.r.IntN(3))})
		x.answered(err, ended, always())
	case 3:
		x := c.m.begin("remove container", o, gone)
		_, err := rt.RemoveContainer(ctx, &runtimeapi.RemoveContainerRequest{ContainerId: o.id})
		x.answered(err, gone, always())
	case 4:
		x := c.m.begin("exec", o, created)
		r, err := rt.ExecSync(ctx, &runtimeapi.ExecSyncRequest{ContainerId: o.id, Cmd: []string{"echo", "ahoy"}, Timeout: 60})
		if x.answered(err, live, only(live)) && r.GetExitCode() == 0 && string(r.GetStdout()) != "ahoy\n" {
			c.check(fmt.Errorf("exec printed %q", r.GetStdout()))
		}
	case 5:
		x := c.m.begin("update", o, created)
		_, err := rt.UpdateContainerResources(ctx, &runtimeapi.UpdateContainerResourcesRequest{ContainerId: o.id,
			Linux: &runtimeapi.LinuxContainerResources{CpuShares: int64(100 + c.r.IntN(900))}})
		x.answered(err, created, only(created, live))
	case 6:
		x := c.m.begin("reopen log", o, created)
		_, err := rt.ReopenContainerLog(ctx, &runtimeapi.ReopenContainerLogRequest{ContainerId: o.id})
		x.answered(err, live, only(live))
	default:
		c.containerStatus(ctx, o)
	}
}

func (c *client) start(ctx context.Context, o *object) {
	x := c.m.begin("start", o, live)
	c.m.mu.Lock()
	o.asked++
	c.m.mu.Unlock()
	_, err := c.n.rt.StartContainer(ctx, &runtimeapi.StartContainerRequest{ContainerId: o.id})
	ok := x.answered(err, live, only(created))
	c.m.mu.Lock()
	defer c.m.mu.Unlock()
	if ok {
		o.started++
	}
	if o.started > 1 || status.Code(err) == codes.FailedPrecondition && o.asked == 1 && o.highest() < ended {
		c.m.fail("container %s was started %d times, asked for %d: %v", o.name, o.started, o.asked, err)
	}
}

func (c *client) containerStatus(ctx context.Context, o *object) {
	x := c.m.begin("status of container", o, created)
	r, err := c.n.rt.ContainerStatus(ctx, &runtimeapi.ContainerStatusRequest{ContainerId: o.id})
	if !x.answered(err, created, asking()) {
		return
	}
	s := r.GetStatus()
	c.m.saw("status of container", o, x.low, containerLevel(s.GetState()))
	c.m.mu.Lock()
	defer c.m.mu.Unlock()
	code := s.GetExitCode()
	switch s.GetState() {
	case exited:
		// By its trap, by SIGKILL, by SIGTERM before the trap, or not started at all.
		if !slices.Contains([]int32{7, 137, 143, 128}, code) || s.GetFinishedAt() == 0 || x.low == live && s.GetStartedAt() == 0 ||
			code == 128 && s.GetReason() != "StartError" {
			c.m.fail("container %s ended: %v", o.name, s)
		}
	case running:
		if s.GetStartedAt() == 0 || s.GetFinishedAt() != 0 {
			c.m.fail("container %s runs: %v", o.name, s)
		}
	default:
		if s.GetStartedAt() != 0 || s.GetFinishedAt() != 0 {
			c.m.fail("container %s is created: %v", o.name, s)
		}
	}
}

// TestIntegrationListsDoNotWait hangs the OCI runtime in the middle of a
// creation: what is asked, and verbs on other objects, are answered meanwhile.
func TestIntegrationListsDoNotWait(t *testing.T) {
	n := open(t)
	n.pull()
	p, q := n.newPod(runtimeapi.NamespaceMode_CONTAINER), n.newPod(runtimeapi.NamespaceMode_CONTAINER)
	q.config.PortMappings = nil
	p.run()
	a := p.create("a", counting)
	a.start()
	n.sabotage("runc", "create", "hang")
	made := make(chan error, 1)
	go func() {
		_, err := n.rt.CreateContainer(t.Context(), &runtimeapi.CreateContainerRequest{PodSandboxId: p.id, Config: p.containerConfig("b", counting), SandboxConfig: p.config})
		made <- err
	}()
	n.eventually("the creation is under way", func() bool { return len(n.operations()) == 1 })
	p.lists(map[string]runtimeapi.ContainerState{a.id: running})
	n.exec(a)
	a.stop(20)
	a.remove()
	q.run()
	q.stop()
	q.remove()
	select {
	case err := <-made:
		t.Fatalf("the creation did not hang: %v", err)
	default:
	}
	n.sabotage("runc", "create", "")
	if err := <-made; err != nil {
		t.Errorf("create container: %v, %v", err, status.Code(err))
	}
	p.stop()
	p.remove()
	n.clean(p.cgroup, q.cgroup)
}

package suite

import (
	"strconv"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func containerStories() []story {
	return []story{
		{name: "container/life", tell: containerLife},
		{name: "container/exit codes", tell: exitCodes},
		{name: "container/list filters", tell: containerFilters},
		{name: "container/remove running", tell: removeRunning},
		{name: "container/unknown id", tell: unknownContainer},
		{name: "container/bad start", tell: badStart},
		{name: "container/repeat joins", berth: true, tell: repeatContainer},
		{name: "container/memory limit and oom", tell: oom},
		{name: "container/cpu and update", tell: updateResources},
	}
}

func containerLife(t *testing.T, n *node) {
	p := n.pod(t)
	c := p.create(t, probe("sleep"), func(c *runtimeapi.ContainerConfig) {
		c.Labels, c.Annotations = map[string]string{"l": "1"}, map[string]string{"a": "2"}
		c.Metadata.Attempt = 3
	})
	s := c.status(t)
	equal(t, "state", s.GetState(), runtimeapi.ContainerState_CONTAINER_CREATED)
	equal(t, "attempt", s.GetMetadata().GetAttempt(), 3)
	equal(t, "label", s.GetLabels()["l"], "1")
	equal(t, "annotation", s.GetAnnotations()["a"], "2")
	equal(t, "log path", s.GetLogPath(), c.logFile())
	equal(t, "image", s.GetImage().GetImage(), c.config.Image.Image)
	if s.GetImageRef() == "" || s.GetCreatedAt() == 0 || s.GetStartedAt() != 0 || s.GetFinishedAt() != 0 {
		t.Errorf("status after create: %v", s)
	}
	c.start(t)
	s = c.status(t)
	equal(t, "state", s.GetState(), runtimeapi.ContainerState_CONTAINER_RUNNING)
	c.waitLog(t, "ready")
	if s.GetStartedAt() < s.GetCreatedAt() {
		t.Errorf("started %d before created %d", s.GetStartedAt(), s.GetCreatedAt())
	}
	c.stop(t, 30)
	s = c.status(t)
	equal(t, "state", s.GetState(), runtimeapi.ContainerState_CONTAINER_EXITED)
	equal(t, "exit code", s.GetExitCode(), 0)
	equal(t, "reason", s.GetReason(), "Completed")
	if s.GetFinishedAt() < s.GetStartedAt() {
		t.Errorf("finished %d before started %d", s.GetFinishedAt(), s.GetStartedAt())
	}
	c.stop(t, 30)
	c.remove(t)
	c.remove(t)
	_, err := n.rt.ContainerStatus(t.Context(), &runtimeapi.ContainerStatusRequest{ContainerId: c.id})
	wantCode(t, "status of a removed container", err, codes.NotFound)
}

func exitCodes(t *testing.T, n *node) {
	p := n.pod(t)
	for _, c := range []struct {
		do     edit
		code   int32
		reason string
	}{
		{probe("exit", "0"), 0, "Completed"},
		{probe("exit", "1"), 1, "Error"},
		{probe("exit", "255"), 255, "Error"},
		{shell("sleep 60 & kill -9 $!; wait $!"), 137, "Error"},
	} {
		s := p.run(t, c.do).wait(t)
		equal(t, "exit code", s.GetExitCode(), c.code)
		equal(t, "reason", s.GetReason(), c.reason)
	}
}

func containerFilters(t *testing.T, n *node) {
	p, other := n.pod(t), n.pod(t)
	a := p.create(t, probe("sleep"), func(c *runtimeapi.ContainerConfig) { c.Labels = map[string]string{"which": "a"} })
	b := other.run(t, probe("sleep"))
	state := func(s runtimeapi.ContainerState) *runtimeapi.ContainerStateValue {
		return &runtimeapi.ContainerStateValue{State: s}
	}
	for _, c := range []struct {
		name   string
		filter *runtimeapi.ContainerFilter
		a, b   bool
	}{
		{"none", nil, true, true},
		{"id", &runtimeapi.ContainerFilter{Id: a.id}, true, false},
		{"prefix of an id", &runtimeapi.ContainerFilter{Id: b.id[:13]}, false, true},
		{"pod", &runtimeapi.ContainerFilter{PodSandboxId: other.id}, false, true},
		{"label", &runtimeapi.ContainerFilter{LabelSelector: map[string]string{"which": "a"}}, true, false},
		{"created", &runtimeapi.ContainerFilter{State: state(runtimeapi.ContainerState_CONTAINER_CREATED)}, true, false},
		{"running", &runtimeapi.ContainerFilter{State: state(runtimeapi.ContainerState_CONTAINER_RUNNING)}, false, true},
		{"other pod", &runtimeapi.ContainerFilter{Id: a.id, PodSandboxId: other.id}, false, false},
	} {
		r, err := n.rt.ListContainers(t.Context(), &runtimeapi.ListContainersRequest{Filter: c.filter})
		must(t, err)
		got := map[string]bool{}
		for _, s := range r.GetContainers() {
			got[s.GetId()] = true
		}
		if got[a.id] != c.a || got[b.id] != c.b {
			t.Errorf("%s: a listed %v, want %v; b listed %v, want %v", c.name, got[a.id], c.a, got[b.id], c.b)
		}
	}
}

func removeRunning(t *testing.T, n *node) {
	c := n.pod(t).run(t, probe("deaf"))
	c.remove(t)
	_, err := n.rt.ContainerStatus(t.Context(), &runtimeapi.ContainerStatusRequest{ContainerId: c.id})
	wantCode(t, "status", err, codes.NotFound)
}

func unknownContainer(t *testing.T, n *node) {
	id := strings.Repeat("0", 64)
	_, err := n.rt.ContainerStatus(t.Context(), &runtimeapi.ContainerStatusRequest{ContainerId: id})
	wantCode(t, "status", err, codes.NotFound)
	_, err = n.rt.StartContainer(t.Context(), &runtimeapi.StartContainerRequest{ContainerId: id})
	wantCode(t, "start", err, codes.NotFound)
	_, err = n.rt.ExecSync(t.Context(), &runtimeapi.ExecSyncRequest{ContainerId: id, Cmd: []string{"x"}})
	wantCode(t, "exec", err, codes.NotFound)
	_, err = n.rt.StopContainer(t.Context(), &runtimeapi.StopContainerRequest{ContainerId: id})
	wantCode(t, "stop", err, codes.OK)
	_, err = n.rt.RemoveContainer(t.Context(), &runtimeapi.RemoveContainerRequest{ContainerId: id})
	wantCode(t, "remove", err, codes.OK)
}

// badStart asks for what cannot run; the same pod then runs what can.
func badStart(t *testing.T, n *node) {
	p := n.pod(t)
	for name, e := range map[string]edit{
		"no such program": func(c *runtimeapi.ContainerConfig) { c.Command = []string{"/no/such/program"} },
		"no such user":    image("nouser:1"),
		"no such image":   func(c *runtimeapi.ContainerConfig) {},
		"missing device": func(c *runtimeapi.ContainerConfig) {
			c.Devices = []*runtimeapi.Device{{HostPath: "/dev/no-such", ContainerPath: "/dev/x", Permissions: "rwm"}}
		},
		"memory below minimum": func(c *runtimeapi.ContainerConfig) { c.Linux.Resources.MemoryLimitInBytes = 4096 },
	} {
		c := p.containerConfig(t, probe("exit", "0"), e)
		if name == "no such image" {
			c.Image.Image = n.ref("never-pulled:1")
		}
		r, err := n.rt.CreateContainer(t.Context(), &runtimeapi.CreateContainerRequest{PodSandboxId: p.id, Config: c, SandboxConfig: p.config})
		if err == nil {
			_, err = n.rt.StartContainer(t.Context(), &runtimeapi.StartContainerRequest{ContainerId: r.GetContainerId()})
		}
		if err == nil {
			t.Errorf("%s: the container started", name)
		}
	}
	equal(t, "exit code afterwards", p.run(t, probe("exit", "0")).wait(t).GetExitCode(), 0)
}

func repeatContainer(t *testing.T, n *node) {
	p := n.pod(t)
	c := p.create(t, probe("sleep"))
	r, err := n.rt.CreateContainer(t.Context(), &runtimeapi.CreateContainerRequest{PodSandboxId: p.id, Config: c.config, SandboxConfig: p.config})
	must(t, err)
	equal(t, "container of the same name and attempt", r.GetContainerId(), c.id)
	c.start(t)
}

func oom(t *testing.T, n *node) {
	c := n.pod(t).run(t, probe("eat", "200"), func(c *runtimeapi.ContainerConfig) {
		c.Linux.Resources.MemoryLimitInBytes = 64 << 20
		c.Linux.Resources.MemorySwapLimitInBytes = 64 << 20
	})
	s := c.wait(t)
	equal(t, "exit code", s.GetExitCode(), 137)
	equal(t, "reason", s.GetReason(), "OOMKilled")
}

func updateResources(t *testing.T, n *node) {
	c := n.pod(t).run(t, probe("sleep"), func(c *runtimeapi.ContainerConfig) {
		c.Linux.Resources = &runtimeapi.LinuxContainerResources{
			CpuShares: 512, CpuQuota: 50000, CpuPeriod: 100000, MemoryLimitInBytes: 64 << 20, CpusetCpus: "0", CpusetMems: "0"}
	})
	limit := func(want string) {
		t.Helper()
		equal(t, "memory limit seen inside", c.control(t, "memory/memory.limit_in_bytes", "memory.max"), want)
	}
	limit("67108864")
	if v2() {
		equal(t, "quota", c.control(t, "", "cpu.max"), "50000 100000")
		// Versions of the runtime make different weights of 512 shares. 1024 are 100.
		if w, err := strconv.Atoi(c.control(t, "", "cpu.weight")); err != nil || w < 10 || w > 90 {
			t.Errorf("weight %d, %v", w, err)
		}
	} else {
		equal(t, "quota", c.control(t, "cpu/cpu.cfs_quota_us", "")+" "+c.control(t, "cpu/cpu.cfs_period_us", ""), "50000 100000")
		equal(t, "shares", c.control(t, "cpu/cpu.shares", ""), "512")
	}
	equal(t, "processors and memory nodes", strings.Join(strings.Fields(c.sh(t, "grep allowed_list /proc/1/status")), " "), "Cpus_allowed_list: 0 Mems_allowed_list: 0")
	_, err := n.rt.UpdateContainerResources(t.Context(), &runtimeapi.UpdateContainerResourcesRequest{
		ContainerId: c.id, Linux: &runtimeapi.LinuxContainerResources{MemoryLimitInBytes: 128 << 20},
	})
	must(t, err)
	limit("134217728")
	r := c.status(t).GetResources().GetLinux()
	equal(t, "memory limit in the status", r.GetMemoryLimitInBytes(), 128<<20)
	equal(t, "cpu shares in the status", r.GetCpuShares(), 512)
}

package suite

import (
	"context"
	"crypto/rand"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func resourceStories() []story {
	return []story{
		{name: "resources/bad values", berth: true, tell: badValues},
		{name: "resources/update", tell: updateAll},
		{name: "resources/update is all or nothing", berth: true, tell: updateAtomic},
		{name: "resources/swap modes", tell: swapModes},
		{name: "resources/hugepages", tell: hugePages},
		{name: "resources/unified", berth: true, tell: unified},
		{name: "resources/oom score", tell: oomScore},
		{name: "resources/pod of Berth", berth: true, tell: podOfBerth},
		{name: "resources/pod of the client", owned: true, tell: podOfClient},
		{name: "resources/classes", berth: true, tell: classes},
		{name: "mount/options", tell: mountOptions},
		{name: "mount/recursive read-only", tell: recursiveReadOnly},
		{name: "mount/device directory", tell: deviceDirectory},
		{name: "mount/refusals", berth: true, tell: mountRefusals},
	}
}

func v2() bool {
	_, err := os.Stat("/sys/fs/cgroup/cgroup.controllers")
	return err == nil
}

// limits edits the container's resources.
func limits(f func(*runtimeapi.LinuxContainerResources)) edit {
	return func(c *runtimeapi.ContainerConfig) { f(c.Linux.Resources) }
}

func (c *container) update(t *testing.T, r *runtimeapi.LinuxContainerResources) error {
	t.Helper()
	_, err := c.p.n.rt.UpdateContainerResources(t.Context(), &runtimeapi.UpdateContainerResourcesRequest{ContainerId: c.id, Linux: r})
	return err
}

// control reads a control file of the container's group, as it sees it itself:
// one name for each version of cgroups.
func (c *container) control(t *testing.T, one, two string) string {
	t.Helper()
	if v2() {
		return c.sh(t, "cat /sys/fs/cgroup/"+two)
	}
	return c.sh(t, "cat /sys/fs/cgroup/"+one)
}

func badValues(t *testing.T, n *node) {
	p := n.pod(t)
	type res = runtimeapi.LinuxContainerResources
	for name, c := range map[string]struct {
		set  *res
		want string
	}{
		"a processor that is not there": {&res{CpusetCpus: "99"}, "cpuset_cpus: 99 is not among"},
		"no list":                       {&res{CpusetCpus: "one"}, "cpuset_cpus"},
		"a memory node":                 {&res{CpusetMems: "77"}, "cpuset_mems: 77 is not among"},
		"one byte":                      {&res{MemoryLimitInBytes: 1}, "memory_limit_in_bytes: 1"},
		"what no program starts in":     {&res{MemoryLimitInBytes: 600 << 10}, "memory_limit_in_bytes"},
		"a short quota":                 {&res{CpuQuota: 10}, "cpu_quota: 10"},
		"a long period":                 {&res{CpuPeriod: 2000000}, "cpu_period: 2000000"},
		"one share":                     {&res{CpuShares: 1}, "cpu_shares: 1"},
		"less swap than memory":         {&res{MemoryLimitInBytes: 2 << 20, MemorySwapLimitInBytes: 1 << 20}, "memory_swap_limit_in_bytes"},
		"a score":                       {&res{OomScoreAdj: 1001}, "oom_score_adj: 1001"},
	} {
		t.Run(name, func(t *testing.T) {
			if c.set.GetMemoryLimitInBytes() == 600<<10 && *ociRuntime == "crun" {
				t.Skip("crun starts in 512 KiB")
			}
			has(t, "refusal", p.refuse(t, codes.InvalidArgument, func(cc *runtimeapi.ContainerConfig) { cc.Linux.Resources = c.set }), c.want)
		})
	}
	has(t, "no such program", p.refuse(t, codes.InvalidArgument, func(c *runtimeapi.ContainerConfig) { c.Command = []string{"no-such-program"} }), "command", "no-such-program")
}

func updateAll(t *testing.T, n *node) {
	p := n.pod(t)
	for _, running := range []bool{false, true} {
		c := p.create(t, probe("sleep"), limits(func(r *runtimeapi.LinuxContainerResources) { r.MemoryLimitInBytes, r.CpuShares = 64<<20, 512 }))
		if running {
			c.start(t)
		}
		must(t, c.update(t, &runtimeapi.LinuxContainerResources{MemoryLimitInBytes: 96 << 20, CpuQuota: 20000, CpuPeriod: 50000, CpusetCpus: "0", OomScoreAdj: 321}))
		if !running {
			c.start(t)
		}
		equal(t, "memory", c.control(t, "memory/memory.limit_in_bytes", "memory.max"), strconv.Itoa(96<<20))
		if v2() {
			equal(t, "processors", c.control(t, "", "cpu.max"), "20000 50000")
		} else {
			equal(t, "processors", c.control(t, "cpu/cpu.cfs_quota_us", "")+" "+c.control(t, "cpu/cpu.cfs_period_us", ""), "20000 50000")
		}
		equal(t, "set of processors", c.control(t, "cpuset/cpuset.cpus", "cpuset.cpus"), "0")
		equal(t, "score", c.sh(t, "cat /proc/1/oom_score_adj"), "321")
		r := c.status(t).GetResources().GetLinux()
		equal(t, "status: memory", r.GetMemoryLimitInBytes(), 96<<20)
		equal(t, "status: shares that were not given", r.GetCpuShares(), 512)
		equal(t, "status: score", r.GetOomScoreAdj(), 321)
		equal(t, "status: processors", r.GetCpusetCpus(), "0")
	}
	c := p.run(t, probe("exit", "0"))
	c.wait(t)
	wantCode(t, "update of an ended container", c.update(t, &runtimeapi.LinuxContainerResources{CpuShares: 100}), codes.FailedPrecondition)
	_, err := n.rt.UpdateContainerResources(t.Context(), &runtimeapi.UpdateContainerResourcesRequest{
		ContainerId: c.id, Windows: &runtimeapi.WindowsContainerResources{CpuShares: 1},
	})
	wantCode(t, "Windows resources", err, codes.InvalidArgument)
}

// updateAtomic asks for what the kernel takes together with what it refuses.
func updateAtomic(t *testing.T, n *node) {
	c := n.pod(t).run(t, probe("eat", "48"), limits(func(r *runtimeapi.LinuxContainerResources) { r.CpuShares = 512 }))
	c.waitLog(t, "ate 48")
	before := func() string {
		if v2() {
			return c.control(t, "", "cpu.weight") + c.control(t, "", "cpu.max") + c.control(t, "", "cpuset.cpus")
		}
		return c.control(t, "cpu/cpu.shares", "") + " " + c.control(t, "cpu/cpu.cfs_quota_us", "") + " " + c.control(t, "memory/memory.limit_in_bytes", "")
	}
	was, status := before(), c.status(t).GetResources().String()
	for name, r := range map[string]*runtimeapi.LinuxContainerResources{
		"a processor that is not there": {CpuShares: 256, CpuQuota: 50000, CpusetCpus: "99"},
		"less memory than is in use":    {CpuShares: 256, CpuQuota: 50000, MemoryLimitInBytes: 1 << 20},
	} {
		if v2() && r.MemoryLimitInBytes > 0 {
			continue // v2 takes such a limit, and kills
		}
		wantCode(t, name, c.update(t, r), codes.InvalidArgument)
		equal(t, name+": limits", before(), was)
		equal(t, name+": status", c.status(t).GetResources().String(), status)
	}
}

// swapModes are what the kubelet sends for NoSwap and LimitedSwap, and no limit.
func swapModes(t *testing.T, n *node) {
	p := n.pod(t)
	const mem = 64 << 20
	for name, c := range map[string]struct {
		swap     int64
		one, two string
	}{
		"none":      {mem, strconv.Itoa(mem), "0"},
		"not given": {0, strconv.Itoa(mem), "0"},
		"limited":   {mem + 1<<20, strconv.Itoa(mem + 1<<20), strconv.Itoa(1 << 20)},
		"unlimited": {-1, "9223372036854771712", "max"},
	} {
		made := p.run(t, probe("sleep"), limits(func(r *runtimeapi.LinuxContainerResources) {
			r.MemoryLimitInBytes, r.MemorySwapLimitInBytes = mem, c.swap
		}))
		want := c.one
		if v2() {
			want = c.two
		}
		got := made.sh(t, "cat /sys/fs/cgroup/memory/memory.memsw.limit_in_bytes /sys/fs/cgroup/memory.swap.max 2>/dev/null || true")
		if got == "" {
			t.Skip("this kernel does not count swap")
		}
		equal(t, name, got, want)
		equal(t, name+": memory", made.control(t, "memory/memory.limit_in_bytes", "memory.max"), strconv.Itoa(mem))
	}
}

// hugePages sends what the kubelet sends: a limit for each size it knows of.
func hugePages(t *testing.T, n *node) {
	c := n.pod(t).run(t, probe("sleep"), limits(func(r *runtimeapi.LinuxContainerResources) {
		r.HugepageLimits = []*runtimeapi.HugepageLimit{{PageSize: "2MB", Limit: 4 << 20}, {PageSize: "1GB"}, {PageSize: "64KB"}}
	}))
	got := c.sh(t, "cat /sys/fs/cgroup/hugetlb/hugetlb.2MB.limit_in_bytes /sys/fs/cgroup/hugetlb.2MB.max 2>/dev/null || true")
	_, err := os.Stat("/sys/fs/cgroup/hugetlb")
	counted := err == nil
	if v2() { // systemd hands this controller down when a unit asks for it
		counted = strings.Contains(read(t, "/sys/fs/cgroup/cgroup.controllers"), "hugetlb") && !n.systemd(t)
	}
	if counted || got != "" {
		equal(t, "limit", got, strconv.Itoa(4<<20))
	}
	has(t, "a size", n.pod(t).refuse(t, codes.InvalidArgument, limits(func(r *runtimeapi.LinuxContainerResources) {
		r.HugepageLimits = []*runtimeapi.HugepageLimit{{PageSize: "two", Limit: 1}}
	})), "hugepage_limits")
}

func unified(t *testing.T, n *node) {
	p := n.pod(t)
	set := func(k, v string) edit {
		return limits(func(r *runtimeapi.LinuxContainerResources) { r.Unified = map[string]string{k: v} })
	}
	if !v2() {
		has(t, "on cgroup v1", p.refuse(t, codes.InvalidArgument, set("memory.high", "max")), "cgroup v1")
		return
	}
	c := p.run(t, probe("sleep"), set("memory.high", strconv.Itoa(32<<20)))
	equal(t, "memory.high", c.control(t, "", "memory.high"), strconv.Itoa(32<<20))
	must(t, c.update(t, &runtimeapi.LinuxContainerResources{Unified: map[string]string{"memory.low": "4096"}}))
	equal(t, "memory.low after an update", c.control(t, "", "memory.low"), "4096")
	equal(t, "memory.high after it", c.control(t, "", "memory.high"), strconv.Itoa(32<<20))
	has(t, "no controller", p.refuse(t, codes.InvalidArgument, set("nothing.max", "1")), "unified")
	has(t, "a path", p.refuse(t, codes.InvalidArgument, set("../cgroup.procs", "1")), "unified")
}

func oomScore(t *testing.T, n *node) {
	p := n.pod(t)
	for _, adj := range []int64{1000, 0} {
		c := p.run(t, probe("sleep"), limits(func(r *runtimeapi.LinuxContainerResources) { r.OomScoreAdj = adj }))
		equal(t, "score", c.sh(t, "cat /proc/1/oom_score_adj"), strconv.FormatInt(adj, 10))
		equal(t, "score of an exec", c.sh(t, "cat /proc/self/oom_score_adj"), strconv.FormatInt(adj, 10))
	}
	// Below the daemon's own it takes a capability; without it the daemon's is the least.
	own, err := os.ReadFile("/proc/self/oom_score_adj")
	must(t, err)
	got := p.run(t, probe("sleep"), limits(func(r *runtimeapi.LinuxContainerResources) { r.OomScoreAdj = -900 })).sh(t, "cat /proc/1/oom_score_adj")
	if got != "-900" && got != strings.TrimSpace(string(own)) {
		t.Errorf("score %s, want -900 or %s", got, own)
	}
}

// groupFile reads a file of a group of the node.
func groupFile(t *testing.T, controller, group, one, two string) string {
	t.Helper()
	path := filepath.Join("/sys/fs/cgroup", controller, group, one)
	if v2() {
		path = filepath.Join("/sys/fs/cgroup", group, two)
	}
	b, err := os.ReadFile(path)
	must(t, err)
	return strings.TrimSpace(string(b))
}

func podOfBerth(t *testing.T, n *node) {
	if n.systemd(t) {
		podOfSlice(t, n)
		return
	}
	p := n.pod(t, func(c *runtimeapi.PodSandboxConfig) {
		c.Linux.Resources = &runtimeapi.LinuxContainerResources{MemoryLimitInBytes: 200 << 20, CpuShares: 1000}
		c.Linux.Overhead = &runtimeapi.LinuxContainerResources{MemoryLimitInBytes: 10 << 20, CpuShares: 24}
	})
	group := "/berth/" + p.id
	memory := func() string { return groupFile(t, "memory", group, "memory.limit_in_bytes", "memory.max") }
	equal(t, "resources and overhead", memory(), strconv.Itoa(210<<20))
	equal(t, "shares", groupFile(t, "cpu", group, "cpu.shares", "cpu.weight"), map[bool]string{false: "1024", true: "100"}[v2()])
	update := func(over, res *runtimeapi.LinuxContainerResources) error {
		_, err := n.rt.UpdatePodSandboxResources(t.Context(), &runtimeapi.UpdatePodSandboxResourcesRequest{PodSandboxId: p.id, Overhead: over, Resources: res})
		return err
	}
	must(t, update(nil, &runtimeapi.LinuxContainerResources{MemoryLimitInBytes: 300 << 20, CpuShares: 1000, CpuQuota: 100000}))
	equal(t, "after an update", memory(), strconv.Itoa(310<<20))
	wantCode(t, "a processor that is not there", update(nil, &runtimeapi.LinuxContainerResources{MemoryLimitInBytes: 100 << 20, CpusetCpus: "99"}), codes.InvalidArgument)
	equal(t, "after a refused update", memory(), strconv.Itoa(310<<20))
	wantCode(t, "no sandbox", func() error {
		_, err := n.rt.UpdatePodSandboxResources(t.Context(), &runtimeapi.UpdatePodSandboxResourcesRequest{PodSandboxId: strings.Repeat("0", 64)})
		return err
	}(), codes.NotFound)
	// The limit is the pod's: two containers meet it together.
	s := p.run(t, probe("eat", "400")).wait(t)
	equal(t, "a container that wants more than its pod has", s.GetReason(), "OOMKilled")
}

// podOfSlice: systemd makes groups for units only, so that pods without a
// parent share one, and have no limits of their own.
func podOfSlice(t *testing.T, n *node) {
	limited := &runtimeapi.LinuxContainerResources{MemoryLimitInBytes: 200 << 20}
	c := n.podConfig(t)
	c.Linux.Resources = limited
	_, err := n.rt.RunPodSandbox(t.Context(), &runtimeapi.RunPodSandboxRequest{Config: c})
	wantCode(t, "limits without a parent", err, codes.InvalidArgument)
	has(t, "the refusal", err.Error(), "cgroup_parent")
	c = n.podConfig(t)
	c.Linux.CgroupParent = "/kubepods/pod1"
	_, err = n.rt.RunPodSandbox(t.Context(), &runtimeapi.RunPodSandboxRequest{Config: c})
	wantCode(t, "a parent of the other driver", err, codes.InvalidArgument)
	has(t, "the refusal", err.Error(), "slice", "cgroupfs")
	p := n.pod(t)
	_, err = n.rt.UpdatePodSandboxResources(t.Context(), &runtimeapi.UpdatePodSandboxResourcesRequest{PodSandboxId: p.id, Resources: limited})
	wantCode(t, "an update without a parent", err, codes.FailedPrecondition)
	one := p.run(t, probe("sleep"))
	has(t, "group of a container", read(t, fmt.Sprintf("/proc/%d/cgroup", one.pid(t))), ":/berth.slice/cri-berth-"+one.id+".scope")
}

// systemd says whether systemd keeps the control groups.
func (n *node) systemd(t *testing.T) bool {
	t.Helper()
	r, err := n.rt.RuntimeConfig(t.Context(), &runtimeapi.RuntimeConfigRequest{})
	must(t, err)
	return r.GetLinux().GetCgroupDriver() == runtimeapi.CgroupDriver_SYSTEMD
}

// clientGroup makes a group as a client does for a pod, and returns what it
// calls it and where it lies.
func (n *node) clientGroup(t *testing.T) (parent, group string) {
	t.Helper()
	group = "/berth-suite-" + strings.ToLower(rand.Text()[:8])
	if n.systemd(t) {
		parent = "berthsuite-" + strings.ToLower(rand.Text()[:8]) + ".slice"
		must(t, exec.Command("systemctl", "start", parent).Run())
		t.Cleanup(func() { must(t, exec.Command("systemctl", "stop", parent).Run()) })
		return parent, "/berthsuite.slice/" + parent
	}
	dirs := []string{filepath.Join("/sys/fs/cgroup", group)}
	if !v2() {
		dirs, _ = filepath.Glob("/sys/fs/cgroup/*")
		for i := range dirs {
			dirs[i] = filepath.Join(dirs[i], group)
		}
	}
	for _, d := range dirs {
		must(t, os.Mkdir(d, 0o755))
		t.Cleanup(func() { os.Remove(d) })
		for _, f := range []string{"cpuset.cpus", "cpuset.mems"} { // v1 wants them filled in
			if b, err := os.ReadFile(filepath.Join(filepath.Dir(d), f)); err == nil && !v2() {
				must(t, os.WriteFile(filepath.Join(d, f), b, 0))
			}
		}
	}
	return group, group
}

func podOfClient(t *testing.T, n *node) {
	parent, group := n.clientGroup(t)
	p := n.pod(t, func(c *runtimeapi.PodSandboxConfig) { c.Linux.CgroupParent = parent })
	c := p.run(t, probe("sleep"))
	has(t, "group of a container", read(t, fmt.Sprintf("/proc/%d/cgroup", c.pid(t))), ":"+group+"/", c.id)
	before := groupFile(t, "memory", group, "memory.limit_in_bytes", "memory.max")
	_, err := n.rt.UpdatePodSandboxResources(t.Context(), &runtimeapi.UpdatePodSandboxResourcesRequest{
		PodSandboxId: p.id, Resources: &runtimeapi.LinuxContainerResources{MemoryLimitInBytes: 100 << 20},
		Overhead: &runtimeapi.LinuxContainerResources{MemoryLimitInBytes: 5 << 20},
	})
	must(t, err)
	equal(t, "the client's own limit", groupFile(t, "memory", group, "memory.limit_in_bytes", "memory.max"), before)
	r, err := n.rt.PodSandboxStatus(t.Context(), &runtimeapi.PodSandboxStatusRequest{PodSandboxId: p.id, Verbose: true})
	must(t, err)
	has(t, "verbose status", r.GetInfo()["info"], strconv.Itoa(100<<20), strconv.Itoa(5<<20))
	must(t, n.own.Kill())
	must(t, n.own.Start(t.Context()))
	r, err = n.rt.PodSandboxStatus(t.Context(), &runtimeapi.PodSandboxStatusRequest{PodSandboxId: p.id, Verbose: true})
	must(t, err)
	has(t, "after a restart", r.GetInfo()["info"], strconv.Itoa(100<<20))
}

func classes(t *testing.T, n *node) {
	for _, a := range []string{"blockio.resources.beta.kubernetes.io/pod", "rdt.resources.beta.kubernetes.io/pod"} {
		p := n.pod(t, func(c *runtimeapi.PodSandboxConfig) { c.Annotations = map[string]string{a: "gold"} })
		has(t, a, p.refuse(t, codes.FailedPrecondition), `class "gold"`, "_classes")
	}
}

func mountOptions(t *testing.T, n *node) {
	st, err := n.rt.Status(t.Context(), &runtimeapi.StatusRequest{})
	must(t, err)
	if !st.GetFeatures().GetMountOptions() {
		t.Skip("the runtime does not advertise mount_options")
	}
	dir := t.TempDir()
	must(t, os.WriteFile(filepath.Join(dir, "run"), []byte("#!/bin/sh\necho ran\n"), 0o755))
	c := n.pod(t).run(t, probe("sleep"), func(c *runtimeapi.ContainerConfig) {
		c.Mounts = []*runtimeapi.Mount{
			{HostPath: dir, ContainerPath: "/strict", MountOptions: []string{"noexec", "nodev", "nosuid"}},
			{HostPath: dir, ContainerPath: "/plain"},
		}
	})
	has(t, "options", c.sh(t, "grep ' /strict ' /proc/self/mountinfo"), "noexec", "nodev", "nosuid")
	equal(t, "a program elsewhere", c.sh(t, "/plain/run"), "ran")
	has(t, "a program where none may run", strings.ToLower(c.fails(t, "/strict/run")), "denied")
}

func recursiveReadOnly(t *testing.T, n *node) {
	st, err := n.rt.Status(t.Context(), &runtimeapi.StatusRequest{})
	must(t, err)
	can := false
	for _, h := range st.GetRuntimeHandlers() {
		can = can || h.GetName() == "" && h.GetFeatures().GetRecursiveReadOnlyMounts()
	}
	p := n.pod(t)
	dir := t.TempDir()
	rro := func(f func(*runtimeapi.Mount)) edit {
		return func(c *runtimeapi.ContainerConfig) {
			m := &runtimeapi.Mount{HostPath: dir, ContainerPath: "/v", Readonly: true, RecursiveReadOnly: true}
			f(m)
			c.Mounts = []*runtimeapi.Mount{m}
		}
	}
	has(t, "without readonly", p.refuse(t, codes.InvalidArgument, rro(func(m *runtimeapi.Mount) { m.Readonly = false })), "recursive_read_only")
	has(t, "with propagation", p.refuse(t, codes.InvalidArgument, rro(func(m *runtimeapi.Mount) {
		m.Propagation = runtimeapi.MountPropagation_PROPAGATION_HOST_TO_CONTAINER
	})), "recursive_read_only")
	if !can {
		has(t, "where it is not supported", p.refuse(t, codes.FailedPrecondition, rro(func(*runtimeapi.Mount) {})), "RRO")
		return
	}
	if n.own != nil { // a mount below it, where the node sees it
		sub := filepath.Join(dir, "sub")
		must(t, os.Mkdir(sub, 0o755))
		must(t, n.own.Space().Command(t.Context(), "mount", "-t", "tmpfs", "below", sub).Run())
		t.Cleanup(func() {
			must(t, n.own.Space().Command(context.Background(), "umount", "-l", sub).Run())
		})
	}
	c := p.run(t, probe("sleep"), rro(func(*runtimeapi.Mount) {}))
	has(t, "a write", c.fails(t, "touch /v/x"), "Read-only")
	has(t, "mount", c.sh(t, "grep ' /v ' /proc/self/mountinfo"), " ro,")
	if n.own != nil {
		has(t, "a write below", c.fails(t, "touch /v/sub/x"), "Read-only")
		plain := p.run(t, probe("sleep"), rro(func(m *runtimeapi.Mount) { m.RecursiveReadOnly = false }))
		has(t, "a write to what is read-only", plain.fails(t, "touch /v/x"), "Read-only")
		equal(t, "a write below that", plain.sh(t, "grep -c ' /v/sub ' /proc/self/mountinfo; touch /v/sub/x"), "1")
	}
}

// deviceDirectory passes all devices of a directory.
func deviceDirectory(t *testing.T, n *node) {
	dir := t.TempDir()
	makeDevice(t, filepath.Join(dir, "one"), 250, 81)
	must(t, os.Mkdir(filepath.Join(dir, "sub"), 0o755))
	makeDevice(t, filepath.Join(dir, "sub", "two"), 250, 82)
	must(t, os.WriteFile(filepath.Join(dir, "file"), nil, 0o644))
	p := n.pod(t)
	c := p.run(t, probe("sleep"), func(c *runtimeapi.ContainerConfig) {
		c.Devices = []*runtimeapi.Device{{HostPath: dir, ContainerPath: "/dev/many", Permissions: "rw"}}
	})
	equal(t, "nodes", c.sh(t, "cd /dev/many && find . -type c | sort | xargs"), "./one ./sub/two")
	has(t, "use of one", c.sh(t, "cat /dev/many/sub/two 2>&1 || true"), "No such device")
	has(t, "a directory without devices", p.refuse(t, codes.InvalidArgument, func(c *runtimeapi.ContainerConfig) {
		c.Devices = []*runtimeapi.Device{{HostPath: t.TempDir(), ContainerPath: "/dev/none"}}
	}), "neither a device nor a directory with devices")
}

func mountRefusals(t *testing.T, n *node) {
	p := n.pod(t)
	one := func(m *runtimeapi.Mount) edit {
		return func(c *runtimeapi.ContainerConfig) { c.Mounts = []*runtimeapi.Mount{m} }
	}
	for name, c := range map[string]struct {
		m    *runtimeapi.Mount
		code codes.Code
		want string
	}{
		"inside proc":                   {&runtimeapi.Mount{HostPath: t.TempDir(), ContainerPath: "/proc/sys"}, codes.InvalidArgument, "/proc"},
		"an option with data":           {&runtimeapi.Mount{HostPath: t.TempDir(), ContainerPath: "/v", MountOptions: []string{"size=1"}}, codes.InvalidArgument, "mount_options"},
		"options that disagree":         {&runtimeapi.Mount{HostPath: t.TempDir(), ContainerPath: "/v", MountOptions: []string{"exec", "noexec"}}, codes.InvalidArgument, "mount_options"},
		"a host path that is not there": {&runtimeapi.Mount{HostPath: filepath.Join(t.TempDir(), "no"), ContainerPath: "/v"}, codes.FailedPrecondition, "does not exist"},
		"a relative host path":          {&runtimeapi.Mount{HostPath: "x", ContainerPath: "/v"}, codes.InvalidArgument, "host_path"},
	} {
		if name == "inside proc" && *ociRuntime == "crun" {
			continue // crun mounts there
		}
		has(t, name, p.refuse(t, c.code, one(c.m)), c.want)
	}
}

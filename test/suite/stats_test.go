package suite

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func statsStories() []story {
	return []story{
		{name: "stats/a container's figures are the kernel's", tell: containerFigures},
		{name: "stats/rate between two calls", tell: cpuRate},
		{name: "stats/writable layer", tell: writableLayer},
		// containerd has no figures of a pod whose client names no cgroup parent.
		{name: "stats/a pod's figures are the kernel's", berth: true, tell: podFigures},
		{name: "stats/who is listed", berth: true, tell: whoIsListed},
		{name: "stats/metrics", berth: true, tell: podMetrics},
	}
}

// busy works for a while on a small quota, touches memory and then sleeps.
const busy = `x=$(head -c 3000000 /dev/zero | tr '\0' a); i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done; echo done; exec sleep 1000`

// modest gives a container limits.
func modest(c *runtimeapi.ContainerConfig) {
	c.Linux.Resources = &runtimeapi.LinuxContainerResources{CpuPeriod: 100000, CpuQuota: 50000, CpuShares: 512,
		MemoryLimitInBytes: 64 << 20, MemorySwapLimitInBytes: 64 << 20}
}

func (c *container) stats(t *testing.T) *runtimeapi.ContainerStats {
	t.Helper()
	r, err := c.p.n.rt.ContainerStats(t.Context(), &runtimeapi.ContainerStatsRequest{ContainerId: c.id})
	must(t, err)
	return r.GetStats()
}

func (p *pod) stats(t *testing.T) *runtimeapi.PodSandboxStats {
	t.Helper()
	r, err := p.n.rt.PodSandboxStats(t.Context(), &runtimeapi.PodSandboxStatsRequest{PodSandboxId: p.id})
	must(t, err)
	return r.GetStats()
}

// pid is the container's first process, as the verbose status tells.
func (c *container) pid(t *testing.T) int {
	t.Helper()
	r, err := c.p.n.rt.ContainerStatus(t.Context(), &runtimeapi.ContainerStatusRequest{ContainerId: c.id, Verbose: true})
	must(t, err)
	var info struct{ PID int }
	must(t, json.Unmarshal([]byte(r.GetInfo()["info"]), &info))
	return info.PID
}

// group reads a container's control files without the help of the runtime: the
// kernel says where its first process is.
type group struct {
	dirs map[string]string // by controller; "" is v2
}

func kernelGroup(t *testing.T, pid int) group {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
	must(t, err)
	g := group{dirs: map[string]string{}}
	for l := range strings.Lines(string(b)) {
		f := strings.SplitN(strings.TrimSpace(l), ":", 3)
		for _, c := range strings.Split(f[1], ",") {
			root := "/sys/fs/cgroup/" + f[1]
			if c == "" {
				root = "/sys/fs/cgroup"
				if _, err := os.Stat(root + "/unified"); err == nil {
					root += "/unified"
				}
			}
			g.dirs[c] = root + f[2]
		}
	}
	return g
}

func (g group) v2() bool { return g.dirs["memory"] == "" }

// file reads a control file by its name on v1 or v2.
func (g group) file(t *testing.T, controller, v1, v2 string) string {
	t.Helper()
	path := g.dirs[controller] + "/" + v1
	if g.v2() {
		path = g.dirs[""] + "/" + v2
	}
	b, err := os.ReadFile(path)
	must(t, err)
	return strings.TrimSpace(string(b))
}

// key is the number after a word of a flat keyed file.
func key(t *testing.T, text, word string) uint64 {
	t.Helper()
	for l := range strings.Lines(text) {
		if k, v, _ := strings.Cut(strings.TrimSpace(l), " "); k == word {
			return number(t, v)
		}
	}
	t.Fatalf("no %s in %q", word, text)
	return 0
}

func number(t *testing.T, s string) uint64 {
	t.Helper()
	n, err := strconv.ParseUint(strings.TrimSpace(s), 10, 64)
	must(t, err)
	return n
}

func (g group) cpu(t *testing.T) uint64 {
	if g.v2() {
		return key(t, g.file(t, "", "", "cpu.stat"), "usage_usec") * 1000
	}
	return number(t, g.file(t, "cpuacct", "cpuacct.usage", ""))
}

// stat is a line of memory.stat; v1 has the sum of the tree under another name.
func (g group) stat(t *testing.T, v1, v2 string) uint64 {
	word := v1
	if g.v2() {
		word = v2
	}
	return key(t, g.file(t, "memory", "memory.stat", "memory.stat"), word)
}

// between checks a counter that only grows against readings before and after.
func between(t *testing.T, what string, low, got, high uint64) {
	t.Helper()
	if got < low || got > high {
		t.Errorf("%s: %d is not within %d and %d", what, got, low, high)
	}
}

// near checks a figure that goes up and down. The kernel batches charges per
// CPU, and pages come and go between two readings.
func near(t *testing.T, what string, got, want uint64) {
	t.Helper()
	const slack = 2 << 20
	between(t, what, want-min(want, slack), got, want+slack)
}

// rests waits until a busy container does nothing any more, and returns its
// process: the shell has become sleep, which frees its memory.
func rests(t *testing.T, c *container) (pid int) {
	t.Helper()
	c.waitLog(t, "done")
	pid = c.pid(t)
	eventually(t, "the shell has become sleep", func() bool {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
		return err == nil && strings.Contains(string(b), "sleep\x001000")
	})
	return pid
}

func containerFigures(t *testing.T, n *node) {
	c := n.pod(t).run(t, image("busybox:1"), shell(busy), modest)
	g := kernelGroup(t, rests(t, c))

	cpu, faults := g.cpu(t), g.stat(t, "total_pgfault", "pgfault")
	before := time.Now().UnixNano()
	s := c.stats(t)
	between(t, "cpu time", cpu, s.GetCpu().GetUsageCoreNanoSeconds().GetValue(), g.cpu(t))
	between(t, "page faults", faults, s.GetMemory().GetPageFaults().GetValue(), g.stat(t, "total_pgfault", "pgfault"))
	for what, at := range map[string]int64{"cpu": s.GetCpu().GetTimestamp(), "memory": s.GetMemory().GetTimestamp(), "swap": s.GetSwap().GetTimestamp()} {
		if n.own != nil && (at < before || at > time.Now().UnixNano()) {
			t.Errorf("the figure of %s is not fresh: %v", what, time.Unix(0, at))
		}
	}
	m := s.GetMemory()
	usage := number(t, g.file(t, "memory", "memory.usage_in_bytes", "memory.current"))
	near(t, "memory", m.GetUsageBytes().GetValue(), usage)
	near(t, "working set", m.GetWorkingSetBytes().GetValue(), usage-g.stat(t, "total_inactive_file", "inactive_file"))
	near(t, "rss", m.GetRssBytes().GetValue(), g.stat(t, "total_rss", "anon"))
	if m.GetUsageBytes().GetValue() == 0 || m.GetRssBytes().GetValue() == 0 {
		t.Error("no memory in use:", m)
	}
	equal(t, "available and working set", m.GetAvailableBytes().GetValue()+m.GetWorkingSetBytes().GetValue(), 64<<20)
	if n.own != nil {
		equal(t, "swap available", s.GetSwap().GetSwapAvailableBytes().GetValue(), 0)
		kernelPressure(t, g, s)
	}
}

// kernelPressure compares stall times, where the kernel has them.
func kernelPressure(t *testing.T, g group, s *runtimeapi.ContainerStats) {
	read := func() (uint64, bool) {
		b, err := os.ReadFile(g.dirs[""] + "/cpu.pressure")
		if errors.Is(err, os.ErrNotExist) || err != nil {
			return 0, false
		}
		_, total, _ := strings.Cut(strings.SplitN(string(b), "\n", 2)[0], "total=")
		return number(t, total) * 1000, true
	}
	high, ok := read()
	psi := s.GetCpu().GetPsi()
	if (psi != nil) != ok {
		t.Errorf("pressure %v; the kernel has it: %v", psi, ok)
	}
	between(t, "cpu pressure", 0, psi.GetSome().GetTotal(), high)
}

func cpuRate(t *testing.T, n *node) {
	c := n.pod(t).run(t, image("busybox:1"), shell(`while :; do :; done`), func(c *runtimeapi.ContainerConfig) {
		c.Linux.Resources = &runtimeapi.LinuxContainerResources{CpuPeriod: 100000, CpuQuota: 10000}
	})
	a := c.stats(t).GetCpu()
	time.Sleep(1500 * time.Millisecond)
	b := c.stats(t).GetCpu()
	if n.own == nil {
		return // others sample on their own schedule
	}
	used := b.GetUsageCoreNanoSeconds().GetValue() - a.GetUsageCoreNanoSeconds().GetValue()
	want := uint64(float64(used) * 1e9 / float64(b.GetTimestamp()-a.GetTimestamp()))
	// The daemon divides by the monotonic clock, the wall clock may be slewed.
	between(t, "nano cores", want-want/50, b.GetUsageNanoCores().GetValue(), want+want/50)
	if want == 0 {
		t.Error("a busy loop used no CPU")
	}
}

func writableLayer(t *testing.T, n *node) {
	c := n.pod(t).run(t, image("busybox:1"), shell("exec sleep 1000"))
	c.sh(t, "for i in 1 2 3 4 5; do dd if=/dev/zero of=/tmp/f$i bs=1024k count=1 2>/dev/null; done; sync")
	var u *runtimeapi.FilesystemUsage
	eventually(t, "written bytes are counted", func() bool {
		u = c.stats(t).GetWritableLayer()
		return u.GetUsedBytes().GetValue() >= 5<<20
	})
	between(t, "bytes", 5<<20, u.GetUsedBytes().GetValue(), 6<<20)
	between(t, "inodes", 6, u.GetInodesUsed().GetValue(), 20)
	if u.GetTimestamp() == 0 || u.GetFsId().GetMountpoint() == "" {
		t.Error(u)
	}
}

func podFigures(t *testing.T, n *node) {
	p := n.pod(t)
	c := p.run(t, image("busybox:1"), shell(busy))
	pid := rests(t, c)
	other := n.pod(t)
	other.run(t, probe("serve")).waitLog(t, "listening")
	c.sh(t, "wget -q -O - http://"+other.status(t).GetNetwork().GetIp()+"/healthz")
	counter := func(name string) uint64 { return number(t, c.sh(t, "cat /sys/class/net/eth0/statistics/"+name)) }

	rx, tx, cpu := counter("rx_bytes"), counter("tx_bytes"), kernelGroup(t, pid).cpu(t)
	s := p.stats(t).GetLinux()
	def := s.GetNetwork().GetDefaultInterface()
	equal(t, "interface", def.GetName(), "eth0")
	between(t, "received", rx, def.GetRxBytes().GetValue(), counter("rx_bytes"))
	between(t, "sent", tx, def.GetTxBytes().GetValue(), counter("tx_bytes"))
	if rx == 0 || tx == 0 {
		t.Error("no traffic was counted")
	}
	if s.GetCpu().GetUsageCoreNanoSeconds().GetValue() < cpu {
		t.Error("the pod used less CPU than its container")
	}
	if len(s.GetContainers()) != 1 || s.GetContainers()[0].GetAttributes().GetId() != c.id {
		t.Error("containers:", s.GetContainers())
	}
	if n.own != nil {
		equal(t, "processes", s.GetProcess().GetProcessCount().GetValue(), 1)
	}
}

func whoIsListed(t *testing.T, n *node) {
	p := n.pod(t)
	mark := func(c *runtimeapi.ContainerConfig) { c.Labels = map[string]string{"mark": p.id} }
	created, running := p.create(t, probe("sleep"), mark), p.run(t, probe("sleep"), mark)
	ended := p.run(t, image("busybox:1"), shell("true"), mark)
	ended.wait(t)
	filter := &runtimeapi.ContainerStatsFilter{LabelSelector: map[string]string{"mark": p.id}}
	list, err := n.rt.ListContainerStats(t.Context(), &runtimeapi.ListContainerStatsRequest{Filter: filter})
	must(t, err)
	got := map[string]bool{}
	for _, s := range list.GetStats() {
		got[s.GetAttributes().GetId()] = true
	}
	if len(got) != 2 || !got[created.id] || !got[running.id] {
		t.Errorf("listed: %v", got)
	}
	stream, err := n.rt.StreamContainerStats(t.Context(), &runtimeapi.StreamContainerStatsRequest{Filter: filter})
	must(t, err)
	for streamed := 0; ; {
		r, err := stream.Recv()
		if err == io.EOF {
			equal(t, "streamed", streamed, 2)
			break
		}
		must(t, err)
		streamed += len(r.GetContainerStats())
	}
	if s := ended.stats(t); s.GetAttributes().GetId() != ended.id || s.GetCpu() != nil {
		t.Error("an ended container's figures:", s)
	}
	_, err = n.rt.ContainerStats(t.Context(), &runtimeapi.ContainerStatsRequest{ContainerId: strings.Repeat("0", 64)})
	wantCode(t, "figures of nobody", err, codes.NotFound)
	_, err = n.rt.PodSandboxStats(t.Context(), &runtimeapi.PodSandboxStatsRequest{PodSandboxId: strings.Repeat("0", 64)})
	wantCode(t, "figures of no pod", err, codes.NotFound)
}

// maybeMetrics are missing while a container has moved nothing on any device, and
// where the kernel does not count swap.
var maybeMetrics = strings.Fields(`container_memory_swap container_fs_reads_bytes_total container_fs_reads_total container_fs_writes_bytes_total
	container_fs_writes_total container_blkio_device_usage_total`)

func podMetrics(t *testing.T, n *node) {
	p := n.pod(t)
	c := p.run(t, image("busybox:1"), shell(busy), modest)
	rests(t, c)
	d, err := n.rt.ListMetricDescriptors(t.Context(), &runtimeapi.ListMetricDescriptorsRequest{})
	must(t, err)
	keys := map[string]int{}
	for _, m := range d.GetDescriptors() {
		keys[m.GetName()] = len(m.GetLabelKeys())
	}
	r, err := n.rt.ListPodSandboxMetrics(t.Context(), &runtimeapi.ListPodSandboxMetricsRequest{})
	must(t, err)
	got := map[string]uint64{}
	for _, pm := range r.GetPodMetrics() {
		if pm.GetPodSandboxId() != p.id || len(pm.GetContainerMetrics()) != 1 {
			continue
		}
		for _, m := range append(pm.GetMetrics(), pm.GetContainerMetrics()[0].GetMetrics()...) {
			if want, ok := keys[m.GetName()]; !ok || len(m.GetLabelValues()) != want {
				t.Errorf("%s has %d labels, not %d", m.GetName(), len(m.GetLabelValues()), want)
			}
			got[m.GetName()] += m.GetValue().GetValue() // of all its series
		}
	}
	// What is described is there, but for what depends on the node's kernel.
	for name := range keys {
		if _, ok := got[name]; !ok && !strings.Contains(name, "_pressure_") && !strings.Contains(name, "_hugetlb_") &&
			!slices.Contains(maybeMetrics, name) {
			t.Error(name, "is described, but missing")
		}
	}
	for name, want := range map[string]uint64{
		"container_processes": 1, "container_threads": 1, "container_spec_cpu_period": 100000,
		"container_spec_cpu_quota": 50000, "container_spec_cpu_shares": 512,
		"container_spec_memory_limit_bytes": 64 << 20, "container_spec_memory_swap_limit_bytes": 64 << 20,
		"container_sockets": 0, "container_oom_events_total": 0,
	} {
		v, ok := got[name]
		if !ok || v != want {
			t.Errorf("%s: %d (there: %v), want %d", name, v, ok, want)
		}
	}
	for _, name := range []string{"container_memory_max_usage_bytes", "container_file_descriptors", "container_fs_limit_bytes",
		"container_network_receive_bytes_total", "container_start_time_seconds", "container_memory_failures_total"} {
		if got[name] == 0 {
			t.Error(name, "is 0 or missing")
		}
	}
}

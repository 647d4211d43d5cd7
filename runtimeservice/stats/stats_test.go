package stats

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/testing/protocmp"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-dev/berth/sandbox"
	"github.com/berth-dev/berth/shim/cgroup"
	"github.com/berth-dev/berth/store"
)

func TestRate(t *testing.T) {
	r, t0 := newRates(), time.Now()
	for i, step := range []struct {
		at    time.Duration
		usage uint64
		want  uint64
		ok    bool
	}{
		{0, 1000, 0, false},                                 // nothing to compare with
		{10 * time.Millisecond, 2000, 0, false},             // too close
		{500 * time.Millisecond, 500_001_000, 1e9, true},    // a short window is better than none
		{2 * time.Second, 1_000_001_000, 5e8, true},         // over the whole window
		{2*time.Second + time.Millisecond, 9e12, 5e8, true}, // a second client: the same rate
		{4 * time.Second, 1_000_001_000, 0, true},           // idle; the second client changed nothing
		{5 * time.Second, 7, 0, false},                      // the counter began anew
		{6 * time.Second, 250_000_007, 250_000_000, true},   // and goes on from there
		{6*time.Second + time.Millisecond, 0, 0, false},     // anew within the window
	} {
		got, ok := r.rate("c", t0.Add(step.at), step.usage)
		if got != step.want || ok != step.ok {
			t.Errorf("step %d: %d %v, want %d %v", i, got, ok, step.want, step.ok)
		}
	}
}

func TestPrune(t *testing.T) {
	r := newRates()
	d := newDisk(nil, nil)
	for i := range slack + 1 {
		id := strconv.Itoa(i)
		r.rate(id, time.Now(), 0)
		d.sizes[id] = &size{}
	}
	d.sizes["0"].done = make(chan struct{})
	known := func(id string) bool { return id == "7" }
	r.prune(known)
	d.prune(known)
	if len(r.last) != 1 || len(d.sizes) != 2 {
		t.Errorf("%d readings and %d sizes left", len(r.last), len(d.sizes))
	}
}

// walker is a Disk that counts walks.
type walker struct {
	walks atomic.Int64
	gate  chan struct{} // a walk waits for it when set
	fail  error
}

func (w *walker) WritableUsage(context.Context, string) (uint64, uint64, error) {
	if w.gate != nil {
		<-w.gate
	}
	w.walks.Add(1)
	return 4096, 3, w.fail
}

func spawn(f func(context.Context)) { go f(context.Background()) }

func TestDisk(t *testing.T) {
	w := &walker{}
	d := newDisk(w, spawn)
	for range 5 {
		s, ok, err := d.usage(t.Context(), "a", true)
		if !ok || err != nil || s.bytes != 4096 || s.inodes != 3 || s.at.IsZero() {
			t.Fatalf("%+v %v %v", s, ok, err)
		}
	}
	if n := w.walks.Load(); n != 1 {
		t.Errorf("%d walks of one layer that was just measured", n)
	}
	d.mu.Lock()
	d.sizes["a"].at = time.Now().Add(-time.Hour)
	old := d.sizes["a"].at
	w.gate = make(chan struct{})
	d.mu.Unlock()
	// A list does not wait: it gets the old size with its time.
	if s, ok, _ := d.usage(t.Context(), "a", false); !ok || !s.at.Equal(old) {
		t.Errorf("%+v %v", s, ok)
	}
	close(w.gate)
	if s, ok, _ := d.usage(t.Context(), "a", true); !ok || s.bytes != 4096 {
		t.Errorf("%+v %v", s, ok)
	}
}

func TestDiskFails(t *testing.T) {
	w := &walker{fail: errdefs.ErrNotFound}
	d := newDisk(w, spawn)
	if _, ok, err := d.usage(t.Context(), "a", true); ok || !errors.Is(err, errdefs.ErrNotFound) {
		t.Error(ok, err)
	}
	slow := newDisk(&walker{gate: make(chan struct{})}, spawn)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, ok, err := slow.usage(ctx, "a", true); ok || err != nil {
		t.Error("a size out of nothing:", ok, err)
	}
	close(slow.src.(*walker).gate)
}

func TestConvert(t *testing.T) {
	s := &Server{rates: newRates()}
	at, cpu := time.Unix(1, 2), uint64(77)
	p := &cgroup.Pressure{Some: cgroup.Stall{Avg10: 1.5, TotalMicros: 3}}
	full := cgroup.Usage{
		CPUNanos: &cpu,
		Memory:   &cgroup.MemoryUsage{Usage: 10, WorkingSet: 7, RSS: 3, Limit: 5, Faults: 1, MajorFaults: 2},
		Swap:     &cgroup.SwapUsage{Usage: 4, Limit: 9, Limited: true},
		Pressure: cgroup.PressureUsage{IO: p},
	}
	want := &runtimeapi.ContainerStats{
		Cpu: &runtimeapi.CpuUsage{Timestamp: 1_000_000_002, UsageCoreNanoSeconds: num(77)},
		Memory: &runtimeapi.MemoryUsage{Timestamp: 1_000_000_002, UsageBytes: num(10), WorkingSetBytes: num(7), RssBytes: num(3),
			AvailableBytes: num(0), PageFaults: num(1), MajorPageFaults: num(2)},
		Swap: &runtimeapi.SwapUsage{Timestamp: 1_000_000_002, SwapUsageBytes: num(4), SwapAvailableBytes: num(5)},
		Io: &runtimeapi.IoUsage{Timestamp: 1_000_000_002, Psi: &runtimeapi.PsiStats{
			Some: &runtimeapi.PsiData{Total: 3000, Avg10: 1.5}, Full: &runtimeapi.PsiData{}}},
	}
	got := &runtimeapi.ContainerStats{Cpu: s.cpuUsage("c", full, at), Memory: memoryUsage(full, at), Swap: swapUsage(full, at), Io: ioUsage(full, at)}
	if d := cmp.Diff(want, got, protocmp.Transform()); d != "" {
		t.Error(d)
	}
	none := cgroup.Usage{}
	if s.cpuUsage("c", none, at) != nil || memoryUsage(none, at) != nil || swapUsage(none, at) != nil || ioUsage(none, at) != nil {
		t.Error("figures of controllers that are not there")
	}
	both := sum([]cgroup.Usage{full, full, none})
	if *both.CPUNanos != 154 || both.Memory.WorkingSet != 14 || both.Memory.Limit != 0 {
		t.Errorf("%+v", both)
	}
	if networkUsage(nil, at) != nil {
		t.Error("a network of a pod that has none")
	}
	n := networkUsage([]sandbox.Interface{{Name: "eth0", Rx: sandbox.Traffic{Bytes: 1}}, {Name: "net1"}}, at)
	if n.GetDefaultInterface().GetName() != "eth0" || n.GetDefaultInterface().GetRxBytes().GetValue() != 1 || len(n.GetInterfaces()) != 1 {
		t.Error(n)
	}
}

func TestPodGroup(t *testing.T) {
	own := store.Sandbox{Facts: store.SandboxFacts{CgroupParent: "/berth/x"}}
	shared := store.Sandbox{Facts: store.SandboxFacts{CgroupParent: "berth.slice"}}
	kubelet := store.Sandbox{
		Config: &runtimeapi.PodSandboxConfig{Linux: &runtimeapi.LinuxPodSandboxConfig{CgroupParent: "kubepods-pod1.slice"}},
		Facts:  store.SandboxFacts{CgroupParent: "kubepods-pod1.slice"},
	}
	for _, tc := range []struct {
		rec     store.Sandbox
		systemd bool
		want    string
	}{{own, false, "/berth/x"}, {shared, true, ""}, {kubelet, true, "/kubepods.slice/kubepods-pod1.slice"}} {
		if got := podGroup(tc.rec, tc.systemd); got != tc.want {
			t.Errorf("%q, want %q", got, tc.want)
		}
	}
}

// TestKubeletNames holds the descriptors against what the kubelet v1.37 serves
// of cAdvisor's: the metric sets that pkg/kubelet/server includes, by the names
// in cAdvisor's metrics/prometheus.go.
func TestKubeletNames(t *testing.T) {
	have := map[string][]string{}
	for _, d := range descriptors(true) {
		have[d.name] = d.labels
	}
	for labels, names := range map[string]string{
		"": `last_seen start_time_seconds oom_events_total
			cpu_user_seconds_total cpu_system_seconds_total cpu_cfs_periods_total cpu_cfs_throttled_periods_total
			cpu_cfs_throttled_seconds_total cpu_cfs_burst_periods_total cpu_cfs_burst_seconds_total
			memory_cache memory_rss memory_kernel_usage memory_mapped_file memory_swap memory_failcnt memory_usage_bytes
			memory_max_usage_bytes memory_working_set_bytes memory_total_active_file_bytes memory_total_inactive_file_bytes
			memory_events_high_total memory_events_max_total memory_file_dirty_bytes memory_file_writeback_bytes
			memory_pgscan_total memory_pgsteal_total memory_workingset_refault_file_total memory_workingset_refault_anon_total
			processes file_descriptors sockets threads threads_max
			pressure_cpu_stalled_seconds_total pressure_cpu_waiting_seconds_total pressure_memory_stalled_seconds_total
			pressure_memory_waiting_seconds_total pressure_io_stalled_seconds_total pressure_io_waiting_seconds_total
			spec_cpu_period spec_cpu_quota spec_cpu_shares spec_memory_limit_bytes spec_memory_swap_limit_bytes
			spec_memory_reservation_limit_bytes`,
		"cpu":                "cpu_usage_seconds_total",
		"failure_type scope": "memory_failures_total",
		"device": `fs_inodes_free fs_inodes_total fs_limit_bytes fs_usage_bytes fs_reads_bytes_total fs_reads_total
			fs_writes_bytes_total fs_writes_total fs_io_cost_usage_seconds_total fs_io_cost_wait_seconds_total
			fs_io_cost_indebt_seconds_total fs_io_cost_indelay_seconds_total`,
		"device major minor operation": "blkio_device_usage_total",
		"interface": `network_receive_bytes_total network_receive_packets_total network_receive_packets_dropped_total
			network_receive_errors_total network_transmit_bytes_total network_transmit_packets_total
			network_transmit_packets_dropped_total network_transmit_errors_total`,
		"ulimit": "ulimits_soft",
	} {
		for _, name := range strings.Fields(names) {
			got, ok := have["container_"+name]
			if !ok || strings.Join(got, " ") != labels {
				t.Errorf("container_%s: there: %v, with labels %v, want %q", name, ok, got, labels)
			}
		}
	}
	want := []string{"container", "id", "image", "name", "namespace", "pod"} // containerPrometheusLabelsFunc
	if got := slices.Sorted(slices.Values(baseLabels())); !slices.Equal(got, want) {
		t.Errorf("base labels %v, want %v", got, want)
	}
}

func TestDescriptors(t *testing.T) {
	seen := map[string]bool{}
	for _, d := range descriptors(true) {
		if seen[d.name] || d.help == "" {
			t.Errorf("%s: twice, or without help", d.name)
		}
		seen[d.name] = true
	}
	for name, want := range map[string]runtimeapi.MetricType{
		"container_cpu_usage_seconds_total": runtimeapi.MetricType_COUNTER,
		"container_memory_failcnt":          runtimeapi.MetricType_COUNTER,
		"container_fs_inodes_total":         runtimeapi.MetricType_GAUGE,
		"container_threads":                 runtimeapi.MetricType_GAUGE,
	} {
		if got := metricType(name); got != want {
			t.Errorf("%s is a %v", name, got)
		}
	}
}

// TestIOCost: a client takes what is described for what it will get, so costs
// are described and sent where the node keeps them, both or neither.
func TestIOCost(t *testing.T) {
	const name = "container_fs_io_cost_usage_seconds_total"
	for _, on := range []bool{true, false} {
		described := slices.ContainsFunc(descriptors(on), func(d descriptor) bool { return d.name == name })
		m := meter{}
		m.devices([]cgroup.DeviceIO{{Major: 1 << 20}}, on)
		sent := slices.ContainsFunc(m.out, func(m *runtimeapi.Metric) bool { return m.GetName() == name })
		if described != on || sent != on {
			t.Errorf("costs kept %v: described %v, sent %v", on, described, sent)
		}
	}
}

func TestOpenFiles(t *testing.T) {
	f, err := os.CreateTemp(t.TempDir(), "")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	fds, _, ok := openFiles([]int{os.Getpid(), 1 << 30})
	if fds < 4 || !ok {
		t.Error(fds, ok)
	}
}

type noNetwork struct{}

func (noNetwork) Interfaces(store.Sandbox) ([]sandbox.Interface, error) {
	return []sandbox.Interface{{Name: "eth0", Rx: sandbox.Traffic{Bytes: 5}}}, nil
}

// fixture is a server on groups of its own, each with a process in it, or with
// none at all when it may not make them.
func fixture(tb testing.TB, containers int) *Server {
	tb.Helper()
	db, err := store.Open(store.Config{Dir: tb.TempDir()})
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { db.Close() })
	mode, err := cgroup.Detect()
	if err != nil || os.Getuid() != 0 {
		tb.Skip("needs root and control groups")
	}
	root := "/berth-stats-test-" + strconv.Itoa(os.Getpid())
	tb.Cleanup(func() {
		if err := errors.Join(mode.Kill(root), mode.Remove(root)); err != nil {
			tb.Error(err)
		}
	})
	now := time.Now()
	change := store.Change{PutSandboxes: []store.Sandbox{{ID: "pod", Config: &runtimeapi.PodSandboxConfig{
		Metadata: &runtimeapi.PodSandboxMetadata{Name: "p", Namespace: "n", Uid: "u"}},
		Facts: store.SandboxFacts{CreatedAt: now, BootID: "boot", CgroupParent: root}}}}
	for i := range containers {
		id := fmt.Sprintf("c%04d", i)
		group := root + "/" + id
		if err := mode.Create(group); err != nil {
			tb.Fatal(err)
		}
		pid := occupy(tb, mode, group)
		change.PutContainers = append(change.PutContainers, store.Container{ID: id, SandboxID: "pod",
			Config: &runtimeapi.ContainerConfig{
				Metadata: &runtimeapi.ContainerMetadata{Name: id}, Image: &runtimeapi.ImageSpec{Image: "i"},
				Labels: map[string]string{"n": strconv.Itoa(i)},
			},
			Facts: store.ContainerFacts{CreatedAt: now, StartedAt: now, BootID: "boot", PID: pid, CgroupPath: group}})
	}
	if err := db.Commit(tb.Context(), change); err != nil {
		tb.Fatal(err)
	}
	s, err := New(Config{BootID: "boot", StateDir: tb.TempDir(), Spawn: spawn},
		Deps{Store: db, Cgroups: mode, Network: noNetwork{}, Disk: &walker{}})
	if err != nil {
		tb.Fatal(err)
	}
	return s
}

// occupy starts a process in a group, in every hierarchy.
func occupy(tb testing.TB, mode cgroup.Mode, group string) int {
	tb.Helper()
	cmd := exec.Command("sleep", "1000")
	if err := cmd.Start(); err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	dirs := map[string]bool{mode.Dir("pids", group): true, filepath.Join(cgroup.DefaultRoot, "unified", group): true}
	for _, c := range []string{"cpu", "cpuacct", "memory", "blkio"} {
		dirs[mode.Dir(c, group)] = true
	}
	for d := range dirs {
		if _, err := os.Stat(d); err != nil {
			continue
		}
		if err := os.WriteFile(d+"/cgroup.procs", []byte(strconv.Itoa(cmd.Process.Pid)), 0); err != nil {
			tb.Fatal(err)
		}
	}
	return cmd.Process.Pid
}

// sent collects what a stream sends.
type sent[T any] struct {
	grpc.ServerStream
	ctx   context.Context
	parts []*T
}

func (s *sent[T]) Context() context.Context { return s.ctx }
func (s *sent[T]) Send(m *T) error          { s.parts = append(s.parts, m); return nil }

func TestIntegrationLists(t *testing.T) {
	s := fixture(t, 3)
	for _, tc := range []struct {
		f    *runtimeapi.ContainerStatsFilter
		want int
	}{
		{nil, 3}, {&runtimeapi.ContainerStatsFilter{Id: "c000"}, 3}, {&runtimeapi.ContainerStatsFilter{Id: "c0001"}, 1},
		{&runtimeapi.ContainerStatsFilter{PodSandboxId: "po"}, 3}, {&runtimeapi.ContainerStatsFilter{PodSandboxId: "x"}, 0},
		{&runtimeapi.ContainerStatsFilter{LabelSelector: map[string]string{"n": "2"}}, 1},
		{&runtimeapi.ContainerStatsFilter{LabelSelector: map[string]string{"m": ""}}, 0},
	} {
		r, err := s.ListContainerStats(t.Context(), &runtimeapi.ListContainerStatsRequest{Filter: tc.f})
		if err != nil || len(r.GetStats()) != tc.want {
			t.Errorf("%v: %d of %d, %v", tc.f, len(r.GetStats()), tc.want, err)
		}
		out := &sent[runtimeapi.StreamContainerStatsResponse]{ctx: t.Context()}
		if err := s.StreamContainerStats(&runtimeapi.StreamContainerStatsRequest{Filter: tc.f}, out); err != nil {
			t.Error(err)
		}
		n := 0
		for _, p := range out.parts {
			n += len(p.GetContainerStats())
		}
		if n != tc.want {
			t.Errorf("%v: streamed %d of %d", tc.f, n, tc.want)
		}
	}
	// A container that ended is not listed, but can be asked for.
	rec, _ := s.deps.Store.Container("c0001")
	rec.Facts.Exit = &store.Exit{}
	if err := s.deps.Store.Commit(t.Context(), store.Change{PutContainers: []store.Container{rec}}); err != nil {
		t.Fatal(err)
	}
	if r, _ := s.ListContainerStats(t.Context(), &runtimeapi.ListContainerStatsRequest{}); len(r.GetStats()) != 2 {
		t.Errorf("%d listed", len(r.GetStats()))
	}
	r, err := s.ContainerStats(t.Context(), &runtimeapi.ContainerStatsRequest{ContainerId: "c0001"})
	if err != nil || r.GetStats().GetCpu() != nil || r.GetStats().GetWritableLayer() == nil {
		t.Error(r, err)
	}
	if _, err := s.ContainerStats(t.Context(), &runtimeapi.ContainerStatsRequest{ContainerId: "gone"}); !errdefs.IsNotFound(err) {
		t.Error(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := s.ListContainerStats(ctx, &runtimeapi.ListContainerStatsRequest{}); !errors.Is(err, context.Canceled) {
		t.Error("a cancelled list:", err)
	}
}

func TestIntegrationPod(t *testing.T) {
	s := fixture(t, 2)
	r, err := s.PodSandboxStats(t.Context(), &runtimeapi.PodSandboxStatsRequest{PodSandboxId: "pod"})
	if err != nil {
		t.Fatal(err)
	}
	l := r.GetStats().GetLinux()
	if len(l.GetContainers()) != 2 || l.GetProcess().GetProcessCount().GetValue() != 2 || l.GetNetwork().GetDefaultInterface().GetName() != "eth0" {
		t.Error(l)
	}
	// A pod is measured after its containers.
	for _, c := range l.GetContainers() {
		if c.GetCpu().GetUsageCoreNanoSeconds().GetValue() > l.GetCpu().GetUsageCoreNanoSeconds().GetValue() {
			t.Error("a container used more than its pod")
		}
	}
	list, err := s.ListPodSandboxStats(t.Context(), &runtimeapi.ListPodSandboxStatsRequest{})
	if err != nil || len(list.GetStats()) != 1 {
		t.Error(list, err)
	}
	rec, _ := s.deps.Store.Sandbox("pod")
	rec.Facts.StoppedAt = time.Now()
	if err := s.deps.Store.Commit(t.Context(), store.Change{PutSandboxes: []store.Sandbox{rec}}); err != nil {
		t.Fatal(err)
	}
	list, err = s.ListPodSandboxStats(t.Context(), &runtimeapi.ListPodSandboxStatsRequest{})
	if err != nil || len(list.GetStats()) != 0 {
		t.Error("a stopped pod is listed:", list, err)
	}
}

// TestIntegrationMetrics checks every metric against its descriptor.
func TestIntegrationMetrics(t *testing.T) {
	s := fixture(t, 1)
	labels := map[string]int{}
	for _, d := range descriptors(s.ioCost) {
		labels[d.name] = len(baseLabels()) + len(d.labels)
	}
	r, err := s.ListPodSandboxMetrics(t.Context(), &runtimeapi.ListPodSandboxMetricsRequest{})
	if err != nil || len(r.GetPodMetrics()) != 1 || len(r.GetPodMetrics()[0].GetContainerMetrics()) != 1 {
		t.Fatal(r, err)
	}
	p := r.GetPodMetrics()[0]
	series, names := map[string]bool{}, map[string]bool{}
	for _, m := range append(p.GetMetrics(), p.GetContainerMetrics()[0].GetMetrics()...) {
		if want, ok := labels[m.GetName()]; !ok || len(m.GetLabelValues()) != want {
			t.Errorf("%s: %d labels, want %d", m.GetName(), len(m.GetLabelValues()), want)
		}
		key := fmt.Sprint(m.GetName(), m.GetLabelValues())
		if series[key] {
			t.Error("twice:", key)
		}
		series[key], names[m.GetName()] = true, true
	}
	for _, name := range []string{"container_threads", "container_processes", "container_file_descriptors", "container_sockets",
		"container_network_receive_bytes_total", "container_memory_working_set_bytes", "container_cpu_usage_seconds_total",
		"container_cpu_cfs_burst_periods_total", "container_memory_events_high_total", "container_memory_workingset_refault_anon_total"} {
		if !names[name] {
			t.Error(name, "is missing")
		}
	}
	d, err := s.ListMetricDescriptors(t.Context(), nil)
	if err != nil || len(d.GetDescriptors()) != len(labels) {
		t.Error(len(d.GetDescriptors()), err)
	}
}

// TestIntegrationStreamBounded streams many objects: no message holds more
// than a chunk.
func TestIntegrationStreamBounded(t *testing.T) {
	s := fixture(t, 1)
	rec, _ := s.deps.Store.Container("c0000")
	var change store.Change
	for i := range 3 * streamChunk {
		c := rec
		c.ID = fmt.Sprintf("d%04d", i)
		c.Config = &runtimeapi.ContainerConfig{Metadata: &runtimeapi.ContainerMetadata{Name: c.ID}}
		change.PutContainers = append(change.PutContainers, c)
	}
	if err := s.deps.Store.Commit(t.Context(), change); err != nil {
		t.Fatal(err)
	}
	out := &sent[runtimeapi.StreamContainerStatsResponse]{ctx: t.Context()}
	if err := s.StreamContainerStats(&runtimeapi.StreamContainerStatsRequest{}, out); err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, p := range out.parts {
		if n += len(p.GetContainerStats()); len(p.GetContainerStats()) > streamChunk {
			t.Errorf("%d in one message", len(p.GetContainerStats()))
		}
	}
	if n != 3*streamChunk+1 {
		t.Errorf("%d streamed", n)
	}
}

// BenchmarkListContainerStats lists 40 containers with a process each.
func BenchmarkListContainerStats(b *testing.B) {
	s := fixture(b, 40)
	b.ReportAllocs()
	for b.Loop() {
		r, err := s.ListContainerStats(b.Context(), &runtimeapi.ListContainerStatsRequest{})
		if err != nil || len(r.GetStats()) != 40 {
			b.Fatal(len(r.GetStats()), err)
		}
	}
}

// BenchmarkListPodSandboxMetrics collects every metric of 40 containers.
func BenchmarkListPodSandboxMetrics(b *testing.B) {
	s := fixture(b, 40)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := s.ListPodSandboxMetrics(b.Context(), &runtimeapi.ListPodSandboxMetricsRequest{}); err != nil {
			b.Fatal(err)
		}
	}
}

package stats

import (
	"context"
	"fmt"
	"time"

	"google.golang.org/grpc"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-dev/berth/sandbox"
	"github.com/berth-dev/berth/shim/cgroup"
	"github.com/berth-dev/berth/store"
)

// ListPodSandboxMetrics reports every metric of the ready sandboxes and their
// containers.
func (s *Server) ListPodSandboxMetrics(ctx context.Context, _ *runtimeapi.ListPodSandboxMetricsRequest) (*runtimeapi.ListPodSandboxMetricsResponse, error) {
	s.forget()
	all, err := measured(ctx, s.pods(nil), s.metered(ctx))
	if err != nil {
		return nil, fmt.Errorf("list metrics of sandboxes: %w", err)
	}
	return &runtimeapi.ListPodSandboxMetricsResponse{PodMetrics: all}, nil
}

// StreamPodSandboxMetrics sends what ListPodSandboxMetrics returns, in parts
// that are measured one after the other.
func (s *Server) StreamPodSandboxMetrics(_ *runtimeapi.StreamPodSandboxMetricsRequest, out grpc.ServerStreamingServer[runtimeapi.StreamPodSandboxMetricsResponse]) error {
	s.forget()
	ctx := out.Context()
	return inParts(ctx, s.pods(nil), s.metered(ctx), func(part []*runtimeapi.PodSandboxMetrics) error {
		return out.Send(&runtimeapi.StreamPodSandboxMetricsResponse{PodSandboxMetrics: part})
	})
}

// meter collects the metrics of one object. Metrics are read live, so they
// carry no timestamp.
type meter struct {
	base []string // values of the base labels
	out  []*runtimeapi.Metric
}

func (m *meter) add(name string, value uint64, labels ...string) {
	all := m.base
	if len(labels) > 0 {
		all = append(append(make([]string, 0, len(m.base)+len(labels)), m.base...), labels...)
	}
	m.out = append(m.out, &runtimeapi.Metric{Name: name, MetricType: metricType(name), LabelValues: all, Value: num(value)})
}

// metered measures one pod after the other; the file system is asked once.
func (s *Server) metered(ctx context.Context) func(store.Sandbox) *runtimeapi.PodSandboxMetrics {
	fs := statFS(s.cfg.StateDir)
	return func(p store.Sandbox) *runtimeapi.PodSandboxMetrics {
		meta := p.Config.GetMetadata()
		out := &runtimeapi.PodSandboxMetrics{PodSandboxId: p.ID}
		in, err := s.deps.Network.Interfaces(p)
		s.trouble("network of sandbox", p.ID, err)
		pod := meter{base: []string{meta.GetName(), meta.GetNamespace(), "", p.ID, p.ID, ""}}
		pod.network(in)
		out.Metrics = pod.out
		for _, c := range s.deps.Store.ContainersOf(p.ID) {
			if !s.alive(c) {
				continue
			}
			m := meter{base: []string{meta.GetName(), meta.GetNamespace(), c.Config.GetMetadata().GetName(), c.ID, c.ID, imageName(c)}}
			if s.meterContainer(ctx, &m, c, fs) {
				out.ContainerMetrics = append(out.ContainerMetrics, &runtimeapi.ContainerMetrics{ContainerId: c.ID, Metrics: m.out})
			}
		}
		return out
	}
}

// imageName is the image as the pod's author wrote it, if known.
func imageName(c store.Container) string {
	if n := c.Config.GetImage().GetUserSpecifiedImage(); n != "" {
		return n
	}
	return c.Config.GetImage().GetImage()
}

// meterContainer is false when the container ended meanwhile.
func (s *Server) meterContainer(ctx context.Context, m *meter, c store.Container, fs fsFacts) bool {
	u, err := s.deps.Cgroups.Usage(c.Facts.CgroupPath)
	s.trouble("container", c.ID, err)
	if err != nil {
		return false
	}
	d, err := s.deps.Cgroups.Detail(c.Facts.CgroupPath)
	s.trouble("container", c.ID, err)
	m.cpu(u, d)
	m.memory(u, d)
	m.pressure(u.Pressure)
	m.devices(d.IO, s.ioCost)
	m.spec(c, u, d)
	s.meterHugePages(m, c.Facts.CgroupPath)
	s.meterProcesses(m, c)
	s.meterFS(ctx, m, c.ID, fs)
	m.add("container_last_seen", uint64(time.Now().Unix()))
	if at := c.Facts.StartedAt; !at.IsZero() {
		m.add("container_start_time_seconds", uint64(at.Unix()))
	}
	return true
}

func seconds(nanos uint64) uint64 { return nanos / uint64(time.Second) }

func (m *meter) cpu(u cgroup.Usage, d cgroup.Detail) {
	if u.CPUNanos != nil {
		m.add("container_cpu_usage_seconds_total", seconds(*u.CPUNanos), "total")
		m.add("container_cpu_user_seconds_total", seconds(d.UserNanos))
		m.add("container_cpu_system_seconds_total", seconds(d.SystemNanos))
	}
	m.add("container_cpu_cfs_periods_total", d.Periods)
	m.add("container_cpu_cfs_throttled_periods_total", d.ThrottledPeriods)
	m.add("container_cpu_cfs_throttled_seconds_total", seconds(d.ThrottledNanos))
	m.add("container_cpu_cfs_burst_periods_total", d.Bursts)
	m.add("container_cpu_cfs_burst_seconds_total", seconds(d.BurstNanos))
}

func (m *meter) memory(u cgroup.Usage, d cgroup.Detail) {
	mem := u.Memory
	if mem == nil {
		return
	}
	m.add("container_memory_usage_bytes", mem.Usage)
	m.add("container_memory_working_set_bytes", mem.WorkingSet)
	m.add("container_memory_max_usage_bytes", d.Memory.Max)
	m.add("container_memory_rss", mem.RSS)
	m.add("container_memory_cache", mem.Cache)
	m.add("container_memory_mapped_file", mem.Mapped)
	m.add("container_memory_kernel_usage", d.Memory.Kernel)
	m.add("container_memory_failcnt", d.Memory.Failures)
	m.add("container_memory_total_active_file_bytes", mem.ActiveFile)
	m.add("container_memory_total_inactive_file_bytes", mem.InactiveFile)
	for _, scope := range []string{"container", "hierarchy"} {
		m.add("container_memory_failures_total", mem.Faults, "pgfault", scope)
		m.add("container_memory_failures_total", mem.MajorFaults, "pgmajfault", scope)
	}
	m.add("container_oom_events_total", d.Memory.OOMKills)
	if u.Swap != nil {
		m.add("container_memory_swap", u.Swap.Usage)
	}
	m.add("container_memory_events_high_total", d.Memory.Throttled)
	m.add("container_memory_events_max_total", d.Memory.Failures)
	m.reclaim(d.Memory.Reclaim)
}

func (m *meter) reclaim(r cgroup.Reclaim) {
	m.add("container_memory_file_dirty_bytes", r.Dirty)
	m.add("container_memory_file_writeback_bytes", r.Writeback)
	m.add("container_memory_pgscan_total", r.Scanned)
	m.add("container_memory_pgsteal_total", r.Stolen)
	m.add("container_memory_workingset_refault_file_total", r.RefaultsFile)
	m.add("container_memory_workingset_refault_anon_total", r.RefaultsAnon)
}

func (m *meter) pressure(p cgroup.PressureUsage) {
	for _, of := range []struct {
		what string
		p    *cgroup.Pressure
	}{{"cpu", p.CPU}, {"memory", p.Memory}, {"io", p.IO}} {
		if of.p == nil {
			continue
		}
		m.add("container_pressure_"+of.what+"_waiting_seconds_total", seconds(of.p.Some.TotalMicros*1000))
		m.add("container_pressure_"+of.what+"_stalled_seconds_total", seconds(of.p.Full.TotalMicros*1000))
	}
}

// spec reports what was asked for; what was not has the kernel's default.
func (m *meter) spec(c store.Container, u cgroup.Usage, d cgroup.Detail) {
	res := c.Facts.Resources
	period, shares := uint64(100000), uint64(1024)
	if n := res.GetCpuPeriod(); n > 0 {
		period = uint64(n)
	}
	if n := res.GetCpuShares(); n > 0 {
		shares = uint64(n)
	}
	m.add("container_spec_cpu_period", period)
	m.add("container_spec_cpu_shares", shares)
	if n := res.GetCpuQuota(); n > 0 {
		m.add("container_spec_cpu_quota", uint64(n))
	}
	if u.Memory == nil {
		return
	}
	m.add("container_spec_memory_limit_bytes", u.Memory.Limit)
	m.add("container_spec_memory_reservation_limit_bytes", d.Memory.Reservation)
	both := uint64(0)
	if u.Swap != nil && u.Swap.Limited && u.Memory.Limit > 0 {
		both = u.Memory.Limit + u.Swap.Limit
	}
	m.add("container_spec_memory_swap_limit_bytes", both)
}

func (m *meter) network(in []sandbox.Interface) {
	for _, i := range in {
		for _, way := range []struct {
			what string
			n    sandbox.Traffic
		}{{"receive", i.Rx}, {"transmit", i.Tx}} {
			name := "container_network_" + way.what
			m.add(name+"_bytes_total", way.n.Bytes, i.Name)
			m.add(name+"_packets_total", way.n.Packets, i.Name)
			m.add(name+"_packets_dropped_total", way.n.Drops, i.Name)
			m.add(name+"_errors_total", way.n.Errors, i.Name)
		}
	}
}

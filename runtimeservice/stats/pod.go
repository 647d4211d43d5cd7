package stats

import (
	"context"
	"fmt"
	"path"
	"strings"
	"time"

	"google.golang.org/grpc"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-dev/berth/shim/cgroup"
	"github.com/berth-dev/berth/store"
)

// PodSandboxStats reports one sandbox. One that is stopped has no figures.
func (s *Server) PodSandboxStats(ctx context.Context, r *runtimeapi.PodSandboxStatsRequest) (*runtimeapi.PodSandboxStatsResponse, error) {
	rec, err := s.deps.Store.Sandbox(r.GetPodSandboxId())
	if err != nil {
		return nil, fmt.Errorf("statistics of sandbox %q: %w", r.GetPodSandboxId(), err)
	}
	return &runtimeapi.PodSandboxStatsResponse{Stats: s.pod(ctx, rec, true)}, nil
}

// ListPodSandboxStats reports the ready sandboxes that pass the filter.
func (s *Server) ListPodSandboxStats(ctx context.Context, r *runtimeapi.ListPodSandboxStatsRequest) (*runtimeapi.ListPodSandboxStatsResponse, error) {
	s.forget()
	all, err := measured(ctx, s.pods(r.GetFilter()), func(p store.Sandbox) *runtimeapi.PodSandboxStats { return s.pod(ctx, p, false) })
	if err != nil {
		return nil, fmt.Errorf("list statistics of sandboxes: %w", err)
	}
	return &runtimeapi.ListPodSandboxStatsResponse{Stats: all}, nil
}

// StreamPodSandboxStats sends what ListPodSandboxStats returns, in parts that
// are measured one after the other.
func (s *Server) StreamPodSandboxStats(r *runtimeapi.StreamPodSandboxStatsRequest, out grpc.ServerStreamingServer[runtimeapi.StreamPodSandboxStatsResponse]) error {
	s.forget()
	ctx := out.Context()
	return inParts(ctx, s.pods(r.GetFilter()), func(p store.Sandbox) *runtimeapi.PodSandboxStats { return s.pod(ctx, p, false) },
		func(part []*runtimeapi.PodSandboxStats) error {
			return out.Send(&runtimeapi.StreamPodSandboxStatsResponse{PodSandboxStats: part})
		})
}

// pods returns those that pass the filter and are ready.
func (s *Server) pods(f *runtimeapi.PodSandboxStatsFilter) (out []store.Sandbox) {
	for _, p := range s.deps.Store.Sandboxes() {
		if s.ready(p) && fits(p.ID, f.GetId(), p.Config.GetLabels(), f.GetLabelSelector()) {
			out = append(out, p)
		}
	}
	return out
}

// pod measures one sandbox and its containers.
func (s *Server) pod(ctx context.Context, rec store.Sandbox, asked bool) *runtimeapi.PodSandboxStats {
	out := &runtimeapi.PodSandboxStats{Attributes: &runtimeapi.PodSandboxAttributes{
		Id: rec.ID, Metadata: rec.Config.GetMetadata(),
		Labels: rec.Config.GetLabels(), Annotations: rec.Config.GetAnnotations(),
	}}
	if !s.ready(rec) {
		return out
	}
	linux := &runtimeapi.LinuxPodSandboxStats{}
	out.Linux = linux
	var parts []cgroup.Usage
	var paths []string
	for _, c := range s.deps.Store.ContainersOf(rec.ID) {
		if !s.alive(c) {
			continue
		}
		if st, u, ok := s.container(ctx, c, asked); ok {
			linux.Containers = append(linux.Containers, st)
			parts, paths = append(parts, u), append(paths, c.Facts.CgroupPath)
		}
	}
	u := s.podUsage(rec, parts)
	at := time.Now()
	linux.Cpu, linux.Memory, linux.Io = s.cpuUsage(rec.ID, u, at), memoryUsage(u, at), ioUsage(u, at)
	linux.Process = s.processUsage(rec, paths)
	in, err := s.deps.Network.Interfaces(rec)
	s.trouble("network of sandbox", rec.ID, err)
	linux.Network = networkUsage(in, time.Now())
	return out
}

// podUsage reads the pod's group, or adds up its containers where the group is
// not the pod's alone.
func (s *Server) podUsage(rec store.Sandbox, parts []cgroup.Usage) cgroup.Usage {
	group := podGroup(rec, s.cfg.SystemdCgroup)
	if group == "" {
		return sum(parts)
	}
	u, err := s.deps.Cgroups.Usage(group)
	if err != nil {
		// A slice that systemd has not made yet, for want of containers.
		s.trouble("sandbox", rec.ID, err)
		return sum(parts)
	}
	return u
}

// podGroup is the control group that is the pod's own; "" when it has none:
// pods without a parent of their own share one slice.
func podGroup(rec store.Sandbox, systemd bool) string {
	if !systemd {
		return rec.Facts.CgroupParent
	}
	if rec.Config.GetLinux().GetCgroupParent() == "" {
		return ""
	}
	return slicePath(rec.Facts.CgroupParent)
}

// slicePath is where systemd puts a slice: "a-b.slice" is in "a.slice".
func slicePath(slice string) string {
	slice = path.Base(slice)
	base := strings.TrimSuffix(slice, ".slice")
	out := "/"
	for i, r := range base {
		if r == '-' && i > 0 {
			out = path.Join(out, base[:i]+".slice")
		}
	}
	return path.Join(out, slice)
}

// processUsage counts the processes of the containers, and the holder of a
// shared PID namespace.
func (s *Server) processUsage(rec store.Sandbox, paths []string) *runtimeapi.ProcessUsage {
	n := uint64(0)
	if rec.Facts.HolderPID > 0 {
		n++
	}
	for _, p := range paths {
		pids, err := s.deps.Cgroups.Processes(p)
		s.trouble("processes", rec.ID, err)
		n += uint64(len(pids))
	}
	return &runtimeapi.ProcessUsage{Timestamp: now(), ProcessCount: num(n)}
}

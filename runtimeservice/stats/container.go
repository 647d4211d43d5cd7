package stats

import (
	"context"
	"fmt"
	"strings"
	"time"

	"google.golang.org/grpc"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-dev/berth/shim/cgroup"
	"github.com/berth-dev/berth/store"
)

// ContainerStats reports one container. One that has ended still has a
// writable layer, and nothing else.
func (s *Server) ContainerStats(ctx context.Context, r *runtimeapi.ContainerStatsRequest) (*runtimeapi.ContainerStatsResponse, error) {
	rec, err := s.deps.Store.Container(r.GetContainerId())
	if err != nil {
		return nil, fmt.Errorf("statistics of container %q: %w", r.GetContainerId(), err)
	}
	st, _, _ := s.container(ctx, rec, true)
	return &runtimeapi.ContainerStatsResponse{Stats: st}, nil
}

// ListContainerStats reports the containers that pass the filter and have not
// ended.
func (s *Server) ListContainerStats(ctx context.Context, r *runtimeapi.ListContainerStatsRequest) (*runtimeapi.ListContainerStatsResponse, error) {
	s.forget()
	all, err := measured(ctx, s.containers(r.GetFilter()), s.listed(ctx))
	if err != nil {
		return nil, fmt.Errorf("list statistics of containers: %w", err)
	}
	return &runtimeapi.ListContainerStatsResponse{Stats: all}, nil
}

// StreamContainerStats sends what ListContainerStats returns, in parts that
// are measured one after the other.
func (s *Server) StreamContainerStats(r *runtimeapi.StreamContainerStatsRequest, out grpc.ServerStreamingServer[runtimeapi.StreamContainerStatsResponse]) error {
	s.forget()
	ctx := out.Context()
	return inParts(ctx, s.containers(r.GetFilter()), s.listed(ctx), func(part []*runtimeapi.ContainerStats) error {
		return out.Send(&runtimeapi.StreamContainerStatsResponse{ContainerStats: part})
	})
}

// listed measures for a list.
func (s *Server) listed(ctx context.Context) func(store.Container) *runtimeapi.ContainerStats {
	return func(rec store.Container) *runtimeapi.ContainerStats {
		st, _, ok := s.container(ctx, rec, false)
		if !ok {
			return nil
		}
		return st
	}
}

// containers returns those that pass the filter and are alive.
func (s *Server) containers(f *runtimeapi.ContainerStatsFilter) (out []store.Container) {
	for _, c := range s.deps.Store.Containers() {
		if s.alive(c) && strings.HasPrefix(c.SandboxID, f.GetPodSandboxId()) &&
			fits(c.ID, f.GetId(), c.Config.GetLabels(), f.GetLabelSelector()) {
			out = append(out, c)
		}
	}
	return out
}

// container measures one container. ok is false when it has no control group
// (any more). With asked set, its writable layer is worth waiting for.
func (s *Server) container(ctx context.Context, rec store.Container, asked bool) (st *runtimeapi.ContainerStats, u cgroup.Usage, ok bool) {
	st = &runtimeapi.ContainerStats{Attributes: &runtimeapi.ContainerAttributes{
		Id: rec.ID, Metadata: rec.Config.GetMetadata(),
		Labels: rec.Config.GetLabels(), Annotations: rec.Config.GetAnnotations(),
	}}
	if s.alive(rec) {
		var err error
		u, err = s.deps.Cgroups.Usage(rec.Facts.CgroupPath)
		if ok = err == nil; ok {
			at := time.Now()
			st.Cpu = s.cpuUsage(rec.ID, u, at)
			st.Memory, st.Swap, st.Io = memoryUsage(u, at), swapUsage(u, at), ioUsage(u, at)
		}
		s.trouble("container", rec.ID, err)
	}
	if ok || asked {
		st.WritableLayer = s.writableLayer(ctx, rec.ID, asked)
	}
	return st, u, ok
}

func (s *Server) writableLayer(ctx context.Context, id string, asked bool) *runtimeapi.FilesystemUsage {
	size, ok, err := s.disk.usage(ctx, id, asked)
	s.trouble("writable layer", id, err)
	if !ok {
		return nil
	}
	return &runtimeapi.FilesystemUsage{
		Timestamp: size.at.UnixNano(),
		FsId:      &runtimeapi.FilesystemIdentifier{Mountpoint: s.cfg.StateDir},
		UsedBytes: num(size.bytes), InodesUsed: num(size.inodes),
	}
}

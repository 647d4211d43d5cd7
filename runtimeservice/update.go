package runtimeservice

import (
	"context"
	"fmt"
	"maps"

	"github.com/containerd/errdefs"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-dev/berth/sandbox/spec"
	"github.com/berth-dev/berth/store"
	"github.com/berth-dev/berth/store/op"
)

// UpdateContainerResources changes the limits of a created or running
// container. Fields that are not set keep their values. When the kernel refuses
// the change, nothing is recorded.
func (c *containers) UpdateContainerResources(ctx context.Context, r *runtimeapi.UpdateContainerResourcesRequest) (*runtimeapi.UpdateContainerResourcesResponse, error) {
	rec, err := c.db.Container(r.GetContainerId())
	if err != nil {
		return nil, fmt.Errorf("update container %q: %w", r.GetContainerId(), err)
	}
	unlock, err := c.locks.lock(ctx, containerKey(rec.ID))
	if err != nil {
		return nil, fmt.Errorf("update container %s: %w", rec.ID, err)
	}
	defer unlock()
	if err := c.update(ctx, rec.ID, r.GetLinux()); err != nil {
		return nil, fmt.Errorf("update container %s: %w", rec.ID, err)
	}
	return &runtimeapi.UpdateContainerResourcesResponse{}, nil
}

func (c *containers) update(ctx context.Context, id string, given *runtimeapi.LinuxContainerResources) error {
	rec, err := c.db.Container(id)
	if err != nil {
		return err
	}
	if containerState(rec, c.cfg.BootID) == runtimeapi.ContainerState_CONTAINER_EXITED {
		return fmt.Errorf("container has exited, its resources can't be changed: %w", errdefs.ErrFailedPrecondition)
	}
	if given == nil {
		return nil
	}
	merged := mergeResources(rec.Facts.Resources, given)
	res, err := spec.LinuxResources(merged, c.cfg.Host)
	if err != nil {
		return err
	}
	ctx = context.WithoutCancel(ctx)
	op.Fault("container.update", "shim", "before")
	if err := c.shim.Update(ctx, id, c.runtimeOf(rec), res); err != nil {
		return err
	}
	op.Fault("container.update", "shim", "after")
	_, err = c.commitFacts(ctx, id, func(f *store.ContainerFacts) bool { f.Resources = merged; return true })
	return err
}

// mergeResources lays the fields that are set over the resources as they are.
// A memory limit that is given without a swap limit takes the swap limit along
// when that had been equal (no swap) or would be below it, which cgroup v1
// refuses. Pure.
func mergeResources(old, given *runtimeapi.LinuxContainerResources) *runtimeapi.LinuxContainerResources {
	out := &runtimeapi.LinuxContainerResources{}
	if old != nil {
		out = proto.Clone(old).(*runtimeapi.LinuxContainerResources)
	}
	wasEqual := out.MemorySwapLimitInBytes != 0 && out.MemorySwapLimitInBytes == out.MemoryLimitInBytes
	set(&out.CpuPeriod, given.GetCpuPeriod())
	set(&out.CpuQuota, given.GetCpuQuota())
	set(&out.CpuShares, given.GetCpuShares())
	set(&out.MemoryLimitInBytes, given.GetMemoryLimitInBytes())
	set(&out.OomScoreAdj, given.GetOomScoreAdj())
	set(&out.CpusetCpus, given.GetCpusetCpus())
	set(&out.CpusetMems, given.GetCpusetMems())
	set(&out.MemorySwapLimitInBytes, given.GetMemorySwapLimitInBytes())
	if given.GetMemorySwapLimitInBytes() == 0 && out.MemorySwapLimitInBytes > 0 &&
		(wasEqual || out.MemorySwapLimitInBytes < out.MemoryLimitInBytes) {
		out.MemorySwapLimitInBytes = out.MemoryLimitInBytes
	}
	if len(given.GetHugepageLimits()) > 0 {
		out.HugepageLimits = given.GetHugepageLimits()
	}
	if len(given.GetUnified()) > 0 {
		unified := maps.Clone(out.Unified)
		if unified == nil {
			unified = map[string]string{}
		}
		maps.Copy(unified, given.GetUnified())
		out.Unified = unified
	}
	return out
}

// set replaces *to unless v is the zero value, which stands for "not given".
func set[T comparable](to *T, v T) {
	var zero T
	if v != zero {
		*to = v
	}
}

// ReopenContainerLog makes the container write to its log path anew.
func (c *containers) ReopenContainerLog(ctx context.Context, r *runtimeapi.ReopenContainerLogRequest) (*runtimeapi.ReopenContainerLogResponse, error) {
	rec, err := c.db.Container(r.GetContainerId())
	if err == nil {
		err = mustRun(rec, c.cfg.BootID)
	}
	if err == nil && rec.Facts.LogPath != "" {
		err = c.shim.ReopenLog(ctx, rec.ID)
	}
	if err != nil {
		return nil, fmt.Errorf("reopen log of container %q: %w", r.GetContainerId(), err)
	}
	return &runtimeapi.ReopenContainerLogResponse{}, nil
}

// UpdatePodSandboxResources acknowledges new resources of a pod whose cgroup
// the client owns: the CRI has the kubelet change that before the call. A pod
// cgroup that Berth made stands for no limit, and is refused.
func (p *pods) UpdatePodSandboxResources(_ context.Context, r *runtimeapi.UpdatePodSandboxResourcesRequest) (*runtimeapi.UpdatePodSandboxResourcesResponse, error) {
	rec, err := p.db.Sandbox(r.GetPodSandboxId())
	if err == nil {
		err = canCreate(rec, p.cfg.BootID)
	}
	if err == nil && rec.Facts.OwnsCgroup {
		err = fmt.Errorf("limits on a pod cgroup that the client did not name are not supported yet: %w", errdefs.ErrNotImplemented)
	}
	if err != nil {
		return nil, fmt.Errorf("update resources of sandbox %q: %w", r.GetPodSandboxId(), err)
	}
	return &runtimeapi.UpdatePodSandboxResourcesResponse{}, nil
}

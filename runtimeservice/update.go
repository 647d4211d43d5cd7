package runtimeservice

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"strconv"
	"syscall"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-dev/berth/runtimeservice/nri"
	"github.com/berth-dev/berth/sandbox/spec"
	"github.com/berth-dev/berth/store"
	"github.com/berth-dev/berth/store/op"
)

// UpdateContainerResources changes the limits of a created or running
// container. Fields that are not set keep their values. When the kernel refuses
// the change, nothing is recorded; when the store does, the kernel is told the
// old limits again.
func (c *containers) UpdateContainerResources(ctx context.Context, r *runtimeapi.UpdateContainerResourcesRequest) (*runtimeapi.UpdateContainerResourcesResponse, error) {
	rec, err := c.container(ctx, r.GetContainerId())
	if err != nil {
		return nil, fmt.Errorf("update container %q: %w", r.GetContainerId(), err)
	}
	if r.GetWindows() != nil {
		return nil, fmt.Errorf("update container %s: windows: a Windows configuration on a Linux node: %w", rec.ID, errdefs.ErrInvalidArgument)
	}
	// Plugins are asked before the lock is taken: what they answer may be to
	// change other containers, and this one too.
	change := nri.Resources{CRI: r.GetLinux()}
	if r.GetLinux() != nil {
		if change, err = c.plugins.UpdateContainer(ctx, rec, r.GetLinux()); err != nil {
			return nil, fmt.Errorf("update container %s: %w", rec.ID, err)
		}
	}
	if err := c.update(ctx, rec.ID, change); err != nil {
		return nil, fmt.Errorf("update container %s: %w", rec.ID, err)
	}
	if rec, err = c.db.Container(rec.ID); err == nil {
		c.plugins.ContainerUpdated(ctx, rec)
	}
	return &runtimeapi.UpdateContainerResourcesResponse{}, nil
}

func (c *containers) update(ctx context.Context, id string, change nri.Resources) error {
	unlock, err := c.locks.lock(ctx, containerKey(id))
	if err != nil {
		return err
	}
	defer unlock()
	rec, err := c.db.Container(id)
	if err != nil {
		return err
	}
	if containerState(rec, c.cfg.BootID) == runtimeapi.ContainerState_CONTAINER_EXITED {
		return fmt.Errorf("container has exited, its resources can't be changed: %w", errdefs.ErrFailedPrecondition)
	}
	if change.CRI == nil {
		return nil
	}
	merged := mergeResources(rec.Facts.Resources, change.CRI)
	host := c.cfg.Host
	host.Cpuset = cpusetOf(c.cgroups, filepath.Dir(rec.Facts.CgroupPath), change.CRI)
	if _, err := spec.LinuxResources(change.CRI, host); err != nil {
		return err
	}
	res, err := spec.LinuxResources(merged, c.cfg.Host)
	if err != nil {
		return err
	}
	if _, err := spec.OOMScoreAdj(merged, c.cfg.Host); err != nil {
		return err
	}
	nri.Overlay(res, change.Rest)
	ctx = context.WithoutCancel(ctx)
	op.Fault("container.update", "shim", "before")
	err = c.shim.Update(ctx, id, c.runtimeOf(rec), res)
	if err == nil && change.CRI.GetOomScoreAdj() != 0 {
		err = c.adjustOOM(rec.Facts.CgroupPath, merged)
	}
	if err != nil {
		c.undoUpdate(ctx, rec, merged)
		return endedMeanwhile(err)
	}
	op.Fault("container.update", "shim", "after")
	if _, err = c.commitFacts(ctx, id, func(f *store.ContainerFacts) bool { f.Resources = merged; return true }); err != nil {
		c.undoUpdate(ctx, rec, merged)
	}
	op.Fault("container.update", "commit", "after")
	return err
}

// pluginSide is what plugins may do to containers.
type pluginSide struct{ *containers }

// StoredSpec implements nri.Runtime.
func (p pluginSide) StoredSpec(id string) (*specs.Spec, error) { return p.storedSpec(id) }

// UpdateResources implements nri.Runtime.
func (p pluginSide) UpdateResources(ctx context.Context, id string, r nri.Resources) error {
	rec, err := p.container(ctx, id)
	if err != nil {
		return err
	}
	return p.update(ctx, rec.ID, r)
}

// Evict implements nri.Runtime.
func (p pluginSide) Evict(ctx context.Context, id string) error {
	rec, err := p.container(ctx, id)
	if err != nil {
		return err
	}
	return p.stop(ctx, rec, 0)
}

// endedMeanwhile is the error of a call on a shim that is gone: the container is
// still known, so that it was not found must not be the answer.
func endedMeanwhile(err error) error {
	if errdefs.IsNotFound(err) {
		return fmt.Errorf("container has ended meanwhile: %v: %w", err, errdefs.ErrFailedPrecondition)
	}
	return err
}

// adjustOOM sets the score of all processes of the container.
func (c *containers) adjustOOM(group string, r *runtimeapi.LinuxContainerResources) error {
	adj, err := spec.OOMScoreAdj(r, c.cfg.Host)
	if err != nil {
		return err
	}
	pids, err := c.cgroups.Pids(group)
	if err != nil {
		return fmt.Errorf("oom_score_adj: %w", err)
	}
	for _, pid := range pids {
		err := os.WriteFile(fmt.Sprintf("/proc/%d/oom_score_adj", pid), []byte(strconv.Itoa(adj)), 0)
		if err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, syscall.ESRCH) {
			return fmt.Errorf("oom_score_adj: %w", err)
		}
	}
	return nil
}

// undoUpdate puts the container's limits back as they were: a runtime that
// fails may have written some of the new ones.
func (c *containers) undoUpdate(ctx context.Context, rec store.Container, tried *runtimeapi.LinuxContainerResources) {
	old := restoring(rec.Facts.Resources, tried)
	res, err := spec.LinuxResources(old, c.cfg.Host)
	if err == nil {
		err = c.shim.Update(ctx, rec.ID, c.runtimeOf(rec), res)
	}
	if err != nil && !errdefs.IsNotFound(err) {
		c.cfg.Logger.Warn("limits of a container may be changed in part", "container", rec.ID, "error", err)
	}
}

// restoring is what brings back old after tried was applied in part: what old
// left to the kernel gets the kernel's own value. Pure.
func restoring(old, tried *runtimeapi.LinuxContainerResources) *runtimeapi.LinuxContainerResources {
	out := &runtimeapi.LinuxContainerResources{}
	if old != nil {
		out = proto.Clone(old).(*runtimeapi.LinuxContainerResources)
	}
	def := func(to *int64, tried, kernel int64) {
		if *to == 0 && tried != 0 {
			*to = kernel
		}
	}
	def(&out.CpuQuota, tried.GetCpuQuota(), -1)
	def(&out.CpuPeriod, tried.GetCpuPeriod(), 100000)
	def(&out.CpuShares, tried.GetCpuShares(), 1024)
	def(&out.MemorySwapLimitInBytes, tried.GetMemorySwapLimitInBytes()+tried.GetMemoryLimitInBytes(), unlimitedSwap(out))
	def(&out.MemoryLimitInBytes, tried.GetMemoryLimitInBytes(), -1)
	return out
}

// unlimitedSwap is the swap limit that goes with a container's memory limit
// when none was given: the same, or none.
func unlimitedSwap(r *runtimeapi.LinuxContainerResources) int64 {
	if r.GetMemoryLimitInBytes() > 0 {
		return r.GetMemoryLimitInBytes()
	}
	return -1
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
	rec, err := c.container(ctx, r.GetContainerId())
	if err == nil {
		err = mustRun(rec, c.cfg.BootID)
	}
	if err == nil && rec.Facts.LogPath != "" {
		err = endedMeanwhile(c.shim.ReopenLog(ctx, rec.ID))
	}
	if err != nil {
		return nil, fmt.Errorf("reopen log of container %q: %w", r.GetContainerId(), err)
	}
	return &runtimeapi.ReopenContainerLogResponse{}, nil
}

// UpdatePodSandboxResources changes the limits of a pod. Those of a cgroup that
// the client named are the client's own affair, done before the call: they are recorded.
func (p *pods) UpdatePodSandboxResources(ctx context.Context, r *runtimeapi.UpdatePodSandboxResourcesRequest) (*runtimeapi.UpdatePodSandboxResourcesResponse, error) {
	rec, err := p.sandbox(ctx, r.GetPodSandboxId())
	if err == nil {
		// Plugins may ask for something themselves: no lock is held.
		err = p.containers.plugins.UpdatePod(ctx, rec, r.GetOverhead(), r.GetResources())
	}
	if err == nil {
		rec, err = p.limit(ctx, rec.ID, r)
	}
	if err != nil {
		return nil, fmt.Errorf("update resources of sandbox %q: %w", r.GetPodSandboxId(), err)
	}
	p.containers.plugins.PodUpdated(ctx, rec)
	return &runtimeapi.UpdatePodSandboxResourcesResponse{}, nil
}

// limit applies the pod's new resources under its lock.
func (p *pods) limit(ctx context.Context, id string, r *runtimeapi.UpdatePodSandboxResourcesRequest) (store.Sandbox, error) {
	unlock, err := p.locks.lock(ctx, podKey(id))
	if err != nil {
		return store.Sandbox{}, err
	}
	defer unlock()
	rec, err := p.db.Sandbox(id)
	if err == nil {
		err = canCreate(rec, p.cfg.BootID)
	}
	if err == nil {
		err = p.pod.Limit(context.WithoutCancel(ctx), rec, r.GetOverhead(), r.GetResources())
	}
	if err != nil {
		return rec, err
	}
	return p.db.Sandbox(id)
}

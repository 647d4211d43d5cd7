package sandbox

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-dev/berth/sandbox/spec"
	"github.com/berth-dev/berth/shim/cgroup"
	"github.com/berth-dev/berth/store"
	"github.com/berth-dev/berth/store/op"
)

// cgroupStep makes the pod cgroup unless the client's exists already.
func (m *Manager) cgroupStep() step {
	return step{
		Name: "cgroup",
		Do: func(_ context.Context, s *state) error {
			if !s.Rec.Facts.OwnsCgroup {
				return nil
			}
			m.groups.Lock()
			err := m.cg.Create(s.Rec.Facts.CgroupParent)
			m.groups.Unlock()
			if err != nil {
				return fmt.Errorf("create pod cgroup: %w", err)
			}
			settings, err := m.podSettings(s.Rec)
			if err != nil {
				return err
			}
			return m.applyLimits(s.Rec, settings)
		},
		Undo: func(_ context.Context, s *state) error { return m.removeCgroup(s) },
		Done: func(_ context.Context, s *state) (bool, error) {
			return !s.Rec.Facts.OwnsCgroup || m.cgroupExists(s.Rec.Facts.CgroupParent), nil
		},
	}
}

// removeCgroup removes the pod cgroup with whatever containers left below it. One
// that a client has named for several pods goes with the last of them: a pod that
// is undone late must not take the next one's containers along.
func (m *Manager) removeCgroup(s *state) error {
	if !s.Rec.Facts.OwnsCgroup {
		return nil
	}
	if group := s.Rec.Facts.CgroupParent; group != ownCgroup(s.Rec.ID) {
		m.groups.Lock()
		defer m.groups.Unlock()
		if len(m.sharing(s.Rec.ID, group)) > 0 {
			return nil
		}
	}
	if err := m.cg.Kill(s.Rec.Facts.CgroupParent); err != nil {
		return fmt.Errorf("empty pod cgroup: %w", err)
	}
	if err := m.cg.Remove(s.Rec.Facts.CgroupParent); err != nil {
		return fmt.Errorf("remove pod cgroup: %w", err)
	}
	return nil
}

// sharing returns the other sandboxes of this boot in a cgroup or below it. The
// journal comes first: its entry of one that is made ends with the record's start.
func (m *Manager) sharing(id, group string) (out []store.Sandbox) {
	add := func(r store.Sandbox) {
		if r.ID != id && r.Facts.BootID == m.cfg.BootID && (r.Facts.CgroupParent == group || strings.HasPrefix(r.Facts.CgroupParent, group+"/")) {
			out = append(out, r)
		}
	}
	for _, r := range m.halfMade() {
		add(r)
	}
	for _, r := range m.db.Sandboxes() {
		add(r)
	}
	return out
}

// madeHere reports whether a cgroup that exists was made for another sandbox.
func (m *Manager) madeHere(id, group string) bool {
	return slices.ContainsFunc(m.sharing(id, group), func(r store.Sandbox) bool {
		return r.Facts.OwnsCgroup && r.Facts.CgroupParent == group
	})
}

// removeHolderGroup leaves the group to the holder of another pod.
func (m *Manager) removeHolderGroup(s *state) error {
	group := s.Rec.Facts.CgroupParent
	err := m.cg.Remove(group + holderGroup)
	if errors.Is(err, syscall.EBUSY) && len(m.sharing(s.Rec.ID, group)) > 0 {
		return nil
	}
	return err
}

// Limit applies new resources to the sandbox's cgroup, all of them or none, and
// records them. What is nil stays as it is. The cgroup of a client that named one is the
// client's to change: there they are recorded only.
func (m *Manager) Limit(ctx context.Context, rec store.Sandbox, overhead, resources *runtimeapi.LinuxContainerResources) error {
	if overhead != nil {
		rec.Facts.Overhead = overhead
	}
	if resources != nil {
		rec.Facts.Resources = resources
	}
	if m.cfg.SystemdCgroup && rec.Config.GetLinux().GetCgroupParent() == "" && (overhead != nil || resources != nil) {
		return fmt.Errorf("limit sandbox %s: it shares the slice %s with others; name a cgroup_parent for the pod: %w",
			rec.ID, rec.Facts.CgroupParent, errdefs.ErrFailedPrecondition)
	}
	settings, err := m.podSettings(rec)
	op.Fault("sandbox.update", "cgroup", "before")
	if err == nil {
		err = m.applyLimits(rec, settings)
	}
	if err != nil {
		return fmt.Errorf("limit sandbox %s: %w", rec.ID, err)
	}
	op.Fault("sandbox.update", "cgroup", "after")
	if err := m.db.Commit(ctx, store.Change{PutSandboxes: []store.Sandbox{rec}}); err != nil {
		return fmt.Errorf("limit sandbox %s: %w", rec.ID, errors.Join(err, m.relimit(rec.ID)))
	}
	op.Fault("sandbox.update", "commit", "after")
	return nil
}

// relimit applies the resources of the record again.
func (m *Manager) relimit(id string) error {
	rec, err := m.db.Sandbox(id)
	if err != nil {
		return err
	}
	settings, err := m.podSettings(rec)
	if err != nil {
		return err
	}
	return m.applyLimits(rec, settings)
}

func (m *Manager) applyLimits(rec store.Sandbox, settings []cgroup.Setting) error {
	if !rec.Facts.OwnsCgroup || len(settings) == 0 {
		return nil
	}
	err := m.cg.Apply(rec.Facts.CgroupParent, settings)
	if errors.Is(err, syscall.EINVAL) || errors.Is(err, syscall.ERANGE) || errors.Is(err, syscall.EBUSY) {
		return fmt.Errorf("%w: the kernel does not take the pod's resources: %w", err, errdefs.ErrInvalidArgument)
	}
	return err
}

// podSettings are the control files that a sandbox's resources become.
func (m *Manager) podSettings(rec store.Sandbox) ([]cgroup.Setting, error) {
	overhead, resources := rec.Facts.Overhead, rec.Facts.Resources
	if overhead == nil {
		overhead = rec.Config.GetLinux().GetOverhead()
	}
	if resources == nil {
		resources = rec.Config.GetLinux().GetResources()
	}
	r, err := spec.LinuxResources(podLimits(overhead, resources), spec.Host{Controllers: m.cfg.Controllers})
	if err != nil {
		return nil, err
	}
	if m.cg.V2() {
		return settingsV2(r), nil
	}
	return settingsV1(r), nil
}

// podLimits adds a pod's overhead to what its containers may use. What has no
// limit gets none by an overhead. Pure.
func podLimits(overhead, resources *runtimeapi.LinuxContainerResources) *runtimeapi.LinuxContainerResources {
	out := &runtimeapi.LinuxContainerResources{
		CpuShares:              resources.GetCpuShares() + overhead.GetCpuShares(),
		CpuPeriod:              resources.GetCpuPeriod(),
		CpuQuota:               resources.GetCpuQuota(),
		MemoryLimitInBytes:     resources.GetMemoryLimitInBytes(),
		MemorySwapLimitInBytes: resources.GetMemorySwapLimitInBytes(),
		CpusetCpus:             resources.GetCpusetCpus(),
		CpusetMems:             resources.GetCpusetMems(),
		HugepageLimits:         resources.GetHugepageLimits(),
		Unified:                resources.GetUnified(),
	}
	const period = 100000 // the kernel's own
	if out.CpuQuota > 0 && overhead.GetCpuQuota() > 0 {
		ours, theirs := out.CpuPeriod, overhead.GetCpuPeriod()
		if ours == 0 {
			ours = period
		}
		if theirs == 0 {
			theirs = period
		}
		out.CpuQuota += overhead.GetCpuQuota() * ours / theirs
	}
	if extra := overhead.GetMemoryLimitInBytes(); extra > 0 {
		if out.MemoryLimitInBytes > 0 {
			out.MemoryLimitInBytes += extra
		}
		if out.MemorySwapLimitInBytes > 0 {
			out.MemorySwapLimitInBytes += extra
		}
	}
	return out
}

// settingsV1 orders the files so that no step is refused for a value that a
// later one changes: quota and swap limit are lifted first. Pure.
func settingsV1(r *specs.LinuxResources) (out []cgroup.Setting) {
	add := func(controller, file string, v int64) {
		out = append(out, cgroup.Setting{Controller: controller, File: file, Value: strconv.FormatInt(v, 10)})
	}
	if c := r.CPU; c != nil {
		if c.Shares != nil {
			add("cpu", "cpu.shares", int64(*c.Shares))
		}
		if c.Quota != nil || c.Period != nil {
			add("cpu", "cpu.cfs_quota_us", -1)
		}
		if c.Period != nil {
			add("cpu", "cpu.cfs_period_us", int64(*c.Period))
		}
		if c.Quota != nil {
			add("cpu", "cpu.cfs_quota_us", *c.Quota)
		}
	}
	if m := r.Memory; m != nil {
		if m.Swap != nil {
			add("memory", "memory.memsw.limit_in_bytes", -1)
		}
		if m.Limit != nil {
			add("memory", "memory.limit_in_bytes", *m.Limit)
		}
		if m.Swap != nil {
			add("memory", "memory.memsw.limit_in_bytes", *m.Swap)
		}
	}
	for _, h := range r.HugepageLimits {
		out = append(out, cgroup.Setting{Controller: "hugetlb", File: "hugetlb." + h.Pagesize + ".limit_in_bytes", Value: strconv.FormatUint(h.Limit, 10)})
	}
	return append(out, cpusets(r)...)
}

// settingsV2 is the same for the unified hierarchy. Pure.
func settingsV2(r *specs.LinuxResources) (out []cgroup.Setting) {
	add := func(controller, file, value string) {
		out = append(out, cgroup.Setting{Controller: controller, File: file, Value: value})
	}
	if c := r.CPU; c != nil {
		if c.Shares != nil {
			add("cpu", "cpu.weight", strconv.FormatUint(cpuWeight(*c.Shares), 10))
		}
		switch {
		case c.Quota != nil && c.Period != nil:
			add("cpu", "cpu.max", limit(*c.Quota)+" "+strconv.FormatUint(*c.Period, 10))
		case c.Quota != nil:
			add("cpu", "cpu.max", limit(*c.Quota))
		case c.Period != nil:
			add("cpu", "cpu.max", "max "+strconv.FormatUint(*c.Period, 10))
		}
	}
	if m := r.Memory; m != nil {
		if m.Limit != nil {
			add("memory", "memory.max", limit(*m.Limit))
		}
		if swap := m.Swap; swap != nil {
			// The CRI counts memory and swap together, this file swap alone.
			v := *swap
			if v >= 0 && m.Limit != nil && *m.Limit >= 0 {
				v -= *m.Limit
			}
			add("memory", "memory.swap.max", limit(v))
		}
	}
	for _, h := range r.HugepageLimits {
		add("hugetlb", "hugetlb."+h.Pagesize+".max", strconv.FormatUint(h.Limit, 10))
	}
	out = append(out, cpusets(r)...)
	for _, file := range slices.Sorted(maps.Keys(r.Unified)) {
		add("", file, r.Unified[file])
	}
	return out
}

func cpusets(r *specs.LinuxResources) (out []cgroup.Setting) {
	if r.CPU == nil {
		return nil
	}
	for _, s := range []cgroup.Setting{{Controller: "cpuset", File: "cpuset.cpus", Value: r.CPU.Cpus}, {Controller: "cpuset", File: "cpuset.mems", Value: r.CPU.Mems}} {
		if s.Value != "" {
			out = append(out, s)
		}
	}
	return out
}

func limit(v int64) string {
	if v < 0 {
		return "max"
	}
	return strconv.FormatInt(v, 10)
}

// cpuWeight converts shares (2 to 262144, 1024 by default) to a weight (1 to
// 10000, 100 by default) as OCI runtimes do, so that pods and containers compare.
func cpuWeight(shares uint64) uint64 {
	l := math.Log2(float64(min(max(shares, 2), 1<<18)))
	return uint64(math.Ceil(math.Pow(10, (l*l+125*l)/612-7.0/34)))
}

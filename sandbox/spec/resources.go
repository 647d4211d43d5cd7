package spec

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

const resField = "linux.resources."

// What the kernel takes, and the least that an OCI runtime can start in (crun's
// own minimum; runc needs some MiB, and says so when it fails).
const (
	minPeriod, maxPeriod = 1000, 1000000
	minQuota             = 1000
	minShares, maxShares = 2, 1 << 18
	minMemory            = 512 << 10
)

func addResources(in Input, s *specs.Spec) error {
	r, err := LinuxResources(in.Container.GetLinux().GetResources(), in.Host)
	if err != nil {
		return err
	}
	switch limit := in.Handler.PidsLimit; {
	case limit < -1:
		return invalid("handler pids limit", "%d", limit)
	case limit != 0:
		r.Pids = &specs.LinuxPids{Limit: &limit}
	}
	r.BlockIO = in.Classes.BlockIO
	s.Linux.Resources = r
	if id := in.Classes.ClosID; id != "" {
		s.Linux.IntelRdt = &specs.LinuxIntelRdt{ClosID: id}
	}
	return nil
}

// LinuxResources converts CRI resources for a live update of a cgroup. What
// the message leaves at its default is left out, so that it stays as it is. A
// nil message gives an empty result.
func LinuxResources(r *runtimeapi.LinuxContainerResources, h Host) (*specs.LinuxResources, error) {
	cpu, err := cpuResources(r, h)
	if err != nil {
		return nil, err
	}
	memory, err := memoryResources(r, h)
	if err != nil {
		return nil, err
	}
	pages, err := hugepages(r, h)
	if err != nil {
		return nil, err
	}
	out := &specs.LinuxResources{CPU: cpu, Memory: memory, HugepageLimits: pages}
	if u := r.GetUnified(); len(u) != 0 {
		if err := checkUnified(u, h); err != nil {
			return nil, err
		}
		out.Unified = maps.Clone(u)
	}
	return out, nil
}

func cpuResources(r *runtimeapi.LinuxContainerResources, h Host) (*specs.LinuxCPU, error) {
	period, quota, shares := r.GetCpuPeriod(), r.GetCpuQuota(), r.GetCpuShares()
	switch {
	case period != 0 && (period < minPeriod || period > maxPeriod):
		return nil, invalid(resField+"cpu_period", "%d is not in %d..%d (microseconds)", period, minPeriod, maxPeriod)
	case quota < -1 || quota > 0 && quota < minQuota:
		return nil, invalid(resField+"cpu_quota", "%d: use -1 (no limit) or at least %d (microseconds)", quota, minQuota)
	case shares != 0 && (shares < minShares || shares > maxShares):
		return nil, invalid(resField+"cpu_shares", "%d is not in %d..%d", shares, minShares, maxShares)
	}
	if err := checkCpusets(r, h); err != nil {
		return nil, err
	}
	cpu := specs.LinuxCPU{Cpus: r.GetCpusetCpus(), Mems: r.GetCpusetMems()}
	if period != 0 {
		p := uint64(period)
		cpu.Period = &p
	}
	if quota != 0 {
		cpu.Quota = &quota
	}
	if shares != 0 {
		sh := uint64(shares)
		cpu.Shares = &sh
	}
	if cpu == (specs.LinuxCPU{}) {
		return nil, nil
	}
	return &cpu, nil
}

// memoryResources sets the swap limit (memory and swap together, as the OCI
// counts) to the memory limit when the client gives none: no swap. Without a
// swap controller there is nothing to set, and nothing is refused.
func memoryResources(r *runtimeapi.LinuxContainerResources, h Host) (*specs.LinuxMemory, error) {
	limit, swap := r.GetMemoryLimitInBytes(), r.GetMemorySwapLimitInBytes()
	switch {
	case limit < -1 || limit > 0 && limit < minMemory:
		return nil, invalid(resField+"memory_limit_in_bytes", "%d: no container starts in less than %d bytes", limit, minMemory)
	case swap < -1:
		return nil, invalid(resField+"memory_swap_limit_in_bytes", "%d", swap)
	case swap > 0 && limit > 0 && swap < limit:
		return nil, invalid(resField+"memory_swap_limit_in_bytes", "%d is below the memory limit %d", swap, limit)
	case limit == 0 && swap == 0:
		return nil, nil
	}
	m := &specs.LinuxMemory{}
	if limit != 0 {
		m.Limit = &limit
	}
	if swap == 0 {
		swap = limit
	}
	if h.SwapController {
		m.Swap = &swap
	}
	if m.Limit == nil && m.Swap == nil {
		return nil, nil
	}
	return m, nil
}

// hugepages leaves out sizes the node has no controller for: the kubelet sends
// a limit of 0 for every size it knows.
func hugepages(r *runtimeapi.LinuxContainerResources, h Host) ([]specs.LinuxHugepageLimit, error) {
	var out []specs.LinuxHugepageLimit
	for _, l := range r.GetHugepageLimits() {
		size, unit := 0, ""
		if n, _ := fmt.Sscanf(l.GetPageSize(), "%d%s", &size, &unit); n != 2 || size <= 0 || !slices.Contains([]string{"KB", "MB", "GB"}, unit) {
			return nil, invalid(resField+"hugepage_limits", "page size %q", l.GetPageSize())
		}
		if slices.Contains(h.HugePageSizes, l.GetPageSize()) {
			out = append(out, specs.LinuxHugepageLimit{Pagesize: l.GetPageSize(), Limit: l.GetLimit()})
		}
	}
	return out, nil
}

func checkUnified(u map[string]string, h Host) error {
	if !h.CgroupV2 {
		return invalid(resField+"unified", "this node has cgroup v1")
	}
	for _, key := range slices.Sorted(maps.Keys(u)) {
		// A key is a file's name in the container's cgroup, and nothing else.
		if strings.Contains(key, "/") || !strings.Contains(strings.Trim(key, "."), ".") {
			return invalid(resField+"unified", "%q is not a cgroup file", key)
		}
	}
	return nil
}

// OOMScoreAdj is the score of a container's processes on this node. It is never
// left out: they would inherit the daemon's, which is close to "never kill".
func OOMScoreAdj(r *runtimeapi.LinuxContainerResources, h Host) (int, error) {
	adj := r.GetOomScoreAdj()
	if adj < -1000 || adj > 1000 {
		return 0, invalid(resField+"oom_score_adj", "%d is not in -1000..1000", adj)
	}
	if h.RestrictOOMScoreAdj {
		return max(int(adj), h.OOMScoreAdj), nil
	}
	return int(adj), nil
}

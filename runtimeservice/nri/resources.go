package nri

import (
	"fmt"
	"maps"

	"github.com/containerd/errdefs"
	"github.com/containerd/nri/pkg/adaptation"
	"github.com/containerd/nri/pkg/api"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// unsupported refuses what no part of the node can do.
func unsupported(field, why string) error {
	return fmt.Errorf("plugin's %s: %s: %w", field, why, errdefs.ErrNotImplemented)
}

func invalid(field, format string, args ...any) error {
	return fmt.Errorf("plugin's %s: %s: %w", field, fmt.Sprintf(format, args...), errdefs.ErrInvalidArgument)
}

// optional is a value that is set when it is not the zero value.
func optional[T comparable](v T) *T {
	var zero T
	if v == zero {
		return nil
	}
	return &v
}

// fromCRI says the CRI's resources as plugins read them; what is not set there
// is not set here. Pure.
func fromCRI(r *runtimeapi.LinuxContainerResources) *adaptation.LinuxResources {
	if r == nil {
		return nil
	}
	out := &adaptation.LinuxResources{
		Memory: &adaptation.LinuxMemory{
			Limit: api.Int64(optional(r.GetMemoryLimitInBytes())), Swap: api.Int64(optional(r.GetMemorySwapLimitInBytes())),
		},
		Cpu: &adaptation.LinuxCPU{
			Shares: api.UInt64(optional(uint64(r.GetCpuShares()))), Quota: api.Int64(optional(r.GetCpuQuota())),
			Period: api.UInt64(optional(uint64(r.GetCpuPeriod()))), Cpus: r.GetCpusetCpus(), Mems: r.GetCpusetMems(),
		},
		Unified: maps.Clone(r.GetUnified()),
	}
	for _, h := range r.GetHugepageLimits() {
		out.HugepageLimits = append(out.HugepageLimits, &adaptation.HugepageLimit{PageSize: h.GetPageSize(), Limit: h.GetLimit()})
	}
	return out
}

// toCRI is the part of r that the CRI can say. Pure.
func toCRI(r *adaptation.LinuxResources) *runtimeapi.LinuxContainerResources {
	m, c := r.GetMemory(), r.GetCpu()
	return &runtimeapi.LinuxContainerResources{
		MemoryLimitInBytes: m.GetLimit().GetValue(), MemorySwapLimitInBytes: m.GetSwap().GetValue(),
		CpuShares: int64(c.GetShares().GetValue()), CpuQuota: c.GetQuota().GetValue(), CpuPeriod: int64(c.GetPeriod().GetValue()),
		CpusetCpus: c.GetCpus(), CpusetMems: c.GetMems(), Unified: maps.Clone(r.GetUnified()),
	}
}

// changedResources is what to change in a container that exists. Limits that an
// OCI runtime sets only when it makes a container are refused. What asked and r
// agree on is asked's: a plugin gets the client's wish and hands it back. Pure.
func changedResources(asked *runtimeapi.LinuxContainerResources, r *adaptation.LinuxResources) (Resources, error) {
	out := Resources{CRI: toCRI(r), Rest: &specs.LinuxResources{}}
	out.CRI.OomScoreAdj = asked.GetOomScoreAdj()
	out.CRI.HugepageLimits = asked.GetHugepageLimits()
	m, c := r.GetMemory(), r.GetCpu()
	switch {
	case len(r.GetHugepageLimits()) > len(asked.GetHugepageLimits()):
		return out, unsupported("hugepage_limits", "cannot be changed once a container is made")
	case m.GetSwappiness() != nil:
		return out, unsupported("memory.swappiness", "cannot be changed once a container is made")
	case m.GetDisableOomKiller() != nil:
		return out, unsupported("memory.disable_oom_killer", "cannot be changed once a container is made")
	case m.GetUseHierarchy() != nil:
		return out, unsupported("memory.use_hierarchy", "cannot be changed once a container is made")
	case m.GetKernel() != nil:
		return out, unsupported("memory.kernel", "kernels do not have this limit any more")
	case len(r.GetDevices()) > 0:
		return out, unsupported("devices", "cannot be changed once a container is made")
	case r.GetBlockioClass() != nil:
		return out, unsupported("blockio_class", "cannot be changed once a container is made")
	case r.GetRdtClass() != nil:
		return out, unsupported("rdt_class", "cannot be changed once a container is made")
	}
	if m.GetReservation() != nil || m.GetKernelTcp() != nil {
		out.Rest.Memory = &specs.LinuxMemory{Reservation: m.GetReservation().Get(), KernelTCP: m.GetKernelTcp().Get()}
	}
	if c.GetRealtimeRuntime() != nil || c.GetRealtimePeriod() != nil {
		out.Rest.CPU = &specs.LinuxCPU{RealtimeRuntime: c.GetRealtimeRuntime().Get(), RealtimePeriod: c.GetRealtimePeriod().Get()}
	}
	if p := r.GetPids(); p != nil {
		out.Rest.Pids = &specs.LinuxPids{Limit: &p.Limit}
	}
	return out, nil
}

// Overlay lays what the CRI cannot say over resources. Pure but for to.
func Overlay(to, rest *specs.LinuxResources) {
	if rest == nil {
		return
	}
	if m := rest.Memory; m != nil {
		if to.Memory == nil {
			to.Memory = &specs.LinuxMemory{}
		}
		replace(&to.Memory.Reservation, m.Reservation)
		replace(&to.Memory.KernelTCP, m.KernelTCP)
	}
	if c := rest.CPU; c != nil {
		if to.CPU == nil {
			to.CPU = &specs.LinuxCPU{}
		}
		replace(&to.CPU.RealtimeRuntime, c.RealtimeRuntime)
		replace(&to.CPU.RealtimePeriod, c.RealtimePeriod)
	}
	replace(&to.Pids, rest.Pids)
}

// replace sets *to unless v is nil.
func replace[T any](to **T, v *T) {
	if v != nil {
		*to = v
	}
}

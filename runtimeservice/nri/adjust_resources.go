package nri

import (
	"fmt"
	"maps"
	"slices"

	"github.com/containerd/nri/pkg/adaptation"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func applyResources(s *specs.Spec, a *adaptation.ContainerAdjustment, h Host) error {
	r := a.GetLinux().GetResources()
	to := s.Linux.Resources
	if err := applyMemory(to, r.GetMemory(), h); err != nil {
		return err
	}
	if err := applyCPU(to, r.GetCpu(), h); err != nil {
		return err
	}
	for _, l := range r.GetHugepageLimits() {
		if !slices.Contains(h.HugePageSizes, l.GetPageSize()) {
			return unsupported("hugepage_limits", "the node cannot limit pages of "+l.GetPageSize())
		}
		to.HugepageLimits = slices.DeleteFunc(to.HugepageLimits, func(o specs.LinuxHugepageLimit) bool { return o.Pagesize == l.GetPageSize() })
		to.HugepageLimits = append(to.HugepageLimits, specs.LinuxHugepageLimit{Pagesize: l.GetPageSize(), Limit: l.GetLimit()})
	}
	if len(r.GetUnified()) > 0 {
		if !h.CgroupV2 {
			return unsupported("unified", "the node has cgroup v1")
		}
		if to.Unified == nil {
			to.Unified = map[string]string{}
		}
		maps.Copy(to.Unified, r.GetUnified())
	}
	for _, d := range r.GetDevices() {
		to.Devices = append(to.Devices, specs.LinuxDeviceCgroup{
			Allow: d.GetAllow(), Type: d.GetType(), Major: d.GetMajor().Get(), Minor: d.GetMinor().Get(), Access: d.GetAccess(),
		})
	}
	if p := r.GetPids(); p != nil {
		limit := p.GetLimit()
		to.Pids = &specs.LinuxPids{Limit: &limit}
	}
	return nil
}

// applyMemory lets a new memory limit take the swap limit along, as for the
// CRI's limits: no swap unless the plugin says so.
func applyMemory(res *specs.LinuxResources, m *adaptation.LinuxMemory, h Host) error {
	switch {
	case m.GetKernel() != nil:
		return unsupported("memory.kernel", "kernels do not have this limit any more")
	case m.GetUseHierarchy() != nil && !m.GetUseHierarchy().GetValue():
		return unsupported("memory.use_hierarchy", "cannot be turned off")
	case h.CgroupV2 && m.GetKernelTcp() != nil:
		return unsupported("memory.kernel_tcp", "the node has cgroup v2, which has no such limit")
	case h.CgroupV2 && m.GetSwappiness() != nil:
		return unsupported("memory.swappiness", "the node has cgroup v2, which has no such setting")
	case h.CgroupV2 && m.GetDisableOomKiller().GetValue():
		return unsupported("memory.disable_oom_killer", "the node has cgroup v2, which has no such setting")
	case !h.SwapController && m.GetSwap() != nil:
		return unsupported("memory.swap", "the node cannot limit swap")
	}
	to := specs.LinuxMemory{}
	if res.Memory != nil {
		to = *res.Memory
	}
	if limit := m.GetLimit().Get(); limit != nil {
		to.Limit = limit
		if h.SwapController {
			to.Swap = m.GetLimit().Get()
		}
	}
	replace(&to.Swap, m.GetSwap().Get())
	replace(&to.Reservation, m.GetReservation().Get())
	replace(&to.KernelTCP, m.GetKernelTcp().Get())
	replace(&to.Swappiness, m.GetSwappiness().Get())
	replace(&to.DisableOOMKiller, m.GetDisableOomKiller().Get())
	replace(&to.UseHierarchy, m.GetUseHierarchy().Get())
	if to != (specs.LinuxMemory{}) {
		res.Memory = &to
	}
	return nil
}

func applyCPU(res *specs.LinuxResources, c *adaptation.LinuxCPU, h Host) error {
	if h.CgroupV2 && (c.GetRealtimeRuntime() != nil || c.GetRealtimePeriod() != nil) {
		return unsupported("cpu.realtime_runtime", "the node has cgroup v2, which has no such limit")
	}
	to := specs.LinuxCPU{}
	if res.CPU != nil {
		to = *res.CPU
	}
	replace(&to.Shares, c.GetShares().Get())
	replace(&to.Quota, c.GetQuota().Get())
	replace(&to.Period, c.GetPeriod().Get())
	replace(&to.RealtimeRuntime, c.GetRealtimeRuntime().Get())
	replace(&to.RealtimePeriod, c.GetRealtimePeriod().Get())
	if c.GetCpus() != "" {
		to.Cpus = c.GetCpus()
	}
	if c.GetMems() != "" {
		to.Mems = c.GetMems()
	}
	if to != (specs.LinuxCPU{}) {
		res.CPU = &to
	}
	return nil
}

// applyClasses turns names of classes into what the node's configuration says
// of them; an empty name takes a class away. The library hands out an empty
// RDT message when no plugin asked for anything.
func applyClasses(s *specs.Spec, a *adaptation.ContainerAdjustment, h Host) error {
	l := a.GetLinux()
	if class := l.GetResources().GetBlockioClass(); class != nil {
		s.Linux.Resources.BlockIO = nil
		if name := class.GetValue(); name != "" {
			if h.BlockIO == nil {
				return unsupported("blockio_class", "the node has no classes of block I/O")
			}
			res, err := h.BlockIO(name)
			if err != nil {
				return fmt.Errorf("plugin's blockio_class: %w", err)
			}
			s.Linux.Resources.BlockIO = res
		}
	}
	if class := l.GetResources().GetRdtClass(); class != nil {
		s.Linux.IntelRdt = nil
		if name := class.GetValue(); name != "" {
			if h.RDT == nil {
				return unsupported("rdt_class", "the node has no RDT classes")
			}
			rdt, err := h.RDT(name)
			if err != nil {
				return fmt.Errorf("plugin's rdt_class: %w", err)
			}
			s.Linux.IntelRdt = rdt
		}
	}
	r := l.GetRdt()
	if r.GetRemove() {
		s.Linux.IntelRdt = nil
	}
	if r.GetClosId() == nil && r.GetSchemata() == nil && r.GetEnableMonitoring() == nil {
		return nil
	}
	if s.Linux.IntelRdt == nil {
		s.Linux.IntelRdt = &specs.LinuxIntelRdt{}
	}
	if r.GetClosId() != nil {
		s.Linux.IntelRdt.ClosID = r.GetClosId().GetValue()
	}
	if r.GetSchemata() != nil {
		s.Linux.IntelRdt.Schemata = r.GetSchemata().GetValue()
	}
	if r.GetEnableMonitoring() != nil {
		s.Linux.IntelRdt.EnableMonitoring = r.GetEnableMonitoring().GetValue()
	}
	return nil
}

// Changed returns what plugins changed of a client's resources, as far as the
// CRI can say it, for the record and the status. Pure.
func Changed(a *adaptation.ContainerAdjustment) *runtimeapi.LinuxContainerResources {
	r := a.GetLinux().GetResources()
	out := toCRI(r)
	for _, l := range r.GetHugepageLimits() {
		out.HugepageLimits = append(out.HugepageLimits, &runtimeapi.HugepageLimit{PageSize: l.GetPageSize(), Limit: l.GetLimit()})
	}
	out.OomScoreAdj = a.GetLinux().GetOomScoreAdj().GetValue()
	return out
}

package stats

import (
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-dev/berth/sandbox"
	"github.com/berth-dev/berth/shim/cgroup"
)

func num(n uint64) *runtimeapi.UInt64Value { return &runtimeapi.UInt64Value{Value: n} }

// cpuUsage also computes the rate, for which it remembers the reading.
func (s *Server) cpuUsage(id string, u cgroup.Usage, at time.Time) *runtimeapi.CpuUsage {
	if u.CPUNanos == nil {
		return nil
	}
	out := &runtimeapi.CpuUsage{Timestamp: at.UnixNano(), UsageCoreNanoSeconds: num(*u.CPUNanos), Psi: psi(u.Pressure.CPU)}
	if n, ok := s.rates.rate(id, at, *u.CPUNanos); ok {
		out.UsageNanoCores = num(n)
	}
	return out
}

// memoryUsage leaves the available bytes out when there is no limit.
func memoryUsage(u cgroup.Usage, at time.Time) *runtimeapi.MemoryUsage {
	m := u.Memory
	if m == nil {
		return nil
	}
	out := &runtimeapi.MemoryUsage{
		Timestamp:       at.UnixNano(),
		WorkingSetBytes: num(m.WorkingSet), UsageBytes: num(m.Usage), RssBytes: num(m.RSS),
		PageFaults: num(m.Faults), MajorPageFaults: num(m.MajorFaults),
		Psi: psi(u.Pressure.Memory),
	}
	if m.Limit > 0 {
		out.AvailableBytes = num(m.Limit - min(m.Limit, m.WorkingSet))
	}
	return out
}

func swapUsage(u cgroup.Usage, at time.Time) *runtimeapi.SwapUsage {
	if u.Swap == nil {
		return nil
	}
	out := &runtimeapi.SwapUsage{Timestamp: at.UnixNano(), SwapUsageBytes: num(u.Swap.Usage)}
	if u.Swap.Limited {
		out.SwapAvailableBytes = num(u.Swap.Limit - min(u.Swap.Limit, u.Swap.Usage))
	}
	return out
}

func ioUsage(u cgroup.Usage, at time.Time) *runtimeapi.IoUsage {
	if u.Pressure.IO == nil {
		return nil // the CRI has nothing else to tell of I/O
	}
	return &runtimeapi.IoUsage{Timestamp: at.UnixNano(), Psi: psi(u.Pressure.IO)}
}

func psi(p *cgroup.Pressure) *runtimeapi.PsiStats {
	if p == nil {
		return nil
	}
	return &runtimeapi.PsiStats{Full: stall(p.Full), Some: stall(p.Some)}
}

// stall counts nanoseconds, as the CRI does.
func stall(s cgroup.Stall) *runtimeapi.PsiData {
	return &runtimeapi.PsiData{Total: s.TotalMicros * 1000, Avg10: s.Avg10, Avg60: s.Avg60, Avg300: s.Avg300}
}

// networkUsage is nil for a pod without interfaces of its own. The first one
// is the default.
func networkUsage(in []sandbox.Interface, at time.Time) *runtimeapi.NetworkUsage {
	if len(in) == 0 {
		return nil
	}
	out := &runtimeapi.NetworkUsage{Timestamp: at.UnixNano(), DefaultInterface: interfaceUsage(in[0])}
	for _, i := range in[1:] {
		out.Interfaces = append(out.Interfaces, interfaceUsage(i))
	}
	return out
}

func interfaceUsage(i sandbox.Interface) *runtimeapi.NetworkInterfaceUsage {
	return &runtimeapi.NetworkInterfaceUsage{
		Name:    i.Name,
		RxBytes: num(i.Rx.Bytes), RxErrors: num(i.Rx.Errors),
		TxBytes: num(i.Tx.Bytes), TxErrors: num(i.Tx.Errors),
	}
}

// sum adds up containers for a pod that has no group of its own. Stall times
// don't add up and stay out.
func sum(all []cgroup.Usage) (out cgroup.Usage) {
	for _, u := range all {
		if u.CPUNanos != nil {
			if out.CPUNanos == nil {
				out.CPUNanos = new(uint64)
			}
			*out.CPUNanos += *u.CPUNanos
		}
		if m := u.Memory; m != nil {
			if out.Memory == nil {
				out.Memory = &cgroup.MemoryUsage{}
			}
			t := out.Memory
			t.Usage, t.WorkingSet, t.RSS = t.Usage+m.Usage, t.WorkingSet+m.WorkingSet, t.RSS+m.RSS
			t.Faults, t.MajorFaults = t.Faults+m.Faults, t.MajorFaults+m.MajorFaults
		}
	}
	return out
}

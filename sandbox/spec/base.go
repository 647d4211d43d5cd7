package spec

import (
	"encoding/json"
	"maps"
	"slices"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// addBase takes from the handler's base specification what neither the client
// nor the image nor Berth decides. It is the last part: what is there by now
// wins. Of the base these are never looked at: arguments, user, capabilities,
// namespaces, root, cgroup, seccomp, masked and read-only paths, since the CRI
// decides about them for each container.
func addBase(in Input, s *specs.Spec) error {
	if len(in.Handler.Base) == 0 {
		return nil
	}
	// Decoded each time: nothing in it may be shared with other containers.
	b := &specs.Spec{}
	if err := json.Unmarshal(in.Handler.Base, b); err != nil {
		return invalid("handler base specification", "%v", err)
	}
	s.Annotations = under(s.Annotations, b.Annotations)
	s.Hooks = b.Hooks // Berth has none of its own
	if b.Process != nil {
		baseProcess(b.Process, s.Process)
	}
	for _, m := range b.Mounts {
		taken := func(o specs.Mount) bool { return o.Destination == m.Destination }
		if !slices.ContainsFunc(s.Mounts, taken) {
			s.Mounts = append(s.Mounts, m)
		}
	}
	slices.SortStableFunc(s.Mounts, func(x, y specs.Mount) int { return depth(x) - depth(y) })
	if b.Linux != nil {
		baseLinux(b.Linux, s.Linux)
	}
	return nil
}

// under is a map of both, with what wins on top.
func under[V any](wins, base map[string]V) map[string]V {
	if len(base) == 0 {
		return wins
	}
	out := maps.Clone(base)
	maps.Copy(out, wins)
	return out
}

func baseProcess(b, p *specs.Process) {
	for _, e := range b.Env {
		if name, _, _ := strings.Cut(e, "="); !hasEnv(p.Env, name) {
			p.Env = append(p.Env, e)
		}
	}
	for _, l := range b.Rlimits {
		if !slices.ContainsFunc(p.Rlimits, func(o specs.POSIXRlimit) bool { return o.Type == l.Type }) {
			p.Rlimits = append(p.Rlimits, l)
		}
	}
	p.NoNewPrivileges = p.NoNewPrivileges || b.NoNewPrivileges
	unset(&p.OOMScoreAdj, b.OOMScoreAdj)
	unset(&p.Scheduler, b.Scheduler)
	unset(&p.IOPriority, b.IOPriority)
	unset(&p.ExecCPUAffinity, b.ExecCPUAffinity)
}

func baseLinux(b, l *specs.Linux) {
	l.Sysctl = under(l.Sysctl, b.Sysctl)
	l.NetDevices = under(l.NetDevices, b.NetDevices)
	unset(&l.IntelRdt, b.IntelRdt)
	unset(&l.MemoryPolicy, b.MemoryPolicy)
	unset(&l.Personality, b.Personality)
	for _, d := range b.Devices {
		if !slices.ContainsFunc(l.Devices, func(o specs.LinuxDevice) bool { return o.Path == d.Path }) {
			l.Devices = append(l.Devices, d)
		}
	}
	if b.Resources != nil {
		baseResources(b.Resources, l.Resources)
	}
}

// baseResources lets a base allow devices. What it denies is denied already.
func baseResources(b, r *specs.LinuxResources) {
	for _, d := range b.Devices {
		if d.Allow {
			r.Devices = append(r.Devices, d)
		}
	}
	r.Unified = under(r.Unified, b.Unified)
	r.Rdma = under(r.Rdma, b.Rdma)
	unset(&r.Pids, b.Pids)
	unset(&r.BlockIO, b.BlockIO)
	unset(&r.Network, b.Network)
	if len(r.HugepageLimits) == 0 {
		r.HugepageLimits = b.HugepageLimits
	}
	if b.Memory != nil {
		baseMemory(b.Memory, &r.Memory)
	}
	if b.CPU != nil {
		baseCPU(b.CPU, &r.CPU)
	}
}

func baseMemory(b *specs.LinuxMemory, to **specs.LinuxMemory) {
	m := specs.LinuxMemory{}
	if *to != nil {
		m = **to
	}
	// A swap limit belongs to its memory limit.
	if m.Limit == nil {
		m.Limit, m.Swap = b.Limit, b.Swap
	}
	unset(&m.Reservation, b.Reservation)
	unset(&m.Swappiness, b.Swappiness)
	unset(&m.DisableOOMKiller, b.DisableOOMKiller)
	unset(&m.KernelTCP, b.KernelTCP)
	unset(&m.CheckBeforeUpdate, b.CheckBeforeUpdate)
	*to = &m
}

func baseCPU(b *specs.LinuxCPU, to **specs.LinuxCPU) {
	c := specs.LinuxCPU{}
	if *to != nil {
		c = **to
	}
	unset(&c.Shares, b.Shares)
	if c.Quota == nil && c.Period == nil {
		c.Quota, c.Period, c.Burst = b.Quota, b.Period, b.Burst
	}
	unset(&c.RealtimeRuntime, b.RealtimeRuntime)
	unset(&c.RealtimePeriod, b.RealtimePeriod)
	unset(&c.Idle, b.Idle)
	if c.Cpus == "" {
		c.Cpus = b.Cpus
	}
	if c.Mems == "" {
		c.Mems = b.Mems
	}
	*to = &c
}

// unset sets *to to base where it is nil.
func unset[T any](to **T, base *T) {
	if *to == nil {
		*to = base
	}
}

package spec

import (
	"slices"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

const capsField = "linux.security_context.capabilities."

// knownCapabilities lists capabilities(7) by number.
func knownCapabilities() []string {
	return []string{
		"CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_DAC_READ_SEARCH", "CAP_FOWNER", "CAP_FSETID",
		"CAP_KILL", "CAP_SETGID", "CAP_SETUID", "CAP_SETPCAP", "CAP_LINUX_IMMUTABLE",
		"CAP_NET_BIND_SERVICE", "CAP_NET_BROADCAST", "CAP_NET_ADMIN", "CAP_NET_RAW", "CAP_IPC_LOCK",
		"CAP_IPC_OWNER", "CAP_SYS_MODULE", "CAP_SYS_RAWIO", "CAP_SYS_CHROOT", "CAP_SYS_PTRACE",
		"CAP_SYS_PACCT", "CAP_SYS_ADMIN", "CAP_SYS_BOOT", "CAP_SYS_NICE", "CAP_SYS_RESOURCE",
		"CAP_SYS_TIME", "CAP_SYS_TTY_CONFIG", "CAP_MKNOD", "CAP_LEASE", "CAP_AUDIT_WRITE",
		"CAP_AUDIT_CONTROL", "CAP_SETFCAP", "CAP_MAC_OVERRIDE", "CAP_MAC_ADMIN", "CAP_SYSLOG",
		"CAP_WAKE_ALARM", "CAP_BLOCK_SUSPEND", "CAP_AUDIT_READ", "CAP_PERFMON", "CAP_BPF",
		"CAP_CHECKPOINT_RESTORE",
	}
}

// defaultCapabilities is the set every container starts from, the one all
// runtimes of Kubernetes share.
func defaultCapabilities() []string {
	return []string{
		"CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FOWNER", "CAP_FSETID", "CAP_KILL", "CAP_SETGID",
		"CAP_SETUID", "CAP_SETPCAP", "CAP_NET_BIND_SERVICE", "CAP_NET_RAW", "CAP_SYS_CHROOT",
		"CAP_MKNOD", "CAP_AUDIT_WRITE", "CAP_SETFCAP",
	}
}

// addCapabilities sets the five sets. Inheritable holds only what ambient
// needs: a wider one would let file capabilities raise a non-root process.
func addCapabilities(in Input, s *specs.Spec) error {
	all := in.Host.Capabilities
	if all == nil {
		all = knownCapabilities()
	}
	if securityContext(in).GetPrivileged() {
		s.Process.Capabilities = capabilitySets(slices.Clone(all), nil)
		return nil
	}
	c := securityContext(in).GetCapabilities()
	add, addAll, err := capabilityNames("add_capabilities", c.GetAddCapabilities())
	if err != nil {
		return err
	}
	drop, dropAll, err := capabilityNames("drop_capabilities", c.GetDropCapabilities())
	if err != nil {
		return err
	}
	ambient, ambientAll, err := capabilityNames("add_ambient_capabilities", c.GetAddAmbientCapabilities())
	if err != nil {
		return err
	}
	for _, name := range slices.Concat(add, ambient) {
		if !slices.Contains(all, name) && !slices.Contains(drop, name) {
			return unable(capsField+"add_capabilities", "this node cannot grant %s", name)
		}
	}
	if ambientAll {
		ambient, addAll = slices.Clone(all), true
	}
	if in.Handler.AmbientCapabilities {
		ambient = slices.Concat(ambient, add)
		if addAll {
			ambient = slices.Concat(ambient, all)
		}
	}
	granted := defaultCapabilities()
	switch {
	case addAll:
		granted = slices.Clone(all)
	case dropAll:
		granted = nil
	}
	granted = unite(granted, add, ambient)
	keep := func(name string) bool { return slices.Contains(all, name) && !slices.Contains(drop, name) }
	s.Process.Capabilities = capabilitySets(filter(granted, keep), filter(unite(ambient), keep))
	return nil
}

func capabilitySets(granted, ambient []string) *specs.LinuxCapabilities {
	return &specs.LinuxCapabilities{
		Bounding:    granted,
		Permitted:   slices.Clone(granted),
		Effective:   slices.Clone(granted),
		Inheritable: slices.Clone(ambient),
		Ambient:     ambient,
	}
}

// capabilityNames gives the names their CAP_ form and takes ALL out.
func capabilityNames(field string, list []string) (names []string, all bool, err error) {
	known := knownCapabilities()
	for _, c := range list {
		name := strings.TrimPrefix(strings.ToUpper(c), "CAP_")
		if name == "ALL" {
			all = true
			continue
		}
		if !slices.Contains(known, "CAP_"+name) {
			return nil, false, invalid(capsField+field, "unknown capability %q", c)
		}
		names = append(names, "CAP_"+name)
	}
	return names, all, nil
}

// unite returns every name of the lists once, in the order of knownCapabilities.
func unite(lists ...[]string) []string {
	have := slices.Concat(lists...)
	out := filter(knownCapabilities(), func(name string) bool { return slices.Contains(have, name) })
	// A kernel newer than the table may have more.
	for _, name := range have {
		if !slices.Contains(out, name) {
			out = append(out, name)
		}
	}
	return out
}

func filter(list []string, keep func(string) bool) []string {
	var out []string
	for _, v := range list {
		if keep(v) {
			out = append(out, v)
		}
	}
	return out
}

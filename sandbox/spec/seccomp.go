package spec

import (
	"encoding/json"
	"fmt"
	"path"
	"runtime"
	"slices"

	"github.com/moby/profiles/seccomp"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// SeccompProfileFile returns the file whose content belongs into
// Input.SeccompLocalhost, "" when the container names none.
func SeccompProfileFile(sc *runtimeapi.LinuxContainerSecurityContext) (string, error) {
	p, err := seccompProfile(sc)
	if err != nil || sc.GetPrivileged() || p.GetProfileType() != runtimeapi.SecurityProfile_Localhost {
		return "", err
	}
	return p.GetLocalhostRef(), nil
}

// seccompProfile returns what the client asks for, nil for nothing.
func seccompProfile(sc *runtimeapi.LinuxContainerSecurityContext) (*runtimeapi.SecurityProfile, error) {
	p, field := sc.GetSeccomp(), secField+"seccomp"
	if p == nil {
		var err error
		field = secField + "seccomp_profile_path"
		//nolint:staticcheck // Deprecated in the CRI, and still sent.
		if p, err = profileFromString(field, sc.GetSeccompProfilePath()); err != nil {
			return nil, err
		}
	}
	if err := checkProfile(field, p); err != nil {
		return nil, err
	}
	if ref := p.GetLocalhostRef(); ref != "" && !path.IsAbs(ref) {
		return nil, invalid(field+".localhost_ref", "%q is not absolute", ref)
	}
	return p, nil
}

// addSeccomp comes after the capabilities: rules depend on them.
func addSeccomp(in Input, s *specs.Spec) error {
	p, err := seccompProfile(securityContext(in))
	if err != nil || securityContext(in).GetPrivileged() {
		return err
	}
	if p == nil {
		if !in.Handler.SeccompDefault || !in.Host.SeccompEnabled {
			return nil
		}
		p = &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_RuntimeDefault}
	}
	if p.GetProfileType() == runtimeapi.SecurityProfile_Unconfined {
		return nil
	}
	if !in.Host.SeccompEnabled {
		return unable(secField+"seccomp", "profile %s: this node's kernel or runtime has no seccomp", p.GetProfileType())
	}
	profile := seccomp.DefaultProfile()
	if p.GetProfileType() == runtimeapi.SecurityProfile_Localhost {
		if profile, err = localProfile(p.GetLocalhostRef(), in.SeccompLocalhost); err != nil {
			return err
		}
	}
	facts := seccompFacts{arch: in.Host.Security.Arch, caps: s.Process.Capabilities.Bounding}
	if facts.arch == "" {
		facts.arch = runtime.GOARCH
	}
	// A kernel that is not known counts as new: rules are then the widest.
	facts.kernel = seccomp.KernelVersion{Kernel: 1 << 16}
	if v := in.Host.KernelVersion; v != "" {
		if _, err := fmt.Sscanf(v, "%d.%d", &facts.kernel.Kernel, &facts.kernel.Major); err != nil {
			return unable("kernel version", "%q", v)
		}
	}
	s.Linux.Seccomp = facts.evaluate(profile)
	if p.GetProfileType() == runtimeapi.SecurityProfile_RuntimeDefault { // a profile of the user's own stays as it is written
		s.Linux.Seccomp.Syscalls = fewerRules(s.Linux.Seccomp.Syscalls)
		if native := s.Linux.Seccomp.Architectures; in.Handler.SeccompNativeOnly && len(native) > 1 {
			s.Linux.Seccomp.Architectures = native[:1] // it comes first
		}
	}
	return nil
}

func localProfile(ref string, body []byte) (*seccomp.Seccomp, error) {
	const field = secField + "seccomp.localhost_ref"
	if len(body) == 0 {
		return nil, invalid(field, "profile %s is missing or empty", ref)
	}
	var p seccomp.Seccomp
	if err := json.Unmarshal(body, &p); err != nil {
		return nil, invalid(field, "profile %s: %v", ref, err)
	}
	if p.DefaultAction == "" {
		return nil, invalid(field, "profile %s has no defaultAction", ref)
	}
	if len(p.Architectures) != 0 && len(p.ArchMap) != 0 {
		return nil, invalid(field, "profile %s has both architectures and archMap", ref)
	}
	for _, r := range p.Syscalls {
		if r == nil || r.Name != "" && len(r.Names) != 0 {
			return nil, invalid(field, "profile %s has a rule with both name and names, or none", ref)
		}
	}
	return &p, nil
}

// seccompFacts are what the conditions of a profile speak about.
type seccompFacts struct {
	arch   string
	kernel seccomp.KernelVersion
	caps   []string
}

// evaluate keeps the rules whose conditions hold. It is done here and not by
// the profile's own package, which would ask the running kernel.
func (f seccompFacts) evaluate(p *seccomp.Seccomp) *specs.LinuxSeccomp {
	out := p.LinuxSeccomp
	out.Architectures = slices.Clone(p.Architectures)
	out.Syscalls = nil
	name, native := f.archNames()
	for _, a := range p.ArchMap {
		if a.Arch == native {
			out.Architectures = append([]specs.Arch{a.Arch}, a.SubArches...)
		}
	}
	for _, r := range p.Syscalls {
		if !f.included(name, r.Includes) || f.excluded(name, r.Excludes) {
			continue
		}
		rule := r.LinuxSyscall
		if r.Name != "" {
			rule.Names = []string{r.Name}
		}
		out.Syscalls = append(out.Syscalls, rule)
	}
	return &out
}

func (f seccompFacts) included(arch string, c *seccomp.Filter) bool {
	if c == nil {
		return true
	}
	for _, name := range c.Caps {
		if !slices.Contains(f.caps, name) {
			return false
		}
	}
	return (len(c.Arches) == 0 || slices.Contains(c.Arches, arch)) && (c.MinKernel == nil || f.atLeast(*c.MinKernel))
}

func (f seccompFacts) excluded(arch string, c *seccomp.Filter) bool {
	if c == nil {
		return false
	}
	for _, name := range c.Caps {
		if slices.Contains(f.caps, name) {
			return true
		}
	}
	return slices.Contains(c.Arches, arch) || c.MinKernel != nil && f.atLeast(*c.MinKernel)
}

func (f seccompFacts) atLeast(v seccomp.KernelVersion) bool {
	return f.kernel.Kernel > v.Kernel || f.kernel.Kernel == v.Kernel && f.kernel.Major >= v.Major
}

// archNames gives the names profiles have for a GOARCH: in conditions, and in
// the list of architectures.
func (f seccompFacts) archNames() (string, specs.Arch) {
	switch f.arch {
	case "386":
		return "x86", specs.ArchX86
	case "amd64":
		return "amd64", specs.ArchX86_64
	case "arm64":
		return "arm64", specs.ArchAARCH64
	case "arm":
		return "arm", specs.ArchARM
	case "ppc64le":
		return "ppc64le", specs.ArchPPC64LE
	case "riscv64":
		return "riscv64", specs.ArchRISCV64
	case "s390x":
		return "s390x", specs.ArchS390X
	case "loong64":
		return "loongarch64", specs.ArchLOONGARCH64
	}
	return f.arch, ""
}

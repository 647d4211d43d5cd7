package nri

import (
	"encoding/json"
	"fmt"
	"path"
	"slices"
	"strings"

	"github.com/containerd/nri/pkg/adaptation"
	"github.com/containerd/nri/pkg/api"
	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// Host is what adjustments depend on beside the specification.
type Host struct {
	CgroupV2       bool
	SwapController bool
	HugePageSizes  []string // that the node can limit
	// InjectCDI puts CDI devices into a specification.
	InjectCDI func(*specs.Spec, []string) error
	// Propagation says how the mount that a path lies on propagates: "shared",
	// "slave" or "private".
	Propagation func(source string) (string, error)
	// BlockIO and RDT find classes by name; nil: the node has none.
	BlockIO func(class string) (*specs.LinuxBlockIO, error)
	RDT     func(class string) (*specs.LinuxIntelRdt, error)
}

// Apply returns doc as plugins want it; doc is not changed. What cannot be done
// is an error that names the field. Pure but for the functions of h.
func Apply(doc *specs.Spec, a *adaptation.ContainerAdjustment, h Host) (*specs.Spec, error) {
	s, err := clone(doc)
	if err != nil {
		return nil, err
	}
	for _, part := range []func(*specs.Spec, *adaptation.ContainerAdjustment, Host) error{
		applyAnnotations, applyProcess, applyHooks, applyRlimits, applyCDI, applyDevices, applyNamespaces, applyKernel,
		applySeccomp, applyResources, applyClasses, applyMounts,
	} {
		if err := part(s, a, h); err != nil {
			return nil, err
		}
	}
	return s, nil
}

// clone copies the specification, with everything in it that may be written to.
func clone(doc *specs.Spec) (*specs.Spec, error) {
	b, err := json.Marshal(doc)
	if err != nil {
		return nil, fmt.Errorf("copy specification: %w", err)
	}
	out := &specs.Spec{}
	if err := json.Unmarshal(b, out); err != nil {
		return nil, fmt.Errorf("copy specification: %w", err)
	}
	if out.Process == nil {
		out.Process = &specs.Process{}
	}
	if out.Linux == nil {
		out.Linux = &specs.Linux{}
	}
	if out.Linux.Resources == nil {
		out.Linux.Resources = &specs.LinuxResources{}
	}
	return out, nil
}

// edit removes the keys that are marked with a leading '-' and sets the others.
// A key in both forms is set.
func edit[V any](m map[string]V, changes map[string]V) map[string]V {
	if len(changes) == 0 {
		return m
	}
	if m == nil {
		m = map[string]V{}
	}
	for key := range changes {
		if name, remove := api.IsMarkedForRemoval(key); remove {
			delete(m, name)
		}
	}
	for key, v := range changes {
		if _, remove := api.IsMarkedForRemoval(key); !remove {
			m[key] = v
		}
	}
	return m
}

func applyAnnotations(s *specs.Spec, a *adaptation.ContainerAdjustment, _ Host) error {
	s.Annotations = edit(s.Annotations, a.GetAnnotations())
	return nil
}

func applyProcess(s *specs.Spec, a *adaptation.ContainerAdjustment, _ Host) error {
	env, err := editEnv(s.Process.Env, a.GetEnv())
	if err != nil {
		return err
	}
	s.Process.Env = env
	if args := a.GetArgs(); len(args) > 0 {
		s.Process.Args = slices.Clone(args)
	}
	l := a.GetLinux()
	if score := l.GetOomScoreAdj(); score != nil {
		if score.GetValue() < -1000 || score.GetValue() > 1000 {
			return invalid("oom_score_adj", "%d is not in -1000 to 1000", score.GetValue())
		}
		s.Process.OOMScoreAdj = score.Get()
	}
	if p := l.GetIoPriority(); p != nil {
		s.Process.IOPriority = nil
		if p.GetClass() != api.IOPrioClass_IOPRIO_CLASS_NONE {
			s.Process.IOPriority = p.ToOCI()
		}
	}
	if sch := l.GetScheduler(); sch != nil {
		s.Process.Scheduler = sch.ToOCI()
	}
	return nil
}

// editEnv keeps the place of a variable whose value changes.
func editEnv(env []string, changes []*api.KeyValue) ([]string, error) {
	for _, c := range changes {
		name, remove := c.IsMarkedForRemoval()
		if name == "" || strings.Contains(name, "=") {
			return nil, invalid("env", "%q is not the name of a variable", name)
		}
		at := slices.IndexFunc(env, func(e string) bool { n, _, _ := strings.Cut(e, "="); return n == name })
		switch {
		case remove && at >= 0:
			env = slices.Delete(env, at, at+1)
		case remove:
		case at >= 0:
			env[at] = c.ToOCI()
		default:
			env = append(env, c.ToOCI())
		}
	}
	return env, nil
}

func applyHooks(s *specs.Spec, a *adaptation.ContainerAdjustment, _ Host) error {
	h := a.GetHooks().Hooks()
	if h == nil {
		return nil
	}
	if s.Hooks == nil {
		s.Hooks = &specs.Hooks{}
	}
	for _, kind := range []struct {
		to  *[]specs.Hook
		add []*api.Hook
	}{
		{&s.Hooks.Prestart, h.GetPrestart()}, //nolint:staticcheck // deprecated there, still in both interfaces
		{&s.Hooks.CreateRuntime, h.GetCreateRuntime()},
		{&s.Hooks.CreateContainer, h.GetCreateContainer()},
		{&s.Hooks.StartContainer, h.GetStartContainer()},
		{&s.Hooks.Poststart, h.GetPoststart()},
		{&s.Hooks.Poststop, h.GetPoststop()},
	} {
		for _, hook := range kind.add {
			if !path.IsAbs(hook.GetPath()) {
				return invalid("hooks", "path %q is not absolute", hook.GetPath())
			}
			*kind.to = append(*kind.to, hook.ToOCI())
		}
	}
	return nil
}

func applyRlimits(s *specs.Spec, a *adaptation.ContainerAdjustment, _ Host) error {
	for _, l := range a.GetRlimits() {
		kind := l.GetType()
		if !strings.HasPrefix(kind, "RLIMIT_") {
			kind = "RLIMIT_" + strings.ToUpper(kind)
		}
		if l.GetSoft() > l.GetHard() {
			return invalid("rlimits", "%s: soft limit %d is above the hard one %d", kind, l.GetSoft(), l.GetHard())
		}
		s.Process.Rlimits = slices.DeleteFunc(s.Process.Rlimits, func(r specs.POSIXRlimit) bool { return r.Type == kind })
		s.Process.Rlimits = append(s.Process.Rlimits, specs.POSIXRlimit{Type: kind, Hard: l.GetHard(), Soft: l.GetSoft()})
	}
	return nil
}

func applyCDI(s *specs.Spec, a *adaptation.ContainerAdjustment, h Host) error {
	var names []string
	for _, d := range a.GetCDIDevices() {
		names = append(names, d.GetName())
	}
	if len(names) == 0 {
		return nil
	}
	if h.InjectCDI == nil {
		return unsupported("CDI_devices", "CDI is turned off")
	}
	if err := h.InjectCDI(s, names); err != nil {
		return fmt.Errorf("plugin's CDI_devices: %w", err)
	}
	return nil
}

func applyDevices(s *specs.Spec, a *adaptation.ContainerAdjustment, _ Host) error {
	for _, d := range a.GetLinux().GetDevices() {
		name, remove := d.IsMarkedForRemoval()
		s.Linux.Devices = slices.DeleteFunc(s.Linux.Devices, func(o specs.LinuxDevice) bool { return o.Path == name })
		if remove {
			continue
		}
		if !path.IsAbs(name) || !slices.Contains([]string{"b", "c", "u", "p"}, d.GetType()) {
			return invalid("devices", "%q of type %q is not a device with an absolute path", name, d.GetType())
		}
		s.Linux.Devices = append(s.Linux.Devices, d.ToOCI())
		if d.GetType() == "p" {
			continue // a pipe: no device the kernel could forbid
		}
		major, minor := d.GetMajor(), d.GetMinor()
		s.Linux.Resources.Devices = append(s.Linux.Resources.Devices, specs.LinuxDeviceCgroup{
			Allow: true, Type: d.GetType(), Major: &major, Minor: &minor, Access: d.AccessString(),
		})
	}
	return nil
}

// applyNamespaces lets plugins choose all namespaces but those that the root
// file system was made for.
func applyNamespaces(s *specs.Spec, a *adaptation.ContainerAdjustment, _ Host) error {
	for _, n := range a.GetLinux().GetNamespaces() {
		name, remove := n.IsMarkedForRemoval()
		kind := specs.LinuxNamespaceType(name)
		switch kind {
		case specs.PIDNamespace, specs.NetworkNamespace, specs.IPCNamespace, specs.UTSNamespace, specs.CgroupNamespace, specs.TimeNamespace:
		case specs.MountNamespace, specs.UserNamespace:
			return unsupported("namespaces", "the "+name+" namespace cannot be changed: the root file system is made for it")
		default:
			return invalid("namespaces", "%q is no type of namespace", name)
		}
		at := slices.IndexFunc(s.Linux.Namespaces, func(o specs.LinuxNamespace) bool { return o.Type == kind })
		switch {
		case remove && at >= 0:
			s.Linux.Namespaces = slices.Delete(s.Linux.Namespaces, at, at+1)
		case remove:
		case at >= 0:
			s.Linux.Namespaces[at].Path = n.GetPath()
		default:
			s.Linux.Namespaces = append(s.Linux.Namespaces, specs.LinuxNamespace{Type: kind, Path: n.GetPath()})
		}
	}
	return nil
}

// applyKernel sets sysctls, network devices, the memory policy and the cgroup.
func applyKernel(s *specs.Spec, a *adaptation.ContainerAdjustment, _ Host) error {
	l := a.GetLinux()
	s.Linux.Sysctl = edit(s.Linux.Sysctl, l.GetSysctl())
	devices := map[string]specs.LinuxNetDevice{}
	for name, d := range l.GetNetDevices() {
		devices[name] = d.ToOCI()
	}
	s.Linux.NetDevices = edit(s.Linux.NetDevices, devices)
	if p := l.GetMemoryPolicy(); p != nil {
		s.Linux.MemoryPolicy = p.ToOCI()
	}
	if p := l.GetCgroupsPath(); p != "" {
		s.Linux.CgroupsPath = p
	}
	return nil
}

func applySeccomp(s *specs.Spec, a *adaptation.ContainerAdjustment, _ Host) error {
	p := a.GetLinux().GetSeccompPolicy()
	if p == nil {
		return nil
	}
	out := &specs.LinuxSeccomp{
		DefaultAction: specs.LinuxSeccompAction(p.GetDefaultAction()),
		ListenerPath:  p.GetListenerPath(), ListenerMetadata: p.GetListenerMetadata(),
		Syscalls: api.ToOCILinuxSyscalls(p.GetSyscalls()),
	}
	if e := p.GetDefaultErrno(); e != nil {
		errno := uint(e.GetValue())
		out.DefaultErrnoRet = &errno
	}
	for _, arch := range p.GetArchitectures() {
		out.Architectures = append(out.Architectures, specs.Arch(arch))
	}
	for _, f := range p.GetFlags() {
		out.Flags = append(out.Flags, specs.LinuxSeccompFlag(f))
	}
	s.Linux.Seccomp = out
	return nil
}

// applyMounts replaces what lies at a mount's place and keeps parents before
// their children.
func applyMounts(s *specs.Spec, a *adaptation.ContainerAdjustment, h Host) error {
	for _, m := range a.GetMounts() {
		dst, remove := m.IsMarkedForRemoval()
		s.Mounts = slices.DeleteFunc(s.Mounts, func(o specs.Mount) bool { return o.Destination == dst })
		if remove {
			continue
		}
		if !path.IsAbs(dst) || path.Clean(dst) == "/" {
			return invalid("mounts", "destination %q is not an absolute path below the root", dst)
		}
		if slices.Contains(m.GetOptions(), api.SELinuxRelabel) {
			return unsupported("mounts", "relabelling "+dst)
		}
		var propagation string
		mount := m.ToOCI(&propagation)
		if err := propagate(s, mount, propagation, h); err != nil {
			return err
		}
		s.Mounts = append(s.Mounts, mount)
	}
	if len(a.GetMounts()) > 0 {
		slices.SortStableFunc(s.Mounts, func(x, y specs.Mount) int { return depth(x) - depth(y) })
	}
	return nil
}

func depth(m specs.Mount) int {
	return strings.Count(strings.Trim(path.Clean(m.Destination), "/"), "/")
}

// propagate makes the root file system propagate as the mount needs it.
func propagate(s *specs.Spec, m specs.Mount, wanted string, h Host) error {
	if wanted != "rshared" && wanted != "rslave" {
		return nil
	}
	have, err := h.Propagation(m.Source)
	if err != nil {
		return fmt.Errorf("plugin's mounts: propagation of %s: %w", m.Source, err)
	}
	if have != "shared" && (wanted == "rshared" || have != "slave") {
		return invalid("mounts", "%s is to be %s, but the mount it lies on is %s", m.Source, wanted, have)
	}
	if s.Linux.RootfsPropagation != "rshared" {
		s.Linux.RootfsPropagation = wanted
	}
	return nil
}

package nri

import (
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/containerd/nri/pkg/adaptation"
	"github.com/containerd/nri/pkg/api"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-dev/berth/store"
)

// podMessage says what plugins see of a pod. Pure.
func podMessage(s store.Sandbox) *adaptation.PodSandbox {
	meta, linux := s.Config.GetMetadata(), s.Config.GetLinux()
	out := &adaptation.PodSandbox{
		Id: s.ID, Name: meta.GetName(), Uid: meta.GetUid(), Namespace: meta.GetNamespace(),
		Labels: maps.Clone(s.Config.GetLabels()), Annotations: maps.Clone(s.Config.GetAnnotations()),
		RuntimeHandler: s.Handler, Pid: uint32(s.Facts.HolderPID),
		Ips: slices.Clone(s.Facts.Network.IPs),
		Linux: &adaptation.LinuxPodSandbox{
			PodOverhead: fromCRI(linux.GetOverhead()), PodResources: fromCRI(linux.GetResources()),
			CgroupParent: linux.GetCgroupParent(), CgroupsPath: s.Facts.CgroupParent,
		},
	}
	if !s.Facts.StoppedAt.IsZero() {
		return out // its namespaces are gone
	}
	types := map[string]specs.LinuxNamespaceType{
		"net": specs.NetworkNamespace, "ipc": specs.IPCNamespace, "uts": specs.UTSNamespace,
		"pid": specs.PIDNamespace, "user": specs.UserNamespace,
	}
	for _, name := range slices.Sorted(maps.Keys(s.Facts.Namespaces)) {
		out.Linux.Namespaces = append(out.Linux.Namespaces, &adaptation.LinuxNamespace{
			Type: string(types[name]), Path: s.Facts.Namespaces[name],
		})
	}
	return out
}

// containerMessage says what plugins see of a container. Pure.
func containerMessage(c store.Container, doc *specs.Spec, bootID string) *adaptation.Container {
	out := &adaptation.Container{
		Id: c.ID, PodSandboxId: c.SandboxID, Name: c.Config.GetMetadata().GetName(),
		State:  containerState(c, bootID),
		Labels: maps.Clone(c.Config.GetLabels()), Annotations: map[string]string{},
		Mounts: api.FromOCIMounts(doc.Mounts), Hooks: api.FromOCIHooks(doc.Hooks),
		Linux: linuxMessage(c, doc), Pid: uint32(c.Facts.PID), Image: imageMessage(c),
		CreatedAt: stamp(c.Facts.CreatedAt), StartedAt: stamp(c.Facts.StartedAt),
	}
	maps.Copy(out.Annotations, doc.Annotations)
	maps.Copy(out.Annotations, c.Config.GetAnnotations())
	if p := doc.Process; p != nil {
		out.Args, out.Env = slices.Clone(p.Args), slices.Clone(p.Env)
		out.User = &api.User{Uid: p.User.UID, Gid: p.User.GID, AdditionalGids: slices.Clone(p.User.AdditionalGids)}
		for _, l := range p.Rlimits {
			out.Rlimits = append(out.Rlimits, &adaptation.POSIXRlimit{Type: l.Type, Hard: l.Hard, Soft: l.Soft})
		}
	}
	for _, d := range c.Config.GetCDIDevices() {
		out.CDIDevices = append(out.CDIDevices, &api.CDIDevice{Name: d.GetName()})
	}
	if x := c.Facts.Exit; x != nil {
		out.FinishedAt, out.ExitCode, out.StatusReason, out.StatusMessage = stamp(x.FinishedAt), x.Code, x.Reason, x.Message
	}
	return out
}

func linuxMessage(c store.Container, doc *specs.Spec) *adaptation.LinuxContainer {
	out := &adaptation.LinuxContainer{SeccompProfile: seccompProfile(c.Config.GetLinux().GetSecurityContext().GetSeccomp())}
	if p := doc.Process; p != nil {
		out.OomScoreAdj = api.Int(p.OOMScoreAdj)
		out.IoPriority = api.FromOCILinuxIOPriority(p.IOPriority)
		out.Scheduler = api.FromOCILinuxScheduler(p.Scheduler)
	}
	l := doc.Linux
	if l == nil {
		return out
	}
	out.Namespaces = api.FromOCILinuxNamespaces(l.Namespaces)
	out.Devices = api.FromOCILinuxDevices(l.Devices)
	out.Resources = api.FromOCILinuxResources(l.Resources, nil)
	out.CgroupsPath = l.CgroupsPath
	out.Sysctl = maps.Clone(l.Sysctl)
	out.NetDevices = api.FromOCILinuxNetDevices(l.NetDevices)
	if l.Seccomp != nil {
		out.SeccompPolicy = api.FromOCILinuxSeccomp(l.Seccomp)
	}
	if r := l.IntelRdt; r != nil {
		out.Rdt = &api.LinuxRdt{ClosId: api.String(r.ClosID), Schemata: api.RepeatedString(r.Schemata), EnableMonitoring: api.Bool(r.EnableMonitoring)}
	}
	return out
}

func seccompProfile(p *runtimeapi.SecurityProfile) *api.SecurityProfile {
	if p == nil {
		return nil
	}
	return &api.SecurityProfile{
		ProfileType:  api.SecurityProfile_ProfileType(p.GetProfileType()), // the same numbers in both interfaces
		LocalhostRef: p.GetLocalhostRef(),
	}
}

func imageMessage(c store.Container) *api.Image {
	out := &api.Image{Name: c.Config.GetImage().GetUserSpecifiedImage(), ConfigDigest: c.Facts.Image.ID}
	if out.Name == "" {
		out.Name = c.Config.GetImage().GetImage()
	}
	if _, digest, ok := strings.Cut(c.Facts.Image.Ref, "@"); ok {
		out.Digest = digest
	}
	return out
}

// containerState is the container's state in the plugins' terms.
func containerState(c store.Container, bootID string) adaptation.ContainerState {
	switch {
	case c.Facts.Exit != nil, c.Facts.BootID != bootID:
		return adaptation.ContainerState_CONTAINER_STOPPED
	case !c.Facts.StartedAt.IsZero():
		return adaptation.ContainerState_CONTAINER_RUNNING
	}
	return adaptation.ContainerState_CONTAINER_CREATED
}

func stamp(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixNano()
}

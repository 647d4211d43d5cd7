package spec

import (
	"cmp"
	"path"
	"slices"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// addMounts puts the kernel's file systems first, then the pod's files and the
// CRI mounts, parents before children.
func addMounts(in Input, s *specs.Spec) error {
	mounts, propagation, err := criMounts(in)
	if err != nil {
		return err
	}
	taken := func(dst string) bool {
		return slices.ContainsFunc(mounts, func(m specs.Mount) bool { return m.Destination == dst })
	}
	var pod []specs.Mount
	for _, m := range podMounts(in) {
		if !taken(m.Destination) {
			pod = append(pod, m)
		}
	}
	mounts = append(mounts, pod...)
	slices.SortStableFunc(mounts, func(a, b specs.Mount) int { return cmp.Compare(depth(a), depth(b)) })
	for _, m := range defaultMounts(in) {
		// A /dev from the client stands for the whole tree, pts and mqueue included.
		if taken(m.Destination) || m.Destination == "/dev/shm" && in.Pod.ShmPath != "" ||
			strings.HasPrefix(m.Destination, "/dev/") && taken("/dev") {
			continue
		}
		s.Mounts = append(s.Mounts, m)
	}
	s.Mounts = append(s.Mounts, mounts...)
	s.Linux.RootfsPropagation = propagation
	return nil
}

func depth(m specs.Mount) int { return strings.Count(strings.Trim(m.Destination, "/"), "/") }

// defaultMounts are the file systems of the kernel's that every container has.
func defaultMounts(in Input) []specs.Mount {
	privileged := securityContext(in).GetPrivileged()
	return []specs.Mount{
		{Destination: "/proc", Type: "proc", Source: "proc", Options: []string{"nosuid", "noexec", "nodev"}},
		{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "strictatime", "mode=755", "size=65536k"}},
		{Destination: "/dev/pts", Type: "devpts", Source: "devpts",
			Options: []string{"nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"}},
		{Destination: "/dev/shm", Type: "tmpfs", Source: "shm", Options: []string{"nosuid", "noexec", "nodev", "mode=1777", "size=65536k"}},
		{Destination: "/dev/mqueue", Type: "mqueue", Source: "mqueue", Options: []string{"nosuid", "noexec", "nodev"}},
		sysMount(in, privileged),
		cgroupMount(in, privileged),
	}
}

// sysMount is read-only but for privileged containers. The kernel lets a user
// namespace mount sysfs for network namespaces of its own only, so that with
// the node's network the node's mount is bound instead.
func sysMount(in Input, privileged bool) specs.Mount {
	mode := "ro"
	if privileged {
		mode = "rw"
	}
	m := specs.Mount{Destination: "/sys", Type: "sysfs", Source: "sysfs", Options: []string{"nosuid", "noexec", "nodev", mode}}
	if in.Pod.UserNS != "" && in.Pod.NetNS == "" {
		m.Type, m.Source = "bind", "/sys"
		m.Options = append([]string{"rbind", "rprivate"}, m.Options...)
	}
	return m
}

// cgroupMount is read-only unless the container is privileged or the handler
// says otherwise. Without a cgroup namespace a fresh cgroup2 mount would
// change the options of the node's own, so that the node's is bound instead.
func cgroupMount(in Input, privileged bool) specs.Mount {
	mode := "ro"
	if privileged || in.Handler.CgroupWritable {
		mode = "rw"
	}
	if in.Host.CgroupV2 && privileged {
		return specs.Mount{Destination: "/sys/fs/cgroup", Type: "bind", Source: "/sys/fs/cgroup",
			Options: []string{"rbind", "rprivate", "nosuid", "noexec", "nodev", mode}}
	}
	return specs.Mount{Destination: "/sys/fs/cgroup", Type: "cgroup", Source: "cgroup",
		Options: []string{"nosuid", "noexec", "nodev", "relatime", mode}}
}

// podMounts are the files the sandbox lends.
func podMounts(in Input) []specs.Mount {
	mode := "rw"
	if securityContext(in).GetReadonlyRootfs() {
		mode = "ro"
	}
	var out []specs.Mount
	for _, f := range []struct{ dst, src, mode string }{
		{"/etc/hostname", in.Pod.HostnamePath, mode},
		{"/etc/hosts", in.Pod.HostsPath, mode},
		{"/etc/resolv.conf", in.Pod.ResolvPath, mode},
		{"/dev/shm", in.Pod.ShmPath, "rw"},
	} {
		if f.src != "" {
			out = append(out, specs.Mount{Destination: f.dst, Type: "bind", Source: f.src, Options: []string{"rbind", "rprivate", f.mode}})
		}
	}
	return out
}

// criMounts converts the client's mounts and returns the propagation that the
// root file system needs for them.
func criMounts(in Input) ([]specs.Mount, string, error) {
	if len(in.Mounts) != len(in.Container.GetMounts()) {
		return nil, "", invalid("mounts", "%d of %d were looked at", len(in.Mounts), len(in.Container.GetMounts()))
	}
	var (
		out         []specs.Mount
		propagation string
		relabel     = in.Host.Security.SELinux && !securityContext(in).GetPrivileged()
	)
	for _, m := range in.Mounts {
		if relabel && !m.Relabelled && m.CRI.GetSelinuxRelabel() {
			return nil, "", invalid("mount "+m.CRI.GetContainerPath()+" selinux_relabel", "%s was not relabelled", m.Source)
		}
		mount, err := criMount(in.Host, m)
		if err != nil {
			return nil, "", err
		}
		switch m.CRI.GetPropagation() {
		case runtimeapi.MountPropagation_PROPAGATION_BIDIRECTIONAL:
			propagation = "rshared"
		case runtimeapi.MountPropagation_PROPAGATION_HOST_TO_CONTAINER:
			propagation = cmp.Or(propagation, "rslave")
		}
		out = append(out, mount)
	}
	return out, propagation, nil
}

func criMount(h Host, m Mount) (specs.Mount, error) {
	field := "mount " + m.CRI.GetContainerPath()
	// A relative path is meant from the root, as the kubelet itself reads it.
	dst := path.Join("/", m.CRI.GetContainerPath())
	if dst == "/" {
		return specs.Mount{}, invalid("mounts.container_path", "%q is not below the root", m.CRI.GetContainerPath())
	}
	if err := checkSource(field, m); err != nil {
		return specs.Mount{}, err
	}
	propagation, err := propagationOption(field, m)
	if err != nil {
		return specs.Mount{}, err
	}
	mode, err := modeOption(field, h, m)
	if err != nil {
		return specs.Mount{}, err
	}
	extra, err := extraOptions(field, m.CRI.GetMountOptions())
	if err != nil {
		return specs.Mount{}, err
	}
	out := specs.Mount{
		Destination: dst, Type: "bind", Source: m.Source,
		Options: append([]string{"rbind", propagation, mode}, extra...),
	}
	return out, addIDMap(field, h, m.CRI, &out)
}

func checkSource(field string, m Mount) error {
	switch {
	case m.CRI.GetImage() != nil:
		if m.CRI.GetHostPath() != "" {
			return invalid(field+" host_path", "given together with an image")
		}
		if m.Source == "" {
			return unsupported(field+" image", "mounting image %q", m.CRI.GetImage().GetImage())
		}
		if !m.CRI.GetReadonly() {
			return invalid(field+" readonly", "must be set: image volumes cannot be written to")
		}
	case m.CRI.GetImageSubPath() != "":
		return invalid(field+" image_sub_path", "given without an image")
	case m.CRI.GetHostPath() == "":
		return invalid(field+" host_path", "is empty")
	case m.Source == "":
		return invalid(field+" host_path", "%s does not exist", m.CRI.GetHostPath())
	}
	return nil
}

package spec

import (
	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// addNamespaces lists the namespaces the container gets or joins; one that is
// left out is the node's.
func addNamespaces(in Input, s *specs.Spec) error {
	ns := []specs.LinuxNamespace{{Type: specs.MountNamespace}}
	join := func(t specs.LinuxNamespaceType, path string) {
		if path != "" {
			ns = append(ns, specs.LinuxNamespace{Type: t, Path: path})
		}
	}
	join(specs.NetworkNamespace, in.Pod.NetNS)
	join(specs.IPCNamespace, in.Pod.IPCNS)
	// The sandbox has set the hostname in its namespace: s.Hostname stays
	// empty, or each new container would undo a change the pod made to it.
	join(specs.UTSNamespace, in.Pod.UTSNS)
	join(specs.PIDNamespace, in.Pod.PIDNS)
	if in.Pod.PIDNS == "" && in.Pod.PrivatePID {
		ns = append(ns, specs.LinuxNamespace{Type: specs.PIDNamespace})
	}
	// On v1, and for privileged containers, all runtimes show the real tree.
	if in.Host.CgroupV2 && !securityContext(in).GetPrivileged() {
		ns = append(ns, specs.LinuxNamespace{Type: specs.CgroupNamespace})
	}
	s.Linux.Namespaces = ns
	addUserNamespace(in, s)
	return nil
}

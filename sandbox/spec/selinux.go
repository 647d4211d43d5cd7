package spec

import (
	"cmp"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Labels are the SELinux labels of a process and of the files it may write to.
// They are empty where nothing is labelled.
type Labels struct{ Process, Mount string }

// SELinuxLabels fills in what the options leave out: level with the pod's, the
// rest with what the node's policy has for containers. The options are checked
// on every node; labels come only where SELinux is on.
func SELinuxLabels(o *runtimeapi.SELinuxOption, h HostSecurity) (Labels, error) {
	for _, part := range []string{o.GetUser(), o.GetRole(), o.GetType()} {
		if strings.ContainsAny(part, ":,\x00 ") {
			return Labels{}, invalid(secField+"selinux_options", "%q is not part of a label", part)
		}
	}
	if strings.ContainsAny(o.GetLevel(), "\x00 ") {
		return Labels{}, invalid(secField+"selinux_options", "%q is not a level", o.GetLevel())
	}
	if !h.SELinux {
		return Labels{}, nil
	}
	process := labelParts(cmp.Or(h.SELinuxProcess, "system_u:system_r:container_t:s0"))
	file := labelParts(cmp.Or(h.SELinuxFile, "system_u:object_r:container_file_t:s0"))
	level := cmp.Or(o.GetLevel(), h.SELinuxLevel, process[3], "s0")
	return Labels{
		Process: strings.Join([]string{cmp.Or(o.GetUser(), process[0]), cmp.Or(o.GetRole(), process[1]), cmp.Or(o.GetType(), process[2]), level}, ":"),
		Mount:   strings.Join([]string{cmp.Or(o.GetUser(), file[0]), file[1], file[2], level}, ":"),
	}, nil
}

// labelParts splits user, role, type and level; the level has colons of its own.
func labelParts(label string) [4]string {
	var out [4]string
	copy(out[:], strings.SplitN(label, ":", 4))
	return out
}

// ContainerLabels returns the labels of the container. The process of a
// privileged one has none: the policy's own rules say what becomes of it, by the
// label of its program, so that its files have one.
func ContainerLabels(in Input) (Labels, error) {
	sc := securityContext(in)
	o := sc.GetSelinuxOptions()
	if o == nil {
		o = in.Sandbox.GetLinux().GetSecurityContext().GetSelinuxOptions()
	}
	labels, err := SELinuxLabels(o, in.Host.Security)
	if sc.GetPrivileged() {
		labels.Process = ""
	}
	return labels, err
}

func addSELinux(in Input, s *specs.Spec) error {
	labels, err := ContainerLabels(in)
	if err != nil {
		return err
	}
	s.Process.SelinuxLabel, s.Linux.MountLabel = labels.Process, labels.Mount
	return nil
}

package shim

import (
	"errors"
	"fmt"
	"strings"

	"github.com/containerd/errdefs"
)

// reason is a failure of OCI runtimes that the request or the node is to blame for.
type reason struct {
	text   string // in what runc or crun says
	kind   error
	advice string
}

// reasons lists what only the runtime or the kernel can find out. What can be
// known before is refused before.
func reasons() []reason {
	bad, node := errdefs.ErrInvalidArgument, errdefs.ErrFailedPrecondition
	return []reason{
		{"memory limit too low", bad, "the container cannot start in its memory_limit_in_bytes; raise it"},
		{"unable to set memory limit", bad, "memory_limit_in_bytes must not be below what is in use; a container that starts needs some MiB"},
		{"OOM-killed", bad, "the container cannot start in its memory_limit_in_bytes; raise it"},
		// systemd has removed the group, because the process in it was killed.
		{"BPF_PROG_ATTACH: bpf: no such file or directory", bad, "the container ended before it began, most likely for want of memory; raise memory_limit_in_bytes"},
		{"cannot get dir FD for /sys/fs/cgroup/", bad, "the container ended before it began, most likely for want of memory; raise memory_limit_in_bytes"},
		{"/cgroup.controllers: no such file or directory", bad, "the container ended before it began, most likely for want of memory; raise memory_limit_in_bytes"},
		{"cpuset.cpus", bad, "cpuset_cpus must be processors that the pod's cgroup has"},
		{"cpuset.mems", bad, "cpuset_mems must be memory nodes that the pod's cgroup has"},
		{"cpu.cfs_quota_us", bad, "cpu_quota per cpu_period must not be more than the pod's cgroup has"},
		{"cpu.cfs_period_us", bad, "cpu_quota per cpu_period must not be more than the pod's cgroup has"},
		{"memory.memsw.limit_in_bytes", bad, "memory_swap_limit_in_bytes counts memory and swap together, and must not be below what is in use"},
		{"memory.limit_in_bytes", bad, "memory_limit_in_bytes must not be below what is in use"},
		{"unified resource", bad, "unified takes files of controllers that the pod's cgroup has"},
		{"requested cgroup controller", bad, "unified takes files of controllers that the pod's cgroup has"}, // crun
		{"inside /proc", bad, "mount volumes outside of /proc"},
		{"not found in $PATH", bad, "command must name a program of the image, found by the container's PATH"},
		{`container init: exec: "`, bad, "command must name a program of the image that can be executed"},
		{"executable file `", bad, "command must name a program of the image that can be executed"}, // crun
		{"apparmor", node, "look for the profile with `aa-status`, and into the kernel's log"},
		{"intelRdt", node, "look whether resctrl is mounted and has the class"},
		{"intelrdt: ", node, "look whether resctrl is mounted and has the class"},
		{"Intel RDT", node, "look whether resctrl is mounted and has the class"},
		{"/sys/fs/resctrl", node, "look whether resctrl is mounted and has the class"}, // crun
		{"the resctl ", node, "look whether resctrl is mounted and has the class"},     // crun, which spells it so
	}
}

// explainFailure gives a failure of the OCI runtime, which is Unknown otherwise, the
// kind that fits what the runtime said, and adds what to do. Pure.
func explainFailure(err error) error {
	if err == nil || !errors.Is(err, errdefs.ErrUnknown) {
		return err
	}
	for _, r := range reasons() {
		if strings.Contains(err.Error(), r.text) {
			return fmt.Errorf("%s; %s: %w", strings.TrimSuffix(err.Error(), ": "+errdefs.ErrUnknown.Error()), r.advice, r.kind)
		}
	}
	return err
}

package shim

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
)

func TestExplainFailure(t *testing.T) {
	for _, c := range []struct {
		said string
		want error
		tell string
	}{
		{"runc create failed: unable to start container process: container init was OOM-killed (memory limit too low?)", errdefs.ErrInvalidArgument, "raise it"},
		{"error setting cgroup config for procHooks process: openat2 /sys/fs/cgroup/a.slice/b.scope/cgroup.controllers: no such file or directory", errdefs.ErrInvalidArgument, "raise memory_limit"},
		{"error setting cgroup config for procHooks process: cannot get dir FD for /sys/fs/cgroup/a.slice/b.scope", errdefs.ErrInvalidArgument, "raise memory_limit"},
		{"error setting cgroup config for procHooks process: failed to call BPF_PROG_ATTACH: bpf: no such file or directory", errdefs.ErrInvalidArgument, "raise memory_limit"},
		{`failed to write "99": write /sys/fs/cgroup/cpuset/x/cpuset.cpus: numerical result out of range`, errdefs.ErrInvalidArgument, "cpuset_cpus must"},
		{`unable to set unified resource "memory.low": open memory.low: no such file or directory`, errdefs.ErrInvalidArgument, "controllers"},
		{"the requested cgroup controller `nothing` is not available", errdefs.ErrInvalidArgument, "controllers"},       // crun
		{"executable file `nope` not found in $PATH: No such file or directory", errdefs.ErrInvalidArgument, "command"}, // crun
		{`unable to start container process: error during container init: exec: "nope": executable file not found in $PATH`, errdefs.ErrInvalidArgument, "command"},
		{`error during container init: exec: "/nope": stat /nope: no such file or directory`, errdefs.ErrInvalidArgument, "can be executed"},
		{`error during container init: exec: "/etc/passwd": permission denied`, errdefs.ErrInvalidArgument, "can be executed"},
		{"executable file `/nope` not found: No such file or directory", errdefs.ErrInvalidArgument, "can be executed"}, // crun
		{`unable to apply apparmor profile: apparmor failed to apply profile: write fsmount:fscontext:proc/thread-self/attr/apparmor/exec: no such file or directory`, errdefs.ErrFailedPrecondition, "aa-status"},
		{"unable to apply Intel RDT configuration: no such file or directory", errdefs.ErrFailedPrecondition, "resctrl"},
		{`intelrdt: unable to add pid 7: no space left on device`, errdefs.ErrFailedPrecondition, "resctrl"},
		{"the resctl group `gold` does not exist", errdefs.ErrFailedPrecondition, "resctrl"}, // crun
		{`error mounting "/srv/birdtable" to rootfs at "/data": no such device`, errdefs.ErrUnknown, "birdtable"},
		{"something else", errdefs.ErrUnknown, "something else"},
	} {
		err := explainFailure(fmt.Errorf("%s: %w", c.said, errdefs.ErrUnknown))
		if !errors.Is(err, c.want) || !strings.Contains(err.Error(), c.tell) || !strings.Contains(err.Error(), c.said) {
			t.Errorf("%s: got %v", c.said, err)
		}
		if c.want != errdefs.ErrUnknown && errors.Is(err, errdefs.ErrUnknown) {
			t.Errorf("%s: still unknown", c.said)
		}
	}
	gone := fmt.Errorf("apparmor: %w", errdefs.ErrUnavailable)
	if got := explainFailure(gone); got != gone {
		t.Errorf("an error of another kind became %v", got)
	}
}

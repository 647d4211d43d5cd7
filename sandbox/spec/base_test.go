package spec

import (
	"testing"

	"github.com/containerd/errdefs"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// baseFile sets what a base may decide, and what it may not: args, user, root,
// namespaces, seccomp and the cgroup.
const baseFile = `{"ociVersion": "1.2.0", "root": {"path": "/elsewhere"}, "hostname": "no",
"annotations": {"from.base": "yes", "io.kubernetes.cri.sandbox-id": "forged"},
"hooks": {"createRuntime": [{"path": "/usr/bin/hook"}]},
"mounts": [{"destination": "/base", "type": "bind", "source": "/srv/base", "options": ["rbind", "ro"]},
 {"destination": "/proc", "type": "tmpfs", "source": "tmpfs"}],
"process": {"args": ["no"], "cwd": "/no", "user": {"uid": 99}, "noNewPrivileges": true, "oomScoreAdj": 500,
 "env": ["FROM_BASE=yes", "PATH=/no"], "rlimits": [{"type": "RLIMIT_NOFILE", "hard": 64, "soft": 32}],
 "ioPriority": {"class": "IOPRIO_CLASS_BE", "priority": 5}, "scheduler": {"policy": "SCHED_BATCH"}},
"linux": {"namespaces": [{"type": "user"}], "cgroupsPath": "/no", "seccomp": {"defaultAction": "SCMP_ACT_KILL"},
 "sysctl": {"net.core.somaxconn": "512"}, "devices": [{"path": "/dev/base", "type": "c", "major": 1, "minor": 3}],
 "resources": {"devices": [{"allow": false, "access": "rwm"}, {"allow": true, "type": "c", "major": 1, "minor": 3, "access": "r"}],
  "pids": {"limit": 100}, "memory": {"limit": 4096, "swap": 8192, "swappiness": 10}, "cpu": {"shares": 7, "quota": 8, "period": 9, "cpus": "0-1"}}}}`

func baseCase(in *Input) {
	in.Handler.Base = []byte(baseFile)
	in.Container.Linux.Resources = &runtimeapi.LinuxContainerResources{CpuShares: 512, MemoryLimitInBytes: 1 << 20}
	in.Container.Envs = []*runtimeapi.KeyValue{{Key: "PATH", Value: []byte("/bin")}}
}

func TestBaseSpec(t *testing.T) {
	in := base()
	in.Handler.Base = []byte("{")
	if _, err := Build(in); !errdefs.IsInvalidArgument(err) {
		t.Errorf("broken base: %v", err)
	}
	in.Handler.Base = []byte(baseFile)
	in.Handler.PidsLimit = 50
	s, err := Build(in)
	if err != nil {
		t.Fatal(err)
	}
	if *s.Linux.Resources.Pids.Limit != 50 {
		t.Errorf("the handler's own limit does not win: %d", *s.Linux.Resources.Pids.Limit)
	}
	// What one container changes of its specification is not the next one's.
	s.Hooks.CreateRuntime[0].Path = "/changed"
	if s, err = Build(in); err != nil || s.Hooks.CreateRuntime[0].Path != "/usr/bin/hook" {
		t.Errorf("the base is shared: %+v, %v", s.Hooks, err)
	}
}

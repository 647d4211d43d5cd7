package spec

import (
	"errors"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

type refusal struct {
	name   string
	change func(*Input)
	want   error
	text   string // what the message names
}

func TestBuildRefuses(t *testing.T) {
	var cases []refusal
	for _, list := range [][]refusal{generalRefusals(), mountRefusals(), resourceRefusals(), securityRefusals()} {
		cases = append(cases, list...)
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			in := base()
			c.change(&in)
			_, err := Build(in)
			if !errors.Is(err, c.want) || !strings.Contains(err.Error(), c.text) {
				t.Errorf("got %v, want %q (%v)", err, c.text, c.want)
			}
		})
	}
}

func generalRefusals() []refusal {
	bad, node := errdefs.ErrInvalidArgument, errdefs.ErrFailedPrecondition
	pod := runtimeapi.NamespaceMode_POD
	return []refusal{
		{"no config", func(in *Input) { in.Container = nil }, bad, "config"},
		{"windows", func(in *Input) { in.Container.Windows = &runtimeapi.WindowsContainerConfig{} }, bad, "windows"},
		{"no command", func(in *Input) { in.Container.Command = nil }, bad, "command"},
		{"empty command", func(in *Input) { in.Container.Command = []string{"", "a"} }, bad, "command"},
		{"NUL in command", func(in *Input) { in.Container.Command = []string{"a\x00"} }, bad, "command"},
		{"env name", func(in *Input) { in.Container.Envs = []*runtimeapi.KeyValue{{Key: "A=B"}} }, bad, "A=B"},
		{"env value", func(in *Input) { in.Container.Envs = []*runtimeapi.KeyValue{{Key: "A", Value: []byte{0}}} }, bad, "envs"},
		{"relative directory", func(in *Input) { in.Container.WorkingDir = "w" }, bad, "working_dir"},
		{"host network", func(in *Input) { sec(in).NamespaceOptions.Network = runtimeapi.NamespaceMode_NODE }, bad, "network"},
		{"container network", func(in *Input) { sec(in).NamespaceOptions.Network = runtimeapi.NamespaceMode_CONTAINER }, bad, "network"},
		{"host ipc", func(in *Input) { sec(in).NamespaceOptions.Ipc = runtimeapi.NamespaceMode_NODE }, bad, "ipc"},
		{"host pid", func(in *Input) { sec(in).NamespaceOptions.Pid = runtimeapi.NamespaceMode_NODE }, bad, "pid"},
		{"unknown pid", func(in *Input) { sec(in).NamespaceOptions.Pid = 9 }, bad, "pid"},
		{"target without id", func(in *Input) { sec(in).NamespaceOptions.Pid = runtimeapi.NamespaceMode_TARGET }, bad, "target_id"},
		{"target without namespace", func(in *Input) {
			sec(in).NamespaceOptions.Pid, sec(in).NamespaceOptions.TargetId = runtimeapi.NamespaceMode_TARGET, "c0"
		}, node, "c0"},
		{"id without target", func(in *Input) { sec(in).NamespaceOptions.TargetId = "c0" }, bad, "target_id"},
		{"user namespace", func(in *Input) {
			sec(in).NamespaceOptions.UsernsOptions = &runtimeapi.UserNamespace{Mode: pod, Uids: []*runtimeapi.IDMapping{{Length: 1}}}
		}, bad, "userns_options.gids"},
		{"another user namespace than the sandbox's", func(in *Input) {
			userns(in)
			sec(in).NamespaceOptions.UsernsOptions = usernsOptions(2000)
		}, bad, "userns_options: not those of the sandbox"},
		{"user namespace in a sandbox without", func(in *Input) {
			sec(in).NamespaceOptions.UsernsOptions = usernsOptions(1000)
		}, bad, "userns_options: not those of the sandbox"},
		{"sandbox that lost its user namespace", func(in *Input) { userns(in); in.Pod.UserNS = "" }, bad, "the sandbox has not"},
		{"a user the namespace has not", func(in *Input) { userns(in); in.User.UID = 65536 }, bad, "run_as_user: 65536 is not among the 65536 users"},
		{"a group the namespace has not", func(in *Input) { userns(in); in.User.Groups = []uint32{0, 70000} }, bad, "70000 is not among the 65536 groups"},
		{"user namespace mappings", func(in *Input) {
			sec(in).NamespaceOptions.UsernsOptions = &runtimeapi.UserNamespace{Mode: runtimeapi.NamespaceMode_NODE, Gids: []*runtimeapi.IDMapping{{Length: 1}}}
		}, bad, "userns_options"},
		{"device missing", func(in *Input) {
			in.Container.Devices = []*runtimeapi.Device{{HostPath: "/dev/no", ContainerPath: "/dev/no"}}
		}, bad, "/dev/no"},
		{"device permissions", func(in *Input) { device(in, "/dev/fuse", "x") }, bad, "permissions"},
		{"annotation pattern", func(in *Input) {
			in.Handler.PodAnnotations = []string{"["}
			in.Sandbox.Annotations = map[string]string{"a": ""}
		}, bad, "pattern"},
	}
}

func mountRefusals() []refusal {
	bad, later, node := errdefs.ErrInvalidArgument, errdefs.ErrNotImplemented, errdefs.ErrFailedPrecondition
	one := func(m *runtimeapi.Mount, propagation string) func(*Input) {
		return func(in *Input) {
			m.ContainerPath, m.HostPath = "/data", "/srv"
			mount(in, m, propagation)
		}
	}
	both, down := runtimeapi.MountPropagation_PROPAGATION_BIDIRECTIONAL, runtimeapi.MountPropagation_PROPAGATION_HOST_TO_CONTAINER
	return []refusal{
		{"not looked at", func(in *Input) { in.Container.Mounts = []*runtimeapi.Mount{{}} }, bad, "mounts"},
		{"on the root", func(in *Input) { mount(in, &runtimeapi.Mount{ContainerPath: "/", HostPath: "/srv"}, "") }, bad, "container_path"},
		{"no host path", func(in *Input) { mount(in, &runtimeapi.Mount{ContainerPath: "/data"}, "") }, bad, "host_path"},
		{"missing host path", func(in *Input) {
			mount(in, &runtimeapi.Mount{ContainerPath: "/data", HostPath: "/no"}, "")
			in.Mounts[0].Source = ""
		}, bad, "/no does not exist"},
		{"shared from slave", one(&runtimeapi.Mount{Propagation: both}, "slave"), bad, "propagation"},
		{"slave from private", one(&runtimeapi.Mount{Propagation: down}, "private"), bad, "propagation"},
		{"unknown propagation", one(&runtimeapi.Mount{Propagation: 9}, ""), bad, "propagation"},
		{"rro without ro", one(&runtimeapi.Mount{RecursiveReadOnly: true}, ""), bad, "recursive_read_only"},
		{"rro with propagation", one(&runtimeapi.Mount{RecursiveReadOnly: true, Readonly: true, Propagation: down}, "slave"), bad, "recursive_read_only"},
		{"rro on an old kernel", func(in *Input) {
			in.Host.RecursiveReadOnly = false
			one(&runtimeapi.Mount{RecursiveReadOnly: true, Readonly: true}, "")(in)
		}, node, "RRO"},
		{"option with data", one(&runtimeapi.Mount{MountOptions: []string{"size=1"}}, ""), bad, "size=1"},
		{"option ro", one(&runtimeapi.Mount{MountOptions: []string{"ro"}}, ""), bad, `"ro"`},
		{"option propagation", one(&runtimeapi.Mount{MountOptions: []string{"rshared"}}, ""), bad, "rshared"},
		{"options against each other", one(&runtimeapi.Mount{MountOptions: []string{"noexec", "exec"}}, ""), bad, "exclude"},
		{"recursive options against each other", one(&runtimeapi.Mount{MountOptions: []string{"rdev", "rnodev"}}, ""), bad, "exclude"},
		{"image and host path", one(&runtimeapi.Mount{Image: &runtimeapi.ImageSpec{Image: "i"}}, ""), bad, "host_path"},
		{"image", func(in *Input) {
			mount(in, &runtimeapi.Mount{ContainerPath: "/data", Image: &runtimeapi.ImageSpec{Image: "i"}}, "")
		}, later, "image"},
		{"image not read-only", func(in *Input) {
			mount(in, &runtimeapi.Mount{ContainerPath: "/data", Image: &runtimeapi.ImageSpec{Image: "i"}}, "")
			in.Mounts[len(in.Mounts)-1].Source = "/layers"
		}, bad, "readonly"},
		{"sub path without image", one(&runtimeapi.Mount{ImageSubPath: "s"}, ""), bad, "image_sub_path"},
		{"idmapped users alone", one(&runtimeapi.Mount{UidMappings: ids(0, 1000, 10)}, ""), bad, "needs mappings of users and of groups"},
		{"idmapped groups alone", one(&runtimeapi.Mount{GidMappings: ids(0, 1000, 10)}, ""), bad, "needs mappings of users and of groups"},
		{"idmapped without support", one(&runtimeapi.Mount{UidMappings: ids(0, 1, 1), GidMappings: ids(0, 1, 1)}, ""), errdefs.ErrFailedPrecondition, "makes no idmapped mounts"},
		{"empty mapping", func(in *Input) {
			in.Host.UserNamespaces = true
			mount(in, &runtimeapi.Mount{ContainerPath: "/data", HostPath: "/srv", UidMappings: ids(0, 1, 1), GidMappings: ids(0, 1, 0)}, "")
		}, bad, "gidMappings: 0 IDs"},
		{"mapping beyond the last ID", func(in *Input) {
			in.Host.UserNamespaces = true
			mount(in, &runtimeapi.Mount{ContainerPath: "/data", HostPath: "/srv", UidMappings: ids(0, 1<<31, 1<<31), GidMappings: ids(0, 1, 1)}, "")
		}, bad, "are not a range of IDs"},
		{"relabel", func(in *Input) {
			in.Host.Security.SELinux = true
			one(&runtimeapi.Mount{SelinuxRelabel: true}, "")(in)
		}, bad, "selinux_relabel"},
	}
}

func resourceRefusals() []refusal {
	bad := errdefs.ErrInvalidArgument
	return []refusal{
		{"cpu period", func(in *Input) { res(in).CpuPeriod = -1 }, bad, "cpu_period"},
		{"cpu quota", func(in *Input) { res(in).CpuQuota = -2 }, bad, "cpu_quota"},
		{"cpu shares", func(in *Input) { res(in).CpuShares = -1 }, bad, "cpu_shares"},
		{"memory", func(in *Input) { res(in).MemoryLimitInBytes = -2 }, bad, "memory_limit_in_bytes"},
		{"swap", func(in *Input) { res(in).MemorySwapLimitInBytes = -2 }, bad, "memory_swap_limit_in_bytes"},
		{"swap below memory", func(in *Input) { res(in).MemoryLimitInBytes, res(in).MemorySwapLimitInBytes = 1<<30, 1<<20 }, bad, "below"},
		{"memory of one byte", func(in *Input) { res(in).MemoryLimitInBytes = 1 }, bad, "memory_limit_in_bytes: 1: no container starts in less than"},
		{"short cpu period", func(in *Input) { res(in).CpuPeriod = 999 }, bad, "cpu_period: 999 is not in 1000..1000000"},
		{"small cpu quota", func(in *Input) { res(in).CpuQuota = 999 }, bad, "cpu_quota: 999: use -1"},
		{"one cpu share", func(in *Input) { res(in).CpuShares = 1 }, bad, "cpu_shares: 1 is not in 2..262144"},
		{"processors that are not there", func(in *Input) { in.Host.Cpuset.CPUs = "0-1,4"; res(in).CpusetCpus = "99" }, bad, `cpuset_cpus: 99 is not among the pod's 0-1,4`},
		{"a gap in the processors", func(in *Input) { in.Host.Cpuset.CPUs = "0-1,4"; res(in).CpusetCpus = "1-4" }, bad, `1-4 is not among`},
		{"processors in words", func(in *Input) { res(in).CpusetCpus = "all" }, bad, `cpuset_cpus: "all" is not a list`},
		{"processors backwards", func(in *Input) { res(in).CpusetCpus = "3-1" }, bad, `"3-1" is not a list`},
		{"processors with a hole", func(in *Input) { res(in).CpusetCpus = "1,,2" }, bad, `"1,,2" is not a list`},
		{"memory nodes that are not there", func(in *Input) { in.Host.Cpuset.Mems = "0"; res(in).CpusetMems = "1" }, bad, `cpuset_mems: 1 is not among`},
		{"hugepage size", func(in *Input) { res(in).HugepageLimits = []*runtimeapi.HugepageLimit{{PageSize: "2 apples"}} }, bad, "2 apples"},
		{"unified on v1", func(in *Input) { res(in).Unified = map[string]string{"memory.high": "1"} }, bad, "cgroup v1"},
		{"unified path", func(in *Input) { in.Host.CgroupV2 = true; res(in).Unified = map[string]string{"../cgroup.procs": "1"} }, bad, "unified"},
		{"oom", func(in *Input) { res(in).OomScoreAdj = 1001 }, bad, "oom_score_adj"},
		{"pids", func(in *Input) { in.Handler.PidsLimit = -2 }, bad, "pids"},
	}
}

func securityRefusals() []refusal {
	bad, node := errdefs.ErrInvalidArgument, errdefs.ErrFailedPrecondition
	def, local, none := runtimeapi.SecurityProfile_RuntimeDefault, runtimeapi.SecurityProfile_Localhost, runtimeapi.SecurityProfile_Unconfined
	return []refusal{
		{"privileged in a plain pod", func(in *Input) { sec(in).Privileged = true }, bad, "privileged"},
		{"capability", func(in *Input) { sec(in).Capabilities = caps("FLY", "", "") }, bad, "FLY"},
		{"drop capability", func(in *Input) { sec(in).Capabilities = caps("", "FLY", "") }, bad, "drop_capabilities"},
		{"ambient capability", func(in *Input) { sec(in).Capabilities = caps("", "", "FLY") }, bad, "ambient"},
		{"capability the node lacks", func(in *Input) {
			in.Host.Capabilities = []string{"CAP_CHOWN"}
			sec(in).Capabilities = caps("BPF", "", "")
		}, node, "CAP_BPF"},
		{"seccomp off", func(in *Input) { in.Host.SeccompEnabled = false; sec(in).Seccomp = profile(def, "") }, node, "seccomp"},
		{"seccomp ref", func(in *Input) { sec(in).Seccomp = profile(none, "/x") }, bad, "localhost_ref"},
		{"seccomp no ref", func(in *Input) { sec(in).Seccomp = profile(local, "") }, bad, "localhost_ref"},
		{"seccomp relative", func(in *Input) { sec(in).Seccomp = profile(local, "x") }, bad, "absolute"},
		{"seccomp type", func(in *Input) { sec(in).Seccomp = profile(7, "") }, bad, "profile_type"},
		{"seccomp missing", func(in *Input) { sec(in).Seccomp = profile(local, "/x") }, bad, "/x is missing"},
		{"seccomp syntax", func(in *Input) { sec(in).Seccomp = profile(local, "/x"); in.SeccompLocalhost = []byte("{") }, bad, "/x"},
		{"seccomp null rule", func(in *Input) {
			sec(in).Seccomp = profile(local, "/x")
			in.SeccompLocalhost = []byte(`{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[null]}`)
		}, bad, "/x"},
		{"seccomp empty", func(in *Input) { sec(in).Seccomp = profile(local, "/x"); in.SeccompLocalhost = []byte("{}") }, bad, "defaultAction"},
		{"seccomp string", func(in *Input) { sec(in).SeccompProfilePath = "mine" }, bad, "seccomp_profile_path"},
		{"kernel", func(in *Input) { sec(in).Seccomp = profile(def, ""); in.Host.KernelVersion = "new" }, node, "kernel"},
		{"apparmor prefix alone", func(in *Input) { in.Host.Security.AppArmor = true; sec(in).Apparmor = profile(local, "localhost/") }, bad, "localhost_ref"},
		{"apparmor absent", func(in *Input) { sec(in).Apparmor = profile(local, "p") }, node, "no AppArmor"},
		{"apparmor not loaded", func(in *Input) {
			in.Host.Security = HostSecurity{AppArmor: true, AppArmorProfiles: []string{"q"}}
			sec(in).Apparmor = profile(local, "p")
		}, node, "not loaded"},
		{"apparmor no default", func(in *Input) { in.Host.Security.AppArmor = true; sec(in).Apparmor = profile(def, "") }, node, "default profile"},
		{"apparmor no default, and why", func(in *Input) {
			in.Host.Security.AppArmor, in.Host.Security.AppArmorTrouble = true, "there is no apparmor_parser"
			sec(in).Apparmor = profile(def, "")
		}, node, "there is no apparmor_parser"},
		{"apparmor default by its old name", func(in *Input) { in.Host.Security.AppArmor = true; sec(in).ApparmorProfile = "runtime/default" }, node, "default profile"},
		{"masked path", func(in *Input) { sec(in).MaskedPaths = []string{"proc/kcore"} }, bad, `masked_paths: "proc/kcore" is not absolute`},
		{"read-only path", func(in *Input) { sec(in).ReadonlyPaths = []string{"x"} }, bad, `readonly_paths: "x"`},
		{"apparmor string", func(in *Input) { sec(in).ApparmorProfile = "localhost/" }, bad, "apparmor_profile"},
		{"selinux type", func(in *Input) { sec(in).SelinuxOptions = &runtimeapi.SELinuxOption{Type: "a:b"} }, bad, "selinux_options"},
		{"selinux level", func(in *Input) { sec(in).SelinuxOptions = &runtimeapi.SELinuxOption{Level: "s0 x"} }, bad, "selinux_options"},
	}
}

func TestValidateSandbox(t *testing.T) {
	with := func(sc *runtimeapi.LinuxSandboxSecurityContext) *runtimeapi.PodSandboxConfig {
		return &runtimeapi.PodSandboxConfig{Linux: &runtimeapi.LinuxPodSandboxConfig{SecurityContext: sc}}
	}
	ns := func(o *runtimeapi.NamespaceOption) *runtimeapi.PodSandboxConfig {
		return with(&runtimeapi.LinuxSandboxSecurityContext{NamespaceOptions: o})
	}
	cases := []struct {
		name string
		cfg  *runtimeapi.PodSandboxConfig
		want error
	}{
		{"empty", &runtimeapi.PodSandboxConfig{}, nil},
		{"nil", nil, errdefs.ErrInvalidArgument},
		{"windows", &runtimeapi.PodSandboxConfig{Windows: &runtimeapi.WindowsPodSandboxConfig{}}, errdefs.ErrInvalidArgument},
		{"hostname", &runtimeapi.PodSandboxConfig{Hostname: strings.Repeat("h", 65)}, errdefs.ErrInvalidArgument},
		{"group without user", with(&runtimeapi.LinuxSandboxSecurityContext{RunAsGroup: &runtimeapi.Int64Value{}}), errdefs.ErrInvalidArgument},
		{"policy", with(&runtimeapi.LinuxSandboxSecurityContext{SupplementalGroupsPolicy: 5}), errdefs.ErrInvalidArgument},
		{"container network", ns(&runtimeapi.NamespaceOption{Network: runtimeapi.NamespaceMode_CONTAINER}), errdefs.ErrInvalidArgument},
		{"unknown pid", ns(&runtimeapi.NamespaceOption{Pid: 12}), errdefs.ErrInvalidArgument},
		{"user namespace", ns(&runtimeapi.NamespaceOption{Network: 2, UsernsOptions: usernsOptions(1000)}), nil},
		{"user namespace without maps", ns(&runtimeapi.NamespaceOption{UsernsOptions: &runtimeapi.UserNamespace{}}), errdefs.ErrInvalidArgument},
		{"user namespace without root", ns(&runtimeapi.NamespaceOption{UsernsOptions: &runtimeapi.UserNamespace{Uids: ids(1, 1000, 9), Gids: ids(0, 1000, 9)}}), errdefs.ErrInvalidArgument},
		{"user namespace with two maps", ns(&runtimeapi.NamespaceOption{UsernsOptions: &runtimeapi.UserNamespace{Uids: append(ids(0, 1, 1), ids(1, 5, 1)...), Gids: ids(0, 1, 1)}}), errdefs.ErrInvalidArgument},
		{"user namespace with the node's PIDs", ns(&runtimeapi.NamespaceOption{Pid: 2, UsernsOptions: usernsOptions(1000)}), errdefs.ErrInvalidArgument},
		{"user namespace with the node's IPC", ns(&runtimeapi.NamespaceOption{Ipc: 2, UsernsOptions: usernsOptions(1000)}), errdefs.ErrInvalidArgument},
		{"user namespace of a container", ns(&runtimeapi.NamespaceOption{UsernsOptions: &runtimeapi.UserNamespace{Mode: runtimeapi.NamespaceMode_CONTAINER}}), errdefs.ErrInvalidArgument},
		{"host", ns(&runtimeapi.NamespaceOption{Network: 2, Pid: 2, Ipc: 2, UsernsOptions: &runtimeapi.UserNamespace{Mode: 2}}), nil},
	}
	for _, c := range cases {
		if err := ValidateSandbox(c.cfg); !errors.Is(err, c.want) {
			t.Errorf("%s: got %v, want %v", c.name, err, c.want)
		}
	}
}

package spec

import (
	"maps"
	"strings"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func sec(in *Input) *runtimeapi.LinuxContainerSecurityContext {
	return in.Container.Linux.SecurityContext
}

func res(in *Input) *runtimeapi.LinuxContainerResources { return in.Container.Linux.Resources }

func privileged(in *Input) {
	sec(in).Privileged = true
	in.Sandbox.Linux.SecurityContext.Privileged = true
}

func mount(in *Input, m *runtimeapi.Mount, propagation string) {
	in.Container.Mounts = append(in.Container.Mounts, m)
	in.Mounts = append(in.Mounts, Mount{CRI: m, Source: m.HostPath, SourcePropagation: propagation})
}

func device(in *Input, path, permissions string) {
	in.Container.Devices = append(in.Container.Devices, &runtimeapi.Device{HostPath: path, ContainerPath: path, Permissions: permissions})
	in.Devices = append(in.Devices, HostDevice{HostPath: path, ContainerPath: path, Type: "c", Major: 10, Minor: 229, Mode: 0o666, Permissions: permissions})
}

func profile(t runtimeapi.SecurityProfile_ProfileType, ref string) *runtimeapi.SecurityProfile {
	return &runtimeapi.SecurityProfile{ProfileType: t, LocalhostRef: ref}
}

func caps(add, drop, ambient string) *runtimeapi.Capability {
	return &runtimeapi.Capability{AddCapabilities: strings.Fields(add), DropCapabilities: strings.Fields(drop), AddAmbientCapabilities: strings.Fields(ambient)}
}

func ids(container, host, length uint32) []*runtimeapi.IDMapping {
	return []*runtimeapi.IDMapping{{ContainerId: container, HostId: host, Length: length}}
}

func usernsOptions(host uint32) *runtimeapi.UserNamespace {
	return &runtimeapi.UserNamespace{Uids: ids(0, host, 65536), Gids: ids(0, host, 65536)}
}

// userns gives the sandbox a user namespace of its own.
func userns(in *Input) {
	in.Host.UserNamespaces = true
	in.Pod.UserNS = "/run/berth/ns/s1/user"
	in.Sandbox.Linux.SecurityContext.NamespaceOptions = &runtimeapi.NamespaceOption{UsernsOptions: usernsOptions(1000)}
	sec(in).NamespaceOptions.UsernsOptions = usernsOptions(1000)
}

func goldenCases() map[string]func(*Input) {
	out := map[string]func(*Input){"base": func(*Input) {}}
	for _, m := range []map[string]func(*Input){processCases(), securityCases(), seccompCases(), namespaceCases(), mountCases(), resourceCases(), otherCases()} {
		maps.Copy(out, m)
	}
	return out
}

func processCases() map[string]func(*Input) {
	image := func(in *Input) {
		in.Container.Command = nil
		in.Image = ocispec.ImageConfig{Entrypoint: []string{"/entry"}, Cmd: []string{"cmd"}}
	}
	return map[string]func(*Input){
		"command-image":      image,
		"command-args-only":  func(in *Input) { image(in); in.Container.Args = []string{"a"} },
		"command-over-image": func(in *Input) { image(in); in.Container.Command = []string{"/c"} },
		"command-and-args":   func(in *Input) { image(in); in.Container.Command = []string{"/c"}; in.Container.Args = []string{"a"} },
		"command-empty-entrypoint": func(in *Input) {
			image(in)
			in.Image.Entrypoint = []string{""}
		},
		"env-order": func(in *Input) {
			in.Image.Env = []string{"PATH=/image", "A=1", "B=2"}
			in.Container.Envs = []*runtimeapi.KeyValue{{Key: "B", Value: []byte("3")}, {Key: "HOME", Value: []byte("/h")}, {Key: "E", Value: nil}}
		},
		"env-tty":         func(in *Input) { in.Container.Tty = true },
		"env-no-home":     func(in *Input) { in.User.Home = ""; in.Pod.Hostname = "" },
		"cwd-cri":         func(in *Input) { in.Container.WorkingDir = "/w/"; in.Image.WorkingDir = "/i" },
		"cwd-image":       func(in *Input) { in.Image.WorkingDir = "i" },
		"user":            func(in *Input) { in.User = User{UID: 1000, GID: 2000, Groups: []uint32{2000, 3}, Home: "/home/a"} },
		"readonly-rootfs": func(in *Input) { sec(in).ReadonlyRootfs = true },
		"no-new-privs":    func(in *Input) { sec(in).NoNewPrivs = true },
	}
}

func securityCases() map[string]func(*Input) {
	return map[string]func(*Input){
		"caps-add":          func(in *Input) { sec(in).Capabilities = caps("net_admin CAP_SYS_TIME", "", "") },
		"caps-drop":         func(in *Input) { sec(in).Capabilities = caps("", "NET_RAW cap_mknod", "") },
		"caps-add-all":      func(in *Input) { sec(in).Capabilities = caps("ALL", "SYS_ADMIN", "") },
		"caps-drop-all":     func(in *Input) { sec(in).Capabilities = caps("", "ALL", "") },
		"caps-drop-all-add": func(in *Input) { sec(in).Capabilities = caps("NET_BIND_SERVICE", "ALL", "") },
		"caps-ambient":      func(in *Input) { sec(in).Capabilities = caps("", "ALL", "NET_ADMIN") },
		"caps-drop-ambient": func(in *Input) { sec(in).Capabilities = caps("", "NET_ADMIN", "NET_ADMIN SYS_NICE") },
		"caps-handler-ambient": func(in *Input) {
			in.Handler.AmbientCapabilities = true
			sec(in).Capabilities = caps("NET_BIND_SERVICE", "ALL", "")
		},
		"caps-host-limit": func(in *Input) { in.Host.Capabilities = []string{"CAP_CHOWN", "CAP_KILL"} },
		"privileged":      privileged,
		"privileged-v2":   func(in *Input) { privileged(in); in.Host.CgroupV2 = true },
		"privileged-ignores": func(in *Input) {
			privileged(in)
			sec(in).MaskedPaths, sec(in).ReadonlyPaths = []string{"/m"}, []string{"/r"}
			sec(in).Seccomp = profile(runtimeapi.SecurityProfile_RuntimeDefault, "")
			in.Host.Security = HostSecurity{AppArmor: true, AppArmorDefault: "berth-default", SELinux: true}
			sec(in).SelinuxOptions = &runtimeapi.SELinuxOption{Type: "t_t"}
		},
		"privileged-no-devices": func(in *Input) { privileged(in); in.Handler.PrivilegedWithoutHostDevices = true },
		"privileged-no-devices-allowed": func(in *Input) {
			privileged(in)
			in.Handler.PrivilegedWithoutHostDevices, in.Handler.PrivilegedAllDevicesAllowed = true, true
		},
		"masked-paths":   func(in *Input) { sec(in).MaskedPaths = []string{"/proc/kcore", "/proc/keys"} },
		"readonly-paths": func(in *Input) { sec(in).ReadonlyPaths = []string{"/proc/sys"} },
		"apparmor-default": func(in *Input) {
			in.Host.Security.AppArmor, in.Host.Security.AppArmorDefault = true, "berth-default"
		},
		"apparmor-localhost": func(in *Input) {
			in.Host.Security.AppArmor, in.Host.Security.AppArmorProfiles = true, []string{"mine"}
			sec(in).Apparmor = profile(runtimeapi.SecurityProfile_Localhost, "mine")
		},
		"apparmor-localhost-prefix": func(in *Input) {
			in.Host.Security.AppArmor, in.Host.Security.AppArmorProfiles = true, []string{"mine"}
			sec(in).Apparmor = profile(runtimeapi.SecurityProfile_Localhost, "localhost/mine")
		},
		"apparmor-unconfined": func(in *Input) {
			in.Host.Security.AppArmor, in.Host.Security.AppArmorDefault = true, "berth-default"
			sec(in).Apparmor = profile(runtimeapi.SecurityProfile_Unconfined, "")
		},
		"apparmor-deprecated": func(in *Input) { in.Host.Security.AppArmor = true; sec(in).ApparmorProfile = "localhost/old" },
		"selinux": func(in *Input) {
			in.Host.Security.SELinux = true
			sec(in).SelinuxOptions = &runtimeapi.SELinuxOption{User: "u_u", Role: "r_r", Type: "t_t", Level: "s0:c1,c2"}
		},
		"selinux-from-pod": func(in *Input) {
			in.Host.Security.SELinux = true
			in.Sandbox.Linux.SecurityContext.SelinuxOptions = &runtimeapi.SELinuxOption{Level: "s0:c3,c4"}
		},
		"selinux-by-policy": func(in *Input) {
			in.Host.Security = HostSecurity{Arch: "amd64", SELinux: true, SELinuxProcess: "system_u:system_r:svirt_t:s0-s0:c0.c9", SELinuxFile: "system_u:object_r:svirt_file_t:s0"}
			in.Host.Security.SELinuxLevel = "s0:c1,c2"
		},
		"selinux-relabelled": func(in *Input) {
			in.Host.Security.SELinux = true
			mount(in, &runtimeapi.Mount{ContainerPath: "/data", HostPath: "/srv", SelinuxRelabel: true}, "")
			in.Mounts[0].Relabelled = true
		},
		"selinux-privileged": func(in *Input) {
			in.Host.Security.SELinux, in.Host.Security.SELinuxLevel = true, "s0:c1,c2"
			in.Sandbox.Linux.SecurityContext.Privileged, sec(in).Privileged = true, true
		},
		"selinux-absent": func(in *Input) { sec(in).SelinuxOptions = &runtimeapi.SELinuxOption{Type: "t_t"} },
	}
}

func seccompCases() map[string]func(*Input) {
	local := []byte(`{"defaultAction":"SCMP_ACT_ALLOW","architectures":["SCMP_ARCH_X86_64"],"syscalls":[
		{"names":["chmod"],"action":"SCMP_ACT_ERRNO","errnoRet":1},
		{"name":"old","action":"SCMP_ACT_ERRNO","includes":{"caps":["CAP_SYS_ADMIN"]}},
		{"names":["new"],"action":"SCMP_ACT_ERRNO","includes":{"minKernel":"6.2"}},
		{"names":["here"],"action":"SCMP_ACT_ERRNO","includes":{"minKernel":"6.1","arches":["amd64"]}},
		{"names":["there"],"action":"SCMP_ACT_ERRNO","excludes":{"arches":["amd64"]}}]}`)
	return map[string]func(*Input){
		"seccomp-default": func(in *Input) { sec(in).Seccomp = profile(runtimeapi.SecurityProfile_RuntimeDefault, "") },
		"seccomp-native-only": func(in *Input) {
			sec(in).Seccomp = profile(runtimeapi.SecurityProfile_RuntimeDefault, "")
			in.Handler.SeccompNativeOnly = true
		},
		"seccomp-unconfined": func(in *Input) { sec(in).Seccomp = profile(runtimeapi.SecurityProfile_Unconfined, "") },
		"seccomp-by-handler": func(in *Input) { in.Handler.SeccompDefault = true; in.Host.SeccompEnabled = false },
		"seccomp-old-localhost": func(in *Input) {
			sec(in).SeccompProfilePath = "localhost//p.json"
			in.SeccompLocalhost = local
		},
		"seccomp-localhost": func(in *Input) {
			sec(in).Seccomp = profile(runtimeapi.SecurityProfile_Localhost, "/p.json")
			in.SeccompLocalhost = local
		},
		"seccomp-localhost-caps": func(in *Input) {
			sec(in).Seccomp = profile(runtimeapi.SecurityProfile_Localhost, "/p.json")
			sec(in).Capabilities = caps("SYS_ADMIN", "", "")
			in.Host.KernelVersion = ""
			in.SeccompLocalhost = local
		},
	}
}

func namespaceCases() map[string]func(*Input) {
	return map[string]func(*Input){
		"ns-host-network": func(in *Input) {
			in.Pod.NetNS, in.Pod.UTSNS = "", ""
			sec(in).NamespaceOptions.Network = runtimeapi.NamespaceMode_NODE
		},
		"ns-host-ipc": func(in *Input) {
			in.Pod.IPCNS, in.Pod.ShmPath = "", "/dev/shm"
			sec(in).NamespaceOptions.Ipc = runtimeapi.NamespaceMode_NODE
		},
		"ns-host-pid": func(in *Input) {
			in.Pod.PrivatePID = false
			sec(in).NamespaceOptions.Pid = runtimeapi.NamespaceMode_NODE
		},
		"ns-pod-pid": func(in *Input) {
			in.Pod.PrivatePID, in.Pod.PIDNS = false, "/run/berth/ns/s1/pid"
			sec(in).NamespaceOptions.Pid = runtimeapi.NamespaceMode_POD
		},
		"ns-target-pid": func(in *Input) {
			in.Pod.PrivatePID, in.Pod.PIDNS = false, "/proc/77/ns/pid"
			sec(in).NamespaceOptions.Pid = runtimeapi.NamespaceMode_TARGET
			sec(in).NamespaceOptions.TargetId = "c0"
		},
		"ns-cgroup-v2": func(in *Input) { in.Host.CgroupV2 = true },
		"ns-user-node": func(in *Input) {
			sec(in).NamespaceOptions.UsernsOptions = &runtimeapi.UserNamespace{Mode: runtimeapi.NamespaceMode_NODE}
		},
		"ns-user-pod":          userns,
		"ns-user-inherited":    func(in *Input) { userns(in); sec(in).NamespaceOptions.UsernsOptions = nil },
		"ns-user-host-network": func(in *Input) { userns(in); in.Pod.NetNS, in.Pod.UTSNS = "", ""; sec(in).NamespaceOptions.Network = 2 },
	}
}

func mountCases() map[string]func(*Input) {
	return map[string]func(*Input){
		"mount-rw": func(in *Input) { mount(in, &runtimeapi.Mount{ContainerPath: "/data/", HostPath: "/srv"}, "") },
		"mount-ro": func(in *Input) {
			mount(in, &runtimeapi.Mount{ContainerPath: "/data", HostPath: "/srv", Readonly: true}, "")
		},
		"mount-idmapped": func(in *Input) {
			in.Host.UserNamespaces = true
			mount(in, &runtimeapi.Mount{ContainerPath: "/data", HostPath: "/srv", UidMappings: ids(0, 1000, 10), GidMappings: ids(0, 2000, 10)}, "")
		},
		"mount-relative": func(in *Input) { mount(in, &runtimeapi.Mount{ContainerPath: "data", HostPath: "/srv"}, "") },
		"mount-rro": func(in *Input) {
			mount(in, &runtimeapi.Mount{ContainerPath: "/data", HostPath: "/srv", Readonly: true, RecursiveReadOnly: true}, "")
		},
		"mount-slave": func(in *Input) {
			mount(in, &runtimeapi.Mount{ContainerPath: "/data", HostPath: "/srv", Propagation: runtimeapi.MountPropagation_PROPAGATION_HOST_TO_CONTAINER}, "slave")
		},
		"mount-shared": func(in *Input) {
			mount(in, &runtimeapi.Mount{ContainerPath: "/b", HostPath: "/srv", Propagation: runtimeapi.MountPropagation_PROPAGATION_BIDIRECTIONAL}, "shared")
			mount(in, &runtimeapi.Mount{ContainerPath: "/a", HostPath: "/srv", Propagation: runtimeapi.MountPropagation_PROPAGATION_HOST_TO_CONTAINER}, "shared")
		},
		"mount-options": func(in *Input) {
			mount(in, &runtimeapi.Mount{ContainerPath: "/data", HostPath: "/srv", MountOptions: []string{"noexec", "nodev", "rnosuid", "noexec", "relatime"}}, "")
		},
		"mount-order": func(in *Input) {
			for _, p := range []string{"/a/b/c", "/a", "/x/y", "/a/b", "/etc/hosts"} {
				mount(in, &runtimeapi.Mount{ContainerPath: p, HostPath: "/srv" + p}, "")
			}
		},
		"mount-over-dev": func(in *Input) { mount(in, &runtimeapi.Mount{ContainerPath: "/dev", HostPath: "/dev"}, "") },
		"mount-over-shm": func(in *Input) { mount(in, &runtimeapi.Mount{ContainerPath: "/dev/shm", HostPath: "/srv"}, "") },
		"mount-own-shm":  func(in *Input) { in.Pod.ShmPath = "" },
		"mount-no-files": func(in *Input) { in.Pod.HostnamePath, in.Pod.HostsPath, in.Pod.ResolvPath = "", "", "" },
		"mount-relabelled": func(in *Input) {
			mount(in, &runtimeapi.Mount{ContainerPath: "/data", HostPath: "/srv", SelinuxRelabel: true}, "")
		},
		"mount-image": func(in *Input) {
			mount(in, &runtimeapi.Mount{ContainerPath: "/data", Image: &runtimeapi.ImageSpec{Image: "sha256:beef"}, ImageSubPath: "sub", Readonly: true}, "")
			in.Mounts[0].Source = "/var/lib/berth/images/beef/sub"
		},
		"mount-cgroup-writable": func(in *Input) { in.Handler.CgroupWritable = true; in.Host.CgroupV2 = true },
	}
}

func resourceCases() map[string]func(*Input) {
	return map[string]func(*Input){
		"cpu": func(in *Input) {
			r := res(in)
			r.CpuPeriod, r.CpuQuota, r.CpuShares, r.CpusetCpus, r.CpusetMems = 100000, 50000, 512, "0-1", "0"
		},
		"cpu-unlimited":    func(in *Input) { res(in).CpuQuota = -1 },
		"memory":           func(in *Input) { res(in).MemoryLimitInBytes = 1 << 26 },
		"memory-no-swap":   func(in *Input) { res(in).MemoryLimitInBytes = 1 << 26; in.Host.SwapController = false },
		"memory-swap":      func(in *Input) { res(in).MemoryLimitInBytes = 1 << 26; res(in).MemorySwapLimitInBytes = 1 << 27 },
		"memory-swap-free": func(in *Input) { res(in).MemorySwapLimitInBytes = -1 },
		"hugepages": func(in *Input) {
			res(in).HugepageLimits = []*runtimeapi.HugepageLimit{{PageSize: "2MB", Limit: 4 << 20}, {PageSize: "1GB"}}
		},
		"unified": func(in *Input) { in.Host.CgroupV2 = true; res(in).Unified = map[string]string{"memory.high": "max"} },
		"cpuset-of-pod": func(in *Input) {
			in.Host.Cpuset = Cpuset{"0-2,3,8", "0"}
			res(in).CpusetCpus, res(in).CpusetMems = "1-3,8", "0"
		},
		"blockio-class": func(in *Input) {
			weight := uint16(80)
			in.Classes.BlockIO = &specs.LinuxBlockIO{Weight: &weight, ThrottleReadBpsDevice: []specs.LinuxThrottleDevice{{Rate: 7}}}
		},
		"rdt-class":        func(in *Input) { in.Classes.ClosID = "gold" },
		"memory-swap-none": func(in *Input) { res(in).MemoryLimitInBytes, res(in).MemorySwapLimitInBytes = 1<<26, 1<<26 },
		"pids":             func(in *Input) { in.Handler.PidsLimit = 100 },
		"pids-unlimited":   func(in *Input) { in.Handler.PidsLimit = -1 },
		"oom":              func(in *Input) { res(in).OomScoreAdj = -998 },
		"oom-restricted": func(in *Input) {
			res(in).OomScoreAdj = -998
			in.Host.RestrictOOMScoreAdj = true
			in.Host.OOMScoreAdj = -10
		},
		"resources-missing": func(in *Input) { in.Container.Linux.Resources = nil },
	}
}

func otherCases() map[string]func(*Input) {
	return map[string]func(*Input){
		"device":             func(in *Input) { device(in, "/dev/fuse", "rw") },
		"device-permissions": func(in *Input) { device(in, "/dev/fuse", "") },
		"device-directory": func(in *Input) {
			device(in, "/dev/snd/seq", "r")
			in.Container.Devices[0].ContainerPath = "/dev/snd"
		},
		"device-owner": func(in *Input) {
			device(in, "/dev/fuse", "rw")
			in.Handler.DeviceOwnership = true
			in.User = User{UID: 1000, GID: 2000, Groups: []uint32{2000}}
			sec(in).RunAsUser, sec(in).RunAsGroup = &runtimeapi.Int64Value{Value: 1000}, &runtimeapi.Int64Value{Value: 2000}
		},
		"device-privileged": func(in *Input) { privileged(in); device(in, "/dev/kvm", "rw") },
		"annotations": func(in *Input) {
			in.Sandbox.Annotations = map[string]string{"run.test/a": "1", "other": "2", "io.kubernetes.cri.sandbox-id": "forged"}
			in.Container.Annotations = map[string]string{"run.test/b": "3"}
			in.Handler.PodAnnotations, in.Handler.ContainerAnnotations = []string{"run.test/*", "io.kubernetes.*"}, []string{"run.test/b"}
		},
		"base-spec":      baseCase,
		"cgroup-systemd": func(in *Input) { in.CgroupsPath = "kubepods-pod1.slice:cri-berth:c1" },
		"empty-config": func(in *Input) {
			*in = Input{Container: &runtimeapi.ContainerConfig{Command: []string{"a"}}, Host: Host{Security: HostSecurity{Arch: "amd64"}}}
		},
		"kernel-facts": func(in *Input) { in.Host = Host{Security: HostSecurity{Arch: "arm64"}} },
		"spec-of-s390": func(in *Input) {
			in.Host.Security.Arch = "s390x"
			in.Handler.SeccompDefault = true
			in.Host.KernelVersion = "3.10.0"
		},
	}
}

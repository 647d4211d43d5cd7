package doctor

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
)

func checkRoot(f Facts) []Finding {
	if f.Root {
		return nil
	}
	return []Finding{warn("root", "run `berthctl doctor` as root", "not root: what only root may look at is taken as missing")}
}

func checkConfig(f Facts) []Finding {
	if f.Config.Error != "" {
		return []Finding{fail("config", "correct the file (`berthctl config default` shows every key), then `systemctl reload berth`", "%s", f.Config.Error)}
	}
	return []Finding{ok("config", "%s", f.Config.Source)}
}

// Oldest kernels: what no workaround exists for, and what Berth is tested from.
const (
	oldestKernel = "5.4"
	goodKernel   = "5.12"
)

func checkKernel(f Facts) []Finding {
	k := f.Kernel
	var out []Finding
	switch {
	case k.Release == "":
		return []Finding{fail("kernel", "run doctor on a Linux node", "the kernel's version is unknown")}
	case older(k.Release, oldestKernel):
		out = append(out, fail("kernel.version", "install a kernel of "+goodKernel+" or newer", "%s is older than %s", k.Release, oldestKernel))
	case older(k.Release, goodKernel):
		out = append(out, warn("kernel.version", "install a kernel of "+goodKernel+" or newer",
			"%s works; idmapped and recursive read-only mounts need %s", k.Release, goodKernel))
	default:
		out = append(out, ok("kernel.version", "%s (%s)", k.Release, k.Machine))
	}
	for _, fs := range []string{"overlay", "tmpfs", "proc", "mqueue"} {
		if !slices.Contains(k.FileSystems, fs) {
			out = append(out, fail("kernel.filesystem", "load it: `modprobe "+fs+"`, and name it in /etc/modules-load.d/berth.conf", "the kernel has no %s", fs))
		}
	}
	for _, call := range []string{"pidfd_open", "openat2"} {
		if !k.Calls[call] {
			out = append(out, fail("kernel.call", "install a kernel of 5.6 or newer; inside a container, allow the call in its seccomp profile", "the call %s does not exist or is not permitted", call))
		}
	}
	if !k.Calls["mount_setattr"] {
		out = append(out, warn("kernel.call", "install a kernel of 5.12 or newer", "no mount_setattr: neither recursive read-only mounts nor user namespaces"))
	}
	if !k.Seccomp {
		out = append(out, fail("kernel.seccomp", "use a kernel built with CONFIG_SECCOMP_FILTER", "the kernel has no seccomp: containers can't be confined"))
	}
	return out
}

func checkCgroup(f Facts) []Finding {
	c := f.Cgroup
	var out []Finding
	want := []string{"cpu", "memory", "pids"}
	switch c.Version {
	case 0:
		return []Finding{fail("cgroup", "mount cgroup2 at /sys/fs/cgroup; systemd does it at boot", "no control groups are mounted at /sys/fs/cgroup")}
	case 1:
		want = append(want, "devices", "freezer")
		out = append(out, warn("cgroup.version", "boot with systemd.unified_cgroup_hierarchy=1 (the default of current distributions)",
			"version 1: no memory QoS, no pressure figures, and Kubernetes has deprecated it"))
	default:
		out = append(out, ok("cgroup.version", "version 2"))
	}
	for _, ctl := range want {
		if slices.Contains(c.Controllers, ctl) {
			continue
		}
		remedy := "delegate it: add it to cgroup.subtree_control of the root"
		if ctl == "memory" {
			remedy = "boot with cgroup_enable=memory"
		}
		out = append(out, fail("cgroup.controllers", remedy, "the %s controller is missing: limits of that kind can't be set", ctl))
	}
	switch {
	case c.Driver == "systemd" && !c.Systemd:
		out = append(out, fail("cgroup.driver", "set cgroup.driver = \"cgroupfs\" here and cgroupDriver: cgroupfs in the kubelet's configuration", "the driver is systemd, which does not run this machine"))
	case c.Driver == "cgroupfs" && c.Systemd && c.Version == 2:
		out = append(out, warn("cgroup.driver", "set cgroup.driver = \"auto\" here and cgroupDriver: systemd in the kubelet's configuration", "the driver is cgroupfs on a machine that systemd runs: two writers share one tree"))
	default:
		out = append(out, ok("cgroup.driver", "%s", c.Driver))
	}
	return out
}

// sysctlRule is what a sysctl has to be.
type sysctlRule struct {
	name string
	min  int64
	what string // what happens when it is less or missing
	how  string // when the sysctl does not exist
}

func sysctlRules() []sysctlRule {
	return []sysctlRule{
		{"net.ipv4.ip_forward", 1, "packets between pods and to other nodes are dropped", ""},
		{"net.bridge.bridge-nf-call-iptables", 1, "network policies and service addresses do not apply between pods of one bridge", "`modprobe br_netfilter`, and name it in /etc/modules-load.d/berth.conf"},
		{"fs.inotify.max_user_instances", 512, "the kubelet and log followers run out of inotify instances", ""},
		{"fs.inotify.max_user_watches", 65536, "the kubelet and log followers run out of inotify watches", ""},
		{"kernel.pid_max", 65536, "a node full of pods runs out of process IDs", ""},
		{"user.max_user_namespaces", 1, "pods with user namespaces can't run", ""},
	}
}

func checkSysctls(f Facts) []Finding {
	var out []Finding
	for _, r := range sysctlRules() {
		text, there := f.Sysctls[r.name]
		v, err := strconv.ParseInt(strings.TrimSpace(text), 10, 64)
		set := fmt.Sprintf("`sysctl -w %s=%d`, and write it into /etc/sysctl.d/90-berth.conf", r.name, r.min)
		switch {
		case !there && r.how != "":
			out = append(out, warn("sysctl", r.how, "%s does not exist: %s", r.name, r.what))
		case !there || err != nil:
			out = append(out, warn("sysctl", set, "%s can't be read", r.name))
		case v < r.min:
			out = append(out, warn("sysctl", set, "%s is %d: %s", r.name, v, r.what))
		default:
			out = append(out, ok("sysctl", "%s is %d", r.name, v))
		}
	}
	return out
}

func checkSecurity(f Facts) []Finding {
	s := f.Security
	var out []Finding
	switch {
	case s.AppArmor && s.AppArmorParser == "":
		out = append(out, warn("lsm.apparmor", "install the package apparmor", "AppArmor is enabled and apparmor_parser is missing: the default profile can't be loaded"))
	case s.AppArmor:
		out = append(out, ok("lsm.apparmor", "enabled"))
	}
	if s.SELinux != "" {
		out = append(out, ok("lsm.selinux", "%s", s.SELinux))
	}
	if !s.AppArmor && s.SELinux == "" {
		out = append(out, warn("lsm", "boot with AppArmor or SELinux (lsm=...)", "neither AppArmor nor SELinux is active: seccomp and capabilities confine containers alone"))
	}
	return out
}

// older compares the first two numbers of versions such as "6.1.0-18-amd64".
func older(have, want string) bool { return slices.Compare(numbers(have, 2), numbers(want, 2)) < 0 }

// numbers returns the first n numbers of a version; what is missing is 0.
func numbers(version string, n int) []int {
	parts := strings.FieldsFunc(version, func(r rune) bool { return r < '0' || r > '9' })
	out := make([]int, n)
	for i := range min(n, len(parts)) {
		out[i], _ = strconv.Atoi(parts[i])
	}
	return out
}

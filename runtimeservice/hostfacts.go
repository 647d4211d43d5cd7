package runtimeservice

import (
	"cmp"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-dev/berth/sandbox/spec"
	"github.com/berth-dev/berth/shim/cgroup"
)

// capabilityNames are the kernel's capabilities in the order of their bits.
const capabilityNames = "CHOWN DAC_OVERRIDE DAC_READ_SEARCH FOWNER FSETID KILL SETGID SETUID SETPCAP LINUX_IMMUTABLE " +
	"NET_BIND_SERVICE NET_BROADCAST NET_ADMIN NET_RAW IPC_LOCK IPC_OWNER SYS_MODULE SYS_RAWIO SYS_CHROOT SYS_PTRACE " +
	"SYS_PACCT SYS_ADMIN SYS_BOOT SYS_NICE SYS_RESOURCE SYS_TIME SYS_TTY_CONFIG MKNOD LEASE AUDIT_WRITE AUDIT_CONTROL " +
	"SETFCAP MAC_OVERRIDE MAC_ADMIN SYSLOG WAKE_ALARM BLOCK_SUSPEND AUDIT_READ PERFMON BPF CHECKPOINT_RESTORE"

const sysResource = 24 // bit of CAP_SYS_RESOURCE

// ProbeHost looks at the node: what Config.Host should be. RecursiveReadOnly
// speaks for the kernel alone.
func ProbeHost() (spec.Host, error) {
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return spec.Host{}, fmt.Errorf("probe node: %w", err)
	}
	var uts unix.Utsname
	if err := unix.Uname(&uts); err != nil {
		return spec.Host{}, fmt.Errorf("probe node: uname: %w", err)
	}
	h := hostOfStatus(string(status))
	h.KernelVersion = unix.ByteSliceToString(uts.Release[:])
	h.RecursiveReadOnly = KernelAtLeast(h.KernelVersion, 5, 12) // mount_setattr
	var fs unix.Statfs_t
	if err := unix.Statfs("/sys/fs/cgroup", &fs); err != nil {
		return spec.Host{}, fmt.Errorf("probe node: /sys/fs/cgroup: %w", err)
	}
	h.CgroupV2 = fs.Type == unix.CGROUP2_SUPER_MAGIC
	if b, err := os.ReadFile("/proc/self/oom_score_adj"); err == nil {
		h.OOMScoreAdj, _ = strconv.Atoi(strings.TrimSpace(string(b)))
	}
	h.SwapController = swapController(h.CgroupV2)
	h.HugePageSizes = hugePageSizes(h.CgroupV2)
	return h, nil
}

// hostOfStatus reads what /proc/self/status tells. Pure.
func hostOfStatus(text string) spec.Host {
	var h spec.Host
	var effective uint64
	for line := range strings.Lines(text) {
		key, val, _ := strings.Cut(line, ":")
		val = strings.TrimSpace(val)
		switch key {
		case "Seccomp":
			h.SeccompEnabled = true
		case "CapBnd":
			set, _ := strconv.ParseUint(val, 16, 64)
			for bit, name := range strings.Fields(capabilityNames) {
				if set&(1<<bit) != 0 {
					h.Capabilities = append(h.Capabilities, "CAP_"+name)
				}
			}
		case "CapEff":
			effective, _ = strconv.ParseUint(val, 16, 64)
		}
	}
	h.RestrictOOMScoreAdj = effective&(1<<sysResource) == 0
	return h
}

// KernelAtLeast compares a release such as "6.1.0-18-amd64".
func KernelAtLeast(release string, major, minor int) bool {
	var a, b int
	if n, _ := fmt.Sscanf(release, "%d.%d", &a, &b); n < 2 {
		return false
	}
	return a > major || a == major && b >= minor
}

func swapController(v2 bool) bool {
	if !v2 {
		_, err := os.Stat("/sys/fs/cgroup/memory/memory.memsw.limit_in_bytes")
		return err == nil
	}
	return swapControllerV2("/sys/fs/cgroup", "/proc")
}

// swapControllerV2 asks a group below the root, since the root has no limits.
// On a node where nobody has handed the memory controller down yet there is
// none to ask: then a kernel that can swap counts it, unless told otherwise.
func swapControllerV2(groups, proc string) bool {
	limits, _ := filepath.Glob(groups + "/*/memory.max")
	if len(limits) > 0 {
		_, err := os.Stat(filepath.Join(filepath.Dir(limits[0]), "memory.swap.max"))
		return err == nil
	}
	line, _ := os.ReadFile(proc + "/cmdline")
	_, err := os.Stat(proc + "/swaps")
	return err == nil && !strings.Contains(" "+string(line), " swapaccount=0")
}

// hugePageSizes lists the sizes that the hugetlb controller can limit, in its
// own spelling: "2MB", "1GB".
func hugePageSizes(v2 bool) []string {
	if v2 {
		b, err := os.ReadFile("/sys/fs/cgroup/cgroup.controllers")
		if err != nil || !strings.Contains(" "+string(b)+" ", "hugetlb") {
			return nil
		}
	} else if _, err := os.Stat("/sys/fs/cgroup/hugetlb"); err != nil {
		return nil
	}
	dirs, _ := filepath.Glob("/sys/kernel/mm/hugepages/hugepages-*kB")
	var out []string
	for _, d := range dirs {
		kb, err := strconv.Atoi(strings.TrimSuffix(strings.TrimPrefix(filepath.Base(d), "hugepages-"), "kB"))
		if err != nil {
			continue
		}
		switch {
		case kb >= 1<<20:
			out = append(out, fmt.Sprintf("%dGB", kb>>20))
		case kb >= 1<<10:
			out = append(out, fmt.Sprintf("%dMB", kb>>10))
		default:
			out = append(out, fmt.Sprintf("%dKB", kb))
		}
	}
	return out
}

// cpusetOf returns the processors and memory nodes that a container below the
// group parent may have, when r asks for any. On v1 those are its parent's; on
// v2 the kernel makes do with fewer, so that all that are there count.
func cpusetOf(groups cgroup.Mode, parent string, r *runtimeapi.LinuxContainerResources) spec.Cpuset {
	if r.GetCpusetCpus() == "" && r.GetCpusetMems() == "" {
		return spec.Cpuset{}
	}
	read := func(path string) string {
		b, _ := os.ReadFile(path) // what is not there is not known, and not checked
		return strings.TrimSpace(string(b))
	}
	out := spec.Cpuset{CPUs: read("/sys/devices/system/cpu/online"), Mems: read("/sys/devices/system/node/online")}
	if dir := groups.Dir("cpuset", parent); dir != "" && !groups.V2() {
		out.CPUs = cmp.Or(read(dir+"/cpuset.cpus"), out.CPUs)
		out.Mems = cmp.Or(read(dir+"/cpuset.mems"), out.Mems)
	}
	return out
}

package bench

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// tick is the unit of times in /proc/PID/stat.
const tick = 10 * time.Millisecond

// proc is a process, as the root of /proc tells of it.
type proc struct {
	pid, ppid int
	exe       string
	children  time.Duration // CPU time of its children that have ended and were waited for
}

// processes reads all processes below root. One that ends meanwhile is left out.
func processes(root string) (map[int]proc, error) {
	entries, err := os.ReadDir(root)
	if err != nil {
		return nil, fmt.Errorf("list processes: %w", err)
	}
	out := map[int]proc{}
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		raw, err := os.ReadFile(filepath.Join(root, e.Name(), "stat"))
		if err != nil {
			continue
		}
		p, ok := parseStat(pid, raw)
		if !ok {
			continue
		}
		p.exe, _ = os.Readlink(filepath.Join(root, e.Name(), "exe"))
		out[pid] = p
	}
	return out, nil
}

// parseStat reads /proc/PID/stat (proc_pid_stat(5)). The kernel cuts the sums
// of the children's times to whole ticks; half a tick is added to each, as
// otherwise the sum over many processes would always come out too small.
func parseStat(pid int, raw []byte) (proc, bool) {
	end := bytes.LastIndexByte(raw, ')') // the name before it may hold anything
	f := strings.Fields(string(raw[end+1:]))
	if end < 0 || len(f) < 15 {
		return proc{}, false
	}
	p := proc{pid: pid}
	var err error
	if p.ppid, err = strconv.Atoi(f[1]); err != nil {
		return proc{}, false
	}
	for _, s := range f[13:15] { // cutime, cstime
		n, err := strconv.ParseInt(s, 10, 64)
		if err != nil {
			return proc{}, false
		}
		if n > 0 {
			p.children += time.Duration(n)*tick + tick/2
		}
	}
	return p, true
}

// family is the daemon with the processes that serve pods: those that started
// a container's first process, others of the same program that are not in
// before, and what descends from all of them. With inits the containers' own
// processes belong to it, else they and what descends from them do not.
func family(all map[int]proc, before map[int]bool, daemon int, containers []int, inits bool) []int {
	started, programs, first := map[int]bool{daemon: true}, map[string]bool{}, map[int]bool{}
	for _, c := range containers {
		first[c] = true
		if parent, ok := all[all[c].ppid]; ok && parent.pid != 1 {
			started[parent.pid] = true
			programs[parent.exe] = parent.exe != "" && parent.pid != daemon
		}
	}
	var out []int
	for pid := range all {
		// Walk up to the first ancestor that decides.
		for at := pid; at > 1; at = all[at].ppid {
			if first[at] && !inits {
				break
			}
			if started[at] || programs[all[at].exe] && !before[at] {
				out = append(out, pid)
				break
			}
		}
	}
	return out
}

// cpu is the CPU time of processes and of their children that have ended.
func cpu(all map[int]proc, pids []int) (sum time.Duration) {
	for _, pid := range pids {
		var ts unix.Timespec
		// The clock of another process counts in nanoseconds, /proc in ticks.
		if err := unix.ClockGettime(int32(^pid<<3|2), &ts); err == nil {
			sum += time.Duration(ts.Nano())
		}
		sum += all[pid].children
	}
	return sum
}

// pss is the proportional set size of processes in KiB: shared pages count in
// proportion, so it adds up.
func pss(root string, pids ...int) (sum uint64) {
	for _, pid := range pids {
		sum += kib(filepath.Join(root, strconv.Itoa(pid), "smaps_rollup"), "Pss:")
	}
	return sum
}

// grown is the part of the proportional set size of a process that can grow with
// its pods, in KiB: without the pages of files, above all its program's, of which
// as many are in memory as the kernel saw fit.
func grown(root string, pid int) uint64 {
	file := filepath.Join(root, strconv.Itoa(pid), "smaps_rollup")
	return kib(file, "Pss:") - kib(file, "Pss_File:")
}

// kib reads a line of the form "NAME   123 kB"; 0 when there is none.
func kib(file, name string) uint64 {
	raw, err := os.ReadFile(file)
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(raw)) {
		if rest, ok := strings.CutPrefix(line, name); ok {
			if f := strings.Fields(rest); len(f) > 0 {
				n, _ := strconv.ParseUint(f[0], 10, 64)
				return n
			}
		}
	}
	return 0
}

// machine describes this one.
func machine(root string) Machine {
	m := Machine{Memory: kib(filepath.Join(root, "meminfo"), "MemTotal:"), Cgroup: "v1"}
	if _, err := os.Stat("/sys/fs/cgroup/cgroup.controllers"); err == nil {
		m.Cgroup = "v2"
	}
	var u unix.Utsname
	if unix.Uname(&u) == nil {
		m.Kernel = unix.ByteSliceToString(u.Release[:])
	}
	raw, _ := os.ReadFile(filepath.Join(root, "cpuinfo"))
	for line := range strings.Lines(string(raw)) {
		name, value, _ := strings.Cut(line, ":")
		switch strings.TrimSpace(name) {
		case "processor":
			m.CPUs++
		case "model name":
			m.CPU = strings.TrimSpace(value)
		}
	}
	return m
}

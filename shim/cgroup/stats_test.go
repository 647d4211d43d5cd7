package cgroup

import (
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// tree writes files below a temporary directory.
func tree(t *testing.T, files map[string]string) string {
	t.Helper()
	root := t.TempDir()
	for name, text := range files {
		p := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(p, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return root
}

const pressure = "some avg10=1.05 avg60=0.29 avg300=100.00 total=77\nfull avg10=0.50 avg60=0.00 avg300=0.07 total=33\n"

func wantPressure() *Pressure {
	return &Pressure{Some: Stall{1.05, 0.29, 100, 77}, Full: Stall{0.5, 0, 0.07, 33}}
}

func v1Tree(t *testing.T) Mode {
	root := tree(t, map[string]string{
		"cpu,cpuacct/p/c/cpuacct.usage":                       "123456789\n",
		"cpu,cpuacct/p/c/cpuacct.usage_user":                  "100\n",
		"cpu,cpuacct/p/c/cpuacct.usage_sys":                   "23\n",
		"cpu,cpuacct/p/c/cpu.stat":                            "nr_periods 9\nnr_throttled 4\nthrottled_time 5000\nnr_bursts 3\nburst_time 2000\n",
		"memory/p/c/memory.usage_in_bytes":                    "1000000\n",
		"memory/p/c/memory.limit_in_bytes":                    "4194304\n",
		"memory/p/c/memory.memsw.limit_in_bytes":              "6291456\n",
		"memory/p/c/memory.soft_limit_in_bytes":               "9223372036854771712\n",
		"memory/p/c/memory.max_usage_in_bytes":                "2000000\n",
		"memory/p/c/memory.kmem.usage_in_bytes":               "4096\n",
		"memory/p/c/memory.failcnt":                           "6\n",
		"memory/p/c/memory.oom_control":                       "oom_kill_disable 0\nunder_oom 0\noom_kill 2\n",
		"memory/p/c/memory.stat":                              "cache 1\nrss 2\nhierarchical_memory_limit 4194304\ninactive_file 3\ntotal_cache 500\ntotal_rss 400\ntotal_mapped_file 50\ntotal_pgfault 7\ntotal_pgmajfault 8\ntotal_inactive_file 300\ntotal_active_file 200\ntotal_swap 60\ndirty 1\ntotal_dirty 11\ntotal_writeback 12\nworkingset_refault_file 1\ntotal_workingset_refault_file 15\ntotal_workingset_refault_anon 16\nworkingset_refault_anon 2\n",
		"pids/p/c/pids.current":                               "5\n",
		"pids/p/c/pids.max":                                   "max\n",
		"blkio/p/c/blkio.throttle.io_service_bytes_recursive": "8:0 Read 4096\n8:0 Write 8192\n8:0 Sync 1\n8:0 Discard 3\n8:0 Total 12291\n259:1 Read 1\nTotal 12291\n",
		"blkio/p/c/blkio.throttle.io_serviced_recursive":      "8:0 Read 1\n8:0 Write 2\nTotal 3\n",
		"unified/p/c/cgroup.events":                           "populated 1\nfrozen 0\n",
		"unified/p/c/cpu.pressure":                            pressure,
		"unified/p/empty/cgroup.events":                       "populated 0\nfrozen 0\n",
		"unified/p/empty/io.pressure":                         "some avg10=0.00 avg60=0.00 avg300=0.00 total=0\n",
		"cpu,cpuacct/p/empty/cpuacct.usage":                   "1\n",
		"hugetlb/p/c/hugetlb.2MB.usage_in_bytes":              "2097152\n",
		"hugetlb/p/c/hugetlb.2MB.max_usage_in_bytes":          "4194304\n",
	})
	m := Mode{root: root, hybrid: root + "/unified"}
	for _, h := range []string{"cpu,cpuacct", "memory", "pids", "blkio", "hugetlb"} {
		m.hierarchies = append(m.hierarchies, root+"/"+h)
	}
	return m
}

func v2Tree(t *testing.T) Mode {
	return Mode{v2: true, root: tree(t, map[string]string{
		"p/c/cpu.stat":            "usage_usec 123456\nuser_usec 100\nsystem_usec 23\nnr_periods 9\nnr_throttled 4\nthrottled_usec 5\nnr_bursts 3\nburst_usec 2\n",
		"p/c/memory.current":      "1000000\n",
		"p/c/memory.max":          "max\n",
		"p/c/memory.low":          "8192\n",
		"p/c/memory.peak":         "2000000\n",
		"p/c/memory.stat":         "anon 400\nfile 500\nkernel 4096\nfile_mapped 50\ninactive_file 2000000\nactive_file 200\npgfault 7\npgmajfault 8\nfile_dirty 11\nfile_writeback 12\npgscan 13\npgsteal 14\nworkingset_refault_anon 16\nworkingset_refault_file 15\n",
		"p/c/memory.events":       "low 0\nhigh 17\nmax 6\noom 3\noom_kill 2\n",
		"p/c/memory.swap.current": "60\n",
		"p/c/memory.swap.max":     "0\n",
		"p/c/pids.current":        "5\n",
		"p/c/pids.max":            "100\n",
		"p/c/io.stat":             "8:0 rbytes=4096 wbytes=8192 rios=1 wios=2 dbytes=3 dios=4 cost.vrate=100.00 cost.usage=5 cost.wait=6 cost.indebt=7 cost.indelay=8\n7:0 \n",
		"p/c/memory.pressure":     pressure,
		"p/c/hugetlb.2MB.current": "2097152\n",
	})}
}

func TestIOCost(t *testing.T) {
	for text, want := range map[string]bool{
		"":                                   false,
		"8:0 enable=0 ctrl=auto rpct=0.00\n": false,
		"8:0 enable=0 ctrl=auto rpct=0.00\n254:0 enable=1 ctrl=user rpct=95.00\n": true,
	} {
		m := Mode{v2: true, root: tree(t, map[string]string{"io.cost.qos": text})}
		if got := m.IOCost(); got != want {
			t.Errorf("%q: %v", text, got)
		}
	}
	if v1Tree(t).IOCost() || v2Tree(t).IOCost() {
		t.Error("a controller that is not there is on")
	}
}

func TestUsage(t *testing.T) {
	cpu1, cpu2, one := uint64(123456789), uint64(123456000), uint64(1)
	for _, tc := range []struct {
		name, path string
		m          Mode
		want       Usage
	}{
		{"v1", "/p/c", v1Tree(t), Usage{
			CPUNanos: &cpu1,
			Memory: &MemoryUsage{Usage: 1000000, WorkingSet: 999700, RSS: 400, Limit: 4194304, Faults: 7, MajorFaults: 8,
				Cache: 500, Mapped: 50, ActiveFile: 200, InactiveFile: 300},
			Swap:     &SwapUsage{Usage: 60, Limit: 2097152, Limited: true},
			Pressure: PressureUsage{CPU: wantPressure()},
		}},
		{"v1, processes elsewhere in the v2 tree", "/p/empty", v1Tree(t), Usage{CPUNanos: &one}},
		{"v2, working set never below zero", "/p/c", v2Tree(t), Usage{
			CPUNanos: &cpu2,
			Memory: &MemoryUsage{Usage: 1000000, RSS: 400, Faults: 7, MajorFaults: 8,
				Cache: 500, Mapped: 50, ActiveFile: 200, InactiveFile: 2000000},
			Swap:     &SwapUsage{Usage: 60, Limited: true},
			Pressure: PressureUsage{Memory: wantPressure()},
		}},
	} {
		got, err := tc.m.Usage(tc.path)
		if d := cmp.Diff(tc.want, got); err != nil || d != "" {
			t.Errorf("%s: %v\n%s", tc.name, err, d)
		}
		if _, err := tc.m.Usage("/p/gone"); !errors.Is(err, syscall.ENOENT) {
			t.Errorf("%s: a missing group: %v", tc.name, err)
		}
		if _, err := tc.m.Usage("/p/../x"); !errors.Is(err, syscall.EINVAL) {
			t.Errorf("%s: a climbing path: %v", tc.name, err)
		}
	}
}

func TestDetail(t *testing.T) {
	want := Detail{UserNanos: 100, SystemNanos: 23, Periods: 9, ThrottledPeriods: 4, ThrottledNanos: 5000,
		Bursts: 3, BurstNanos: 2000,
		Memory: MemoryDetail{Max: 2000000, Kernel: 4096, Failures: 6, OOMKills: 2,
			Reclaim: Reclaim{Dirty: 11, Writeback: 12, RefaultsFile: 15, RefaultsAnon: 16}},
		IO: []DeviceIO{
			{Major: 8, ReadBytes: 4096, WriteBytes: 8192, DiscardBytes: 3, Reads: 1, Writes: 2},
			{Major: 259, Minor: 1, ReadBytes: 1},
		}}
	got, err := v1Tree(t).Detail("/p/c")
	if d := cmp.Diff(want, got); err != nil || d != "" {
		t.Errorf("v1: %v\n%s", err, d)
	}
	want.UserNanos, want.SystemNanos, want.Memory.Reservation = 100000, 23000, 8192
	want.Memory.Throttled, want.Memory.Reclaim.Scanned, want.Memory.Reclaim.Stolen = 17, 13, 14
	want.IO = []DeviceIO{{Major: 8, ReadBytes: 4096, WriteBytes: 8192, DiscardBytes: 3, Reads: 1, Writes: 2, Discards: 4,
		Cost: IOCost{Usage: 5, Wait: 6, Indebt: 7, Indelay: 8}}, {Major: 7}}
	got, err = v2Tree(t).Detail("/p/c")
	if d := cmp.Diff(want, got); err != nil || d != "" {
		t.Errorf("v2: %v\n%s", err, d)
	}
	if got, err := v2Tree(t).Detail("/p/gone"); err != nil || !cmp.Equal(got, Detail{}) {
		t.Error("a missing group:", got, err)
	}
}

func TestThreadsAndHugePages(t *testing.T) {
	for limit, m := range map[uint64]Mode{0: v1Tree(t), 100: v2Tree(t)} {
		if u, ok := m.Threads("/p/c"); !ok || u != (PidsUsage{5, limit}) {
			t.Error(u, ok)
		}
		if _, ok := m.Threads("/p/gone"); ok {
			t.Error("threads of a missing group")
		}
		if n, _, ok := m.HugePages("/p/c", "2MB"); !ok || n != 2097152 {
			t.Error(n, ok)
		}
		if _, _, ok := m.HugePages("/p/c", "1GB"); ok {
			t.Error("pages of an unknown size")
		}
	}
}

func TestParseStats(t *testing.T) {
	for in, want := range map[string]float64{"0.29": 0.29, "100.00": 100, "7": 7, "x": 0, "": 0, "1.5": 1} {
		if got := parsePercent([]byte(in)); got != want {
			t.Errorf("percent %q: %v", in, got)
		}
	}
	for _, in := range []string{"", "-1", "1 ", "18446744073709551616", "99999999999999999999"} {
		if n, ok := parseUint([]byte(in)); ok {
			t.Errorf("%q is %d", in, n)
		}
	}
	if n, ok := parseUint([]byte("18446744073709551615")); !ok || n != 1<<64-1 {
		t.Error(n, ok)
	}
	if _, ok := parsePressure([]byte("nonsense\n")); ok {
		t.Error("nonsense is pressure")
	}
}

// TestIntegrationUsage compares with what the kernel says to somebody else.
func TestIntegrationUsage(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root")
	}
	m, err := Detect()
	if err != nil {
		t.Skip(err)
	}
	path := "/berth-cgroup-stats-" + strconv.Itoa(os.Getpid())
	if err := m.Create(path); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := m.Remove(path); err != nil {
			t.Error(err)
		}
	})
	u, err := m.Usage(path)
	if err != nil || u.CPUNanos == nil || *u.CPUNanos != 0 {
		t.Errorf("an empty group: %+v %v", u, err)
	}
	if ps, err := m.Processes(path); len(ps) != 0 || err != nil {
		t.Error(ps, err)
	}
	if m.Dir("pids", path) != "" {
		if n, ok := m.Threads(path); !ok || n.Threads != 0 {
			t.Error(n, ok)
		}
	}
}

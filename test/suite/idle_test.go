package suite

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"
)

// TestIntegrationIdle prints what quiet containers cost: the memory of their
// shims, and the CPU time of shims and daemon while nothing happens. It judges
// nothing. BERTH_IDLE is how many containers; ten are in a pod.
func TestIntegrationIdle(t *testing.T) {
	count, err := strconv.Atoi(os.Getenv("BERTH_IDLE"))
	if err != nil {
		t.Skip("set BERTH_IDLE to a number of containers")
	}
	n := open(t)
	if n.own == nil {
		t.Skip("needs a daemon that the suite owns")
	}
	var p *pod
	for i := range count {
		if i%10 == 0 {
			p = n.pod(t)
		}
		p.run(t, shell("echo hello; exec sleep 100000"))
	}
	shims := n.own.Shims()
	equal(t, "shims", len(shims), count)
	var pids []int
	pss, private := 0, 0
	time.Sleep(5 * time.Second)
	for _, pid := range shims {
		m := rollup(t, pid)
		pids = append(pids, pid)
		pss += m["Pss"]
		private += m["Private_Dirty"] + m["Private_Clean"]
	}
	const rest = 20 * time.Second
	ofShims, ofDaemon := cpuOf(t, pids), cpuOf(t, []int{n.own.PID()})
	time.Sleep(rest)
	ofShims, ofDaemon = cpuOf(t, pids)-ofShims, cpuOf(t, []int{n.own.PID()})-ofDaemon
	t.Logf("%d containers: each shim %d KiB PSS, %d KiB private; daemon %d KiB PSS; in %v of rest all shims ran %v, the daemon %v",
		count, pss/count, private/count, rollup(t, n.own.PID())["Pss"], rest, ofShims, ofDaemon)
}

// rollup is the sums over a process's mappings, in KiB, by the kernel's names.
func rollup(t *testing.T, pid int) map[string]int {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
	must(t, err)
	out := map[string]int{}
	for l := range strings.Lines(string(b)) {
		if f := strings.Fields(l); len(f) == 3 {
			out[strings.TrimSuffix(f[0], ":")], _ = strconv.Atoi(f[1])
		}
	}
	return out
}

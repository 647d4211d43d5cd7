package suite

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-dev/berth/test/harness"
)

func execsStories() []story {
	return []story{{name: "exec/many leave nothing", berth: true, owned: true, alone: true, tell: manyExecs}}
}

// execCount is how many commands manyExecs runs: BERTH_EXECS, which `make execs` sets.
func execCount(t *testing.T) int64 {
	t.Helper()
	text := os.Getenv("BERTH_EXECS")
	if text == "" {
		return 150
	}
	n, err := strconv.ParseInt(text, 10, 64)
	must(t, err)
	return n
}

// manyExecs runs commands of all sorts in one container, four at a time, and
// looks at what daemon, shim, cgroups and container hold before and after.
func manyExecs(t *testing.T, n *node) {
	s := n.spare(t, harness.Config{}, nil, nil)
	c := s.pod(t).run(t, shell("sleep 100000"))
	shim := s.own.Shims()[c.id]
	if shim == 0 {
		t.Fatal("no shim is found")
	}
	look := func() holds { return lookAt(t, s.own.PID(), shim, kernelGroup(t, c.pid(t))) }
	c.execMany(t, 40)
	before := settled(t, look, func(holds) bool { return true })
	count := execCount(t)
	begun := time.Now()
	c.execMany(t, count)
	took := time.Since(begun)
	after := settled(t, look, func(h holds) bool { return h.counts() == before.counts() })
	if after.counts() != before.counts() {
		t.Errorf("after the commands %+v is held, before %+v; the shim's descriptors: %v", after, before, descriptors(shim))
	}
	// The allocators keep some of what they had: these are less than one
	// goroutine, or a few hundred bytes, of each of ten thousand commands.
	if d := after.daemonKiB - before.daemonKiB; d > 16<<10 {
		t.Errorf("the daemon holds %d KiB more", d)
	}
	if d := after.shimKiB - before.shimKiB; d > 3<<10 {
		t.Errorf("the shim holds %d KiB more", d)
	}
	t.Logf("%d commands in %v, %v each with four at a time: before %+v, after %+v", count, took.Round(time.Second), (took / time.Duration(count)).Round(time.Microsecond), before, after)
}

// execMany runs commands that end well, fail, are not found, take too long, or
// leave a child with their output.
func (c *container) execMany(t *testing.T, count int64) {
	var next atomic.Int64
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for i := next.Add(1); i <= count; i = next.Add(1) {
				if err := c.execOne(t, i); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
}

func (c *container) execOne(t *testing.T, i int64) error {
	q := &runtimeapi.ExecSyncRequest{ContainerId: c.id, Cmd: []string{"/bin/sh", "-c", "exit " + fmt.Sprint(i%7)}}
	code, fails := int32(i%7), false
	switch {
	case i%500 == 250: // a background child holds the output for a moment
		q.Cmd[2], code = "sleep 1 & exit 0", 0
	case i%100 == 50: // runs out of time
		q.Cmd[2], q.Timeout, fails = "sleep 4321 & sleep 4321", 1, true
	case i%50 == 25:
		q.Cmd, fails = []string{"/no/such/program"}, true
	case i%10 == 5:
		q.Cmd[2], code = "head -c 100000 /dev/zero", 0
	}
	r, err := c.p.n.rt.ExecSync(t.Context(), q)
	if (err != nil) != fails || err == nil && r.GetExitCode() != code {
		return fmt.Errorf("command %d, %q: code %d, want %d, error %v", i, q.Cmd, r.GetExitCode(), code, err)
	}
	return nil
}

// holds is what a daemon, a shim and a container have.
type holds struct {
	daemonFDs, shimFDs, children, groups, files int
	daemonKiB, shimKiB                          int
}

// counts is what must be the same again. Threads are not among it: Go never
// ends one.
func (h holds) counts() holds {
	h.daemonKiB, h.shimKiB = 0, 0
	return h
}

func lookAt(t *testing.T, daemon, shim int, g group) holds {
	t.Helper()
	entries := func(format string, pid int) int {
		names, err := os.ReadDir(fmt.Sprintf(format, pid))
		must(t, err)
		return len(names)
	}
	h := holds{daemonFDs: entries("/proc/%d/fd", daemon),
		files: entries("/proc/%d/cwd", shim), daemonKiB: anonymous(t, daemon), shimKiB: anonymous(t, shim)}
	for kind, n := range descriptors(shim) {
		// Go makes a poller of its own when a timer first needs it, and keeps it.
		if !strings.HasPrefix(kind, "anon_inode:[event") {
			h.shimFDs += n
		}
	}
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", shim, shim))
	must(t, err)
	h.children = len(strings.Fields(string(b)))
	for _, dir := range g.dirs {
		below, err := filepath.Glob(dir + "/*/cgroup.procs")
		must(t, err)
		h.groups += len(below)
	}
	return h
}

// descriptors counts those of a process by what they are.
func descriptors(pid int) map[string]int {
	out := map[string]int{}
	all, _ := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", pid))
	for _, fd := range all {
		to, _ := os.Readlink(fd)
		out[strings.TrimRight(to, "0123456789]")]++
	}
	return out
}

// anonymous is the memory of a process that no file backs, in KiB.
func anonymous(t *testing.T, pid int) int {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	must(t, err)
	for l := range strings.Lines(string(b)) {
		if v, ok := strings.CutPrefix(l, "RssAnon:"); ok {
			n, err := strconv.Atoi(strings.Fields(v)[0])
			must(t, err)
			return n
		}
	}
	t.Fatalf("process %d tells no RssAnon", pid)
	return 0
}

// settled looks until good agrees and three looks in a row say the same
// counts, or patience ends, and returns the last one.
func settled(t *testing.T, look func() holds, good func(holds) bool) holds {
	t.Helper()
	var last []holds
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(500 * time.Millisecond) {
		last = append(last, look())
		if n := len(last); n >= 3 && good(last[n-1]) && !slices.ContainsFunc(last[n-3:], func(h holds) bool { return h.counts() != last[n-1].counts() }) {
			break
		}
	}
	return last[len(last)-1]
}

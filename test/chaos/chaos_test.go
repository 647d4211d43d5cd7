package chaos

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// load is all that goes on while the daemon comes and goes.
type load struct {
	*node
	size
	pods    []*pod
	writers []*writer
	enders  []*container // one ends in each round
	eaters  []*container // one runs out of memory in each round
	count   counter
}

// TestIntegrationDaemonIsNotMissed kills the daemon in a loop.
func TestIntegrationDaemonIsNotMissed(t *testing.T) {
	l := &load{node: open(t), size: sizeOf()}
	l.begin()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var probers errgroup.Group
	for i := range l.probers {
		probers.Go(func() error { return l.probe(ctx, l.writers[i:], &l.count) })
	}
	for round := range l.rounds {
		began := time.Now()
		l.round(round)
		t.Logf("round %d: %v", round, time.Since(began).Round(time.Millisecond))
		if t.Failed() {
			break
		}
	}
	cancel()
	if err := probers.Wait(); err != nil {
		t.Error(err)
	}
	if l.count.m["good"] == 0 {
		t.Error("no probe succeeded")
	}
	l.finish()
}

// begin runs the containers.
func (l *load) begin() {
	l.pods = l.runPods(l.size.pods)
	var all []func() error
	add := func(c *container, limit int64, command, args []string) {
		p := l.pods[len(all)%len(l.pods)]
		all = append(all, func() error {
			if err := l.start(p, c, limit, command, args); err != nil {
				return fmt.Errorf("start %s: %w", c.name, err)
			}
			return nil
		})
	}
	for i := range l.size.writers {
		w := &writer{container: container{name: "writer-" + strconv.Itoa(i), code: int32(i % 100), reason: "Error"}}
		if w.code == 0 {
			w.reason = "Completed"
		}
		burst, pause := "20", "100"
		if i < l.fast {
			burst, pause = "4000", "2000"
		}
		l.writers = append(l.writers, w)
		add(&w.container, 0, nil, []string{"number", burst, pause, strconv.Itoa(int(w.code))})
	}
	for i := range l.rounds {
		e := &container{name: "ender-" + strconv.Itoa(i), code: int32(3 + i), reason: "Error"}
		l.enders = append(l.enders, e)
		add(e, 0, nil, []string{"await", "/flags/" + e.name, "exit", strconv.Itoa(int(e.code))})

		// The one that is killed is the container's first process, or a child of it.
		o := &container{name: "eater-" + strconv.Itoa(i), code: 137, reason: "OOMKilled"}
		l.eaters = append(l.eaters, o)
		args := []string{"/probe", "await", "/flags/" + o.name, "eat", "200"}
		if i%2 == 1 {
			o.code, args = 9, []string{"/bin/sh", "-c", strings.Join(args, " ") + "; exit 9"}
		}
		add(o, 48<<20, args, nil)
	}
	each(l.t, all, func(f func() error) error { return f() })
	for _, w := range l.writers {
		eventually(l.t, w.name+" writes", func() bool { return w.size() > 0 })
		w.fds = len(fdsOf(l.h.Shims()[w.id]))
	}
	l.t.Logf("%d containers in %d pods", len(all), len(l.pods))
}

// round is one life of the daemon, and the time until its next.
func (l *load) round(i int) {
	t := l.t
	pick := func(k int) *writer { return l.writers[(i*7+k)%len(l.writers)] }
	var open []*session
	for k := range l.sessions {
		for j, f := range []func(*writer, bool) (*session, error){l.attach, l.exec} {
			s, err := f(pick(k), (i+j+k)%2 == 0)
			must(t, err)
			open = append(open, s)
		}
	}
	// A rotation whose two halves are in one life, and one that spans two.
	pick(2).move()
	pick(2).reopen()
	if i%2 == 0 { // this one ends around the kill, the others while there is no daemon
		l.enders[i].tell()
	}
	must(t, l.h.Kill())
	l.enders[i].tell()
	l.eaters[i].tell()
	for _, s := range open {
		l.count.add("attached lines", s.over(l.node))
	}
	l.count.add("sessions", len(open))
	eventually(t, "exec'ed processes end with the daemon", func() bool { return l.marked() == 0 })
	// A pipe holds 64 KiB: whoever writes more than that is being read.
	before := map[*writer]int64{}
	for _, w := range l.writers {
		before[w] = w.size()
	}
	for _, w := range l.writers {
		eventually(t, w.name+" goes on without a daemon", func() bool { return w.size() > before[w]+80<<10 })
	}
	pick(3).move()
	eventually(t, "what is to end ends without a daemon", func() bool {
		shims := l.h.Shims()
		return shims[l.enders[i].id] == 0 && shims[l.eaters[i].id] == 0
	})
	must(t, l.h.Start(t.Context()))
	pick(3).reopen()
	l.enders[i].ended()
	l.eaters[i].ended()
	for _, w := range l.writers {
		if l.h.Shims()[w.id] == 0 {
			t.Fatalf("%s has no shim", w.name)
		}
	}
	eventually(t, "shims and daemon reap their children", func() bool { return len(l.zombies()) == 0 })
}

// finish ends all and looks at what is there and what is left.
func (l *load) finish() {
	t := l.t
	for _, w := range l.writers {
		eventually(t, w.name+"'s shim has closed what it opened for others", func() bool { return len(fdsOf(l.h.Shims()[w.id])) <= w.fds })
	}
	each(t, l.writers, func(w *writer) error {
		_, err := l.rt.StopContainer(t.Context(), &runtimeapi.StopContainerRequest{ContainerId: w.id, Timeout: 60})
		return err
	})
	var sum checked
	for _, w := range l.writers {
		w.ended()
		c, err := w.check()
		if err != nil {
			t.Errorf("log of %s: %v", w.name, err)
		}
		sum.lines += c.lines
		sum.bytes += c.bytes
		sum.longest = max(sum.longest, c.longest)
	}
	for _, e := range l.enders {
		if b, err := os.ReadFile(e.log); err != nil || strings.Count(string(b), "\n") != 1 || !strings.HasSuffix(string(b), " stdout F go\n") {
			t.Errorf("log of %s: %q, %v", e.name, b, err)
		}
	}
	if full() && sum.longest > 10*time.Second {
		t.Errorf("a write took %v", sum.longest)
	}
	each(t, l.pods, func(p *pod) error { return l.removePod(t.Context(), p.id) })
	if left := l.h.WaitLeftovers(t.Context()); len(left) > 0 {
		t.Errorf("left behind:\n  %s", strings.Join(left, "\n  "))
	}
	eventually(t, "no shim is left", func() bool { return len(l.h.Shims()) == 0 && len(l.zombies()) == 0 })
	t.Logf("%d kills; %d lines, %d MB of log; slowest write %v; %v", l.rounds, sum.lines, sum.bytes/1e6, sum.longest, l.count.m)
}

// zombies are children that the daemon and the shims have not reaped.
func (l *load) zombies() (out []string) {
	parents := map[string]bool{strconv.Itoa(l.h.PID()): true}
	for _, pid := range l.h.Shims() {
		parents[strconv.Itoa(pid)] = true
	}
	procs, _ := filepath.Glob("/proc/[0-9]*/stat")
	for _, p := range procs {
		b, _ := os.ReadFile(p)
		// The command may hold anything; it ends at the last parenthesis.
		f := strings.Fields(string(b[strings.LastIndexByte(string(b), ')')+1:]))
		if len(f) > 1 && f[0] == "Z" && parents[f[1]] {
			out = append(out, p)
		}
	}
	return out
}

// fdsOf lists what a process has open, but for what its Go run-time opens for
// itself when it first needs it.
func fdsOf(pid int) (out []string) {
	fds, _ := filepath.Glob(filepath.Join("/proc", strconv.Itoa(pid), "fd", "*"))
	for _, f := range fds {
		if to, _ := os.Readlink(f); !strings.HasPrefix(to, "anon_inode:[event") {
			out = append(out, to)
		}
	}
	return out
}

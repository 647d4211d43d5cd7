package suite

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func logStories() []story {
	return []story{
		{name: "log/streams", tell: logStreams},
		{name: "log/partial lines", tell: logPartial},
		{name: "log/hundred thousand lines", tell: logMany},
		{name: "log/reopen", tell: logReopen},
		{name: "log/reopen while stopping, truncated, without its directory", berth: true, tell: logReopenHard},
	}
}

func logStreams(t *testing.T, n *node) {
	c := n.pod(t).run(t, probe("both"))
	c.wait(t)
	got := map[string]string{}
	for _, l := range c.log(t) {
		got[l.stream] = l.s
		equal(t, "tag", l.tag, "F")
		if l.at.UnixNano() < c.status(t).GetCreatedAt() {
			t.Errorf("a line is older than its container: %v", l)
		}
	}
	equal(t, "stdout", got["stdout"], "to stdout")
	equal(t, "stderr", got["stderr"], "to stderr")
}

func logPartial(t *testing.T, n *node) {
	p := n.pod(t)
	has(t, "content", p.output(t, probe("partial")), "first half, second half\n", "no end")
	c := p.run(t, probe("lines", "1", "40000"))
	c.wait(t)
	lines := c.log(t)
	if len(lines) < 2 || lines[0].tag != "P" || lines[len(lines)-1].tag != "F" {
		t.Errorf("a line of 40 kB became %d entries", len(lines))
	}
	equal(t, "bytes", len(strings.TrimSpace(c.text(t))), 40010)
}

func logMany(t *testing.T, n *node) {
	c := n.pod(t).run(t, probe("lines", "100000"))
	equal(t, "exit code", c.wait(t).GetExitCode(), 0)
	lines := c.log(t)
	equal(t, "lines", len(lines), 100000)
	if len(lines) > 0 {
		has(t, "last line", lines[len(lines)-1].s, "000099999")
	}
}

func logReopen(t *testing.T, n *node) {
	c := n.pod(t).run(t, shell("echo before; while [ ! -e /go ]; do sleep 0.1; done; echo after; sleep 1000"))
	c.waitLog(t, "before")
	must(t, os.Rename(c.logFile(), c.logFile()+".1"))
	_, err := n.rt.ReopenContainerLog(t.Context(), &runtimeapi.ReopenContainerLogRequest{ContainerId: c.id})
	must(t, err)
	c.sh(t, "touch /go")
	c.waitLog(t, "after")
	old, err := os.ReadFile(c.logFile() + ".1")
	must(t, err)
	if strings.Contains(string(old), "after") || strings.Contains(c.text(t), "before") {
		t.Error("lines went to the wrong file")
	}
}

// logReopenHard: a container that is being stopped, and does not care, goes on
// writing, whatever becomes of its log.
func logReopenHard(t *testing.T, n *node) {
	c := n.pod(t).run(t, shell(`trap 'echo deaf' TERM; echo ready; i=0; while :; do i=$((i+1)); echo line $i; sleep 0.05; done`))
	c.waitLog(t, "ready")
	stopped := make(chan error, 1)
	go func() {
		_, err := n.rt.StopContainer(t.Context(), &runtimeapi.StopContainerRequest{ContainerId: c.id, Timeout: 600})
		stopped <- err
	}()
	c.waitLog(t, "deaf")
	reopen := func() {
		t.Helper()
		_, err := n.rt.ReopenContainerLog(t.Context(), &runtimeapi.ReopenContainerLogRequest{ContainerId: c.id})
		must(t, err)
		c.waitLog(t, "line ")
	}
	must(t, os.Rename(c.logFile(), c.logFile()+".1"))
	reopen()
	must(t, os.Truncate(c.logFile(), 0))
	c.waitLog(t, "line ") // appended at the new end: no hole, which log() would refuse
	reopen()
	must(t, os.RemoveAll(filepath.Dir(c.logFile())))
	reopen()
	select {
	case err := <-stopped:
		t.Errorf("the stop is over: %v", err)
	default:
	}
	c.stop(t, 0)
	must(t, <-stopped)
	equal(t, "exit code", c.wait(t).GetExitCode(), 137)
}

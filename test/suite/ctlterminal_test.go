package suite

import (
	"path/filepath"
	"strings"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-dev/berth/test/terminal"
)

// inTerminal runs berthctl on the suite's node in a terminal.
func (n *node) inTerminal(t *testing.T, args ...string) *terminal.Terminal {
	t.Helper()
	n.cleanRuns(t)
	return terminal.Start(t, terminal.Config{Cols: "100", Rows: "20", Args: append([]string{filepath.Join(n.ctlProgram(t), "berthctl")}, args...)})
}

// A command in a terminal has its size, follows it, gets every key, and its
// exit code is berthctl's.
func execInTerminal(t *testing.T, n *node) {
	c := n.pod(t).run(t, image("busybox:1"), shell("sleep 1000"))
	x := n.inTerminal(t, "exec", "-it", c.id, "--", "sh")
	x.Await("/ #")
	x.Keys("stty size", "Enter")
	x.Await("20 100")
	x.Resize("90", "25")
	// The size arrives when it does: the shell waits for it.
	x.Keys("until [ \"$(stty size)\" = '25 90' ]; do sleep 0.1; done; echo res''ized", "Enter")
	x.Await("resized")
	x.Keys("trap 'echo inter''rupted' INT", "Enter")
	x.Keys("C-c")
	x.Await("interrupted")
	x.Keys("exit 9", "Enter")
	equal(t, "exit code", x.AwaitEnd(), "9")
}

// A pod with a terminal in one line: its first output is seen, the detach keys
// leave it running, attach comes back to it.
func runInTerminal(t *testing.T, n *node) {
	x := n.inTerminal(t, "run", "-it", "--name", "term-pod", n.ref("busybox:1"), "sh", "-c", "echo first word; exec sh")
	has(t, "the screen", x.Await("/ #"), "first word")
	x.Keys("C-p", "C-q")
	x.Await("detached; term-pod goes on")
	equal(t, "exit code", x.AwaitEnd(), "0")
	r, err := n.rt.ListContainers(t.Context(), &runtimeapi.ListContainersRequest{})
	must(t, err)
	running := 0
	for _, k := range r.GetContainers() {
		if k.GetMetadata().GetName() == "term-pod" && k.GetState() == runtimeapi.ContainerState_CONTAINER_RUNNING {
			running++
		}
	}
	equal(t, "containers that run on", running, 1)
	y := n.inTerminal(t, "attach", "-i", "term-pod")
	// What is typed is echoed once the attachment is there.
	y.Keys("echo ba''ck", "Enter")
	y.Await("back")
	y.Keys("exit 4", "Enter")
	equal(t, "exit code of attach", y.AwaitEnd(), "0")
	eventually(t, "the container has ended", func() bool {
		out, err := n.ctl(t, "containers", "ls")
		return err == nil && strings.Contains(out, "term-pod") && strings.Contains(out, "EXITED")
	})
	n.mustCtl(t, "pods", "rm", "term-pod")
}

// A terminal that is closed with --rm leaves nothing.
func runRemovedInTerminal(t *testing.T, n *node) {
	x := n.inTerminal(t, "run", "--rm", "-it", "--name", "term-rm", n.ref("busybox:1"), "sh")
	x.Await("/ #")
	x.Keys("exit 6", "Enter")
	equal(t, "exit code", x.AwaitEnd(), "6")
	if out, err := n.ctl(t, "pods", "inspect", "term-rm"); err == nil {
		t.Errorf("the pod is still there: %s", out)
	}
}

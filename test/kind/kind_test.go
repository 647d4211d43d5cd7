package kind

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/berth-dev/berth/test/harness"
)

// patience bounds every wait; the machine may be slow.
const patience = 3 * time.Minute

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// outer is the node around the node.
type outer struct {
	*harness.Node
	bin string
}

// ctl runs berthctl against the outer node.
func (n *outer) ctl(ctx context.Context, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	all := append([]string{"--address", n.Dir("run", "berth.sock"), "--admin-address", n.Dir("run", "admin.sock")}, args...)
	out, err := n.Space().Command(ctx, filepath.Join(n.bin, "berthctl"), all...).CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("berthctl %s: %w: %s", strings.Join(args, " "), err, out)
	}
	return string(out), nil
}

// inside runs a command in the inner node until it says what is wanted.
func (n *outer) inside(t *testing.T, want string, command ...string) string {
	t.Helper()
	for limit := time.Now().Add(patience); ; time.Sleep(time.Second) {
		out, err := n.ctl(t.Context(), append([]string{"exec", "node", "--"}, command...)...)
		if err == nil && strings.Contains(out, want) {
			return out
		}
		if time.Now().After(limit) {
			t.Fatalf("%s: %q, %v, want %q", strings.Join(command, " "), out, err, want)
		}
	}
}

func TestIntegrationKind(t *testing.T) {
	if os.Getenv("BERTH_KIND") == "" {
		t.Skip("makes a Debian from its mirror, and needs a kubelet: run by `make kind`")
	}
	programs, err := harness.Find("")
	must(t, err)
	if m := programs.Missing(true); len(m) > 0 {
		t.Fatalf("this machine lacks: %s", strings.Join(m, "; "))
	}
	own, err := harness.New(harness.Config{Programs: programs})
	must(t, err)
	n := &outer{own, programs.Bin}
	t.Cleanup(func() { must(t, n.Close()) })
	archive := n.Dir("node.tar")
	cmd := exec.CommandContext(t.Context(), "../../deploy/kind/bare/assemble", filepath.Join(n.bin, "k8s", "kubelet"), archive)
	out, err := cmd.CombinedOutput()
	t.Logf("assemble: %v\n%s", err, out)
	must(t, err)
	must(t, n.Start(t.Context()))
	_, err = n.ctl(t.Context(), "images", "import", archive)
	must(t, err)

	// The state is on the machine's disk: an overlay cannot stand on an overlay.
	state := n.Dir("inner")
	must(t, os.Mkdir(state, 0o711))
	_, err = n.ctl(t.Context(), "run", "-d", "--name", "node", "--privileged", "--pull", "never", "--log-dir", n.Dir(), "-v", state+":/var/lib/berth", "localhost/berth-node:1")
	must(t, err)
	t.Cleanup(func() {
		if t.Failed() {
			logs, err := n.ctl(context.Background(), "logs", "node")
			t.Logf("%v\n%s\n%s", err, logs, n.LogTail())
		}
		_, err := n.ctl(context.Background(), "pods", "rm", "-f", "node")
		if err != nil {
			t.Error(err)
		}
		if left := n.WaitLeftovers(context.Background()); len(left) > 0 {
			t.Errorf("left on the outer node:\n%s", strings.Join(left, "\n"))
		}
	})
	n.inside(t, "RUNNING", "berthctl", "containers", "ls")
	log := n.inside(t, "inet ", "berthctl", "logs", "hello")
	t.Logf("the inner pod says %s", log)
	if host := n.inside(t, "", "hostname"); !strings.Contains(log, "on "+strings.TrimSpace(host)) {
		t.Errorf("the pod's node is not %s", host)
	}

	// The inner daemon dies: the next one finds the pod as it was.
	before, pid := n.inside(t, "sleep", "berthctl", "ps"), n.inside(t, "", "pidof", "berthd")
	n.inside(t, "", "kill", "-9", strings.TrimSpace(pid))
	n.inside(t, "RUNNING", "berthctl", "containers", "ls")
	if now := n.inside(t, "", "pidof", "berthd"); now == pid {
		t.Errorf("berthd is still the process %s", pid)
	}
	if after := n.inside(t, "sleep", "berthctl", "ps"); after != before {
		t.Errorf("after the death of the inner berthd:\n%s\nbefore:\n%s", after, before)
	}
}

package crash

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// tool runs berthctl, whose exit code must be as given, and returns its output.
func (n *node) tool(code int, args ...string) string {
	n.t.Helper()
	out, err := n.berthctl(args...)
	got := 0
	if ee := (&exec.ExitError{}); errors.As(err, &ee) {
		got = ee.ExitCode()
	} else if err != nil {
		n.t.Fatal(err)
	}
	if got != code {
		n.t.Errorf("berthctl %s: exit code %d, want %d:\n%s", strings.Join(args, " "), got, code, out)
	}
	return out
}

// TestIntegrationFailedRollback lets a pod fail to be made, and to be unmade: it
// is seen, and undone without anybody's help once that can be done.
func TestIntegrationFailedRollback(t *testing.T) {
	n := openWith(t, "[network]\nbuiltin = []\n")
	n.pull()
	p := n.newPod(runtimeapi.NamespaceMode_CONTAINER)
	n.sabotage("portmap", "ADD", "fail")
	n.sabotage("bridge", "DEL", "fail")
	if _, err := n.rt.RunPodSandbox(t.Context(), &runtimeapi.RunPodSandboxRequest{Config: p.config}); err == nil {
		t.Fatal("a sandbox runs although its network plugin fails")
	}
	if out := n.tool(0, "ops"); !strings.Contains(out, "sandbox.run") {
		t.Errorf("berthctl ops does not show what is unfinished:\n%s", out)
	}
	n.eventually("a repetition has failed, and is seen", func() bool {
		out := n.tool(0, "recovery")
		return strings.Contains(out, "finish or undo sandbox.run") && strings.Contains(out, "told to fail")
	})
	n.sabotage("portmap", "ADD", "")
	n.sabotage("bridge", "DEL", "")
	n.eventually("it is undone", func() bool { return len(n.operations()) == 0 })
	if out := n.tool(0, "recovery"); out != "" {
		t.Errorf("berthctl recovery:\n%s", out)
	}
	n.clean(p.cgroup)
}

// TestIntegrationServesWhileRecovering starts the daemon with a shim that does
// not answer: its container alone has to wait.
func TestIntegrationServesWhileRecovering(t *testing.T) {
	n := open(t)
	n.pull()
	p := n.newPod(runtimeapi.NamespaceMode_CONTAINER)
	p.run()
	a, b := p.create("a", counting), p.create("b", counting)
	a.start()
	b.start()
	shim := n.h.Shims()[b.id]
	must(t, n.h.Kill())
	must(t, syscall.Kill(shim, syscall.SIGSTOP))
	defer func() { _ = syscall.Kill(shim, syscall.SIGCONT) }()
	n.rush = false // do not wait
	n.restart()
	p.lists(map[string]runtimeapi.ContainerState{a.id: running, b.id: running})
	n.exec(a)
	c := p.create("c", counting)
	c.start()
	if out := n.tool(0, "recovery"); !strings.Contains(out, "find its shim") || !strings.Contains(out, b.id[:13]) {
		t.Errorf("berthctl recovery does not show it:\n%s", out)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	_, err := n.rt.UpdateContainerResources(ctx, &runtimeapi.UpdateContainerResourcesRequest{ContainerId: b.id, Linux: &runtimeapi.LinuxContainerResources{CpuShares: 512}})
	if code := status.Code(err); code != codes.DeadlineExceeded && code != codes.Unavailable {
		t.Errorf("a call on a container in recovery: %v", err)
	}
	must(t, syscall.Kill(shim, syscall.SIGCONT))
	n.exec(b) // waits for the first attempt
	n.eventually("all is recovered", func() bool { return n.tool(0, "recovery") == "" })
	for _, x := range []*container{a, b, c} {
		n.eventually("it writes", func() bool { return len(x.log()) > 0 })
		x.stop(20)
		x.ends(7, "Error")
		x.counted("bye")
	}
	p.stop()
	p.remove()
	n.clean(p.cgroup)
}

// TestIntegrationReconcileOnDemand leaves things under a running daemon, beside
// things of other people, and has the former reaped.
func TestIntegrationReconcileOnDemand(t *testing.T) {
	n := open(t)
	n.pull()
	p := n.newPod(runtimeapi.NamespaceMode_POD)
	p.run()
	a := p.create("a", counting)
	a.start()
	id := strings.Repeat("fedcba9876543210", 4)
	n.sh(`set -e
mkdir -p run/ns/$1 run/sandboxes/$1/shm run/containers/$1/rootfs state/containers/$1/upper run/containers/other
touch run/ns/$1/net; mount --bind /proc/self/ns/net run/ns/$1/net
mount -t tmpfs rootfs run/containers/$1/rootfs`, id)
	if out := n.tool(0, "reconcile", "--dry-run"); strings.Count(out, id[:13]) != 2 || strings.Contains(out, p.id[:13]) || strings.Contains(out, a.id[:13]) {
		t.Errorf("berthctl reconcile --dry-run:\n%s", out)
	}
	if _, err := os.Stat(n.h.Dir("state", "containers", id)); err != nil {
		t.Error("a dry run changes something")
	}
	if out := n.tool(0, "reconcile"); strings.Count(out, id[:13]) != 2 {
		t.Errorf("berthctl reconcile:\n%s", out)
	}
	if out := n.tool(0, "reconcile"); out != "" {
		t.Errorf("berthctl reconcile, again:\n%s", out)
	}
	must(t, os.Remove(n.h.Dir("run", "containers", "other")))
	p.lists(map[string]runtimeapi.ContainerState{a.id: running})
	a.stop(0)
	p.stop()
	p.remove()
	n.clean(p.cgroup)
}

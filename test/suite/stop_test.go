package suite

import (
	"context"
	"os"
	"path/filepath"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func stopStories() []story {
	return []story{
		{name: "stop/grace", tell: stopGrace},
		{name: "stop/kill at the end of grace", tell: stopKill},
		{name: "stop/shorter grace wins", tell: stopShorter},
		{name: "stop/signal from the image", tell: stopImageSignal},
		{name: "stop/signal from the config", tell: stopConfigSignal},
		{name: "stop/shared process namespaces", berth: true, tell: stopShared},
		{name: "exec/output and code", tell: execOutput},
		{name: "exec/time-out", tell: execTimeout},
		{name: "exec/big output", tell: execBig},
	}
}

func stopGrace(t *testing.T, n *node) {
	c := n.pod(t).run(t, shell(`trap 'echo caught; exit 7' TERM; echo ready; while :; do sleep 0.1; done`))
	c.waitLog(t, "ready")
	c.stop(t, 30)
	equal(t, "exit code", c.wait(t).GetExitCode(), 7)
	has(t, "log", c.text(t), "caught")
}

func stopKill(t *testing.T, n *node) {
	c := n.pod(t).run(t, probe("deaf"))
	c.waitLog(t, "deaf")
	start := time.Now()
	c.stop(t, 1)
	if took := time.Since(start); took < time.Second {
		t.Errorf("killed after %v, before its grace of 1 s", took)
	}
	equal(t, "exit code", c.wait(t).GetExitCode(), 137)
	equal(t, "reason", c.status(t).GetReason(), "Error")
}

func stopShorter(t *testing.T, n *node) {
	c := n.pod(t).run(t, probe("deaf"))
	c.waitLog(t, "deaf")
	first := make(chan error, 1)
	go func() {
		_, err := n.rt.StopContainer(t.Context(), &runtimeapi.StopContainerRequest{ContainerId: c.id, Timeout: 600})
		first <- err
	}()
	time.Sleep(200 * time.Millisecond)
	c.stop(t, 0)
	select {
	case err := <-first:
		must(t, err)
	case <-time.After(patience):
		t.Error("the first stop still waits for its own grace")
	}
	equal(t, "exit code", c.wait(t).GetExitCode(), 137)
}

func stopImageSignal(t *testing.T, n *node) {
	c := n.pod(t).run(t, image("stopsignal:1"))
	c.waitLog(t, "ready")
	c.stopsWhen(t, "signal 10 ")
	equal(t, "signal in the status", c.status(t).GetStopSignal(), runtimeapi.Signal_SIGNAL_SIGUSR1)
}

func stopConfigSignal(t *testing.T, n *node) {
	c := n.pod(t).run(t, image("stopsignal:1"), func(c *runtimeapi.ContainerConfig) { c.StopSignal = runtimeapi.Signal_SIGNAL_SIGHUP })
	c.waitLog(t, "ready")
	c.stopsWhen(t, "signal 1 ")
}

func execOutput(t *testing.T, n *node) {
	c := n.pod(t).run(t, probe("sleep"))
	r := c.exec(t, "/bin/sh", "-c", "echo out; echo err >&2; exit 3")
	equal(t, "stdout", string(r.GetStdout()), "out\n")
	equal(t, "stderr", string(r.GetStderr()), "err\n")
	equal(t, "exit code", r.GetExitCode(), 3)
	r, err := n.rt.ExecSync(t.Context(), &runtimeapi.ExecSyncRequest{ContainerId: c.id, Cmd: []string{"/no/such/program"}})
	if err == nil && r.GetExitCode() == 0 {
		t.Error("a program that does not exist succeeded")
	}
}

func execTimeout(t *testing.T, n *node) {
	c := n.pod(t).run(t, probe("sleep"))
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	_, err := n.rt.ExecSync(ctx, &runtimeapi.ExecSyncRequest{
		ContainerId: c.id, Cmd: []string{"/bin/sh", "-c", "sleep 4321 & sleep 4321"}, Timeout: 1,
	})
	wantCode(t, "exec that takes too long", err, codes.DeadlineExceeded)
	if n.own == nil {
		// containerd kills the shell alone and then waits for the output of its
		// child, so that only the client's own deadline ends the call.
		return
	}
	must(t, ctx.Err())
	eventually(t, "the exec's processes are gone", func() bool {
		return c.sh(t, "cat /proc/[0-9]*/cmdline | tr '\\0' ' ' | grep -c '[s]leep 4321' || true") == "0"
	})
}

func execBig(t *testing.T, n *node) {
	c := n.pod(t).run(t, probe("sleep"))
	r, err := n.rt.ExecSync(t.Context(), &runtimeapi.ExecSyncRequest{ContainerId: c.id, Cmd: []string{"/bin/sh", "-c", "head -c 20000000 /dev/zero"}})
	if n.own == nil && status.Code(err) == codes.ResourceExhausted {
		return // containerd cuts at 16 MiB, and then cannot send that much
	}
	must(t, err)
	if got := len(r.GetStdout()); got == 0 || got > 16<<20 {
		t.Errorf("%d bytes of output, want at most 16 MiB", got)
	}
}

// stopShared: in a process namespace that is not its own a container ends with
// all it started, and nobody else does.
func stopShared(t *testing.T, n *node) {
	const tree = "trap '' TERM; setsid sleep 98765 & (setsid sh -c 'sleep 98765 & sleep 98765' &); echo ready; while :; do sleep 1; done"
	for name, mode := range map[string]runtimeapi.NamespaceMode{"pod": runtimeapi.NamespaceMode_POD, "node": runtimeapi.NamespaceMode_NODE} {
		p := n.pod(t, namespaces(&runtimeapi.NamespaceOption{Pid: mode}))
		other := p.run(t, shell("sleep 100000"), pidMode(mode))
		c := p.run(t, shell(tree), pidMode(mode))
		c.waitLog(t, "ready")
		g := kernelGroup(t, c.pid(t))
		c.stop(t, 1)
		equal(t, name+": exit code", c.wait(t).GetExitCode(), 137)
		eventually(t, name+": its processes are gone", func() bool {
			b, err := os.ReadFile(filepath.Join(g.dirs[g.any()], "cgroup.procs"))
			return err != nil || len(b) == 0
		})
		equal(t, name+": the other one", other.sh(t, "echo here"), "here")
	}
}

// pidMode gives a container the process namespace of its pod.
func pidMode(m runtimeapi.NamespaceMode) edit {
	return security(func(s *runtimeapi.LinuxContainerSecurityContext) {
		s.NamespaceOptions = &runtimeapi.NamespaceOption{Pid: m}
	})
}

// any is a hierarchy that lists processes.
func (g group) any() string {
	if g.v2() {
		return ""
	}
	return "memory"
}

package suite

import (
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-dev/berth/test/harness"
)

func stuckStories() []story {
	return []story{
		{name: "stuck/process that no signal ends", berth: true, owned: true, alone: true, tell: stuckProcess},
		{name: "stuck/runtime that does not answer", berth: true, owned: true, alone: true, tell: stuckRuntime},
		{name: "stuck/frozen container is stopped", berth: true, tell: frozenContainer},
	}
}

// held is what the verbose status says of a container that is held up.
type held struct {
	Shim struct{ WaitsFor, WaitingSince, Error string }
	Stop struct {
		Step, Deadline, Failed string
		Processes              []string
	}
}

func (c *container) held(t *testing.T) (h held) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	r, err := c.p.n.rt.ContainerStatus(ctx, &runtimeapi.ContainerStatusRequest{ContainerId: c.id, Verbose: true})
	must(t, err)
	must(t, json.Unmarshal([]byte(r.GetInfo()["info"]), &h))
	return h
}

// nobodyWaits tries what a container that is held up must not hold up.
func nobodyWaits(t *testing.T, stuck, other *container) {
	t.Helper()
	n := stuck.p.n
	r, err := n.rt.ListContainers(t.Context(), &runtimeapi.ListContainersRequest{})
	must(t, err)
	if len(r.GetContainers()) < 2 {
		t.Errorf("list: %v", r)
	}
	equal(t, "state", stuck.status(t).GetState(), runtimeapi.ContainerState_CONTAINER_RUNNING)
	equal(t, "exec of another one", other.sh(t, "echo here"), "here")
	must(t, os.Rename(stuck.logFile(), stuck.logFile()+".1"))
	_, err = n.rt.ReopenContainerLog(t.Context(), &runtimeapi.ReopenContainerLogRequest{ContainerId: stuck.id})
	must(t, err)
	if _, err := os.Stat(stuck.logFile()); err != nil {
		t.Errorf("the log was not opened anew: %v", err)
	}
}

// stuckProcess: init sleeps in the kernel. Stop says why it does not end, and
// once it can end, it does so by itself with its true code.
func stuckProcess(t *testing.T, n *node) {
	fs := hang(t)
	s := n.spare(t, harness.Config{}, nil, nil) // its mount namespace is a copy, taken now
	p := s.pod(t)
	other := p.run(t, shell("sleep 1000"))
	c := p.run(t, shell("echo begun; exec cat /hang/name"), func(c *runtimeapi.ContainerConfig) {
		c.Mounts = append(c.Mounts, &runtimeapi.Mount{HostPath: fs.dir, ContainerPath: "/hang"})
	})
	select {
	case <-fs.asked:
	case <-time.After(patience):
		t.Fatal("nobody asks the file system")
	}
	nobodyWaits(t, c, other)
	stopped := make(chan error, 1)
	go func() {
		_, err := s.rt.StopContainer(context.WithoutCancel(t.Context()), &runtimeapi.StopContainerRequest{ContainerId: c.id})
		stopped <- err
	}()
	eventually(t, "the status tells what the stop waits for", func() bool {
		h := c.held(t)
		return strings.Contains(h.Stop.Step, "killed") && strings.Contains(strings.Join(h.Stop.Processes, "\n"), "(cat) is in uninterruptible sleep")
	})
	nobodyWaits(t, c, other)
	err := <-stopped
	if err == nil {
		t.Fatal("a process that cannot end was stopped")
	}
	has(t, "error", err.Error(), "(cat) is in uninterruptible sleep", c.id)
	has(t, "reason in the status", c.held(t).Stop.Failed, "(cat) is in uninterruptible sleep")
	nobodyWaits(t, c, other)
	fs.abort()
	equal(t, "exit code", c.wait(t).GetExitCode(), 137)
}

// stuckRuntime: the OCI runtime hangs in an exec.
func stuckRuntime(t *testing.T, n *node) {
	programs, err := harness.Find(*binDir)
	must(t, err)
	dir := t.TempDir()
	runc, flag := filepath.Join(dir, "runc"), filepath.Join(dir, "hang")
	must(t, os.WriteFile(runc, []byte("#!/bin/sh\ncase \"$*\" in *' exec '*) [ -e "+flag+" ] && exec sleep 100000;; esac\nexec "+programs.Runc+" \"$@\"\n"), 0o755))
	s := n.spare(t, harness.Config{TOML: "[runtime.handlers.runc]\npath = \"" + runc + "\"\n"}, nil, nil)
	p := s.pod(t)
	c, other := p.run(t, shell("echo begun; sleep 1000")), p.run(t, shell("sleep 1000"))
	must(t, os.WriteFile(flag, nil, 0o600))
	ctx, cancel := context.WithCancel(t.Context())
	hung := make(chan error, 1)
	go func() {
		_, err := s.rt.ExecSync(ctx, &runtimeapi.ExecSyncRequest{ContainerId: c.id, Cmd: []string{"true"}})
		hung <- err
	}()
	eventually(t, "the status tells what the shim waits for", func() bool {
		h := c.held(t)
		return h.Shim.WaitsFor == "exec" && h.Shim.WaitingSince != ""
	})
	_, err = s.rt.ExecSync(t.Context(), &runtimeapi.ExecSyncRequest{ContainerId: c.id, Cmd: []string{"true"}, Timeout: 1})
	wantCode(t, "an exec with a time-out", err, codes.DeadlineExceeded)
	must(t, os.Remove(flag))
	equal(t, "another exec in it", c.sh(t, "echo here"), "here")
	nobodyWaits(t, c, other)
	cancel()
	if err := <-hung; err == nil {
		t.Error("the exec that hung went well")
	}
	eventually(t, "the shim waits for nothing", func() bool { return c.held(t).Shim.WaitsFor == "" })
	c.stop(t, 0)
	equal(t, "exit code", c.wait(t).GetExitCode(), 137)
}

// frozenContainer: on cgroup v1 a frozen process hears no signal.
func frozenContainer(t *testing.T, n *node) {
	c := n.pod(t).run(t, shell("sleep 1000"))
	g := kernelGroup(t, c.pid(t))
	file, text := filepath.Join(g.dirs["freezer"], "freezer.state"), "FROZEN"
	if g.v2() {
		file, text = filepath.Join(g.dirs[""], "cgroup.freeze"), "1"
	}
	must(t, os.WriteFile(file, []byte(text), 0))
	c.stop(t, 1)
	equal(t, "exit code", c.wait(t).GetExitCode(), 137)
}

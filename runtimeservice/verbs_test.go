package runtimeservice

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-dev/berth/shim"
	"github.com/berth-dev/berth/store"
)

func TestRunPodSandboxJoins(t *testing.T) {
	s, n := newTestService(t)
	n.runGate = make(chan struct{})
	// The client's time-out: the first call is left, the work goes on.
	ctx, cancel := context.WithCancel(t.Context())
	left := make(chan error)
	go func() { _, err := s.RunPodSandbox(ctx, podRequest("a")); left <- err }()
	eventually(t, "flight", func() bool { s.pods.joins.mu.Lock(); defer s.pods.joins.mu.Unlock(); return len(s.pods.joins.m) == 1 })
	cancel()
	if err := <-left; !errors.Is(err, context.Canceled) {
		t.Fatalf("abandoned call: %v", err)
	}
	other := podRequest("a")
	other.Config.Hostname = "other"
	if _, err := s.RunPodSandbox(t.Context(), other); !errdefs.IsAlreadyExists(err) {
		t.Fatalf("other configuration under way: %v", err)
	}
	var wg sync.WaitGroup
	ids := make([]string, 20)
	for i := range ids {
		wg.Go(func() {
			r, err := s.RunPodSandbox(t.Context(), podRequest("a"))
			if err != nil {
				t.Error(err)
			}
			ids[i] = r.GetPodSandboxId()
		})
	}
	close(n.runGate)
	wg.Wait()
	for _, id := range ids {
		if id != ids[0] || len(id) != 64 {
			t.Fatalf("ids differ: %v", ids)
		}
	}
	if got := n.count("run"); got != 1 {
		t.Fatalf("sandbox was made %d times", got)
	}
	_, err := s.RunPodSandbox(t.Context(), other)
	if !errdefs.IsAlreadyExists(err) || !strings.Contains(err.Error(), ids[0]) {
		t.Fatalf("other configuration: %v", err)
	}
}

func TestRunPodSandboxFailureIsNotRemembered(t *testing.T) {
	s, n := newTestService(t)
	n.fail["run"] = errdefs.ErrUnavailable
	if _, err := s.RunPodSandbox(t.Context(), podRequest("a")); !errdefs.IsUnavailable(err) {
		t.Fatal(err)
	}
	delete(n.fail, "run")
	mustPod(t, s, "a")
	bad := podRequest("b")
	bad.RuntimeHandler = "kata"
	if _, err := s.RunPodSandbox(t.Context(), bad); !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), "known: runc") {
		t.Fatal(err)
	}
}

func TestContainerLife(t *testing.T) {
	s, n := newTestService(t)
	pod := mustPod(t, s, "a")
	id := mustContainer(t, s, pod, "c", false)
	again, err := s.CreateContainer(t.Context(), containerRequest(pod, "c"))
	if err != nil || again.GetContainerId() != id {
		t.Fatalf("repeated create: %v %v", again, err)
	}
	st := statusFor(t, s, id)
	if st.State != runtimeapi.ContainerState_CONTAINER_CREATED || st.StopSignal != runtimeapi.Signal_SIGNAL_SIGUSR1 ||
		st.ImageRef != "r/img@sha256:77" || st.ImageId != "sha256:1234" || st.CreatedAt == 0 || st.FinishedAt != 0 {
		t.Fatalf("created: %v", st)
	}
	mustContainer(t, s, pod, "c", true)
	if _, err := s.StartContainer(t.Context(), &runtimeapi.StartContainerRequest{ContainerId: id}); !errdefs.IsFailedPrecondition(err) {
		t.Fatalf("second start: %v", err)
	}
	n.shims.End(shim.Exit{ID: id, Code: 3, At: time.Unix(1e9, 0)})
	eventually(t, "exit", func() bool { return statusFor(t, s, id).State == runtimeapi.ContainerState_CONTAINER_EXITED })
	if st := statusFor(t, s, id); st.ExitCode != 3 || st.Reason != "Error" || st.FinishedAt != 1e18 {
		t.Fatalf("exited: %v", st)
	}
	if _, err := s.CreateContainer(t.Context(), containerRequest(pod, "c")); !errdefs.IsAlreadyExists(err) {
		t.Fatalf("name of an exited container: %v", err)
	}
	for range 2 {
		if _, err := s.RemoveContainer(t.Context(), &runtimeapi.RemoveContainerRequest{ContainerId: id}); err != nil {
			t.Fatal(err)
		}
	}
	assertNothingLeft(t, s, id)
	n.shims.End(shim.Exit{ID: id, Code: 1}) // a late report brings nothing back
	if _, err := s.containers.db.Container(id); !errdefs.IsNotFound(err) {
		t.Fatal(err)
	}
}

func assertNothingLeft(t *testing.T, s *Service, id string) {
	t.Helper()
	for _, p := range []string{s.containers.bundle(id), s.containers.stateDir(id)} {
		if _, err := os.Lstat(p); !os.IsNotExist(err) {
			t.Errorf("%s is left: %v", p, err)
		}
	}
	if ops := s.containers.db.Ops(); len(ops) != 0 {
		t.Errorf("journal is not empty: %v", ops)
	}
}

func TestCreateContainerRollsBack(t *testing.T) {
	cases := map[string]struct {
		change func(*runtimeapi.ContainerConfig, *fakeNode)
		is     func(error) bool
	}{
		"image": {func(c *runtimeapi.ContainerConfig, _ *fakeNode) { c.Image.Image = "nope" }, errdefs.IsNotFound},
		"mount": {func(_ *runtimeapi.ContainerConfig, n *fakeNode) { n.fail["mount"] = errdefs.ErrUnavailable }, errdefs.IsUnavailable},
		"shim":  {func(_ *runtimeapi.ContainerConfig, n *fakeNode) { n.fail["create"] = errdefs.ErrInternal }, errdefs.IsInternal},
		"missing": {func(c *runtimeapi.ContainerConfig, _ *fakeNode) {
			c.Mounts = []*runtimeapi.Mount{{HostPath: "/no/such", ContainerPath: "/x"}}
		}, errdefs.IsFailedPrecondition},
		"device": {func(c *runtimeapi.ContainerConfig, _ *fakeNode) {
			c.Devices = []*runtimeapi.Device{{HostPath: "/no/such"}}
		}, errdefs.IsFailedPrecondition},
		"user": {func(c *runtimeapi.ContainerConfig, _ *fakeNode) {
			c.Linux = &runtimeapi.LinuxContainerConfig{SecurityContext: &runtimeapi.LinuxContainerSecurityContext{RunAsUsername: "nobody-here"}}
		}, func(err error) bool { return err != nil }},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			s, n := newTestService(t)
			pod := mustPod(t, s, "a")
			r := containerRequest(pod, "c")
			tc.change(r.Config, n)
			if _, err := s.CreateContainer(t.Context(), r); !tc.is(err) {
				t.Fatalf("error: %v", err)
			}
			left, _ := filepath.Glob(filepath.Join(s.containers.cfg.RunDir, "containers", "*"))
			more, _ := filepath.Glob(filepath.Join(s.containers.cfg.StateDir, "containers", "*"))
			if len(left)+len(more)+len(s.containers.db.Ops()) != 0 {
				t.Fatalf("left: %v %v %v", left, more, s.containers.db.Ops())
			}
			// The shim that starts meanwhile ends, whichever step fails.
			if early := n.count("prepare"); early != n.count("delete") || early != 1 && name != "image" {
				t.Errorf("%d shims were prepared, %d deleted", early, n.count("delete"))
			}
			clear(n.fail)
			mustContainer(t, s, pod, "c", true)
		})
	}
}

// An exit that is reported before the creation is committed is not lost.
func TestExitBeforeCommit(t *testing.T) {
	s, n := newTestService(t)
	pod := mustPod(t, s, "a")
	n.created = func(r shim.CreateRequest) (shim.Created, error) {
		n.shims.End(shim.Exit{ID: r.ID, Code: 137, Signal: 9})
		eventually(t, "kept exit", func() bool {
			e := s.containers.ends
			e.mu.Lock()
			defer e.mu.Unlock()
			return e.creating[r.ID] != nil
		})
		return shim.Created{PID: 1}, nil
	}
	id := mustContainer(t, s, pod, "c", false)
	if st := statusFor(t, s, id); st.State != runtimeapi.ContainerState_CONTAINER_EXITED || st.ExitCode != 137 {
		t.Fatalf("status: %v", st)
	}
}

func TestStartFailure(t *testing.T) {
	s, n := newTestService(t)
	id := mustContainer(t, s, mustPod(t, s, "a"), "c", false)
	n.fail["start"] = errors.New("exec: no such file")
	if _, err := s.StartContainer(t.Context(), &runtimeapi.StartContainerRequest{ContainerId: id}); err == nil {
		t.Fatal("no error")
	}
	st := statusFor(t, s, id)
	if st.State != runtimeapi.ContainerState_CONTAINER_EXITED || st.ExitCode != 128 || st.Reason != "StartError" || !strings.Contains(st.Message, "no such file") {
		t.Fatalf("status: %v", st)
	}
}

// TestStartFailureIsClearedAway: a start that failed leaves an ended container, so
// nobody would look for its shim again, whether the daemon died or the shim's
// removal failed.
func TestStartFailureIsClearedAway(t *testing.T) {
	for name, after := range map[string]func(t *testing.T, s *Service, n *fakeNode, id string){
		"by the next daemon": func(t *testing.T, s *Service, n *fakeNode, _ string) {
			n.setFail("delete", nil)
			if err := s.Recover(t.Context()); err != nil {
				t.Fatal(err)
			}
		},
		"by this daemon": func(t *testing.T, s *Service, n *fakeNode, _ string) {
			if err := s.Recover(t.Context()); err != nil {
				t.Fatal(err)
			}
			<-s.Settled() // with a failure
			n.setFail("delete", nil)
		},
		"by its removal": func(t *testing.T, s *Service, n *fakeNode, id string) {
			n.setFail("delete", nil)
			if err := s.containers.remove(t.Context(), id); err != nil {
				t.Fatal(err)
			}
			assertNothingLeft(t, s, id)
		},
	} {
		t.Run(name, func(t *testing.T) {
			s, n := newTestService(t)
			id := mustContainer(t, s, mustPod(t, s, "a"), "c", false)
			n.setFail("start", errors.New("exec: no such file"))
			n.setFail("delete", errdefs.ErrUnavailable)
			if _, err := s.StartContainer(t.Context(), &runtimeapi.StartContainerRequest{ContainerId: id}); err == nil {
				t.Fatal("no error")
			}
			if st := statusFor(t, s, id); st.Reason != "StartError" {
				t.Fatalf("status: %v", st)
			}
			after(t, s, n, id)
			eventually(t, "the shim is cleared away", func() bool {
				st, err := n.shims.State(t.Context(), id)
				return err == nil && st.Phase == shim.PhaseGone && len(n.db.Ops()) == 0
			})
		})
	}
}

// TestStartAfterFailure: a start whose failure could not even be recorded is not
// followed by one that works, which would be cleared away later.
func TestStartAfterFailure(t *testing.T) {
	s, n := newTestService(t)
	id := mustContainer(t, s, mustPod(t, s, "a"), "c", false)
	payload := []byte(`{"ID":"` + id + `","Exit":{"Code":128,"Reason":"StartError"}}`)
	if err := n.db.BeginOp(t.Context(), store.Op{ID: "o", Kind: kindClear, Subject: id, Payload: payload}); err != nil {
		t.Fatal(err)
	}
	n.db.ReleaseOp("o")
	if _, err := s.StartContainer(t.Context(), &runtimeapi.StartContainerRequest{ContainerId: id}); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("start: %v", err)
	}
	if st := statusFor(t, s, id); st.Reason != "StartError" || n.count("start") != 0 || n.count("delete") != 1 || len(n.db.Ops()) != 0 {
		t.Errorf("%v, calls %v, journal %v", st, n.calls, n.db.Ops())
	}
}

// TestStartIsNotForgotten: a start that could not be recorded is learned from the
// shim, and its repetition does not end what runs.
func TestStartIsNotForgotten(t *testing.T) {
	s, _ := newTestService(t)
	id := mustContainer(t, s, mustPod(t, s, "a"), "c", false)
	start := func() error {
		_, err := s.StartContainer(t.Context(), &runtimeapi.StartContainerRequest{ContainerId: id})
		return err
	}
	running := func() bool { return statusFor(t, s, id).State == runtimeapi.ContainerState_CONTAINER_RUNNING }
	s.containers.ends.setRemoving(id, true) // the record takes nothing
	if err := start(); err == nil || running() {
		t.Fatalf("recorded: %v", err)
	}
	s.containers.ends.setRemoving(id, false)
	eventually(t, "it is learned", running)
}

// TestStartAgain: a start that finds the container running has succeeded, but not
// before the earlier one is over.
func TestStartAgain(t *testing.T) {
	s, n := newTestService(t)
	id := mustContainer(t, s, mustPod(t, s, "a"), "c", false)
	at := time.Unix(1e9, 0)
	st := shim.State{Phase: shim.PhaseRunning, PID: 77, StartedAt: at, Busy: shim.Busy{Command: "start"}}
	for _, want := range []struct {
		is    func(error) bool
		state runtimeapi.ContainerState
	}{
		{errdefs.IsUnavailable, runtimeapi.ContainerState_CONTAINER_CREATED},
		{func(err error) bool { return err == nil }, runtimeapi.ContainerState_CONTAINER_RUNNING},
	} {
		n.shims.Set(id, st)
		_, err := s.StartContainer(t.Context(), &runtimeapi.StartContainerRequest{ContainerId: id})
		if got := statusFor(t, s, id); !want.is(err) || got.State != want.state || n.count("delete") != 0 {
			t.Errorf("%v: %v", err, got)
		}
		st.Busy = shim.Busy{}
	}
}

func TestStopGrace(t *testing.T) {
	s, n := newTestService(t)
	clk := &fakeClock{now: time.Unix(1e9, 0)}
	s.containers.clock = clk
	id := mustContainer(t, s, mustPod(t, s, "a"), "c", true)
	n.shims.OnSignal = func(id string, sig syscall.Signal) {
		if sig == syscall.SIGKILL {
			n.shims.End(shim.Exit{ID: id, Code: 137, Signal: 9, At: clk.Now()})
		}
	}
	stop := func(seconds int64) chan error {
		done := make(chan error, 1)
		go func() {
			_, err := s.StopContainer(context.Background(), &runtimeapi.StopContainerRequest{ContainerId: id, Timeout: seconds})
			done <- err
		}()
		return done
	}
	first := stop(60)
	eventually(t, "grace timer", func() bool { return clk.waiting() == 1 })
	clk.advance(10 * time.Second)
	second := stop(5) // shorter than what is left: wins
	eventually(t, "new timer", func() bool { return clk.waiting() == 2 })
	third := stop(600) // longer: changes nothing
	if n.count("signal killed") != 0 {
		t.Fatal("killed within the grace period")
	}
	clk.advance(5 * time.Second)
	for _, ch := range []chan error{first, second, third} {
		if err := <-ch; err != nil {
			t.Fatal(err)
		}
	}
	if a, b := n.count("signal user defined signal 1"), n.count("signal killed"); a != 1 || b != 1 {
		t.Fatalf("stop signals %d, kills %d", a, b)
	}
	if err := <-stop(0); err != nil {
		t.Fatalf("stop of an exited container: %v", err)
	}
	if _, err := s.StopContainer(t.Context(), &runtimeapi.StopContainerRequest{ContainerId: "unknown"}); err != nil {
		t.Fatalf("stop of an unknown container: %v", err)
	}
}

// SIGKILL that does nothing leads to the cgroup, and the record says so.
func TestStopLastResort(t *testing.T) {
	s, n := newTestService(t)
	s.containers.cfg.Limits.KillWait = time.Millisecond
	pod := mustPod(t, s, "a")
	id := mustContainer(t, s, pod, "c", true)
	if _, err := s.StopPodSandbox(t.Context(), &runtimeapi.StopPodSandboxRequest{PodSandboxId: pod}); err != nil {
		t.Fatal(err)
	}
	if st := statusFor(t, s, id); st.ExitCode != 255 || st.Reason != "ContainerStatusUnknown" || n.count("delete") != 1 {
		t.Fatalf("status: %v", st)
	}
	if _, err := s.RemovePodSandbox(t.Context(), &runtimeapi.RemovePodSandboxRequest{PodSandboxId: pod}); err != nil {
		t.Fatal(err)
	}
	assertNothingLeft(t, s, id)
}

func TestCreatedContainerIsKilledAtOnce(t *testing.T) {
	s, n := newTestService(t)
	id := mustContainer(t, s, mustPod(t, s, "a"), "c", false)
	n.shims.OnSignal = func(id string, sig syscall.Signal) { n.shims.End(shim.Exit{ID: id, Code: 137, Signal: int(sig)}) }
	if _, err := s.StopContainer(t.Context(), &runtimeapi.StopContainerRequest{ContainerId: id, Timeout: 30}); err != nil {
		t.Fatal(err)
	}
	if n.count("signal user defined signal 1") != 0 || statusFor(t, s, id).State != runtimeapi.ContainerState_CONTAINER_EXITED {
		t.Fatal("a created container was asked politely")
	}
}

// The exit of a container may be committed before its start is; a daemon that
// dies between the two must not forget that it started.
func TestExitBringsTheStartTime(t *testing.T) {
	s, _ := newTestService(t)
	id := mustContainer(t, s, mustPod(t, s, "a"), "c", false)
	at := time.Unix(1e9, 0)
	if err := s.containers.recordExit(t.Context(), shim.Exit{ID: id, Code: 42, StartedAt: at, At: at.Add(time.Second)}); err != nil {
		t.Fatal(err)
	}
	if st := statusFor(t, s, id); st.StartedAt != at.UnixNano() || st.ExitCode != 42 {
		t.Errorf("started at %d, code %d", st.StartedAt, st.ExitCode)
	}
}

// An image is looked up as the pod's handler sees it, whatever the request says.
func TestImageOfTheHandler(t *testing.T) {
	s, n := newTestService(t)
	s.containers.cfg.Handlers["arm"] = Handler{}
	r := podRequest("a")
	r.RuntimeHandler = "arm"
	pod, err := s.RunPodSandbox(t.Context(), r)
	if err != nil {
		t.Fatal(err)
	}
	c := containerRequest(pod.GetPodSandboxId(), "c")
	c.Config.Image.RuntimeHandler = "runc"
	if _, err := s.CreateContainer(t.Context(), c); err != nil {
		t.Fatal(err)
	}
	if n.handler != "arm" {
		t.Errorf("the image was looked up for handler %q", n.handler)
	}
}

func TestRecover(t *testing.T) {
	s, n := newTestService(t)
	pod := mustPod(t, s, "a")
	ids := map[string]string{}
	for _, name := range []string{"runs", "exited", "lost", "rebooted", "ended"} {
		ids[name] = mustContainer(t, s, pod, name, false)
	}
	for _, name := range []string{"lost", "rebooted"} {
		n.shims.Set(ids[name], shim.State{Phase: shim.PhaseGone})
	}
	at := time.Unix(1e9, 0)
	n.shims.Set(ids["runs"], shim.State{Phase: shim.PhaseRunning, PID: 77, StartedAt: at})
	n.shims.Set(ids["exited"], shim.State{Phase: shim.PhaseExited, StartedAt: at, Exit: &shim.Exit{ID: ids["exited"], Code: 137, OOMKilled: true, At: at}})
	// Ended before the reboot, and nobody had learned of it.
	n.shims.Set(ids["ended"], shim.State{Phase: shim.PhaseExited, StartedAt: at, Exit: &shim.Exit{ID: ids["ended"], Code: 0, StartedAt: at, At: at}})
	for _, name := range []string{"rebooted", "ended"} {
		rec, _ := s.containers.db.Container(ids[name])
		rec.Facts.BootID = "before"
		if err := s.containers.db.Commit(t.Context(), store.Change{PutContainers: []store.Container{rec}}); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Recover(t.Context()); err != nil {
		t.Fatal(err)
	}
	// Those of a former boot are known when calls are first served, and no shim is asked.
	for _, name := range []string{"rebooted", "ended"} {
		if rec, _ := s.containers.db.Container(ids[name]); rec.Facts.Exit == nil {
			t.Errorf("%s: has not ended", name)
		}
	}
	<-s.containers.locks.recovery.Settled()
	want := map[string]string{"ended": "Completed", "runs": "", "exited": "OOMKilled", "lost": "ContainerStatusUnknown", "rebooted": "ContainerStatusUnknown"}
	for name, reason := range want {
		if st := statusFor(t, s, ids[name]); st.Reason != reason {
			t.Errorf("%s: %v", name, st)
		}
	}
	if st := statusFor(t, s, ids["runs"]); st.State != runtimeapi.ContainerState_CONTAINER_RUNNING || st.StartedAt != 1e18 {
		t.Errorf("runs: %v", st)
	}
}

func TestUpdateAndReopen(t *testing.T) {
	s, n := newTestService(t)
	id := mustContainer(t, s, mustPod(t, s, "a"), "c", true)
	req := &runtimeapi.UpdateContainerResourcesRequest{ContainerId: id, Linux: &runtimeapi.LinuxContainerResources{CpuShares: 512}}
	n.fail["update"] = errdefs.ErrInternal
	if _, err := s.UpdateContainerResources(t.Context(), req); !errdefs.IsInternal(err) {
		t.Fatal(err)
	}
	if got := statusFor(t, s, id).GetResources().GetLinux().GetCpuShares(); got != 0 {
		t.Fatalf("a refused update was recorded: %d", got)
	}
	delete(n.fail, "update")
	before := n.count("update")
	s.containers.ends.setRemoving(id, true) // the record takes nothing
	if _, err := s.UpdateContainerResources(t.Context(), req); err == nil || n.count("update") != before+2 {
		t.Fatalf("limits that are not recorded are left: %v, %d updates", err, n.count("update")-before)
	}
	s.containers.ends.setRemoving(id, false)
	if _, err := s.UpdateContainerResources(t.Context(), req); err != nil {
		t.Fatal(err)
	}
	if got := statusFor(t, s, id).GetResources().GetLinux().GetCpuShares(); got != 512 {
		t.Fatalf("update was not recorded: %d", got)
	}
}

func TestStatusTellsOfLostLogs(t *testing.T) {
	s, n := newTestService(t)
	logs := func() *runtimeapi.RuntimeCondition {
		r, err := s.Status(t.Context(), &runtimeapi.StatusRequest{})
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range r.GetStatus().GetConditions() {
			if c.GetType() == "ContainerLogsWritable" {
				return c
			}
		}
		t.Fatal("no condition about logs")
		return nil
	}
	if c := logs(); !c.GetStatus() {
		t.Errorf("while all is well: %v", c)
	}
	n.trouble = []shim.LogTrouble{{ID: "abc", Log: shim.LogHealth{Dropped: 42, Error: syscall.ENOSPC}}}
	if c := logs(); c.GetStatus() || !strings.Contains(c.GetMessage(), "abc, which has lost 42 bytes: no space left") {
		t.Errorf("with a full disk: %v", c)
	}
}

// What an OCI runtime left in an unmounted mount point goes; a mount stops that.
func TestRemoveMountPoint(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "rootfs")
	if err := removeMountPoint(dir); err != nil {
		t.Errorf("one that is not there: %v", err)
	}
	if err := os.MkdirAll(filepath.Join(dir, "dev", "shm"), 0o755); err != nil {
		t.Fatal(err)
	}
	if os.Geteuid() == 0 {
		if err := unix.Mount("none", filepath.Join(dir, "dev"), "tmpfs", 0, ""); err != nil {
			t.Skip(err)
		}
		err := removeMountPoint(dir)
		if uerr := unix.Unmount(filepath.Join(dir, "dev"), 0); uerr != nil {
			t.Fatal(uerr)
		}
		if !errors.Is(err, unix.ENOTEMPTY) {
			t.Errorf("with a mount below: %v", err)
		}
	}
	if err := removeMountPoint(dir); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(dir); !os.IsNotExist(err) {
		t.Errorf("it is left: %v", err)
	}
}

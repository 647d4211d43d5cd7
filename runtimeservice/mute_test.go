package runtimeservice

import (
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-dev/berth/runtimeservice/recovery"
	"github.com/berth-dev/berth/shim"
	"github.com/berth-dev/berth/store"
)

// A shim that gives no answer must not keep the node from serving, and is
// found again once it answers.
func TestRecoverPassesAMuteShim(t *testing.T) {
	s, n := newTestService(t)
	s.containers.cfg.Limits.FindWait = 10 * time.Millisecond
	id := mustContainer(t, s, mustPod(t, s, "a"), "c", false)
	n.shims.Set(id, shim.State{Phase: shim.PhaseRunning, PID: 77, StartedAt: time.Unix(1e9, 0)})
	n.mute.Store(true)
	if err := s.Recover(t.Context()); err != nil {
		t.Fatal(err)
	}
	<-s.containers.locks.recovery.Settled()
	all, _ := s.Recovery() // perhaps with the comparison of the node that follows
	if !slices.ContainsFunc(all, func(o recovery.State) bool { return o.ID == id && o.Err != nil }) {
		t.Errorf("a container that was not found is not told of: %v", all)
	}
	if what := s.troubles()[id]; what != "cannot find its shim" {
		t.Errorf("lists do not mark the container: %q", what)
	}
	if st := statusFor(t, s, id); st.State != runtimeapi.ContainerState_CONTAINER_CREATED {
		t.Errorf("the record changed without knowledge: %v", st)
	}
	n.mute.Store(false)
	for deadline := time.Now().Add(30 * time.Second); statusFor(t, s, id).State != runtimeapi.ContainerState_CONTAINER_RUNNING; {
		if time.Now().After(deadline) {
			t.Fatal("the container is not found again")
		}
		time.Sleep(5 * time.Millisecond)
	}
	eventually(t, "no mark in lists", func() bool { return len(s.troubles()) == 0 })
}

// A start that was under way when the daemon died may still fail: its container
// does not run before the shim is through with it.
func TestRecoverWaitsForAStart(t *testing.T) {
	s, n := newTestService(t)
	s.containers.cfg.Limits.FindWait = 10 * time.Millisecond
	pod := mustPod(t, s, "a")
	works, fails := mustContainer(t, s, pod, "works", false), mustContainer(t, s, pod, "fails", false)
	st := shim.State{Phase: shim.PhaseRunning, PID: 77, StartedAt: time.Unix(1e9, 0), Busy: shim.Busy{Command: "start"}}
	for _, id := range []string{works, fails} {
		n.shims.Set(id, st)
	}
	if err := s.Recover(t.Context()); err != nil {
		t.Fatal(err)
	}
	<-s.Settled()
	for _, id := range []string{works, fails} {
		if st := statusFor(t, s, id); st.State != runtimeapi.ContainerState_CONTAINER_CREATED {
			t.Errorf("while it is being started: %v", st)
		}
	}
	st.Busy = shim.Busy{}
	n.shims.Set(works, st)
	n.shims.Set(fails, shim.State{Phase: shim.PhaseCreated, PID: 77})
	eventually(t, "both are known", func() bool { all, _ := s.Recovery(); return len(all) == 0 })
	if got := statusFor(t, s, works); got.State != runtimeapi.ContainerState_CONTAINER_RUNNING {
		t.Errorf("after its start: %v", got)
	}
	if got := statusFor(t, s, fails); got.State != runtimeapi.ContainerState_CONTAINER_CREATED {
		t.Errorf("after its start has failed: %v", got)
	}
}

// TestResumeLetsFactsIn: only a removal keeps an end that is reported meanwhile
// off the record, where it would be lost.
func TestResumeLetsFactsIn(t *testing.T) {
	s, _ := newTestService(t)
	id := mustContainer(t, s, mustPod(t, s, "a"), "c", true)
	unlock, err := s.containers.locks.lock(t.Context(), "facts of container "+id)
	if err != nil {
		t.Fatal(err)
	}
	defer unlock()
	s.containers.cfg.Limits.CreateTime = time.Minute
	if err := s.containers.resume(t.Context(), id); err != nil {
		t.Errorf("it waits for the record, to close it: %v", err)
	}
}

// The end of a container of a former boot whose exit record cannot be read is
// not guessed at: it is learned once it can be.
func TestRecoverLearnsUnreadEndsLater(t *testing.T) {
	s, n := newTestService(t)
	id := mustContainer(t, s, mustPod(t, s, "a"), "c", false)
	at := time.Unix(1e9, 0)
	n.shims.Set(id, shim.State{Phase: shim.PhaseExited, StartedAt: at, Exit: &shim.Exit{ID: id, Code: 3, StartedAt: at, At: at}})
	rec, err := s.containers.db.Container(id)
	rec.Facts.BootID = "before"
	if err := errors.Join(err, s.containers.db.Commit(t.Context(), store.Change{PutContainers: []store.Container{rec}})); err != nil {
		t.Fatal(err)
	}
	n.setFail("last exit", errdefs.ErrUnavailable)
	if err := s.Recover(t.Context()); err != nil {
		t.Fatal(err)
	}
	if rec, _ := s.containers.db.Container(id); rec.Facts.Exit != nil {
		t.Errorf("an end that nobody could read is recorded: %+v", rec.Facts.Exit)
	}
	if st := statusFor(t, s, id); st.State != runtimeapi.ContainerState_CONTAINER_EXITED {
		t.Errorf("a container of a former boot is %v", st)
	}
	eventually(t, "another attempt", func() bool { return n.count("last exit") > 1 })
	n.setFail("last exit", nil)
	eventually(t, "the end is known", func() bool { return statusFor(t, s, id).GetExitCode() == 3 })
	eventually(t, "nothing left to recover", func() bool { all, _ := s.Recovery(); return len(all) == 0 })
}

// A sandbox whose holder has ended is settled, again and again while that fails.
func TestRecoverSettlesWhatLostItsHolder(t *testing.T) {
	s, n := newTestService(t)
	n.lost = make(chan string)
	if err := s.Recover(t.Context()); err != nil {
		t.Fatal(err)
	}
	id := mustPod(t, s, "a")
	n.setFail("settle", errdefs.ErrUnavailable)
	n.lost <- id
	eventually(t, "an attempt", func() bool { return n.count("settle") > 1 })
	n.setFail("settle", nil)
	eventually(t, "nothing left to recover", func() bool { all, _ := s.Recovery(); return len(all) == 0 })
}

// A stop ends although the shim does not answer: the cgroup is the last resort.
func TestStopPassesAMuteShim(t *testing.T) {
	s, n := newTestService(t)
	s.containers.cfg.Limits.KillWait = 10 * time.Millisecond
	id := mustContainer(t, s, mustPod(t, s, "a"), "c", true)
	n.mute.Store(true)
	if _, err := s.StopContainer(t.Context(), &runtimeapi.StopContainerRequest{ContainerId: id, Timeout: 1}); err != nil {
		t.Fatal(err)
	}
	if n.count("delete") != 1 {
		t.Error("the stop did not come to its last resort")
	}
}

// A start whose shim went away has not failed: the shim, or its end, tells.
func TestStartCutOffIsNoFailure(t *testing.T) {
	s, n := newTestService(t)
	id := mustContainer(t, s, mustPod(t, s, "a"), "c", false)
	n.fail["start"] = errors.Join(errors.New("connection ended"), errdefs.ErrUnavailable)
	if _, err := s.StartContainer(t.Context(), &runtimeapi.StartContainerRequest{ContainerId: id}); err == nil {
		t.Fatal("no error")
	}
	if st := statusFor(t, s, id); st.State != runtimeapi.ContainerState_CONTAINER_CREATED || n.count("delete") != 0 {
		t.Errorf("status %v, %d deletions", st, n.count("delete"))
	}
}

// A stop of the sandbox does not wait for a creation that hangs: it rolls back.
func TestStopPodCancelsCreations(t *testing.T) {
	s, n := newTestService(t)
	pod := mustPod(t, s, "a")
	n.mute.Store(true)
	made := make(chan error, 1)
	go func() {
		_, err := s.CreateContainer(t.Context(), containerRequest(pod, "c"))
		made <- err
	}()
	for deadline := time.Now().Add(30 * time.Second); n.count("mount") == 0; {
		if time.Now().After(deadline) {
			t.Fatal("the creation does not begin")
		}
		time.Sleep(time.Millisecond)
	}
	if _, err := s.StopPodSandbox(t.Context(), &runtimeapi.StopPodSandboxRequest{PodSandboxId: pod}); err != nil {
		t.Fatal(err)
	}
	if err := <-made; !errdefs.IsAborted(err) {
		t.Errorf("the creation ended with %v", err)
	}
	if left := s.containers.db.Containers(); len(left) != 0 {
		t.Errorf("%d containers are left", len(left))
	}
}

func TestLogPathStaysBelowItsDirectory(t *testing.T) {
	for _, bad := range []string{"..", ".", "/", "../x.log", "a/../../x.log"} {
		if got, err := logPath("/var/log/pods/a", bad); !errdefs.IsInvalidArgument(err) {
			t.Errorf("logPath(%q) = %q, %v", bad, got, err)
		}
	}
	if got, err := logPath("/var/log/pods/a", "c/0.log"); err != nil || got != "/var/log/pods/a/c/0.log" {
		t.Errorf("logPath = %q, %v", got, err)
	}
}

// A container that a stop did not end is marked until it has ended.
func TestListsMarkWhatCannotBeStopped(t *testing.T) {
	s, n := newTestService(t)
	s.containers.cfg.Limits.KillWait = time.Millisecond
	id := mustContainer(t, s, mustPod(t, s, "a"), "c", true)
	n.setFail("delete", errdefs.ErrUnavailable)
	stop := &runtimeapi.StopContainerRequest{ContainerId: id}
	if _, err := s.StopContainer(t.Context(), stop); err == nil {
		t.Fatal("the stop did not fail")
	}
	if what := s.troubles()[id]; what != "cannot be stopped" {
		t.Errorf("marked with %q", what)
	}
	n.setFail("delete", nil)
	n.shims.End(shim.Exit{ID: id, Code: 137, Signal: 9, At: time.Now()}) // it ends after all
	eventually(t, "no mark", func() bool { return len(s.troubles()) == 0 })
}

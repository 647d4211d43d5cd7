package cgroup

import (
	"os/exec"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// TestSignalManyLists: a group of thousands is not listed anew for every few of
// its processes, and not at all for those that have gone.
func TestSignalManyLists(t *testing.T) {
	pids := make([]int, 5000)
	for i := range pids {
		pids[i] = 1<<30 + i
	}
	lists := 0
	n, err := signalListed(func() ([]int, error) { lists++; return pids, nil }, unix.SIGKILL)
	if err != nil || n != len(pids) || lists != 1 {
		t.Errorf("%d processes, %d lists, %v", n, lists, err)
	}
}

// TestSignalFewDescriptors: where descriptors are scarce processes are signalled
// a few at a time, and none counts as gone because it could not be held.
func TestSignalFewDescriptors(t *testing.T) {
	var pids []int
	for range 20 {
		cmd := exec.Command("sleep", "1000")
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		pids = append(pids, cmd.Process.Pid)
		defer func() {
			_ = cmd.Process.Kill()
			if _ = cmd.Wait(); cmd.ProcessState.Sys().(syscall.WaitStatus).Signal() != unix.SIGTERM {
				t.Errorf("process %d: %v", cmd.Process.Pid, cmd.ProcessState)
			}
		}()
	}
	next, err := unix.Dup(0)
	if err != nil {
		t.Fatal(err)
	}
	_ = unix.Close(next)
	scarce := func(more int, f func()) {
		var was unix.Rlimit
		if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &was); err != nil {
			t.Fatal(err)
		}
		if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: uint64(more), Max: was.Max}); err != nil {
			t.Fatal(err)
		}
		defer func() { _ = unix.Setrlimit(unix.RLIMIT_NOFILE, &was) }()
		f()
	}
	lists := 0
	list := func() ([]int, error) { lists++; return pids, nil }
	scarce(1, func() {
		if n, err := signalListed(list, unix.SIGTERM); err == nil {
			t.Errorf("without any descriptor: %d", n)
		}
	})
	lists = 0
	scarce(next+6, func() {
		if n, err := signalListed(list, unix.SIGTERM); err != nil || n != len(pids) {
			t.Errorf("%d, %v", n, err)
		}
	})
	if lists < 3 {
		t.Errorf("%d lists: descriptors were not scarce", lists)
	}
}

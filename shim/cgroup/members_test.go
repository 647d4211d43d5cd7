package cgroup

import (
	"os/exec"
	"syscall"
	"testing"
	"time"
)

func TestParseMember(t *testing.T) {
	for _, c := range []struct {
		text string
		want Member
	}{
		{"12 (cat) D 1 12", Member{PID: 7, Name: "cat", State: 'D'}},
		{"12 (a) b) S) R 1 12", Member{PID: 7, Name: "a) b) S", State: 'R'}},
		{"12 () Z 1", Member{PID: 7, State: 'Z'}},
	} {
		if got, err := parseMember(7, c.text); err != nil || got != c.want {
			t.Errorf("%q: %+v, %v", c.text, got, err)
		}
	}
	for _, bad := range []string{"", "12 cat D 1", "12 (cat)", "12 )(cat D"} {
		if got, err := parseMember(7, bad); err == nil {
			t.Errorf("%q: %+v", bad, got)
		}
	}
	got := Member{PID: 3, Name: "dd", State: 'D', Waits: "nfs_wait"}.Text()
	if got != "process 3 (dd) is in uninterruptible sleep in nfs_wait" {
		t.Error(got)
	}
}

// TestReusedPID: a process that is no longer listed when it is held is not the
// one that was, and lives.
func TestReusedPID(t *testing.T) {
	start := func() *exec.Cmd {
		c := exec.Command("sleep", "1000")
		if err := c.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = c.Process.Kill(); _, _ = c.Process.Wait() })
		return c
	}
	listed, stranger := start(), start()
	calls := 0
	n, err := signalListed(func() ([]int, error) {
		if calls++; calls == 1 {
			return []int{listed.Process.Pid, stranger.Process.Pid, 1 << 30}, nil
		}
		return []int{listed.Process.Pid}, nil
	}, syscall.SIGKILL)
	if n != 3 || err != nil {
		t.Fatal(n, err)
	}
	if err := listed.Wait(); err == nil {
		t.Error("the member ended well")
	}
	time.Sleep(50 * time.Millisecond)
	if err := stranger.Process.Signal(syscall.Signal(0)); err != nil {
		t.Errorf("the other one: %v", err)
	}
	if p, ok := member(stranger.Process.Pid); !ok || p.State == 'Z' {
		t.Errorf("the other one: %+v %v", p, ok)
	}
}

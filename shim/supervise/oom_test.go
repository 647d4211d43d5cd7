package supervise

import (
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"

	"github.com/berth-dev/berth/shim/cgroup"
	"github.com/berth-dev/berth/shim/wire"
)

// oomGroup makes a group with little memory below another, and a shim of a
// container in it.
func oomGroup(t *testing.T) (*shim, *exec.Cmd) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: makes a control group")
	}
	groups, err := cgroup.Detect()
	if err != nil || !groups.V2() {
		t.Skip("needs cgroup v2: make vm RUN=cgroup2")
	}
	const above, name = "/berth-oom-test", "/berth-oom-test/container"
	if err := groups.Create(name); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := groups.Remove(above); err != nil {
			t.Error(err)
		}
	})
	dir := filepath.Join(cgroup.DefaultRoot, name)
	for file, text := range map[string]string{"memory.max": strconv.Itoa(8 << 20), "memory.swap.max": "0"} {
		if err := os.WriteFile(filepath.Join(dir, file), []byte(text), 0); err != nil && file == "memory.max" {
			t.Fatal(err)
		}
	}
	l, err := newLoop()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { closeFD(&l.ep) })
	s := &shim{loop: l, groups: groups}
	s.c.launch.Cgroup = name
	s.c.rt.SystemdCgroup = true
	s.watchOOM()
	hog := exec.Command("sh", "-c", `echo $$ >`+dir+`/cgroup.procs; x=$(head -c 64M /dev/zero | tr '\0' a)`)
	if err := hog.Start(); err != nil {
		t.Fatal(err)
	}
	return s, hog
}

// TestIntegrationOOMIsTold: the kernel tells of a kill while the group is there.
func TestIntegrationOOMIsTold(t *testing.T) {
	s, hog := oomGroup(t)
	t.Cleanup(func() { _ = hog.Process.Kill(); _ = hog.Wait() })
	var look func()
	look = func() {
		if s.c.oom.seen {
			s.loop.done = true
			return
		}
		s.loop.after(1, look)
	}
	s.loop.after(0, look)
	runLoop(t, s.loop)
	if len(s.loop.handlers) != 0 {
		t.Error("a kill that is known is still watched for")
	}
}

// TestIntegrationOOMOfAGroupThatIsGone: it is known above.
func TestIntegrationOOMOfAGroupThatIsGone(t *testing.T) {
	s, hog := oomGroup(t)
	_ = hog.Wait()
	soon(t, "the group can be removed", func() bool { return s.groups.Remove(s.c.launch.Cgroup) == nil })
	for _, c := range []struct {
		name         string
		code         int64
		asked, known bool
		want         bool
	}{
		{"killed", codeKilled, false, false, true},
		{"killed by a client", codeKilled, true, false, false},
		{"ended by itself", 1, false, false, false},
		{"read before it went", codeKilled, false, true, false},
	} {
		s.c.exit.Code = c.code
		s.c.oom.asked, s.c.oom.known, s.c.oom.seen = c.asked, c.known, false
		if s.lookForOOM(); s.c.oom.seen != c.want {
			t.Errorf("%s: seen: %t, want %t", c.name, s.c.oom.seen, c.want)
		}
	}
}

// TestScored: what is started meanwhile has the container's score, and the
// shim its own again.
func TestScored(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: lowers its score again")
	}
	const own = "/proc/self/oom_score_adj"
	read := func(path string) string {
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	was := read(own)
	other := exec.Command("sleep", "100")
	if err := other.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = other.Process.Kill(); _ = other.Wait() })
	if err := os.WriteFile("/proc/"+strconv.Itoa(other.Process.Pid)+"/oom_score_adj", []byte("777"), 0); err != nil {
		t.Fatal(err)
	}
	s := &shim{c: container{launch: wire.Launch{PID: int64(other.Process.Pid)}}}
	s.scored(func() {
		if got, err := exec.Command("cat", own).Output(); err != nil || string(got) != "777\n" {
			t.Errorf("of a child: %q, %v", got, err)
		}
	})
	if got := read(own); got != was {
		t.Errorf("own score is %q afterwards, was %q", got, was)
	}
	s.c.launch.PID = 1 << 30
	called := false
	s.scored(func() { called = true })
	if !called {
		t.Error("nothing is started when the container has gone")
	}
}

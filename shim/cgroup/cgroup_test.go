package cgroup

import (
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestPath(t *testing.T) {
	for _, tc := range []struct {
		name, text, want string
		m                Mode
	}{
		{"v2", "0::/a/b\n", "/a/b", Mode{v2: true}},
		{"v1 pids", "9:name=systemd:/s\n8:pids:/p\n4:memory:/m\n0::/u\n", "/p", Mode{}},
		{"v1 combined", "4:cpu,memory:/m\n3:cpuset:/c\n", "/m", Mode{}},
		{"v1 without either", "3:cpuset:/c\n", "/c", Mode{}},
		{"colon in path", "8:pids:/kube:cri:x\n", "/kube:cri:x", Mode{}},
		{"junk", "nothing", "", Mode{}},
	} {
		if got := tc.m.Path(tc.text); got != tc.want {
			t.Errorf("%s: %q, want %q", tc.name, got, tc.want)
		}
	}
}

func TestParse(t *testing.T) {
	if got := parsePids("12\n0\n7\n99", nil); !cmp.Equal(got, []int{12, 7, 99}) {
		t.Error(got)
	}
	if n, ok := number("oom_kill_disable 0\nunder_oom 0\noom_kill 3\n", "oom_kill"); n != 3 || !ok {
		t.Error(n, ok)
	}
	if _, ok := number("oom_kill x\n", "oom_kill"); ok {
		t.Error("a word counted as a number")
	}
	for _, p := range []string{"", "/", "/a/../b", "//"} {
		if valid(p) {
			t.Errorf("%q is valid", p)
		}
	}
}

// TestCreateV2 makes a v2 tree out of plain files.
func TestCreateV2(t *testing.T) {
	root := t.TempDir()
	for f, s := range map[string]string{"cgroup.controllers": "cpu memory", "cgroup.subtree_control": "cpu"} {
		if err := os.WriteFile(filepath.Join(root, f), []byte(s), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	m := Mode{root: root, v2: true}
	if err := m.Create("/one"); err != nil {
		t.Fatal(err)
	}
	b, _ := os.ReadFile(root + "/cgroup.subtree_control")
	if string(b) != "+memory" {
		t.Errorf("wrote %q", b)
	}
	if err := m.Remove("/one"); err != nil {
		t.Fatal(err)
	}
	if err := m.Remove("/one"); err != nil {
		t.Fatal("second remove:", err)
	}
}

func TestIntegrationKill(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root")
	}
	m, err := Detect()
	if err != nil {
		t.Skip(err)
	}
	path := "/berth-cgroup-test-" + strconv.Itoa(os.Getpid())
	if err := m.Create(path + "/child"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := m.Remove(path); err != nil {
			t.Error(err)
		}
		for _, d := range m.dirs(path) {
			if exists(d) {
				t.Error("left:", d)
			}
		}
	})
	cmd := exec.Command("sleep", "1000")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	for _, d := range m.dirs(path + "/child") {
		if err := writeFile(d+"/cgroup.procs", strconv.Itoa(cmd.Process.Pid)); err != nil {
			t.Fatal(err)
		}
	}
	if got, _ := m.Pids(path); !cmp.Equal(got, []int{cmd.Process.Pid}) {
		t.Errorf("pids %v", got)
	}
	if _, ok := m.OOMKills(path + "/child"); !ok && !m.v2 {
		t.Error("no OOM counter")
	}
	if err := m.Kill(path); err != nil {
		t.Fatal(err)
	}
	err = cmd.Wait()
	if ws := cmd.ProcessState.Sys().(syscall.WaitStatus); ws.Signal() != syscall.SIGKILL {
		t.Error(err)
	}
}

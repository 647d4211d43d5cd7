package cgroup

import (
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"
	"time"
)

func TestIntegrationFreeze(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root")
	}
	m, err := Detect()
	if err != nil {
		t.Fatal(err)
	}
	path := "/berth-freeze-test"
	dir := m.Dir("freezer", path)
	if dir == "" {
		t.Skip("no freezer")
	}
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	out := filepath.Join(t.TempDir(), "out")
	cmd := exec.Command("sh", "-c", "while :; do echo x >>"+out+"; sleep 0.01; done")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_, _ = m.KillOnce(path)
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		for end := time.Now().Add(time.Minute); os.Remove(dir) != nil && time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
			_, _ = m.KillOnce(path)
		}
		if _, err := os.Stat(dir); err == nil {
			t.Error("the group is left")
		}
	}()
	if err := os.WriteFile(filepath.Join(dir, "cgroup.procs"), []byte(strconv.Itoa(cmd.Process.Pid)), 0); err != nil {
		t.Fatal(err)
	}
	is := func(want bool) {
		t.Helper()
		for end := time.Now().Add(time.Minute); ; time.Sleep(5 * time.Millisecond) {
			got, err := m.Frozen(path)
			if err != nil {
				t.Fatal(err)
			}
			if got == want {
				return
			}
			if time.Now().After(end) {
				t.Fatalf("frozen is %v for ever", got)
			}
			if want { // see Frozen
				if err := m.Freeze(path); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	size := func() int64 {
		st, err := os.Stat(out)
		if err != nil {
			return 0
		}
		return st.Size()
	}
	is(false)
	if err := m.Freeze(path); err != nil {
		t.Fatal(err)
	}
	is(true)
	before := size()
	time.Sleep(50 * time.Millisecond)
	if now := size(); now != before {
		t.Errorf("it wrote %d bytes while frozen", now-before)
	}
	if err := m.Thaw(path); err != nil {
		t.Fatal(err)
	}
	is(false)
	for end := time.Now().Add(time.Minute); size() == before; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("it does not go on")
		}
	}
	if err := m.Freeze(path + "/none"); err == nil {
		t.Error("a group that is not there was frozen")
	}
	if err := m.Thaw(path + "/none"); err != nil {
		t.Error(err)
	}
	if _, err := m.Frozen("/"); err == nil {
		t.Error("the root group has no state")
	}
}

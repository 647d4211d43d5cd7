package supervise

import (
	"bufio"
	"bytes"
	"os"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestKillTree: children with sessions of their own die too, though their
// parents may die before them; none stays stopped.
func TestKillTree(t *testing.T) {
	const each = "for i in 1 2 3 4 5; do setsid sleep 100 & echo $!; done; "
	for range 10 {
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		script := each + "setsid sh -c '" + each + "wait' & echo $!; wait"
		root, err := syscall.ForkExec("/bin/sh", []string{"sh", "-c", script},
			&syscall.ProcAttr{Env: os.Environ(), Files: []uintptr{0, w.Fd(), 2}, Sys: &syscall.SysProcAttr{Setsid: true}})
		_ = w.Close()
		if err != nil {
			t.Fatal(err)
		}
		var pids []int
		for lines := bufio.NewScanner(r); len(pids) < 11 && lines.Scan(); {
			pid, err := strconv.Atoi(strings.TrimSpace(lines.Text()))
			if err != nil {
				t.Fatal(err)
			}
			pids = append(pids, pid)
		}
		_ = r.Close()
		for _, pid := range pids {
			soon(t, "a session of its own", func() bool { _, s, _ := parseStat(pid); return s == pid })
		}
		if n := killTree(root); n < len(pids) {
			t.Errorf("%d of %d found", n, len(pids))
		}
		if _, err := syscall.Wait4(root, nil, 0, nil); err != nil {
			t.Fatal(err)
		}
		for _, pid := range pids {
			soon(t, "the end of a child", func() bool {
				b, err := readFile("/proc/" + strconv.Itoa(pid) + "/stat")
				return err != nil || bytes.Contains(b, []byte(") Z ")) || bytes.Contains(b, []byte(") X "))
			})
		}
	}
}

func soon(t *testing.T, what string, f func() bool) {
	t.Helper()
	for end := time.Now().Add(time.Minute); !f(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("never happened: " + what)
		}
	}
}

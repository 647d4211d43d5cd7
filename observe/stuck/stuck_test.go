package stuck

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestFind(t *testing.T) {
	proc := t.TempDir()
	put := func(pid, stat, cmdline, environ, stack string) {
		dir := filepath.Join(proc, pid)
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		for name, text := range map[string]string{"stat": stat, "cmdline": cmdline, "environ": environ, "stack": stack} {
			if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
	put("1", "1 (init) S 0", "init", "", "")
	put("10", "10 (a) b) D 1", "app", "", "[<0>] fuse_wait+0x1/0x2 [fuse]\n[<0>] vfs_read+0x1/0x2\n")
	put("11", "11 (app) S 1", "app", "", "")
	put("20", "20 (berth-shim) S 1", "berth-shim\x00launch\x00c1", "", "")
	put("21", "21 (runc) S 20", "runc\x00create\x00c1", "", "[<0>] do_wait+0x1\n")
	put("30", "30 (bridge) S 9", "bridge", "A=b\x00CNI_CONTAINERID=pod\x00", "")
	put("31", "31 (bridge) D 9", "bridge", "CNI_CONTAINERID=pod2\x00", "")
	if err := os.Mkdir(filepath.Join(proc, "sys"), 0o755); err != nil {
		t.Fatal(err)
	}
	got := Find(proc, Pod{ID: "pod", Containers: []string{"c1"}, Members: []int{10, 11}})
	var text []string
	for _, p := range got {
		text = append(text, p.Name+" "+p.State+" "+p.Role+" "+strings.Join(p.Stack, ","))
	}
	want := []string{"a) b D container fuse_wait,vfs_read", "runc S shim or runtime do_wait", "bridge S network plugin "}
	if !slices.Equal(text, want) {
		t.Errorf("got  %q\nwant %q", text, want)
	}
}

// A process that opens a file whose listener does not answer sleeps as one does
// that waits for a dead device.
func TestIntegrationUninterruptible(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	file := filepath.Join(t.TempDir(), "f")
	if err := os.WriteFile(file, []byte("x"), 0o644); err != nil {
		t.Fatal(err)
	}
	fd, err := unix.FanotifyInit(unix.FAN_CLASS_CONTENT|unix.FAN_CLOEXEC, unix.O_RDONLY|unix.O_CLOEXEC)
	if err != nil {
		t.Skip("no fanotify here:", err)
	}
	closed := false
	defer func() {
		if !closed {
			unix.Close(fd)
		}
	}()
	if err := unix.FanotifyMark(fd, unix.FAN_MARK_ADD, unix.FAN_OPEN_PERM, -1, file); err != nil {
		t.Skip("no permission events here:", err)
	}
	cmd := exec.Command("cat", file)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var found []Process
	for deadline := time.Now().Add(time.Minute); len(found) == 0 && time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		found = slices.DeleteFunc(Find("/proc", Pod{ID: "x", Members: []int{cmd.Process.Pid}}), func(p Process) bool { return p.Name != "cat" })
	}
	closed = true
	unix.Close(fd) // lets it go
	if err := cmd.Wait(); err != nil {
		t.Error(err)
	}
	if len(found) != 1 || found[0].State != "D" {
		t.Fatal("not found:", found)
	}
	if !slices.ContainsFunc(found[0].Stack, func(f string) bool { return strings.Contains(f, "fanotify") || strings.Contains(f, "fsnotify") }) {
		t.Error("stack:", found[0].Stack)
	}
}

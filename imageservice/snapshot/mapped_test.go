package snapshot

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// userNamespace returns the path of a user namespace whose root is 70000 here.
func userNamespace(t *testing.T) string {
	t.Helper()
	cmd := exec.Command("sleep", "1000")
	ids := []syscall.SysProcIDMap{{HostID: 70000, Size: 65536}}
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWUSER, UidMappings: ids, GidMappings: ids}
	if err := cmd.Start(); err != nil {
		t.Skipf("no user namespaces here: %v", err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	return fmt.Sprintf("/proc/%d/ns/user", cmd.Process.Pid)
}

// TestIntegrationMapped shows layers to a user namespace, writes as its root,
// and looks at the disk, where no owner may be shifted.
func TestIntegrationMapped(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root: mounts overlays")
	}
	ns, state, target := userNamespace(t), t.TempDir(), t.TempDir()
	if err := CanIDMap(state, ns); err != nil {
		t.Skip(err)
	}
	lower := filepath.Join(state, "layers", "l1", "fs")
	if err := os.MkdirAll(lower, 0o755); err != nil {
		t.Fatal(err)
	}
	for name, uid := range map[string]int{"root": 0, "alice": 1000, "gone": 5} {
		p := filepath.Join(lower, name)
		if err := errors.Join(os.WriteFile(p, []byte(name), 0o600), os.Chown(p, uid, uid+1)); err != nil {
			t.Fatal(err)
		}
	}
	s, err := Open(filepath.Join(state, "containers"))
	if err != nil {
		t.Fatal(err)
	}
	before := mountLines(t)
	stack := Stack{Lower: []string{lower}, Root: lower, UserNS: ns, Tree: state}
	for range 2 {
		if err := s.Mount("c1", stack, target); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() { _ = unix.Unmount(target, unix.MNT_DETACH) })
	if n := mountLines(t) - before; n != 1 {
		t.Errorf("%d mounts were added to the node's, want 1", n)
	}
	wantOwner(t, target, 70000, 70000)
	wantOwner(t, filepath.Join(target, "alice"), 71000, 71001)
	// Copying up, removing (a whiteout) and creating, as the container's root would.
	steps := errors.Join(
		os.Chown(filepath.Join(target, "alice"), 70007, 70008),
		os.Remove(filepath.Join(target, "gone")),
		os.Chown(filepath.Join(target, "root"), 70000, 70000))
	if steps != nil {
		t.Error(steps)
	}
	wantOwner(t, filepath.Join(state, "containers", "c1", "upper", "alice"), 7, 8)
	wantOwner(t, filepath.Join(lower, "alice"), 1000, 1001)
	if err := errors.Join(s.Unmount(target), s.Remove("c1")); err != nil {
		t.Error(err)
	}
	if n := mountLines(t) - before; n != 0 {
		t.Errorf("%d mounts are left", n)
	}
}

// TestIntegrationMappedRefusal tells a file system that cannot be shown shifted.
func TestIntegrationMappedRefusal(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root: clones mounts")
	}
	err := CanIDMap("/proc", userNamespace(t))
	if !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), "/proc") {
		t.Errorf("got %v", err)
	}
}

func wantOwner(t *testing.T, path string, uid, gid uint32) {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		t.Error(err)
	} else if st.Uid != uid || st.Gid != gid {
		t.Errorf("%s belongs to %d:%d, want %d:%d", path, st.Uid, st.Gid, uid, gid)
	}
}

// mountLines counts the mounts below the tests' own directories.
func mountLines(t *testing.T) int {
	t.Helper()
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for line := range strings.Lines(string(b)) {
		if strings.Contains(line, filepath.Dir(t.TempDir())) {
			n++
		}
	}
	return n
}

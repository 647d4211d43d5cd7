package snapshot

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// TestIntegrationManyLayers mounts far more layers than a page of options
// holds, below a path longer than a mount option, through both kernel APIs.
func TestIntegrationManyLayers(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root: mounts overlays")
	}
	base := filepath.Join(t.TempDir(), strings.Repeat("d", 120), strings.Repeat("e", 120))
	var lower []string
	for i := range 200 {
		d := filepath.Join(base, fmt.Sprintf("%064d", i), "fs")
		if err := os.MkdirAll(d, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(d, "n"), []byte(fmt.Sprint(i)), 0o600); err != nil {
			t.Fatal(err)
		}
		lower = append(lower, d)
	}
	s, err := Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	old := func(target string) error {
		u, w := t.TempDir(), t.TempDir()
		return mountOld(lower, ownDirs{upper: u, work: w}, target)
	}
	for name, mount := range map[string]func(string) error{
		"new": func(target string) error { return s.Mount("c1", Stack{Lower: lower, Root: lower[0]}, target) },
		"old": old,
	} {
		target := t.TempDir()
		t.Cleanup(func() { _ = unix.Unmount(target, unix.MNT_DETACH) })
		if err := mount(target); err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if got, err := os.ReadFile(filepath.Join(target, "n")); err != nil || string(got) != "0" {
			t.Errorf("%s: the top layer does not win: %q, %v", name, got, err)
		}
		if mounts, err := os.ReadFile("/proc/self/mountinfo"); err != nil || !volatileAt(string(mounts), target) {
			t.Errorf("%s: the mount is not volatile: %v", name, err)
		}
		for range 2 {
			if err := s.Unmount(target); err != nil {
				t.Errorf("%s: %v", name, err)
			}
		}
	}
	for range 2 {
		if err := s.Remove("c1"); err != nil {
			t.Error(err)
		}
	}
}

// volatileAt looks for the option, which newer kernels show as fsync=volatile.
func volatileAt(mountinfo, target string) bool {
	for line := range strings.Lines(mountinfo) {
		if _, options, ok := strings.Cut(line, " "+target+" "); ok {
			return strings.HasSuffix(strings.TrimSpace(options), "volatile")
		}
	}
	return false
}

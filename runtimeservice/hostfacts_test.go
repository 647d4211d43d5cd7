package runtimeservice

import (
	"os"
	"path/filepath"
	"testing"
)

// TestSwapControllerV2: a node that has just been booted has no group with
// limits yet, and swap limits hold there too.
func TestSwapControllerV2(t *testing.T) {
	for _, c := range []struct {
		name  string
		files []string
		line  string
		want  bool
	}{
		{"a group with both limits", []string{"cg/a/memory.max", "cg/a/memory.swap.max"}, "", true},
		{"a group without swap limits", []string{"cg/a/memory.max", "proc/swaps"}, "", false},
		{"no group yet", []string{"cg/a/cgroup.procs", "proc/swaps"}, "quiet", true},
		{"no group yet, accounting off", []string{"proc/swaps"}, "quiet swapaccount=0", false},
		{"no group yet, a kernel without swap", nil, "", false},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			for _, f := range append(c.files, "proc/cmdline") {
				if err := os.MkdirAll(filepath.Join(dir, filepath.Dir(f)), 0o700); err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(filepath.Join(dir, f), []byte(c.line), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			if got := swapControllerV2(filepath.Join(dir, "cg"), filepath.Join(dir, "proc")); got != c.want {
				t.Errorf("got %v, want %v", got, c.want)
			}
		})
	}
}

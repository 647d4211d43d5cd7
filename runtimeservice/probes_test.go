package runtimeservice

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/berth-dev/berth/shim"
)

// TestGate: only runc itself is known to leave its containers at a FIFO.
func TestGate(t *testing.T) {
	dir := t.TempDir()
	script := func(name, version string) string {
		path := filepath.Join(dir, name)
		text := fmt.Sprintf("#!/bin/sh\necho '{\"annotations\": {%q: %q}}'\n", runcVersion, version)
		if err := os.WriteFile(path, []byte(text), 0o755); err != nil {
			t.Fatal(err)
		}
		return path
	}
	program := func(name, version string) string {
		src := filepath.Join(dir, name+".go")
		text := fmt.Sprintf("package main\n\nimport \"os\"\n\nfunc main() { os.Stdout.WriteString(`{\"annotations\": {%q: %q}}`) }\n", runcVersion, version)
		if err := os.WriteFile(src, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		if out, err := exec.Command("go", "build", "-o", filepath.Join(dir, name), src).CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		return filepath.Join(dir, name)
	}
	for _, tc := range []struct {
		path string
		want bool
	}{
		{program("runc", "1.5.2"), true},
		{program("next", "2.0.0"), false},
		{program("other", ""), false},
		{script("wrapper", "1.5.2"), false},
		{filepath.Join(dir, "missing"), false},
	} {
		if got := newProbes().gate(t.Context(), Handler{Runtime: shim.Runtime{Path: tc.path}}); got != tc.want {
			t.Errorf("%s: %v", filepath.Base(tc.path), got)
		}
	}
}

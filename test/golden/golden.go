// Package golden compares what programs print with files.
package golden

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// Compare compares with a file in testdata; BERTH_REWRITE=1 writes it anew.
func Compare(t *testing.T, name, got string) {
	t.Helper()
	File(t, filepath.Join("testdata", name), got)
}

// File compares with a file; BERTH_REWRITE=1 writes it anew.
func File(t *testing.T, path, got string) {
	t.Helper()
	if os.Getenv("BERTH_REWRITE") != "" {
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(string(want), got); d != "" {
		t.Errorf("%s (BERTH_REWRITE=1 writes it anew):\n%s", path, d)
	}
}

// Outputs compares what show prints in each of berthctl's formats with the
// files testdata/NAME.table, .wide, .json and .yaml.
func Outputs(t *testing.T, name string, show func(output string, w *bytes.Buffer) error) {
	t.Helper()
	for _, output := range []string{"table", "wide", "json", "yaml"} {
		var b bytes.Buffer
		if err := show(output, &b); err != nil {
			t.Fatalf("%s as %s: %v", name, output, err)
		}
		Compare(t, name+"."+output, b.String())
	}
}

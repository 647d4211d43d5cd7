package inventory

import (
	"bytes"
	"errors"
	"hash/crc32"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/klauspost/compress/gzip"
	"golang.org/x/sys/unix"
)

func TestCheckNamesWhatDiffers(t *testing.T) {
	root, file := filepath.Join(t.TempDir(), "fs"), filepath.Join(t.TempDir(), "files.gz")
	for _, d := range []string{"a/b", "a-b", "empty"} {
		if err := os.MkdirAll(filepath.Join(root, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	strange := "new\nline \xff \"quoted\""
	for _, name := range []string{"a/x", "a/b/y", strange} {
		if err := os.WriteFile(filepath.Join(root, name), []byte(name), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("x", filepath.Join(root, "link")); err != nil {
		t.Fatal(err)
	}
	if err := Write(t.Context(), file, root, nil); err != nil {
		t.Fatal(err)
	}
	if r, err := Check(t.Context(), file, root, true); err != nil || len(r.Faults) != 0 || r.Files != 9 {
		t.Fatalf("%+v, %v", r, err)
	}
	if err := os.Remove(filepath.Join(root, "a/b/y")); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(root, strange), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	r, err := Check(t.Context(), file, root, false)
	if err != nil || len(r.Faults) != 2 || !strings.Contains(strings.Join(r.Faults, "|"), "a/b/y is missing") {
		t.Errorf("%q, %v", r.Faults, err)
	}
	for n := range 50 {
		if err := os.WriteFile(filepath.Join(root, "a", strings.Repeat("z", n+1)), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if r, _ := Check(t.Context(), file, root, false); len(r.Faults) != maxFaults+1 {
		t.Errorf("%d faults named", len(r.Faults))
	}
}

// TestLinkedFilesAreReadOnce: a file with several names is read once, and named
// by all of them when its content is another.
func TestLinkedFilesAreReadOnce(t *testing.T) {
	root, file := filepath.Join(t.TempDir(), "fs"), filepath.Join(t.TempDir(), "files.gz")
	first := filepath.Join(root, "a")
	if err := errors.Join(os.Mkdir(root, 0o755), os.WriteFile(first, []byte("content"), 0o644), os.Link(first, filepath.Join(root, "b")),
		os.WriteFile(filepath.Join(root, "c"), []byte("others!"), 0o644)); err != nil {
		t.Fatal(err)
	}
	sums := Sums{}
	for _, name := range []string{"a", "c"} {
		var st unix.Stat_t
		if err := unix.Stat(filepath.Join(root, name), &st); err != nil {
			t.Fatal(err)
		}
		content, err := os.ReadFile(filepath.Join(root, name))
		if err != nil {
			t.Fatal(err)
		}
		sums[st.Ino] = crc32.Checksum(content, Table())
	}
	if err := Write(t.Context(), file, root, sums); err != nil {
		t.Fatal(err)
	}
	if r, err := Check(t.Context(), file, root, true); err != nil || len(r.Faults) != 0 || r.Bytes != 14 {
		t.Errorf("%+v, %v; want 14 bytes read", r, err)
	}
	if err := os.WriteFile(first, []byte("CONTENT"), 0o644); err != nil {
		t.Fatal(err)
	}
	r, err := Check(t.Context(), file, root, true)
	if want := "a has other content than it was unpacked with|b has other content than it was unpacked with"; err != nil || strings.Join(r.Faults, "|") != want {
		t.Errorf("%q, %v", r.Faults, err)
	}
}

func FuzzDecode(f *testing.F) {
	pack := func(s string) []byte {
		var b bytes.Buffer
		z := gzip.NewWriter(&b)
		_, _ = z.Write([]byte(s))
		_ = z.Close()
		return b.Bytes()
	}
	for _, s := range []string{"", header + "\nend 0\n", header + "\n100644 0 0 5 0badcafe \"a\"\nend 1\n", header + "\no40755 0 0 0 - \".\"\nend 2\n"} {
		f.Add(pack(s))
	}
	f.Add([]byte("no gzip"))
	f.Fuzz(func(t *testing.T, raw []byte) {
		r, err := newReader(bytes.NewReader(raw))
		if err != nil {
			return
		}
		for {
			e, ok, err := r.next()
			if err != nil || !ok {
				return
			}
			if again, err := parse(e.String()); err != nil || again != e {
				t.Fatalf("%q becomes %+v, %v", e.String(), again, err)
			}
		}
	})
}

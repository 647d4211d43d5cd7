package adopt

import (
	"bytes"
	"compress/gzip"
	"encoding/json"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"
)

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// layerOf makes a store with one layer of these files and notes.
func layerOf(t *testing.T, notes ...entry) (*containers, string) {
	t.Helper()
	c := &containers{root: t.TempDir()}
	dir := filepath.Join(c.root, "overlay", "id", "diff")
	must(t, os.MkdirAll(filepath.Join(dir, "etc"), 0o755))
	must(t, os.MkdirAll(filepath.Join(c.root, "overlay-layers"), 0o755))
	must(t, os.WriteFile(filepath.Join(c.root, "secret"), []byte("of the node"), 0o600))
	must(t, os.WriteFile(filepath.Join(dir, "etc", "file"), []byte("content"), 0o600))
	var raw bytes.Buffer
	z := gzip.NewWriter(&raw)
	for _, n := range notes {
		must(t, json.NewEncoder(z).Encode(n))
	}
	must(t, z.Close())
	must(t, os.WriteFile(filepath.Join(c.root, "overlay-layers", "id.tar-split.gz"), raw.Bytes(), 0o600))
	return c, dir
}

func TestTarAgain(t *testing.T) {
	c, dir := layerOf(t,
		entry{Type: entrySegment, Payload: []byte("head ")}, entry{Type: entryFile, Name: "./etc/file", Size: 7, Payload: []byte("checksum")},
		entry{Type: entrySegment, Payload: []byte(" between ")}, entry{Type: entryFile, Name: "etc/.wh.gone"},
		entry{Type: entryFile, Name: "wrong", RawName: []byte("link/file"), Size: 7}, entry{Type: entrySegment, Payload: []byte(" end")})
	must(t, os.Symlink("/etc", filepath.Join(dir, "link"))) // of the image, not of the node
	r := c.tar("id")
	got, err := io.ReadAll(r)
	if want := "head content between content end"; string(got) != want || err != nil {
		t.Errorf("%q, %v, want %q", got, err, want)
	}
	if n, err := c.tarSize("id"); int(n) != len(got) || err != nil {
		t.Errorf("size %d, %v, want %d", n, err, len(got))
	}
}

// TestTarRefuses: whatever the notes say, nothing outside the layer is read, and
// nothing that is no file.
func TestTarRefuses(t *testing.T) {
	for name, tt := range map[string]struct {
		note entry
		says string
	}{
		"above":      {entry{Type: entryFile, Name: "../../../secret", Size: 11}, "no such file"},
		"link":       {entry{Type: entryFile, Name: "out", Size: 11}, "too many levels"},
		"below link": {entry{Type: entryFile, Name: "up/secret", Size: 11}, "no such file"},
		"pipe":       {entry{Type: entryFile, Name: "pipe", Size: 1}, "not a regular file"},
		"directory":  {entry{Type: entryFile, Name: "etc", Size: 1}, "not a regular file"},
		"short":      {entry{Type: entryFile, Name: "etc/file", Size: 8}, "shorter than 8"},
		"size":       {entry{Type: entryFile, Name: "etc/file", Size: -1}, "size -1"},
		"type":       {entry{Type: 3}, "type 3"},
	} {
		c, dir := layerOf(t, tt.note)
		must(t, os.Symlink("../../../secret", filepath.Join(dir, "out")))
		must(t, os.Symlink("../../..", filepath.Join(dir, "up")))
		must(t, unix.Mkfifo(filepath.Join(dir, "pipe"), 0o600))
		r := c.tar("id")
		got, err := io.ReadAll(r)
		if err == nil || !strings.Contains(err.Error(), tt.says) || strings.Contains(string(got), "node") {
			t.Errorf("%s: read %q, %v, want an error that says %q", name, got, err, tt.says)
		}
	}
	c, _ := layerOf(t)
	must(t, os.WriteFile(filepath.Join(c.root, "overlay-layers", "id.tar-split.gz"), []byte("no gzip"), 0o600))
	if _, err := c.tarSize("id"); err == nil || !strings.Contains(err.Error(), "id.tar-split.gz") {
		t.Errorf("notes that are none: %v", err)
	}
}

// TestByTop: names are gathered by content, and only those that are true.
func TestByTop(t *testing.T) {
	one, two := "sha256:"+strings.Repeat("1", 64), "sha256:"+strings.Repeat("2", 64)
	var b byTop
	b.add("busybox", digest.Digest(one), false)
	b.add("r.test/app@"+one, digest.Digest(one), true)
	b.add("r.test/app@"+two, digest.Digest(one), false)
	b.add(one, digest.Digest(two), false) // an ID alone
	b.add("UPPER", digest.Digest(two), false)
	var got []string
	for _, i := range b.list(func(*Image) error { return nil }) {
		got = append(got, strings.Join(i.Names, " ")+"|"+i.Reason)
	}
	want := []string{"UPPER|its name is no reference", "docker.io/library/busybox:latest r.test/app@" + one + "|", "r.test/app@" + two + "|its name says another digest"}
	if len(got) != len(want) {
		t.Fatalf("%q", got)
	}
	for n := range want {
		if !strings.HasPrefix(got[n], want[n]) {
			t.Errorf("%q, want %q", got[n], want[n])
		}
	}
}

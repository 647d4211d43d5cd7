package checkpoint

import (
	"archive/tar"
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

// tree makes files: a name that ends in "/" is a directory, text "!" a whiteout.
func tree(t *testing.T, dir string, files ...string) string {
	t.Helper()
	must := func(err error) {
		if err != nil {
			t.Fatal(err)
		}
	}
	must(os.MkdirAll(dir, 0o755))
	for i := 0; i < len(files); i += 2 {
		name, text := filepath.Join(dir, files[i]), files[i+1]
		must(os.MkdirAll(filepath.Dir(name), 0o755))
		switch text {
		case "/":
			must(os.MkdirAll(name, 0o755))
		case "opaque":
			must(os.MkdirAll(name, 0o755))
			must(unix.Setxattr(name, "trusted.overlay.opaque", []byte("y"), 0))
		case "!":
			must(unix.Mknod(name, unix.S_IFCHR, 0))
		default:
			must(os.WriteFile(name, []byte(text), 0o644))
		}
	}
	return dir
}

func TestDiff(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root: whiteouts are devices")
	}
	dir := t.TempDir()
	if err := unix.Setxattr(dir, "trusted.test", []byte("y"), 0); errors.Is(err, unix.ENOTSUP) {
		t.Skip("the file system has no trusted attributes")
	}
	bottom := tree(t, dir+"/bottom", "home/alice/x", "1", "home/bob", "2", "etc/group", "3", "deep/a/b/c", "4", "veiled/under", "5")
	top := tree(t, dir+"/top", "home/bob", "!", "home/carol", "6", "veiled", "opaque", "veiled/over", "7")
	upper := tree(t, dir+"/upper", "etc/group", "!", "home", "opaque", "home/new", "8", "deep", "opaque", "deep/a/", "/", "deep/a/b/", "/",
		"veiled", "opaque", "plain", "9")
	for _, err := range []error{
		os.Symlink("/etc/passwd", upper+"/link"), os.Symlink(dir+"/bottom", upper+"/way-out"), os.Link(upper+"/plain", upper+"/same"),
		unix.Mkfifo(upper+"/pipe", 0o600), unix.Mknod(upper+"/sock", unix.S_IFSOCK|0o600, 0),
		os.Chown(upper+"/plain", 1000, 1001), unix.Setxattr(upper+"/plain", "user.kind", []byte("a\x00b"), 0), unix.Chmod(upper+"/same", 0o4755),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	deleted, err := writeDiff(t.Context(), dir+"/diff.tar", upper, []string{top, bottom})
	if err != nil {
		t.Fatal(err)
	}
	// deep/a and deep/a/b were made anew in a directory that shows nothing of below.
	want := []string{"/deep/a/b/c", "/etc/group", "/home/alice", "/home/carol", "/veiled/over"}
	if d := cmp.Diff(want, deleted); d != "" {
		t.Error(d)
	}
	f, err := os.Open(dir + "/diff.tar")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	got := map[string]string{}
	for in := tar.NewReader(f); ; {
		h, err := in.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		b, _ := io.ReadAll(in)
		got[h.Name] = string(h.Typeflag) + h.Linkname + string(b)
		if h.Name == "plain" && (h.Uid != 1000 || h.Gid != 1001 || h.Mode != 0o4755 || h.PAXRecords["SCHILY.xattr.user.kind"] != "a\x00b" || h.Uname != "") {
			t.Errorf("%+v", h)
		}
	}
	if d := cmp.Diff(map[string]string{"etc/": "5", "home/": "5", "home/new": "08", "deep/": "5", "deep/a/": "5", "deep/a/b/": "5", "veiled/": "5",
		"plain": "09", "same": "1plain", "link": "2/etc/passwd", "way-out": "2" + dir + "/bottom", "pipe": "6"}, got); d != "" {
		t.Error(d)
	}
	if err := unix.Setxattr(upper+"/home", "trusted.overlay.redirect", []byte("/x"), 0); err != nil {
		t.Fatal(err)
	}
	if _, err := writeDiff(t.Context(), dir+"/again.tar", upper, nil); !errdefs.IsNotImplemented(err) {
		t.Error(err)
	}
}

package checkpoint

import (
	"archive/tar"
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

// archive writes a tar of name, content, name, content...
func archive(t testing.TB, files ...string) []byte {
	t.Helper()
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	for i := 0; i < len(files); i += 2 {
		h := &tar.Header{Name: files[i], Size: int64(len(files[i+1])), Mode: 0o600, Typeflag: tar.TypeReg}
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write([]byte(files[i+1])); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

const dump = `{"id":"c1","name":"ma\u001b[31min","rootfsImage":"x","rootfsImageRef":"r@sha256:1","rootfsImageName":"app:1","runtime":"runc",
"createdTime":"2026-11-26T10:00:00Z","checkpointedTime":"2026-11-27T10:00:00Z"}`

func whole(t testing.TB) []byte {
	return archive(t, "config.dump", dump,
		"spec.dump", `{"annotations":{"io.kubernetes.cri.sandbox-name":"web","io.kubernetes.cri.sandbox-namespace":"shop"}}`,
		"status.dump", `{"Pid":7,"LogBytes":2048}`, "network.status", `{"cniVersion":"1.0.0","ips":[{"address":"10.1.2.3/24"},{"address":"fd00::3/64"}]}`,
		"deleted.files", `["/a","/b"]`, "rootfs-diff.tar", "0123456789", "checkpoint/pages-1.img", "memory", "checkpoint/pages-2.img", "more",
		"checkpoint/core-1.img", "no memory", "unknown", "skipped")
}

func TestRead(t *testing.T) {
	got, err := Read(bytes.NewReader(whole(t)))
	if err != nil {
		t.Fatal(err)
	}
	want := &Summary{Name: "ma\x1b[31min", ID: "c1", Pod: "web", Namespace: "shop", Image: "app:1", Requested: "x", ImageRef: "r@sha256:1", Handler: "runc",
		Created: time.Date(2026, 11, 26, 10, 0, 0, 0, time.UTC), Checkpointed: time.Date(2026, 11, 27, 10, 0, 0, 0, time.UTC),
		Addresses: []string{"10.1.2.3/24", "fd00::3/64"}, Size: Size{MemoryBytes: 10, DiffBytes: 10, Deleted: 2, LogBytes: 2048}}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
	var out bytes.Buffer
	if err := got.print(&out); err != nil || strings.Contains(out.String(), "\x1b") || !strings.Contains(out.String(), "pod            shop/web\n") {
		t.Errorf("%q, %v", out.String(), err)
	}
}

// TestHostile: archives that were made to do harm are errors, and cheap ones.
func TestHostile(t *testing.T) {
	large := archive(t, "config.dump", dump, "spec.dump", strings.Repeat(" ", maxDocument+1))
	link := func() []byte {
		var out bytes.Buffer
		w := tar.NewWriter(&out)
		_ = w.WriteHeader(&tar.Header{Name: "config.dump", Typeflag: tar.TypeSymlink, Linkname: "/etc/passwd"})
		_ = w.Close()
		return out.Bytes()
	}
	for name, tc := range map[string]struct {
		b    []byte
		says string
	}{
		"empty":            {nil, "no checkpoint"},
		"no tar":           {[]byte(strings.Repeat("x", 2000)), "no tar"},
		"another tar":      {archive(t, "some", "thing"), "config.dump is missing"},
		"cut short":        {whole(t)[:1200], "cut short"},
		"twice":            {archive(t, "config.dump", dump, "./config.dump", dump), "twice"},
		"no JSON":          {archive(t, "config.dump", "{"), "config.dump"},
		"large document":   {large, "more than a document may have"},
		"a link as a file": {link(), "config.dump is missing"},
	} {
		if _, err := Read(bytes.NewReader(tc.b)); err == nil || !strings.Contains(err.Error(), tc.says) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestManyEntries(t *testing.T) {
	entry := archive(t, "x", "")
	many := func(n int) []byte { return append(bytes.Repeat(entry[:512], n), entry[512:]...) }
	if _, err := read(bytes.NewReader(many(101)), 100); err == nil || !strings.Contains(err.Error(), "more than 100 entries") {
		t.Error(err)
	}
	if _, err := read(bytes.NewReader(many(99)), 100); !errors.Is(err, errOther) {
		t.Error(err)
	}
}

func TestOpen(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "odd[name]*")
	for _, err := range []error{
		os.Mkdir(dir, 0o700), os.WriteFile(dir+"/b.tar", whole(t), 0o600), os.WriteFile(dir+"/a.tar", whole(t), 0o600),
		os.WriteFile(dir+"/devshm-checkpoint.tar", archive(t, "kept", "x"), 0o600), unix.Mkfifo(dir+"/pipe", 0o600),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	if all, err := open(dir); err != nil || len(all) != 2 {
		t.Error(all, err)
	}
	if all, err := open(dir + "/a.tar"); err != nil || len(all) != 1 {
		t.Error(all, err)
	}
	if _, err := open(dir + "/pipe"); err == nil || !strings.Contains(err.Error(), "regular") {
		t.Error(err)
	}
	if _, err := open(dir + "/devshm-checkpoint.tar"); !errors.Is(err, errOther) {
		t.Error(err)
	}
	if _, err := open(t.TempDir()); err == nil {
		t.Error("an empty directory is a checkpoint")
	}
}

func FuzzRead(f *testing.F) {
	f.Add(whole(f))
	f.Add(archive(f, "config.dump", "null", "network.status", `{"ips":null}`, "deleted.files", "{}"))
	f.Fuzz(func(t *testing.T, b []byte) {
		s, err := Read(bytes.NewReader(b))
		if (s == nil) == (err == nil) {
			t.Fatal(s, err)
		}
		if err == nil {
			var out bytes.Buffer
			if err := s.print(&out); err != nil || bytes.ContainsRune(out.Bytes(), 0x1b) || s.MemoryBytes < 0 || s.DiffBytes < 0 {
				t.Fatalf("%q %v %+v", out.Bytes(), err, s.Size)
			}
		}
	})
}

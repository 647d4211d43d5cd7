package checkpoint

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/encoding/protowire"

	"github.com/berth-dev/berth/store"
)

const testSpec = `{"ociVersion":"1.2.0","process":{"args":["/bin/sh"],"cwd":"/","user":{"uid":0,"gid":0}},"root":{"path":"/old"},"linux":{"cgroupsPath":"/old"},
"annotations":{"org.criu.config":"/tmp/theirs"}}`

// entries are the headers and contents of an archive, in order.
type entries []struct {
	tar.Header
	text string
}

func entry(name, text string, change ...func(*tar.Header)) struct {
	tar.Header
	text string
} {
	h := tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o600, Size: int64(len(text))}
	for _, c := range change {
		c(&h)
	}
	return struct {
		tar.Header
		text string
	}{h, text}
}

func (es entries) bytes(t testing.TB) []byte {
	t.Helper()
	var b bytes.Buffer
	out := tar.NewWriter(&b)
	for _, e := range es {
		if err := out.WriteHeader(&e.Header); err != nil {
			t.Fatal(err)
		}
		if _, err := out.Write([]byte(e.text)); err != nil {
			t.Fatal(err)
		}
	}
	if err := out.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// good is a whole archive, whose files are a and b, and whose image had c and d/e.
func good(t testing.TB) entries {
	diff := entries{entry("a", "text of a"), entry("b/", "", func(h *tar.Header) { h.Typeflag = tar.TypeDir })}
	return entries{
		entry(configFile, `{"id":"x","name":"one","rootfsImage":"img","rootfsImageRef":"r/img@sha256:77","runtime":"runc"}`),
		entry(specFile, testSpec), entry(statusFile, "{}"), entry(deletedFile, `["/c","/d/e"]`), entry(diffFile, string(diff.bytes(t))),
		entry(imagesName+"/", "", func(h *tar.Header) { h.Typeflag = tar.TypeDir }),
		entry(imagesName+"/inventory.img", "inventory"), entry(imagesName+"/pages-1.img", "memory"),
	}
}

func put(t testing.TB, dir, name string, b []byte) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(dir, name), b, 0o600); err != nil {
		t.Fatal(err)
	}
}

// source is the checkpoint of a pod with one container.
func source(t testing.TB, archive []byte) (*Source, string) {
	t.Helper()
	dir := t.TempDir()
	put(t, dir, optionsFile, []byte(`{"version":1,"containers":{"one":"one.tar"}}`))
	put(t, dir, "one.tar", archive)
	s, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	return s, dir
}

func TestUnpackPart(t *testing.T) {
	s, _ := source(t, good(t).bytes(t))
	if d := cmp.Diff([]string{"one"}, s.Names()); d != "" {
		t.Error(d)
	}
	if shm, err := s.Shm(); shm != nil || err != nil {
		t.Error(shm, err)
	}
	dir := filepath.Join(t.TempDir(), "part")
	p, err := s.Unpack(t.Context(), "one", dir)
	if err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(p.Images() + "/pages-1.img")
	if err != nil || string(b) != "memory" || p.Config.Name != "one" || p.Spec.Process.Args[0] != "/bin/sh" {
		t.Errorf("%q, %v, %+v", b, err, p)
	}
	var layer bytes.Buffer
	if err := p.Layer(t.Context(), &layer); err != nil {
		t.Fatal(err)
	}
	var got []string
	for in := tar.NewReader(&layer); ; {
		h, err := in.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		text, _ := io.ReadAll(in)
		got = append(got, h.Name+" "+string(text))
	}
	if d := cmp.Diff([]string{"a text of a", "b/ ", ".wh.c ", "d/.wh.e "}, got); d != "" {
		t.Error(d)
	}
	if _, err := s.Unpack(t.Context(), "one", dir); !errors.Is(err, os.ErrExist) {
		t.Errorf("over another: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := s.Unpack(ctx, "one", dir+"2"); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

// TestHostileArchives: foreign data is refused, and nothing is written outside of
// the directory that it is unpacked to.
func TestHostileArchives(t *testing.T) {
	with := func(more ...struct {
		tar.Header
		text string
	}) func(t *testing.T) []byte {
		return func(t *testing.T) []byte { return append(good(t), more...).bytes(t) }
	}
	typed := func(name string, kind byte, link string) func(t *testing.T) []byte {
		return with(entry(name, "", func(h *tar.Header) { h.Typeflag, h.Linkname, h.Devmajor, h.Devminor = kind, link, 8, 0 }))
	}
	without := func(name string) func(t *testing.T) []byte {
		return func(t *testing.T) []byte {
			return slices.DeleteFunc(good(t), func(e struct {
				tar.Header
				text string
			}) bool {
				return e.Name == name
			}).bytes(t)
		}
	}
	instead := func(name, text string) func(t *testing.T) []byte {
		return func(t *testing.T) []byte {
			es := good(t)
			for i := range es {
				if es[i].Name == name {
					es[i] = entry(name, text)
				}
			}
			return es.bytes(t)
		}
	}
	for name, make := range map[string]func(t *testing.T) []byte{
		"path that climbs":         with(entry("checkpoint/../../../escaped", "x")),
		"absolute path":            with(entry("/escaped", "x")),
		"image in a directory":     with(entry("checkpoint/sub/escaped", "x")),
		"image with no name":       with(entry("checkpoint//", "x", func(h *tar.Header) { h.Name = "checkpoint/.." })),
		"unknown file":             with(entry("config.json", "{}")),
		"same name twice":          with(entry("checkpoint/pages-1.img", "x")),
		"symbolic link":            typed("checkpoint/link.img", tar.TypeSymlink, "/etc/passwd"),
		"link in place of a part":  typed("rootfs-diff.tar", tar.TypeSymlink, "/etc/passwd"),
		"hard link":                typed("checkpoint/hard.img", tar.TypeLink, "/etc/passwd"),
		"block device":             typed("checkpoint/disk.img", tar.TypeBlock, ""),
		"character device":         typed("checkpoint/mem.img", tar.TypeChar, ""),
		"fifo":                     typed("checkpoint/fifo.img", tar.TypeFifo, ""),
		"another directory":        typed("other/", tar.TypeDir, ""),
		"no specification":         without(specFile),
		"specification of nothing": instead(specFile, "{}"),
		"specification of null":    instead(specFile, "null"),
		"no images":                without(imagesName + "/inventory.img"),
		"no files":                 without(diffFile),
		"no list of deletions":     without(deletedFile),
		"broken document":          instead(configFile, "{"),
		"huge document":            instead(deletedFile, `["`+strings.Repeat("x", maxDocument)+`"]`),
		"document of many values":  instead(specFile, strings.Replace(testSpec, `"root"`, `"mounts":[{}`+strings.Repeat(",{}", maxValues)+`],"root"`, 1)),
		"cut short":                func(t *testing.T) []byte { b := good(t).bytes(t); return b[:len(b)/2] },
		"no tar":                   func(*testing.T) []byte { return bytes.Repeat([]byte("no tar"), 1000) },
		"sparse, of a petabyte": func(t *testing.T) []byte {
			return append(sparse(t), good(t).bytes(t)...)
		},
	} {
		t.Run(name, func(t *testing.T) {
			s, _ := source(t, make(t))
			outside := t.TempDir()
			dir := filepath.Join(outside, "in", "part")
			if err := os.Mkdir(filepath.Dir(dir), 0o700); err != nil {
				t.Fatal(err)
			}
			if _, err := s.Unpack(t.Context(), "one", dir); !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), "one.tar") {
				t.Error(err)
			}
			for _, d := range []string{outside, filepath.Dir(dir)} {
				if left, _ := os.ReadDir(d); len(left) != 1 {
					t.Errorf("in %s: %v", d, left)
				}
			}
		})
	}
	for name, make := range map[string]struct {
		make func(t *testing.T) []byte
		is   func(error) bool
	}{
		"deletion that climbs":      {instead(deletedFile, `["/../../etc/passwd"]`), errdefs.IsInvalidArgument},
		"relative deletion":         {instead(deletedFile, `["etc/passwd"]`), errdefs.IsInvalidArgument},
		"deletion of all":           {instead(deletedFile, `["/"]`), errdefs.IsInvalidArgument},
		"file that is a mark":       {instead(diffFile, string(entries{entry("etc/.wh.passwd", "")}.bytes(t))), errdefs.IsNotImplemented},
		"mark of opaque":            {instead(diffFile, string(entries{entry(".wh..wh..opq", "")}.bytes(t))), errdefs.IsNotImplemented},
		"files that are no tar":     {instead(diffFile, strings.Repeat("no tar", 1000)), errdefs.IsInvalidArgument},
		"sparse file of a petabyte": {instead(diffFile, string(sparse(t))), errdefs.IsInvalidArgument},
	} {
		t.Run(name, func(t *testing.T) {
			s, _ := source(t, make.make(t))
			p, err := s.Unpack(t.Context(), "one", filepath.Join(t.TempDir(), "part"))
			if err != nil {
				t.Fatal(err)
			}
			if err := p.Layer(t.Context(), io.Discard); !make.is(err) {
				t.Error(err)
			}
		})
	}
}

// sparse is the header of a file of a petabyte that is one hole, as GNU tar has it.
func sparse(t *testing.T) []byte {
	t.Helper()
	b := entries{entry("checkpoint/hole.img", "")}.bytes(t)[:512]
	copy(b[156:], "S")
	copy(b[257:], "ustar  \x00")
	copy(b[386:], strings.Repeat("\x00", 126))
	copy(b[386:], "00000000000\x0000000000000\x00") // one fragment of nothing
	copy(b[483:], []byte{0x80, 0, 0, 0, 0, 4, 0, 0, 0, 0, 0, 0})
	sum := 0
	copy(b[148:], "        ")
	for _, c := range b {
		sum += int(c)
	}
	copy(b[148:], []byte(octal(sum)+"\x00 "))
	return b
}

func octal(n int) string {
	out := ""
	for range 6 {
		out = string(rune('0'+n%8)) + out
		n /= 8
	}
	return out
}

// TestHostileDirectories: neither names in documents nor links lead out of it.
func TestHostileDirectories(t *testing.T) {
	const options = `{"version":1,"containers":{"one":"one.tar"}}`
	for name, tc := range map[string]func(dir string) error{
		"no options":         func(dir string) error { return os.Remove(filepath.Join(dir, optionsFile)) },
		"another version":    doc(`{"version":2,"containers":{"one":"one.tar"}}`),
		"no containers":      doc(`{"version":1}`),
		"name of nothing":    doc(`{"version":1,"containers":{"":"one.tar"}}`),
		"path that climbs":   doc(`{"version":1,"containers":{"one":"../one.tar"}}`),
		"absolute path":      doc(`{"version":1,"containers":{"one":"/etc/passwd"}}`),
		"file of no name":    doc(`{"version":1,"containers":{"one":""}}`),
		"the directory":      doc(`{"version":1,"containers":{"one":"."}}`),
		"broken":             doc(`{"version":`),
		"name that is long":  doc(`{"version":1,"containers":{"` + strings.Repeat("x", maxName+1) + `":"one.tar"}}`),
		"options are a link": func(dir string) error { return relink(dir, optionsFile, options) },
		"options are a fifo": func(dir string) error {
			return errors.Join(os.Remove(filepath.Join(dir, optionsFile)), unix.Mkfifo(filepath.Join(dir, optionsFile), 0o600))
		},
	} {
		_, dir := source(t, good(t).bytes(t))
		if err := tc(dir); err != nil {
			t.Fatal(err)
		}
		if s, err := Open(dir); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%s: %v, %v", name, s, err)
		}
	}
	s, dir := source(t, good(t).bytes(t))
	// An error is sent to the client in a header.
	if err := doc(`{"version":` + strings.Repeat("1", 1<<20) + `}`)(dir); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(dir); !errdefs.IsInvalidArgument(err) || len(err.Error()) > 1000 {
		t.Errorf("text of %d bytes", len(err.Error()))
	}
	if err := errors.Join(relink(dir, "one.tar", string(good(t).bytes(t))), relink(dir, shmFile, "secret")); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Unpack(t.Context(), "one", filepath.Join(t.TempDir(), "part")); !errdefs.IsInvalidArgument(err) {
		t.Error(err)
	}
	if _, err := s.Shm(); !errdefs.IsInvalidArgument(err) {
		t.Error(err)
	}
	for _, dir := range []string{"", "x", "/x/../y", "/none/at/all"} {
		if _, err := Open(dir); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%q: %v", dir, err)
		}
	}
}

func doc(text string) func(dir string) error {
	return func(dir string) error { return os.WriteFile(filepath.Join(dir, optionsFile), []byte(text), 0o600) }
}

// relink puts a link to a good file, outside, in place of a file.
func relink(dir, name, text string) error {
	outside := filepath.Join(filepath.Dir(dir), "outside-"+name)
	_ = os.Remove(filepath.Join(dir, name)) // may not be there
	return errors.Join(os.WriteFile(outside, []byte(text), 0o600), os.Symlink(outside, filepath.Join(dir, name)))
}

// filler notes what it is given.
type filler struct{ layer []byte }

func (f *filler) Fill(_ context.Context, _ string, _ store.Image, files io.Reader) (err error) {
	f.layer, err = io.ReadAll(files)
	return err
}

func (f *filler) Unpack(context.Context, string, io.Reader) error { return nil }

func TestParcel(t *testing.T) {
	target := Target{ID: "c", Name: "one", Handler: "runc", Hostname: "new", Image: store.Image{ID: "sha256:55", RepoDigests: []string{"mirror/img@sha256:77"}}}
	unpack := func(change func(*Target)) (*Parcel, error) {
		s, _ := source(t, append(good(t), entry("checkpoint/utsns-11.img", string(utsImage("old", 0))), entry("checkpoint/utsns-12.img", string(utsImage("old", 9)))).bytes(t))
		p, target := &Parcel{From: s, Files: &filler{}}, target
		target.Dir = filepath.Join(t.TempDir(), "part")
		change(&target)
		return p, p.Unpack(t.Context(), target)
	}
	p, err := unpack(func(*Target) {})
	if err != nil {
		t.Fatal(err)
	}
	if len(p.Files.(*filler).layer) == 0 {
		t.Error("no files")
	}
	for name, domain := range map[string]int{"utsns-11.img": 0, "utsns-12.img": 9} {
		b, err := os.ReadFile(filepath.Join(p.Part.Images(), name))
		if err != nil || !bytes.Equal(b, utsImage("new", domain)) {
			t.Errorf("%q, %v", b, err)
		}
	}
	if _, err := unpack(func(t *Target) { t.Handler = "crun" }); !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), `"runc", not "crun"`) {
		t.Error(err)
	}
	if _, err := unpack(func(t *Target) { t.Image.RepoDigests = []string{"r/img@sha256:78"} }); !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), "sha256:77") {
		t.Error(err)
	}
	if _, err := unpack(func(t *Target) { t.Image = store.Image{ID: "sha256:77"} }); err != nil {
		t.Error(err)
	}

	now := *p.Part.Spec
	now.Annotations = nil
	refused := errors.New("refused")
	p.Vet = func(string, *specs.Spec, string) error { return refused }
	if err := p.Fit(&now, "/root"); !errors.Is(err, refused) || now.Annotations != nil {
		t.Error(err)
	}
	p.Vet = func(images string, doc *specs.Spec, root string) error {
		if images != p.Part.Images() || doc != &now || root != "/root" {
			t.Error(images, root)
		}
		return nil
	}
	if err := p.Fit(&now, "/root"); err != nil {
		t.Fatal(err)
	}
	if err := new(CRIU).Vet(p.Part.Images(), &now, "/"); !errdefs.IsInvalidArgument(err) {
		t.Errorf("an image that is none: %v", err)
	}
	b, err := os.ReadFile(now.Annotations["org.criu.config"])
	if err != nil || string(b) != "tcp-close\n" {
		t.Errorf("%q, %v", b, err)
	}
}

// utsImage is CRIU's image of a UTS namespace; domain: length of its domain name.
func utsImage(name string, domain int) []byte {
	m := append([]byte{0x0a, byte(len(name))}, name...)
	if domain > 0 {
		m = append(append(m, 0x12, byte(domain)), strings.Repeat("d", domain)...)
	}
	return append([]byte{1, 2, 3, 4, 5, 6, 7, 8, byte(len(m)), 0, 0, 0}, m...)
}

func TestRenamed(t *testing.T) {
	for _, bad := range []string{"", "short", "12345678\xff\xff\xff\xff", "12345678\x02\x00\x00\x00\x0a\x7f", "12345678\x01\x00\x00\x00\x0a"} {
		if b, err := renamed([]byte(bad), "n"); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%q: %q, %v", bad, b, err)
		}
	}
}

// TestRenameLarge: an image is not taken into memory only because it has the name
// of a small one.
func TestRenameLarge(t *testing.T) {
	p := &Part{dir: t.TempDir()}
	if err := os.Mkdir(p.Images(), 0o700); err != nil {
		t.Fatal(err)
	}
	text := protowire.AppendString(protowire.AppendTag(nil, 2, protowire.BytesType), strings.Repeat("d", maxUTS))
	put(t, p.Images(), "utsns-1.img", append(binary.LittleEndian.AppendUint32(make([]byte, 8), uint32(len(text))), text...))
	if err := p.rename("name"); !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), "utsns-1.img") {
		t.Error(err)
	}
}

// FuzzSource reads whatever a checkpoint may hold.
func FuzzSource(f *testing.F) {
	f.Add([]byte(`{"version":1,"containers":{"one":"one.tar"}}`), good(f).bytes(f))
	f.Add([]byte(`{"version":1,"containers":{"one":"one.tar"}}`), []byte{})
	f.Fuzz(func(t *testing.T, options, archive []byte) {
		dir := t.TempDir()
		put(t, dir, "one.tar", archive)
		put(t, dir, optionsFile, options)
		s, err := Open(dir)
		if err != nil {
			return
		}
		defer s.Close()
		for i, name := range s.Names() {
			p, err := s.Unpack(t.Context(), name, filepath.Join(t.TempDir(), string(rune('a'+i%26))))
			if err != nil {
				continue
			}
			_ = p.rename("h")
			_ = p.Layer(t.Context(), io.Discard)
			_ = Fits(p.Spec, p.Spec)
		}
	})
}

func decodeSpec(t *testing.T, text string, into any) {
	t.Helper()
	if err := json.Unmarshal([]byte(text), into); err != nil {
		t.Fatal(err)
	}
}

// TestNoNewPrivs: a CRIU that would lose it restores no container that has it.
func TestNoNewPrivs(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("PATH", dir)
	spec := &specs.Spec{Process: &specs.Process{NoNewPrivileges: true}}
	vet := func() error { return new(CRIU).Vet(t.TempDir(), spec, "/") }
	if err := vet(); !errdefs.IsFailedPrecondition(err) {
		t.Error(err)
	}
	for version, old := range map[string]bool{"3.17.1": true, "3.18": true, "2.20": true, "unknown": true, "3.19": false, "4.0": false} {
		put(t, dir, "criu", []byte("#!/bin/sh\necho Version: "+version+"\n"))
		if err := os.Chmod(filepath.Join(dir, "criu"), 0o755); err != nil {
			t.Fatal(err)
		}
		// What is new enough goes on to the images, of which there are none.
		if err := vet(); err == nil || errdefs.IsFailedPrecondition(err) != old {
			t.Errorf("%s: %v", version, err)
		}
	}
	spec.Process.NoNewPrivileges = false
	put(t, dir, "criu", []byte("#!/bin/sh\necho Version: 3.17\n"))
	if err := vet(); errdefs.IsFailedPrecondition(err) {
		t.Error(err)
	}
}

package layer

import (
	"archive/tar"
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	rt "github.com/berth-dev/berth/imageservice/registrytest"
)

func needRoot(t testing.TB) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root: changes owners, makes device nodes and trusted xattrs")
	}
}

func entry(name string, typ byte, link, body string) rt.File {
	return rt.File{Header: tar.Header{Name: name, Typeflag: typ, Linkname: link}, Body: body}
}

// unpackAt unpacks into dir/in, over the layers given, top first.
func unpackAt(t testing.TB, in string, plain []byte, l Limits, below ...string) (Result, error) {
	t.Helper()
	if err := os.MkdirAll(in, 0o755); err != nil {
		t.Fatal(err)
	}
	o := Options{Dir: in, Limits: l}
	if below != nil {
		o.Below = func(context.Context) (*View, error) { return OpenView(below) }
	}
	return Unpack(context.Background(), bytes.NewReader(plain), o)
}

// TestIntegrationHostile: nothing outside the layer's directory changes, and
// what cannot be placed is an error.
func TestIntegrationHostile(t *testing.T) {
	needRoot(t)
	tests := map[string]struct {
		files []rt.File
		is    func(error) bool // nil: unpacks, but inside
	}{
		"dot dot":                {[]rt.File{entry("../out", tar.TypeReg, "", "x")}, errdefs.IsInvalidArgument},
		"dot dot inside":         {[]rt.File{entry("a/../../out", tar.TypeReg, "", "x")}, errdefs.IsInvalidArgument},
		"dot dot whiteout":       {[]rt.File{entry("a/.wh...", tar.TypeReg, "", "")}, errdefs.IsInvalidArgument},
		"whiteout of all":        {[]rt.File{entry("a/.wh.", tar.TypeReg, "", "")}, errdefs.IsInvalidArgument},
		"absolute":               {[]rt.File{entry("/out", tar.TypeReg, "", "x")}, nil},
		"absolute symlink":       {[]rt.File{entry("l", tar.TypeSymlink, "/", ""), entry("l/out", tar.TypeReg, "", "x")}, nil},
		"climbing symlink":       {[]rt.File{entry("l", tar.TypeSymlink, "../../..", ""), entry("l/out", tar.TypeReg, "", "x")}, nil},
		"dangling symlink":       {[]rt.File{entry("l", tar.TypeSymlink, "/nowhere/at/all", ""), entry("l/out", tar.TypeReg, "", "x")}, nil},
		"proc symlink":           {[]rt.File{entry("l", tar.TypeSymlink, "/proc/self/root", ""), entry("l/out", tar.TypeReg, "", "x")}, nil},
		"symlink loop":           {[]rt.File{entry("l", tar.TypeSymlink, "l", ""), entry("l/out", tar.TypeReg, "", "x")}, errdefs.IsInvalidArgument},
		"write through a link":   {[]rt.File{entry("l", tar.TypeSymlink, "../victim", ""), entry("l", tar.TypeReg, "", "overwritten")}, nil},
		"hard link out":          {[]rt.File{entry("h", tar.TypeLink, "../victim", "")}, errdefs.IsInvalidArgument},
		"hard link by symlink":   {[]rt.File{entry("l", tar.TypeSymlink, "..", ""), entry("h", tar.TypeLink, "l/victim", "")}, errdefs.IsInvalidArgument},
		"hard link to nothing":   {[]rt.File{entry("h", tar.TypeLink, "nothing", "")}, errdefs.IsInvalidArgument},
		"hard link to directory": {[]rt.File{entry("d", tar.TypeDir, "", ""), entry("h", tar.TypeLink, "d", "")}, errdefs.IsInvalidArgument},
		"file as directory":      {[]rt.File{entry("f", tar.TypeReg, "", ""), entry("f/out", tar.TypeReg, "", "x")}, errdefs.IsInvalidArgument},
		"opaque at a symlink":    {[]rt.File{entry("l", tar.TypeSymlink, "..", ""), entry("l/.wh..wh..opq", tar.TypeReg, "", "")}, nil},
		"root as file":           {[]rt.File{entry(".", tar.TypeReg, "", "")}, errdefs.IsInvalidArgument},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			outer := t.TempDir()
			victim := filepath.Join(outer, "victim")
			_ = os.WriteFile(victim, []byte("safe"), 0o600)
			low := filepath.Join(outer, "low")
			_ = os.Mkdir(low, 0o755)
			_, err := unpackAt(t, filepath.Join(outer, "layer"), rt.Tar(t, tt.files...), Limits{}, low)
			if tt.is == nil && err != nil || tt.is != nil && !tt.is(err) {
				t.Errorf("got %v", err)
			}
			var st unix.Stat_t
			got, _ := os.ReadFile(victim)
			if _ = unix.Stat(victim, &st); string(got) != "safe" || st.Nlink != 1 {
				t.Errorf("victim: %q, %d links", got, st.Nlink)
			}
			if names, _ := os.ReadDir(outer); len(names) != 3 {
				t.Errorf("files outside the layer: %v", names)
			}
			if _, err := os.Lstat("/out"); err == nil {
				t.Error("/out was written")
			}
		})
	}
}

func TestIntegrationLimits(t *testing.T) {
	needRoot(t)
	zeros := rt.Tar(t, entry("z", tar.TypeReg, "", strings.Repeat("\x00", 4<<20)))
	var many, nodes []rt.File
	for i := range 50 {
		many = append(many, entry(fmt.Sprint(i), tar.TypeReg, "", ""))
		nodes = append(nodes, rt.File{Header: tar.Header{Name: fmt.Sprint(i), Typeflag: tar.TypeChar, Devmajor: 1, Devminor: 3}})
	}
	for name, tt := range map[string]struct {
		packed []byte
		l      Limits
	}{
		"bytes":   {zeros, Limits{Bytes: 1 << 20}},
		"ratio":   {rt.Pack(t, zeros, "gzip").Packed, Limits{RatioFloor: 1 << 20, Ratio: 100}},
		"zstd":    {rt.Pack(t, zeros, "zstd").Packed, Limits{RatioFloor: 1 << 20, Ratio: 100}},
		"entries": {rt.Tar(t, many...), Limits{Entries: 49}},
		"devices": {rt.Tar(t, nodes...), Limits{Devices: 49}},
	} {
		_, err := unpackAt(t, t.TempDir(), tt.packed, tt.l)
		if !errdefs.IsResourceExhausted(err) {
			t.Errorf("%s: got %v", name, err)
		}
	}
	if _, err := unpackAt(t, t.TempDir(), zeros[:len(zeros)/2], Limits{}); !errdefs.IsInvalidArgument(err) {
		t.Errorf("truncated: got %v", err)
	}
}

// TestIntegrationMergedParents: directories the tar does not mention keep what
// they are below: attributes, or a symlink to elsewhere.
func TestIntegrationMergedParents(t *testing.T) {
	needRoot(t)
	base := t.TempDir()
	low, mid, top := filepath.Join(base, "low"), filepath.Join(base, "mid"), filepath.Join(base, "top")
	when := time.Unix(1_000_000_000, 123456789)
	shared := rt.File{Header: tar.Header{Name: "usr/lib/", Typeflag: tar.TypeDir, Mode: 0o2711, Uid: 7, Gid: 8, ModTime: when, Format: tar.FormatPAX}}
	for _, step := range []struct {
		dir   string
		files []rt.File
		below []string
	}{
		{low, []rt.File{entry("usr/", tar.TypeDir, "", ""), shared, entry("lib", tar.TypeSymlink, "usr/lib", ""), entry("usr/lib/orig", tar.TypeReg, "", "orig")}, nil},
		{mid, []rt.File{entry("etc/x", tar.TypeReg, "", "")}, []string{low}},
		{top, []rt.File{entry("lib/new", tar.TypeReg, "", "new"), entry("hard", tar.TypeLink, "lib/orig", "")}, []string{mid, low}},
	} {
		if _, err := unpackAt(t, step.dir, rt.Tar(t, step.files...), Limits{}, step.below...); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := os.Lstat(filepath.Join(top, "lib")); !os.IsNotExist(err) {
		t.Error("a directory shadows the symlink of the layer below")
	}
	for name, want := range map[string]string{"usr/lib/new": "new", "hard": "orig", "usr/lib/orig": "orig"} {
		if got, err := os.ReadFile(filepath.Join(top, name)); err != nil || string(got) != want {
			t.Errorf("%s: %q, %v", name, got, err)
		}
	}
	var st unix.Stat_t
	if err := unix.Stat(filepath.Join(top, "usr/lib"), &st); err != nil || st.Mode&0o7777 != 0o2711 || st.Uid != 7 || st.Gid != 8 ||
		st.Mtim.Sec != 1_000_000_000 || st.Mtim.Nsec != 123456789 {
		t.Errorf("implied directory: %+v, %v", st, err)
	}
}

func TestIntegrationFidelity(t *testing.T) {
	needRoot(t)
	caps := "\x01\x00\x00\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"
	when := time.Unix(1_500_000_000, 987654321)
	plain := rt.Tar(t,
		rt.File{Header: tar.Header{Name: "ping", Mode: 0o4755, Uid: 3, Gid: 4, ModTime: when, Format: tar.FormatPAX, PAXRecords: map[string]string{
			"SCHILY.xattr.security.capability": caps, "SCHILY.xattr.user.note": "hi", "SCHILY.xattr.trusted.overlay.redirect": "/etc",
		}}, Body: "elf"},
		rt.File{Header: tar.Header{Name: "null", Typeflag: tar.TypeChar, Devmajor: 1, Devminor: 3, Mode: 0o666}},
		rt.File{Header: tar.Header{Name: "pipe", Typeflag: tar.TypeFifo, Mode: 0o600}},
		entry("d/.wh.x", tar.TypeReg, "", ""), entry("o/.wh..wh..opq", tar.TypeReg, "", ""),
		entry("w/.wh.y", tar.TypeReg, "", ""), entry("w/y/", tar.TypeDir, "", ""),
	)
	low, d := t.TempDir(), filepath.Join(t.TempDir(), "l")
	if _, err := unpackAt(t, d, plain, Limits{}, low); err != nil {
		t.Fatal(err)
	}
	stat := func(n string) (st unix.Stat_t) {
		if err := unix.Lstat(filepath.Join(d, n), &st); err != nil {
			t.Errorf("%s: %v", n, err)
		}
		return st
	}
	p := stat("ping")
	if p.Mode&0o7777 != 0o4755 || p.Uid != 3 || p.Gid != 4 || p.Mtim.Sec != when.Unix() || p.Mtim.Nsec != int64(when.Nanosecond()) {
		t.Errorf("ping: %+v", p)
	}
	buf := make([]byte, 64)
	if n, err := unix.Lgetxattr(filepath.Join(d, "ping"), "security.capability", buf); err != nil || string(buf[:n]) != caps {
		t.Errorf("capability: %v", err)
	}
	if _, err := unix.Lgetxattr(filepath.Join(d, "ping"), "trusted.overlay.redirect", buf); err == nil {
		t.Error("the image forged an overlayfs mark")
	}
	if st := stat("null"); st.Mode&unix.S_IFMT != unix.S_IFCHR || st.Rdev != unix.Mkdev(1, 3) {
		t.Errorf("null: %+v", st)
	}
	if st := stat("d/x"); !isWhiteout(st) {
		t.Errorf("whiteout: %+v", st)
	}
	for _, n := range []string{"o", "w/y"} {
		if got, err := unix.Lgetxattr(filepath.Join(d, n), opaqueXattr, buf); err != nil || string(buf[:got]) != "y" {
			t.Errorf("%s is not opaque: %v", n, err)
		}
	}
}

func FuzzUnpack(f *testing.F) {
	needRoot(f)
	f.Add(rt.Tar(f, entry("a/b", tar.TypeReg, "", "x"), entry("l", tar.TypeSymlink, "../..", ""), entry("l/x", tar.TypeReg, "", "y")))
	f.Add(rt.Tar(f, entry("d/.wh.x", tar.TypeReg, "", ""), entry("h", tar.TypeLink, "d/../a", "")))
	f.Add(rt.Pack(f, rt.Tar(f, entry("a", tar.TypeDir, "", "")), "gzip").Packed)
	f.Fuzz(func(t *testing.T, raw []byte) {
		outer := t.TempDir()
		low := filepath.Join(outer, "low")
		_ = os.Mkdir(low, 0o755)
		_ = os.Symlink("..", filepath.Join(low, "up"))
		_, _ = unpackAt(t, filepath.Join(outer, "layer"), raw, Limits{Bytes: 1 << 20, Entries: 200, Devices: 4}, low)
		if names, _ := os.ReadDir(outer); len(names) != 2 {
			t.Fatalf("files outside the layer: %v", names)
		}
	})
}

package image

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/binary"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/protobuf/encoding/protowire"
)

// msg is a message: int and uint64 become varints, zigzag a zigzag one, and what
// is repeated is a list.
type msg map[protowire.Number]any

type (
	zigzag int64
	list   []any
)

func (m msg) encode() (b []byte) {
	for _, n := range slices.Sorted(maps.Keys(m)) {
		all, ok := m[n].(list)
		if !ok {
			all = list{m[n]}
		}
		for _, v := range all {
			b = field(b, n, v)
		}
	}
	return b
}

func field(b []byte, n protowire.Number, v any) []byte {
	num := func(v uint64) []byte {
		return protowire.AppendVarint(protowire.AppendTag(b, n, protowire.VarintType), v)
	}
	data := func(v []byte) []byte { return protowire.AppendBytes(protowire.AppendTag(b, n, protowire.BytesType), v) }
	switch v := v.(type) {
	case int:
		return num(uint64(v))
	case uint64:
		return num(v)
	case bool:
		return num(protowire.EncodeBool(v))
	case zigzag:
		return num(protowire.EncodeZigZag(int64(v)))
	case string:
		return data([]byte(v))
	case []byte:
		return data(v)
	case msg:
		return data(v.encode())
	}
	panic(fmt.Sprintf("%T", v))
}

func (m msg) with(n protowire.Number, v any) msg {
	m[n] = v
	return m
}

func imageOf(magic uint32, all ...msg) (b []byte) {
	if magic != magicInventory {
		b = binary.LittleEndian.AppendUint32(b, magicCommon)
	}
	b = binary.LittleEndian.AppendUint32(b, magic)
	for _, m := range all {
		e := m.encode()
		b = append(binary.LittleEndian.AppendUint32(b, uint32(len(e))), e...)
	}
	return b
}

// fixture is a container as CRIU dumps it, and its specification.
type fixture struct {
	inventory msg
	tree      []msg
	ids, core map[int]msg
	mounts    []msg
	seccomp   msg
	files     []msg
	remaps    []msg
	ghosts    map[int]msg
	terminals []msg
	netns     msg
	tars      map[int][]byte
	more      map[string][]byte
	without   []string
	spec      *specs.Spec
	here      []string // paths in /proc and /sys of this node
}

// errno denies every call.
var errno = []byte{6, 0, 0, 0, 1, 0, 5, 0}

const caps = 1<<0 | 1<<1 | 1<<7 // CHOWN, DAC_OVERRIDE, SETUID

func credsOf(uid int) msg {
	return msg{1: uid, 2: 5, 3: uid, 4: 5, 5: uid, 6: 5, 7: uid, 8: 5, 9: list{0, 0}, 10: list{caps, 0}, 11: list{caps, 0}, 12: list{caps, 0},
		13: 0, 14: list{5, 6}, 15: "berth-default", 18: 1}
}

func threadOf() msg {
	return msg{1: 0, 2: 24, 3: zigzag(0), 4: 0, 10: credsOf(0), 11: 2, 12: 1, 13: "sh", 16: 3}
}

func mountOf(id, parent, dev, kind int, point string) msg {
	return msg{1: kind, 2: id, 3: dev, 4: parent, 5: 0, 6: "/", 7: point, 8: "none", 9: "", 10: 0, 11: 0, 17: 0}
}

// External mounts, by the number of their place in the fixture.
const (
	atRoot = iota
	atProc
	atDev
	atPTS
	atSys
	atCgroup
	atHosts
	atVolume
	atKcore
	atFirmware
	atProcSys
)

func good() *fixture {
	ns := msg{1: 2, 2: 2, 3: 2, 4: 2, 5: 9, 6: 10, 7: 11, 8: 12, 9: 13, 10: 7, 11: 14, 12: 5}
	task := func() msg {
		limits := make(list, 16)
		for i := range limits {
			limits[i] = msg{1: 0, 2: 0}
		}
		limits[1] = msg{1: 9, 2: 9}
		return msg{1: 1, 2: 0, 3: 0, 4: 0, 5: 0, 6: "sh", 8: msg{1: limits}, 9: 2, 14: 100}
	}
	f := &fixture{
		inventory: msg{1: 2, 2: true, 3: msg{1: 1, 2: 1, 3: 1, 4: 1, 5: 1, 6: 2, 7: 3, 8: 4, 9: 6, 10: 7, 11: 8, 12: 5}, 4: true, 5: 1, 6: 2, 11: 0},
		tree:      []msg{{1: 1, 2: 0, 3: 1, 4: 1, 5: list{1}}, {1: 7, 2: 1, 3: 1, 4: 1, 5: list{7, 8}}, {1: 9, 2: 1, 3: 1, 4: 1, 5: list{9}}},
		ids:       map[int]msg{1: maps.Clone(ns), 7: maps.Clone(ns)},
		core: map[int]msg{
			1: {1: 1, 2: []byte("registers"), 3: task(), 5: threadOf()}, 7: {1: 1, 3: task(), 5: threadOf()}, 8: {1: 1, 5: threadOf()},
			9: {1: 1, 3: msg{1: 2, 2: 0, 6: "dead"}},
		},
		mounts: []msg{
			atRoot: mountOf(20, 1, 29, fsOverlay, "/").with(5, 0x200000), atProc: mountOf(21, 20, 37, fsProc, "/proc").with(5, 14),
			atDev: mountOf(22, 20, 38, fsTmp, "/dev").with(5, 2), atPTS: mountOf(23, 22, 39, fsPTS, "/dev/pts").with(5, 10),
			atSys: mountOf(24, 20, 40, fsSys, "/sys").with(5, 15), atCgroup: mountOf(25, 24, 23, fsCgroup, "/sys/fs/cgroup").with(5, 15),
			atHosts: mountOf(26, 20, 7, 0, "/etc/hosts"), atVolume: mountOf(27, 20, 8, 0, "/volume").with(5, 1),
			atKcore: mountOf(28, 21, 38, fsTmp, "/proc/kcore").with(5, 2), atFirmware: mountOf(29, 24, 41, fsTmp, "/sys/firmware").with(5, 1),
			atProcSys: mountOf(30, 21, 37, fsProc, "/proc/sys").with(5, 15),
		},
		seccomp: msg{1: list{msg{1: errno, 3: 0}, msg{1: errno, 2: 0, 3: 1}}},
		files: []msg{
			{1: fileReg, 2: 1, 3: msg{1: 1, 2: 0, 3: 0, 5: msg{}, 6: "/bin/sh", 7: zigzag(20), 8: 7}},
			{1: filePipe, 2: 2, 18: msg{1: 2, 2: 77, 3: 1, 4: msg{}}},
			{1: fileInet, 2: 3, 4: msg{1: 3, 2: 5, 3: 2, 4: 1, 5: 6, 6: 10, 11: list{[]byte{0}}, 12: 0, 14: msg{1: 9, 2: 9, 10: 0}}},
			{1: fileUnix, 2: 4, 16: msg{1: 4, 2: 6, 3: 1, 6: 0, 10: msg{}, 11: []byte("\x00abstract\x00")}},
			{1: fileReg, 2: 5, 3: msg{1: 5, 2: 2, 6: "/tmp/gone", 7: zigzag(20)}},
			{1: fileInotify, 2: 6, 13: msg{1: 6, 2: 0, 5: list{msg{1: 6, 2: uint64(99), 5: 38, 7: msg{1: 8, 2: 1, 3: list{uint64(1)}}}}}},
			{1: fileNetlink, 2: 7, 7: msg{1: 7, 3: 0, 8: list{1}, 12: msg{}}},
		},
		remaps:    []msg{{1: 5, 2: 0xa, 3: remapGhost}},
		ghosts:    map[int]msg{0xa: {1: 0, 2: 0, 3: 0o100644, 9: false}},
		terminals: []msg{{1: 1, 2: ttyPTY}},
		netns:     msg{8: "extRootNetNS"},
		tars: map[int][]byte{
			38: archiveOf(dir("./"), dir("./pts/"), link("./fd", "/proc/self/fd"), device("./null", 1, 3), file("./data", "x")),
			41: archiveOf(dir("./")),
		},
		more: map[string][]byte{"pages-1.img": nil, "mm-1.img": imageOf(magicMemory, memoryOf()), "cgroup.img": imageOf(magicCgroup, cgroupsOf()),
			"descriptors.json": []byte(`["/dev/null","pipe:[77]","pipe:[78]"]`)},
		here: []string{"/proc/kcore", "/proc/sys", "/sys/firmware"},
		spec: specOf(),
	}
	f.mounts[atHosts][18], f.mounts[atVolume][18], f.mounts[atKcore][18] = "/etc/hosts", "/volume", "/dev/null"
	f.mounts[atKcore][6], f.mounts[atProcSys][6] = "/null", "/sys"
	return f
}

// memoryOf is a map of a program, a ring for asynchronous input and output, and
// the page of the kernel's that old programs call.
func memoryOf() msg {
	area := func(start, end uint64, status int) msg {
		return msg{1: start, 2: end, 3: 0, 4: 0, 5: 1, 6: 2, 7: status, 8: zigzag(-1)}
	}
	return msg{1: 0x400000, 12: 1, 13: list{1, 2}, 14: list{area(0x400000, 0x402000, 65), area(0x402000, 0x403000, 1|1<<13),
		area(0xffffffffff600000, 0xffffffffff601000, 4)}, 16: msg{1: 0x402000, 2: 8, 3: 0x1000}}
}

func cgroupsOf() msg {
	set := func(id int) msg { return msg{1: id, 2: msg{1: "", 2: "/berth/pod/c", 3: 12}} }
	return msg{1: list{set(2), set(3)}, 2: msg{1: "", 2: msg{1: "berth/pod/c", 3: msg{1: "cgroup.procs", 2: "", 3: msg{1: 0o100644, 2: 0, 3: 0}},
		4: msg{1: 0o40755, 2: 0, 3: 0}}}}
}

func specOf() *specs.Spec {
	names := []string{"CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_SETUID"}
	adj := 100
	return &specs.Spec{
		Root: &specs.Root{Path: "rootfs"},
		Process: &specs.Process{User: specs.User{UID: 0, GID: 5, AdditionalGids: []uint32{6}}, ApparmorProfile: "berth-default", NoNewPrivileges: true,
			OOMScoreAdj: &adj, Rlimits: []specs.POSIXRlimit{{Type: "RLIMIT_FSIZE", Soft: 9, Hard: 9}},
			Capabilities: &specs.LinuxCapabilities{Bounding: names, Permitted: names, Effective: names}},
		Mounts: []specs.Mount{
			{Destination: "/proc", Type: "proc", Options: []string{"nosuid", "noexec", "nodev"}},
			{Destination: "/dev", Type: "tmpfs", Options: []string{"nosuid"}},
			{Destination: "/dev/pts", Type: "devpts", Options: []string{"nosuid", "noexec"}},
			{Destination: "/sys", Type: "sysfs", Options: []string{"nosuid", "noexec", "nodev", "ro"}},
			{Destination: "/sys/fs/cgroup", Type: "cgroup", Options: []string{"ro"}},
			{Destination: "/etc/hosts", Type: "bind", Options: []string{"rbind", "rprivate", "rw"}},
			{Destination: "/volume/", Type: "bind", Options: []string{"rbind", "ro"}},
		},
		Linux: &specs.Linux{
			Namespaces: []specs.LinuxNamespace{{Type: "mount"}, {Type: "network", Path: "/net"}, {Type: "ipc", Path: "/ipc"},
				{Type: "uts", Path: "/uts"}, {Type: "pid"}, {Type: "cgroup"}},
			Seccomp:     &specs.LinuxSeccomp{DefaultAction: specs.ActErrno},
			MaskedPaths: []string{"/proc/kcore", "/proc/acpi", "/sys/firmware"}, ReadonlyPaths: []string{"/proc/sys"},
		},
	}
}

func dir(name string) *tar.Header { return &tar.Header{Typeflag: tar.TypeDir, Name: name, Mode: 0o755} }
func link(name, to string) *tar.Header {
	return &tar.Header{Typeflag: tar.TypeSymlink, Name: name, Linkname: to}
}
func device(name string, major, minor int64) *tar.Header {
	return &tar.Header{Typeflag: tar.TypeChar, Name: name, Devmajor: major, Devminor: minor}
}
func file(name, data string) *tar.Header {
	return &tar.Header{Typeflag: tar.TypeReg, Name: name, Size: int64(len(data)), Uname: data}
}

// archiveOf packs files as tar of the dump does; the owner's name is the data.
func archiveOf(all ...*tar.Header) []byte {
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	w := tar.NewWriter(z)
	for _, h := range all {
		h := *h
		data := h.Uname
		h.Uname = ""
		if h.Format == tar.FormatUnknown {
			h.Format = tar.FormatGNU
		}
		if err := w.WriteHeader(&h); err != nil {
			panic(err)
		}
		if _, err := w.Write([]byte(data)); err != nil {
			panic(err)
		}
	}
	if err := w.Close(); err != nil {
		panic(err)
	}
	if err := z.Close(); err != nil {
		panic(err)
	}
	return b.Bytes()
}

// images returns the files of the directory.
func (f *fixture) images() map[string][]byte {
	out := map[string][]byte{
		"inventory.img": imageOf(magicInventory, f.inventory), "pstree.img": imageOf(magicPstree, f.tree...),
		"mountpoints-13.img": imageOf(magicMounts, f.mounts...), "seccomp.img": imageOf(magicSeccomp, f.seccomp),
		"files.img": imageOf(magicFiles, f.files...), "remap-fpath.img": imageOf(magicRemap, f.remaps...),
		"tty-info.img": imageOf(magicTTY, f.terminals...), "netns-10.img": imageOf(magicNetns, f.netns),
	}
	for id, m := range f.ids {
		out[fmt.Sprintf("ids-%d.img", id)] = imageOf(magicIDs, m)
	}
	for id, m := range f.core {
		out[fmt.Sprintf("core-%d.img", id)] = imageOf(magicCore, m)
	}
	for id, m := range f.ghosts {
		out[fmt.Sprintf("ghost-file-%x.img", id)] = append(imageOf(magicGhost, m), "the file's data"...)
	}
	for id, b := range f.tars {
		out[fmt.Sprintf("tmpfs-dev-%d.tar.gz.img", id)] = b
	}
	maps.Copy(out, f.more)
	for _, name := range f.without {
		delete(out, name)
	}
	return out
}

func (f *fixture) write(t testing.TB) string {
	t.Helper()
	d := t.TempDir()
	for name, b := range f.images() {
		if err := os.WriteFile(filepath.Join(d, name), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return d
}

// verdict reads and checks the images.
func (f *fixture) verdict(t testing.TB) error {
	t.Helper()
	img, err := Read(f.write(t))
	if err != nil {
		return err
	}
	return checkOn(img, f.spec, func(p string) bool { return slices.Contains(f.here, p) })
}

package image

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/protobuf/encoding/protowire"
)

func TestCheckGood(t *testing.T) {
	if err := good().verdict(t); err != nil {
		t.Error(err)
	}
}

// TestCheckAllowed has what differs from the first container and is restored too.
func TestCheckAllowed(t *testing.T) {
	for name, change := range map[string]func(f *fixture){
		"threads share a filter": func(f *fixture) {
			f.seccomp = msg{1: list{msg{1: errno, 3: 1}, msg{1: errno, 2: 0, 3: 1}}}
			f.core[8][5].(msg)[11] = 0
		},
		"fewer rights": func(f *fixture) {
			f.creds(7)[10], f.creds(7)[11] = list{1, 0}, list{0, 0}
			f.creds(7)[1], f.creds(7)[3] = 1000, 1000
		},
		"no profile at all": func(f *fixture) {
			f.spec.Process.ApparmorProfile, f.spec.Linux.Seccomp, f.spec.Process.NoNewPrivileges = "unconfined", nil, false
			f.seccomp = msg{}
			f.inventory[6] = 0
			for _, id := range []int{1, 7, 8} {
				delete(f.creds(id), 15)
				delete(f.creds(id), 18)
				f.core[id][5].(msg)[11] = 0
			}
		},
		"the node's network": func(f *fixture) {
			f.spec.Linux.Namespaces = append(f.spec.Linux.Namespaces[:1:1], f.spec.Linux.Namespaces[2:]...)
			f.ids[1][6], f.ids[7][6] = 2, 2
			f.without = append(f.without, "netns-10.img")
		},
		"a user namespace": func(f *fixture) {
			f.ids[1][10], f.ids[7][10] = 70, 70
			f.spec.Linux.Namespaces = append(f.spec.Linux.Namespaces, specs.LinuxNamespace{Type: "user"})
			f.spec.Linux.UIDMappings = []specs.LinuxIDMapping{{HostID: 100000, Size: 65536}}
			f.spec.Linux.GIDMappings = []specs.LinuxIDMapping{{HostID: 200000, Size: 65536}}
			f.more["userns-70.img"] = imageOf(magicUserns, msg{1: msg{1: 0, 2: 100000, 3: 65536}, 2: msg{1: 0, 2: 200000, 3: 65536}})
		},
		"the pod's PID namespace": func(f *fixture) {
			f.spec.Linux.Namespaces[4].Path = "/pid"
			f.more["pidns-9.img"] = imageOf(magicPidns, msg{1: "extRootPidNS"})
		},
		"a path that this node has not": func(f *fixture) {
			f.mounts = f.mounts[:atProcSys]
			f.here = nil
		},
		"a terminal": func(f *fixture) {
			f.spec.Process.Terminal = true
			m := mountOf(40, 22, 39, fsPTS, "/dev/console").with(5, 10)
			m[6] = "/0"
			f.mounts = append(f.mounts, m)
			f.tars[38] = archiveOf(dir("./"), dir("./pts/"), file("./console", ""))
		},
		"a device": func(f *fixture) {
			f.tars[38] = archiveOf(dir("./"), dir("./pts/"), device("./kvm", 10, 232))
			f.spec.Linux.Devices = []specs.LinuxDevice{{Path: "/dev/kvm", Type: "c", Major: 10, Minor: 232}}
		},
		"a file of a long name": func(f *fixture) {
			f.tars[38] = archiveOf(dir("./"), dir("./pts/"), file("./"+strings.Repeat("long", 60), "data"), file("./more", "data"))
		},
		"a file that was removed from a tmpfs": func(f *fixture) {
			f.files[4][3].(msg)[6] = "/dev/pts-of/gone"
			f.files[4][3].(msg)[7] = zigzag(22)
			f.tars[38] = archiveOf(dir("./"), dir("./pts/"), dir("./pts-of/"))
		},
		"a shared volume": func(f *fixture) {
			f.spec.Mounts[6].Options = []string{"rbind", "ro", "rshared"}
			f.mounts[atVolume][10], f.mounts[atVolume][5] = 3, 1|1<<20
		},
		"an external socket of root": func(f *fixture) { f.files[3][16].(msg)[6] = 1 },
		"a negative adjustment": func(f *fixture) {
			*f.spec.Process.OOMScoreAdj = -998
			f.core[1][3].(msg)[14] = int64num(-998)
			f.core[7][3].(msg)[14] = int64num(-5)
		},
	} {
		t.Run(name, func(t *testing.T) {
			f := good()
			change(f)
			if err := f.verdict(t); err != nil {
				t.Error(err)
			}
		})
	}
}

func int64num(v int64) uint64 { return uint64(v) }

// creds are those of a thread.
func (f *fixture) creds(tid int) msg { return f.core[tid][5].(msg)[10].(msg) }

type refusal struct {
	name   string
	want   string
	change func(f *fixture)
}

func refused(t *testing.T, all []refusal) {
	for _, r := range all {
		t.Run(r.name, func(t *testing.T) {
			f := good()
			r.change(f)
			err := f.verdict(t)
			if err == nil {
				t.Fatal("it is restored")
			}
			if !strings.Contains(err.Error(), r.want) {
				t.Errorf("%v\nlacks %q", err, r.want)
			}
			if !errdefs.IsFailedPrecondition(err) && !errdefs.IsInvalidArgument(err) {
				t.Errorf("%v is of no kind", err)
			}
		})
	}
}

func TestRefusedTasks(t *testing.T) {
	refused(t, []refusal{
		{"permitted", "thread 8 of process 7: its permitted capabilities include CAP_SYS_ADMIN,", func(f *fixture) { f.creds(8)[10] = list{caps | 1<<21, 0} }},
		{"effective", "effective capabilities include CAP_BPF", func(f *fixture) { f.creds(7)[11] = list{caps, 1 << 7} }},
		{"inheritable", "inheritable capabilities include CAP_SYS_MODULE", func(f *fixture) { f.creds(1)[9] = list{1 << 16, 0} }},
		{"bounding", "bounding capabilities include CAP_SYS_PTRACE", func(f *fixture) { f.creds(1)[12] = list{1 << 19, 0} }},
		{"ambient", "ambient capabilities include CAP_NET_ADMIN", func(f *fixture) { f.creds(1)[19] = list{1 << 12, 0} }},
		{"a capability of the future", "include 63", func(f *fixture) { f.creds(1)[12] = list{0, 1 << 31} }},
		{"short set", "capabilities of 32 bits", func(f *fixture) { f.creds(1)[12] = list{1} }},
		{"long set", "more than 64", func(f *fixture) { f.creds(1)[12] = list{1, 0, 0} }},
		{"no sets", "not all sets", func(f *fixture) { delete(f.creds(1), 12) }},
		{"more than it began with", "permitted capabilities include CAP_SETUID", func(f *fixture) { f.spec.Process.Capabilities.Permitted = []string{"CAP_CHOWN", "CAP_DAC_OVERRIDE"} }},
		{"privileges", "no_new_privs", func(f *fixture) { delete(f.creds(8), 18) }},
		{"securebits", "securebits", func(f *fixture) { f.creds(8)[13] = 1 }},
		{"no credentials", "no credentials", func(f *fixture) { delete(f.core[8][5].(msg), 10) }},
		{"no thread", "no credentials", func(f *fixture) { delete(f.core[8], 5) }},
		{"old credentials", `no container needs the image "creds-8.img"`, func(f *fixture) { f.more["creds-8.img"] = nil }},
		{"user", "its user is", func(f *fixture) {
			f.spec.Process.User.UID = 1000
			f.spec.Process.Capabilities.Bounding = []string{"CAP_CHOWN", "CAP_DAC_OVERRIDE"}
			for _, id := range []int{1, 7, 8} {
				f.core[id][5].(msg)[10] = credsOf(1000)
				for n := protowire.Number(9); n <= 12; n++ {
					f.creds(id)[n] = list{0, 0}
				}
			}
			f.creds(8)[7] = 0
		}},
		{"group", "it is in group 0", func(f *fixture) { f.creds(7)[6] = 0 }},
		{"supplementary group", "it is in group 4", func(f *fixture) { f.creds(7)[14] = list{5, 4} }},
		{"unconfined", `its label is ""`, func(f *fixture) { f.creds(7)[15] = "unconfined" }},
		{"another profile", `its label is "other"`, func(f *fixture) { f.creds(7)[15] = "other" }},
		{"no module", "no profile of AppArmor", func(f *fixture) { f.inventory[6] = 0 }},
		{"SELinux", "no label of SELinux", func(f *fixture) { f.spec.Process.SelinuxLabel = "system_u:system_r:container_t:s0" }},
		{"label for sockets", "sockets", func(f *fixture) { f.creds(7)[16] = "x" }},
		{"policies", "policies", func(f *fixture) { f.creds(7)[17] = "x" }},
		{"policies of AppArmor", `the image "apparmor.img"`, func(f *fixture) { f.more["apparmor.img"] = nil }},
		{"no filter", "process 1: it has no seccomp filter: its mode is 0", func(f *fixture) { f.core[1][5].(msg)[11] = 0 }},
		{"a filter for one thread", "number 1 is not for all", func(f *fixture) { f.core[8][5].(msg)[11] = 0; f.seccomp[1].(list)[1].(msg)[3] = 0 }},
		{"the filter before is not for all", "number 0 is not for all", func(f *fixture) { f.core[8][5].(msg)[11] = 0 }},
		{"no such filter", "no seccomp filter 5", func(f *fixture) { f.core[8][5].(msg)[12] = 5 }},
		{"filters in a circle", "no end", func(f *fixture) { f.seccomp[1].(list)[0].(msg)[2] = 1 }},
		{"no filters", "there are none", func(f *fixture) { f.seccomp = msg{} }},
		{"empty filter", "0 bytes", func(f *fixture) { f.seccomp[1].(list)[1].(msg)[1] = "" }},
		{"filter with a listener", "flags 0x9", func(f *fixture) { f.seccomp[1].(list)[1].(msg)[3] = 9 }},
		{"real time", "scheduling policy is 1", func(f *fixture) { f.core[8][5].(msg)[4] = 1 }},
		{"nice", "nice value is -20", func(f *fixture) { f.core[8][5].(msg)[3] = zigzag(-20) }},
		{"never killed", "oom_score_adj is -1000", func(f *fixture) { f.core[7][3].(msg)[14] = int64num(-1000) }},
		{"limit", "RLIMIT_FSIZE is 10", func(f *fixture) { f.core[7][3].(msg)[8].(msg)[1].(list)[1].(msg)[2] = 10 }},
		{"limit of real time", "RLIMIT_RTPRIO is 99", func(f *fixture) { f.core[7][3].(msg)[8].(msg)[1].(list)[14].(msg)[2] = 99 }},
		{"limits left out", "no RLIMIT_FSIZE", func(f *fixture) { delete(f.core[7][3].(msg), 8) }},
		{"state", "state 6", func(f *fixture) { f.core[7][3].(msg)[1] = 6 }},
		{"first is dead", "not the container's first", func(f *fixture) { f.core[1][3].(msg)[1] = 2 }},
		{"thread twice", "8 is there twice", func(f *fixture) { f.tree[2][5] = list{9, 8} }},
		{"other thread first", "not the first", func(f *fixture) { f.tree[1][5] = list{8, 7} }},
		{"second tree", "has no parent", func(f *fixture) { f.tree[1][2] = 0 }},
		{"no core", "core-8.img", func(f *fixture) { f.without = []string{"core-8.img"} }},
	})
}

func TestRefusedNamespaces(t *testing.T) {
	both := func(f *fixture, n protowire.Number, id int) { f.ids[1][n], f.ids[7][n] = id, id }
	refused(t, []refusal{
		{"mount", "the mount namespace", func(f *fixture) {
			both(f, 9, 6)
			f.more["mountpoints-6.img"] = f.images()["mountpoints-13.img"]
			f.without = []string{"mountpoints-13.img"}
		}},
		{"pid", "the pid namespace", func(f *fixture) { both(f, 5, 1) }},
		{"net", "the network namespace", func(f *fixture) { both(f, 6, 2) }},
		{"ipc", "the ipc namespace", func(f *fixture) { both(f, 7, 3) }},
		{"uts", "the uts namespace", func(f *fixture) { both(f, 8, 4) }},
		{"user", "the user namespace", func(f *fixture) { both(f, 10, 99) }},
		{"left out", "the ipc namespace", func(f *fixture) { delete(f.ids[1], 7); delete(f.ids[7], 7) }},
		{"node's left out", "that of CRIU was 0", func(f *fixture) { delete(f.inventory, 3) }},
		{"nested", "process 7 is in namespaces of its own", func(f *fixture) { f.ids[7][6] = 99 }},
		{"none", "process 7 is in namespaces of its own", func(f *fixture) { f.without = []string{"ids-7.img"} }},
		{"the node's processes", "pid namespace cannot be restored", func(f *fixture) { f.spec.Linux.Namespaces = f.spec.Linux.Namespaces[:4] }},
		{"not the first process", "first process of the PID namespace", func(f *fixture) {
			f.tree[0] = msg{1: 5, 2: 0, 3: 1, 4: 1, 5: list{5}}
			f.tree[1][2], f.tree[2][2] = 5, 5
			f.core[5], f.ids[5] = f.core[1], f.ids[1]
		}},
		{"a network of its own", "the key of the network namespace", func(f *fixture) { f.netns = msg{} }},
		{"another network", "the key of the network namespace", func(f *fixture) { f.netns[8] = "pipe:[77]" }},
		{"two networks", "another network namespace", func(f *fixture) { f.more["netns-11.img"] = imageOf(magicNetns, msg{8: "extRootNetNS"}) }},
		{"processes of others", "the key of the pid namespace", func(f *fixture) { f.more["pidns-9.img"] = imageOf(magicPidns, msg{1: "extRootNetNS"}) }},
		{"two mount namespaces", "mounts of other namespaces", func(f *fixture) { f.more["mountpoints-14.img"] = f.images()["mountpoints-13.img"] }},
		{"devices of the network", `the image "netdev-10.img"`, func(f *fixture) { f.more["netdev-10.img"] = nil }},
		{"rules", `the image "iptables-10.img"`, func(f *fixture) { f.more["iptables-10.img"] = nil }},
		{"user mapping", "the user namespace maps", func(f *fixture) {
			both(f, 10, 70)
			f.spec.Linux.Namespaces = append(f.spec.Linux.Namespaces, specs.LinuxNamespace{Type: "user"})
			f.more["userns-70.img"] = imageOf(magicUserns, msg{1: msg{1: 0, 2: 0, 3: 65536}})
		}},
		{"user mapping for nobody", "images of user namespaces", func(f *fixture) { f.more["userns-7.img"] = imageOf(magicUserns, msg{}) }},
	})
}

func TestRefusedMounts(t *testing.T) {
	set := func(at int, n protowire.Number, v any) func(*fixture) {
		return func(f *fixture) { f.mounts[at][n] = v }
	}
	add := func(id, parent, dev, kind int, point string) func(*fixture) {
		return func(f *fixture) { f.mounts = append(f.mounts, mountOf(id, parent, dev, kind, point)) }
	}
	refused(t, []refusal{
		{"bound by flags", "flags 0x1000, 0x0", set(atPTS, 5, 0x1000)},
		{"bound by flags of the file system", "0x1000", set(atPTS, 17, 0x1000)},
		{"moved", "0x2000", set(atPTS, 17, 0x2000)},
		{"flags as they were", "not restored", func(f *fixture) { delete(f.mounts[atPTS], 17) }},
		{"plugin", "not restored", set(atPTS, 12, true)},
		{"external as it was", "not restored", func(f *fixture) { f.mounts[atPTS][13] = true }},
		{"type by name", "not restored", set(atPTS, 14, "ext4")},
		{"deleted", "not restored", set(atHosts, 16, true)},
		{"another type", "here it is type 17", set(atDev, 1, fsOverlay)},
		{"device", "here it is type 16", set(atDev, 1, 16)},
		{"the node's path", `its source is "/etc"`, set(atPTS, 8, "/etc")},
		{"a part of a file system", `it is of "" and "/../etc"`, set(atPTS, 6, "/../etc")},
		{"more", "the container has none there", add(50, 20, 60, fsTmp, "/more")},
		{"outside", `mount at "/../etc"`, add(50, 20, 60, fsTmp, "/../etc")},
		{"over another", "two mounts at /proc", add(50, 21, 60, fsTmp, "/proc")},
		{"same number", "with the number 21", set(atPTS, 2, 21)},
		{"below another", "it is not below /dev", set(atPTS, 4, 20)},
		{"no root", "no root", set(atRoot, 7, "/x")},
		{"root in a circle", "no root", set(atRoot, 4, 21)},
		{"root by a key", `its key is "/volume"`, set(atRoot, 18, "/volume")},
		{"another volume", "here its key is", set(atHosts, 18, "/volume")},
		{"not a volume", `here its key is ""`, func(f *fixture) { delete(f.mounts[atHosts], 18) }},
		{"writable volume", "it is not ro", set(atVolume, 5, 0)},
		{"programs in sysfs", "it is not noexec", set(atSys, 5, 7)},
		{"writable root", "it is not ro", func(f *fixture) { f.spec.Root.Readonly = true }},
		{"shared", "it is shared", set(atVolume, 10, 7)},
		{"shared by flags", "it is shared", set(atRoot, 5, 1<<20)},
		{"slave", "a slave", set(atVolume, 11, 7)},
		{"in a volume", "it lies in the volume", func(f *fixture) {
			m := mountOf(50, 27, 9, 0, "/volume/sub")
			m[18] = "/volume/sub"
			f.mounts = append(f.mounts, m)
			f.spec.Mounts = append(f.spec.Mounts, specs.Mount{Destination: "/volume/sub", Type: "bind"})
		}},
		{"same file system as a volume", "same file system as /volume", set(atPTS, 3, 8)},
		{"two types", "two types", set(atPTS, 3, 40)},
		{"not masked", "/sys/firmware is neither", func(f *fixture) { f.mounts[atFirmware] = f.mounts[atProcSys]; f.mounts = f.mounts[:atProcSys] }},
		{"not protected", "/proc/sys is neither", func(f *fixture) { f.mounts = f.mounts[:atProcSys] }},
		{"new here", "/proc/acpi is neither", func(f *fixture) { f.here = append(f.here, "/proc/acpi") }},
		{"not mounted", "nothing is mounted at /etc/hosts", func(f *fixture) { f.mounts[atHosts] = f.mounts[atProcSys]; f.mounts = f.mounts[:atProcSys] }},
		{"masked by itself", "hides nothing", set(atFirmware, 1, fsSys)},
		{"mask can be written", "hides nothing", set(atFirmware, 5, 0)},
		{"mask with files", "it has files", func(f *fixture) { f.tars[41] = archiveOf(dir("./"), file("./x", "")) }},
		{"mask of another", `it is of "/"`, set(atKcore, 6, "/")},
		{"mask by a volume", "", set(atKcore, 18, "/volume")},
		{"protected for nothing", "not read-only", set(atProcSys, 5, 14)},
		{"another path", `it is of "/sysrq-trigger"`, set(atProcSys, 6, "/sysrq-trigger")},
		{"path over a link", `it is of "/self/root/../sys"`, set(atProcSys, 6, "/self/root/../sys")},
		{"protected from another", "not of what is at /proc", set(atProcSys, 3, 99)},
		{"console", "the container has none there", add(50, 22, 39, fsPTS, "/dev/console")},
		{"console elsewhere", `it is "/../x"`, func(f *fixture) {
			f.spec.Process.Terminal = true
			m := mountOf(50, 22, 39, fsPTS, "/dev/console")
			m[6] = "/../x"
			f.mounts = append(f.mounts, m)
		}},
		{"disk in /dev", `"sda" is the device b 8:0`, func(f *fixture) {
			d := device("./sda", 8, 0)
			d.Typeflag = tar.TypeBlock
			f.tars[38] = archiveOf(dir("./"), dir("./pts/"), d)
		}},
		{"memory in /dev", `"x/mem" is the device c 1:1`, func(f *fixture) {
			f.tars[38] = archiveOf(dir("./"), dir("./pts/"), dir("./x/"), device("./x/mem", 1, 1))
		}},
		{"link for a mount", `"pts", where another`, func(f *fixture) { f.tars[38] = archiveOf(dir("./"), link("./pts", "/etc")) }},
		{"no place for a mount", `"pts", where another`, func(f *fixture) { f.tars[38] = archiveOf(dir("./")) }},
		{"no archive", "no archive", func(f *fixture) { delete(f.tars, 38) }},
		{"archive as it was", `the image "tmpfs-22.tar.gz.img"`, func(f *fixture) { f.more["tmpfs-22.tar.gz.img"] = f.tars[38] }},
		{"automounts", `the image "autofs-5.img"`, func(f *fixture) { f.more["autofs-5.img"] = nil }},
		{"interpreters", `the image "binfmt-misc.img"`, func(f *fixture) { f.more["binfmt-misc.img"] = nil }},
	})
}

func TestRefusedFiles(t *testing.T) {
	reg := func(n protowire.Number, v any) func(*fixture) { return func(f *fixture) { f.files[0][3].(msg)[n] = v } }
	refused(t, []refusal{
		{"up", `path "/../etc/shadow"`, reg(6, "/../etc/shadow")},
		{"over CRIU's own", `path "/proc/self/fd/1018/etc"`, reg(6, "/proc/self/fd/1018/etc")},
		{"over a root", `path "//proc/1/root/etc"`, reg(6, "//proc/1/root/etc")},
		{"over a link", `path "/dev/fd/1018/etc" goes over a link`, reg(6, "/dev/fd/1018/etc")},
		{"no path", `path ""`, reg(6, "")},
		{"short path", "zero byte", reg(6, "/x\x00/..")},
		{"the runtime's", "to be the runtime's", reg(9, true)},
		{"two types", "two types", func(f *fixture) { f.files[0][17] = msg{} }},
		{"not its type", "has field 3", func(f *fixture) { f.files[0][1] = filePipe }},
		{"namespace", "of type 14, which", func(f *fixture) { f.files[1] = msg{1: 14, 2: 2, 5: msg{}} }},
		{"plugin's", "of type 16, which", func(f *fixture) { f.files[1] = msg{1: 16, 2: 2, 15: msg{}} }},
		{"packets", "of type 10, which", func(f *fixture) { f.files[1] = msg{1: 10, 2: 2, 6: msg{}} }},
		{"fanotify", "of type 12, which", func(f *fixture) { f.files[1] = msg{1: 12, 2: 2, 14: msg{}} }},
		{"raw socket", "a raw socket", func(f *fixture) { f.files[2][4].(msg)[4] = 3 }},
		{"marked socket", "a mark", func(f *fixture) { f.files[2][4].(msg)[14] = msg{10: 0x4000} }},
		{"bound socket", "bound to a device", func(f *fixture) { f.files[2][4].(msg)[14] = msg{15: "eth0"} }},
		{"audit", "groups of protocol 9", func(f *fixture) { f.files[6][7].(msg)[3] = 9 }},
		{"socket by a plugin", "flags 0x4", func(f *fixture) { f.files[3][16].(msg)[6] = 4 }},
		{"socket of root", "root would open it", func(f *fixture) { f.files[3][16].(msg)[6] = 1; f.spec.Process.User.UID = 1000 }},
		{"socket up", "path", func(f *fixture) { f.files[3][16].(msg)[11] = []byte("/tmp/../x") }},
		{"socket in a directory", "path", func(f *fixture) { f.files[3][16].(msg)[14] = "/tmp/.." }},
		{"watch on a volume", "watches a file on a volume", func(f *fixture) { f.files[5][13].(msg)[5].(list)[0].(msg)[5] = 8 }},
		{"watch up", "path", func(f *fixture) { f.files[5][13].(msg)[5].(list)[0].(msg)[7].(msg)[4] = "../x" }},
		{"virtual terminal", "terminal of type 3", func(f *fixture) { f.terminals[0][2] = 3 }},
		{"device without a name", "mode 060600", func(f *fixture) { f.ghosts[10][3] = 0o060600 }},
		{"ghost of nothing", "no image 11", func(f *fixture) { f.remaps[0][2] = 11 }},
		{"ghost that is not open", "file 9 without", func(f *fixture) { f.remaps[0][1] = 9 }},
		{"ghost of a type", "of type 3", func(f *fixture) { f.remaps[0][3] = 3 }},
		{"another name", "of type 0", func(f *fixture) { f.remaps[0] = msg{1: 5, 2: 1} }},
		{"ghost below a mount", "is on mount 20, not 22", func(f *fixture) { f.files[4][3].(msg)[6] = "/dev/pts-of/gone" }},
		{"ghost in a volume", "in a volume", func(f *fixture) { f.files[4][3].(msg)[6] = "/volume/gone" }},
		{"ghost beside a link", "its directory is not there", func(f *fixture) { f.files[4][3].(msg)[6], f.files[4][3].(msg)[7] = "/dev/none/gone", zigzag(22) }},
		{"old files", `the image "reg-files.img"`, func(f *fixture) { f.more["reg-files.img"] = nil }},
		{"many descriptors", "4 descriptors", func(f *fixture) { f.more["descriptors.json"] = []byte(`["","","","pipe:[1]"]`) }},
		{"another descriptor", `descriptor "extRootNetNS"`, func(f *fixture) { f.more["descriptors.json"] = []byte(`["extRootNetNS"]`) }},
	})
}

func TestRefusedFormat(t *testing.T) {
	refused(t, []refusal{
		{"version", "version 1", func(f *fixture) { f.inventory[1] = 1 }},
		{"no ns_per_id", "version 2 are not read", func(f *fixture) { f.inventory[4] = false }},
		{"plugins", `plugin "cuda_plugin"`, func(f *fixture) { f.inventory[12] = msg{12: "cuda_plugin"} }},
		{"commands", "run ID", func(f *fixture) { f.inventory[13] = "x; flush ruleset" }},
		{"lock", "lock the network", func(f *fixture) { f.inventory[11] = 4 }},
		{"unknown field", "field 15 is unknown", func(f *fixture) { f.inventory[15] = 1 }},
		{"twice", "field 13 comes twice", func(f *fixture) { f.creds(1)[13] = list{0, 0} }},
		{"wire type", "field 13: is of wire type 2", func(f *fixture) { f.creds(1)[13] = "x" }},
		{"large number", "too large", func(f *fixture) { f.creds(1)[1] = uint64(1) << 32 }},
		{"yes or no", "for yes or no", func(f *fixture) { f.mounts[0][12] = 2 }},
		{"magic", "does not begin", func(f *fixture) { f.more["core-8.img"] = imageOf(magicMounts, f.core[8]) }},
		{"two entries", "one entry only", func(f *fixture) { f.more["core-8.img"] = imageOf(magicCore, f.core[8], f.core[8]) }},
		{"no entry", "empty", func(f *fixture) { f.more["core-8.img"] = imageOf(magicCore) }},
		{"cut off", "cut off", func(f *fixture) { b := f.images()["core-8.img"]; f.more["core-8.img"] = b[:len(b)-1] }},
		{"large", "too large", func(f *fixture) { f.more["core-8.img"] = make([]byte, maxFile+1) }},
		{"unknown image", `the image "x"`, func(f *fixture) { f.more["x"] = nil }},
		{"number", `the image "core-08.img"`, func(f *fixture) { f.more["core-08.img"] = nil }},
		{"no inventory", "there is no inventory.img", func(f *fixture) { f.without = []string{"inventory.img"} }},
		{"no files", "there is no files.img", func(f *fixture) { f.without = []string{"files.img"} }},
		{"no tree", "no process", func(f *fixture) { f.tree = nil }},
	})
}

func TestRefusedMemory(t *testing.T) {
	set := func(area int, n protowire.Number, v any) func(*fixture) {
		return func(f *fixture) {
			m := memoryOf()
			m[14].(list)[area].(msg)[n] = v
			f.more["mm-1.img"] = imageOf(magicMemory, m)
		}
	}
	refused(t, []refusal{
		{"over another", "memory at 0x401000", set(1, 1, 0x401000)},
		{"not in order", "memory at 0x300000", set(1, 1, 0x300000)},
		{"not a page", "memory at 0x402001", set(1, 1, 0x402001)},
		{"empty", "memory at 0x402000", set(1, 2, 0x402000)},
		{"the kernel's", "memory at 0xffffffffff600000", set(2, 7, 1)},
		{"another of the kernel's", "memory at 0xffffffffff600000", set(2, 2, uint64(0xffffffffff602000))},
		{"CRIU's marks", "status 0x40000001", set(1, 7, 1|1<<30)},
		{"a plugin's", "status 0x8000001", set(1, 7, 1|1<<27)},
		{"a ring elsewhere", "ring at 0x402000", set(1, 7, 1)},
		{"no maps", "no memory", func(f *fixture) { m := memoryOf(); delete(m, 14); f.more["mm-1.img"] = imageOf(magicMemory, m) }},
		{"maps as they were", `the image "vmas-1.img"`, func(f *fixture) { f.more["vmas-1.img"] = nil }},
		{"an address too short", "1 and 0 words", func(f *fixture) { delete(f.files[2][4].(msg), 12) }},
		{"an address for another family", "family 10", func(f *fixture) { f.files[2][4].(msg)[3] = 10 }},
		{"a long name", "name of 109 bytes", func(f *fixture) { f.files[3][16].(msg)[11] = make([]byte, 109) }},
		{"a long path", "string of 4096 bytes", func(f *fixture) { f.files[0][3].(msg)[6] = strings.Repeat("/", 4096) }},
	})
}

func TestRefusedArchives(t *testing.T) {
	set := func(all ...*tar.Header) func(*fixture) {
		return func(f *fixture) { f.tars[38] = archiveOf(append([]*tar.Header{dir("./"), dir("./pts/")}, all...)...) }
	}
	other := func(format tar.Format) *tar.Header { h := dir("./x/"); h.Format = format; return h }
	hard := func(name, to string) *tar.Header {
		return &tar.Header{Typeflag: tar.TypeLink, Name: name, Linkname: to}
	}
	raw := func(change func(b []byte) []byte) func(*fixture) {
		return func(f *fixture) {
			z, err := gzip.NewReader(bytes.NewReader(f.tars[38]))
			if err != nil {
				panic(err)
			}
			var b bytes.Buffer
			if _, err := b.ReadFrom(z); err != nil {
				panic(err)
			}
			var out bytes.Buffer
			w := gzip.NewWriter(&out)
			_, _ = w.Write(change(b.Bytes()))
			_ = w.Close()
			f.tars[38] = out.Bytes()
		}
	}
	refused(t, []refusal{
		{"up", `path "./../x"`, set(file("./../x", ""))},
		{"absolute", `path "/etc/x"`, set(file("/etc/x", ""))},
		{"unclean", `path ".//x"`, set(file(".//x", ""))},
		{"through a link", "before its directory", set(link("./x", "/etc"), file("./x/y", ""))},
		{"twice", "twice", set(link("./x", "/etc"), dir("./x/"))},
		{"hard link outside", `is a link to "/etc/passwd"`, set(hard("./x", "/etc/passwd"))},
		{"hard link to a link", `is a link to "./x"`, set(link("./x", "/etc/passwd"), hard("./y", "./x"))},
		{"other format", "not of GNU tar's format", set(other(tar.FormatUSTAR))},
		{"other format with records", "not of GNU tar's format", set(other(tar.FormatPAX))},
		{"checksum", "checksum", raw(func(b []byte) []byte { b[0] ^= 1; return b })},
		{"cut off", "EOF", raw(func(b []byte) []byte { return b[:len(b)-1500] })},
		{"data behind", "after the end", raw(func(b []byte) []byte { return append(b, b...) })},
		{"not packed", "gzip", func(f *fixture) { f.tars[38] = []byte("no archive") }},
	})
}

func TestRefusedCgroups(t *testing.T) {
	dirOf := func(m msg) msg { return m[2].(msg)[2].(msg) }
	set := func(change func(m, member msg)) func(*fixture) {
		return func(f *fixture) {
			m := cgroupsOf()
			change(m, m[1].(list)[1].(msg)[2].(msg))
			f.more["cgroup.img"] = imageOf(magicCgroup, m)
		}
	}
	refused(t, []refusal{
		{"none", "not one control group", func(f *fixture) { delete(f.more, "cgroup.img") }},
		{"more", "not one control group", set(func(m, _ msg) { m[2].(msg)[2] = list{dirOf(m), msg{1: "system.slice"}} })},
		{"one below", "not one control group", set(func(m, _ msg) { dirOf(m)[2] = msg{1: "below"} })},
		{"version 1", "not one control group", set(func(m, _ msg) { m[2].(msg)[1] = "memory" })},
		{"two at once", "not one control group", set(func(m, _ msg) { m[2].(msg)[1] = list{"", "cpu"} })},
		{"anybody's", "not one control group", set(func(m, _ msg) { dirOf(m)[4].(msg)[1] = 0o40777 })},
		{"somebody's", "not one control group", set(func(m, _ msg) { dirOf(m)[4].(msg)[2] = 1000 })},
		{"elsewhere", "set 3 of control groups is", set(func(_, member msg) { member[2] = "/system.slice" })},
		{"namespace", "set 3 of control groups is", set(func(_, member msg) { member[3] = 1 })},
		{"no namespace", "set 3 of control groups is", set(func(_, member msg) { delete(member, 3) })},
		{"the node's namespace", "of control groups is", func(f *fixture) { f.spec.Linux.Namespaces = f.spec.Linux.Namespaces[:5] }},
		{"not a set", "no set 9", func(f *fixture) { f.core[7][3].(msg)[9] = 9 }},
		{"a thread's", "no set 9", func(f *fixture) { f.core[8][5].(msg)[16] = 9 }},
		{"CRIU's", "no set 2", func(f *fixture) { f.inventory[5] = 2 }},
		{"twice the set", "twice", set(func(m, _ msg) { m[1].(list)[1].(msg)[1] = 2 })},
	})
}

func TestReadOnlyRegularFiles(t *testing.T) {
	d := good().write(t)
	target := filepath.Join(t.TempDir(), "core-8.img")
	if err := os.Rename(filepath.Join(d, "core-8.img"), target); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(target, filepath.Join(d, "core-8.img")); err != nil {
		t.Fatal(err)
	}
	if _, err := Read(d); err == nil || !strings.Contains(err.Error(), "not a regular file") {
		t.Errorf("a link: %v", err)
	}
	if _, err := Read(filepath.Join(d, "none")); !os.IsNotExist(err) {
		t.Errorf("no directory: %v", err)
	}
}

func TestCheckRoot(t *testing.T) {
	img, err := Read(good().write(t))
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		path, link string
		bad        bool
	}{
		"nothing there":          {"other", "", false},
		"a link for a mount":     {"proc", "/etc", true},
		"a link to a mount":      {"etc", "/", true},
		"a link to a file":       {"bin", "usr/bin", true},
		"a link to one gone":     {"tmp", "/", true},
		"what is not in the way": {"lib", "usr/lib", false},
	} {
		t.Run(name, func(t *testing.T) {
			root := t.TempDir()
			for _, d := range []string{"etc", "proc", "dev", "sys", "volume", "bin", "tmp", "lib"} {
				if d == c.path {
					err = os.Symlink(c.link, filepath.Join(root, d))
				} else {
					err = os.Mkdir(filepath.Join(root, d), 0o755)
				}
				if err != nil {
					t.Fatal(err)
				}
			}
			err := CheckRoot(img, root)
			if (err != nil) != c.bad {
				t.Error(err)
			}
			if err != nil && (!errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), c.path)) {
				t.Error(err)
			}
		})
	}
}

func TestResolve(t *testing.T) {
	root := t.TempDir()
	for _, d := range []string{"run", "var", "data/in", "dev"} {
		if err := os.MkdirAll(filepath.Join(root, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for name, to := range map[string]string{"var/run": "/run", "up": "../../../data", "far": "/up/in", "round": "round", "dev/shm": "/data", "gone": "/data/gone"} {
		if err := os.Symlink(to, filepath.Join(root, name)); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range []struct{ from, want string }{
		{"/var/run/secrets/kubernetes.io", "/run/secrets/kubernetes.io"}, {"/var/run", "/run"}, {"/up/x", "/data/x"}, {"/far", "/data/in"},
		{"/data/in/", "/data/in"}, {"/new/dir", "/new/dir"}, {"/dev", "/dev"}, {"/dev/shm", "/dev/shm"}, {"/", "/"}, {"/../var/run/../run", "/run"},
	} {
		spec := &specs.Spec{Mounts: []specs.Mount{{Destination: "/dev"}, {Destination: c.from}}}
		got, err := Resolve(spec, root)
		if err != nil || got.Mounts[1].Destination != c.want || spec.Mounts[1].Destination != c.from {
			t.Errorf("%s is at %v, %v", c.from, got, err)
		}
	}
	if _, err := Resolve(&specs.Spec{Mounts: []specs.Mount{{Destination: "/round/x"}}}, root); err == nil {
		t.Error("a link to itself leads somewhere")
	}
	if _, err := Resolve(&specs.Spec{}, filepath.Join(root, "none")); !os.IsNotExist(err) {
		t.Error(err)
	}
}

// FuzzRead changes the images, one at a time: whatever they say, they are read or
// refused, and what is read is allowed or not.
func FuzzRead(f *testing.F) {
	base := good().images()
	for name, b := range base {
		f.Add(name, b)
	}
	spec := specOf()
	d := good().write(f)
	f.Fuzz(func(t *testing.T, name string, b []byte) {
		old, ok := base[name]
		if !ok || len(b) > 1<<20 {
			t.Skip()
		}
		put := func(b []byte) {
			if err := os.WriteFile(filepath.Join(d, name), b, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		put(b)
		defer put(old)
		img, err := Read(d)
		if err != nil {
			return
		}
		_ = Check(img, spec)
		_ = CheckRoot(img, d)
	})
}

// FuzzFilter has programs of any kind looked into.
func FuzzFilter(f *testing.F) {
	f.Add(errno)
	f.Add(getpid())
	profile := &specs.LinuxSeccomp{DefaultAction: specs.ActErrno, Syscalls: []specs.LinuxSyscall{{Names: []string{"read"}, Action: specs.ActAllow}}}
	f.Fuzz(func(t *testing.T, b []byte) {
		k := newFilters(profile, "amd64")
		k.calls = k.calls[:20]
		_ = k.chain([]Filter{{Program: b}}, 0)
	})
}

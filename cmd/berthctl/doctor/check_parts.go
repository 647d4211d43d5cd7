package doctor

import (
	"fmt"
	"slices"
	"strings"
	"time"
)

func checkHandlers(f Facts) []Finding {
	var out []Finding
	for _, h := range f.Handlers {
		check := "handler." + h.Name
		switch {
		case h.Error != "":
			level := Warn
			if h.Default {
				level = Fail
			}
			out = append(out, Finding{Level: level, Check: check, Text: h.Error,
				Remedy: "install it, or set path in [runtime.handlers." + h.Name + "]; pods of this handler fail until then"})
			continue
		case h.Version == "":
			out = append(out, warn(check, "compare with the runtime's documentation", "%s does not tell its version", h.Path))
		default:
			out = append(out, ok(check, "%s %s", h.Path, h.Version))
		}
		if why := vulnerable(h.Version); why != "" && strings.Contains(h.Path, "runc") {
			out = append(out, fail(check, "install runc 1.2.8, 1.3.3 or newer", "runc %s %s", h.Version, why))
		}
		if len(h.Features) > 0 && !slices.Contains(h.Features, "seccomp") {
			out = append(out, fail(check, "install a build of the runtime with libseccomp", "%s is built without seccomp: profiles are refused", h.Path))
		}
	}
	if len(f.Handlers) == 0 {
		out = append(out, fail("handler", "name one in [runtime.handlers]", "no OCI runtime is configured"))
	}
	return out
}

// vulnerable names the worst known hole of a version of runc, "" when none is
// known.
func vulnerable(version string) string {
	v := numbers(version, 3)
	less := func(major, minor, patch int) bool { return slices.Compare(v, []int{major, minor, patch}) < 0 }
	switch {
	case version == "":
		return ""
	case less(1, 1, 12):
		return "lets containers reach the node's files (CVE-2024-21626)"
	case less(1, 2, 8), !less(1, 3, 0) && less(1, 3, 3):
		return "lets containers write to files of the node's /proc (CVE-2025-31133)"
	}
	return ""
}

func checkNetwork(f Facts) []Finding {
	n := f.Network
	switch {
	case n.Error != "":
		return []Finding{fail("network.config", "correct the file; the first one by name in "+n.ConfDir+" counts", "%s", n.Error)}
	case n.Used == "" && n.Default == "builtin":
		return []Finding{ok("network.config", "the built-in network")}
	case n.Used == "":
		return []Finding{fail("network.config", "install the cluster's network (CNI), or set network.default = \"builtin\" on a machine of its own",
			"no network configuration in %s: the node is not ready", n.ConfDir)}
	}
	out := []Finding{ok("network.config", "%s", n.Used)}
	if len(n.Files) > 1 {
		out = append(out, warn("network.config", "remove those that are not meant", "%d more files in %s are not used: %s",
			len(n.Files)-1, n.ConfDir, strings.Join(n.Files[1:], ", ")))
	}
	for _, p := range n.Plugins {
		switch {
		case p.Path == "" && !p.Builtin:
			out = append(out, fail("network.plugin", "install the CNI plugin "+p.Type+" there, or correct cni.bin_dirs", "%s is in none of %s", p.Type, strings.Join(n.BinDirs, ", ")))
		case p.Builtin:
			out = append(out, ok("network.plugin", "%s: in the daemon", p.Type))
		default:
			out = append(out, ok("network.plugin", "%s: %s", p.Type, p.Path))
		}
	}
	return out
}

// Thresholds of free space: where pulls and writable layers begin to fail, and
// where a warning is due.
const (
	lowBytes   = 1 << 30
	noBytes    = 64 << 20
	runLow     = 64 << 20
	runNone    = 4 << 20
	lowInodes  = 10000
	noInodes   = 500
	clockSlack = time.Hour
)

func checkDisks(f Facts) []Finding {
	var out []Finding
	for _, d := range f.Disks {
		out = append(out, checkDisk(d)...)
	}
	return out
}

func checkDisk(d Disk) []Finding {
	check := "disk." + d.Role
	low, none := uint64(lowBytes), uint64(noBytes)
	if d.Role != roleState {
		low, none = runLow, runNone
	}
	room := "remove unused images (`crictl rmi --prune`), or enlarge the file system of " + d.Path
	var out []Finding
	add := func(f Finding) { out = append(out, f) }
	switch {
	case d.ReadOnly:
		add(fail(check, "look for disk errors in `dmesg`, repair, then `mount -o remount,rw`", "%s is on a read-only %s", d.Path, d.FSType))
		return out
	case d.Free < none:
		add(fail(check, room, "%s has %s left", d.Path, size(d.Free)))
	case d.Free < low:
		add(warn(check, room, "%s has %s left", d.Path, size(d.Free)))
	}
	switch {
	case d.Inodes == 0:
	case d.FreeInodes < noInodes:
		add(fail(check, room, "%s has %d inodes left", d.Path, d.FreeInodes))
	case d.FreeInodes < lowInodes:
		add(warn(check, room, "%s has %d inodes left", d.Path, d.FreeInodes))
	}
	if d.WriteError != "" && len(out) == 0 {
		add(fail(check, "see that root may write to "+d.Path, "%s", d.WriteError))
	}
	if d.NoDType {
		add(fail(check, "make the file system anew with d_type (xfs: `mkfs.xfs -n ftype=1`)", "%s, a %s, does not tell the types of directory entries: overlay would be wrong", d.Path, d.FSType))
	} else if d.Overlay != "" {
		add(fail(check, "put "+d.Path+" on ext4, xfs or btrfs (paths.root), and see that the overlay module is loaded", "overlay can't be mounted on %s, a %s: %s", d.Path, d.FSType, d.Overlay))
	}
	if len(out) == 0 {
		add(ok(check, "%s: %s, %s of %s free", d.Path, d.FSType, size(d.Free), size(d.Size)))
	}
	return out
}

// size writes bytes with a binary unit.
func size(n uint64) string {
	units := []string{"B", "KiB", "MiB", "GiB", "TiB"}
	v, u := float64(n), 0
	for v >= 1024 && u < len(units)-1 {
		v, u = v/1024, u+1
	}
	return fmt.Sprintf("%.4g %s", v, units[u])
}

// oldest is before any release of Berth: a clock that shows less is wrong.
func oldest() time.Time { return time.Date(2025, 1, 1, 0, 0, 0, 0, time.UTC) }

func checkClock(f Facts) []Finding {
	c := f.Clock
	sync := "let the clock be set: `timedatectl set-ntp true`, or install chrony"
	switch {
	case c.Now.Before(oldest()):
		return []Finding{fail("clock", sync, "the clock shows %s: certificates of registries look invalid", c.Now.UTC().Format(time.DateOnly))}
	case c.Newest.After(c.Now.Add(clockSlack)):
		return []Finding{warn("clock", sync, "the clock shows %s, and files of Berth are from %s: it went back",
			c.Now.UTC().Format(time.RFC3339), c.Newest.UTC().Format(time.RFC3339))}
	case c.Unsynced:
		return []Finding{warn("clock", sync, "the kernel's clock is not synchronized")}
	}
	return []Finding{ok("clock", "synchronized")}
}

// Capabilities a runtime can't do without, by bit; capabilities(7).
func neededCapabilities() []struct {
	bit  int
	name string
} {
	return []struct {
		bit  int
		name string
	}{{0, "CAP_CHOWN"}, {1, "CAP_DAC_OVERRIDE"}, {5, "CAP_KILL"}, {6, "CAP_SETGID"}, {7, "CAP_SETUID"}, {12, "CAP_NET_ADMIN"}, {19, "CAP_SYS_PTRACE"}, {21, "CAP_SYS_ADMIN"}, {27, "CAP_MKNOD"}}
}

const (
	sysResource = 24
	lowFiles    = 65536
)

func checkLimits(f Facts) []Finding {
	l := f.Limits
	if l.Of == "" {
		return nil
	}
	var out []Finding
	unit := "in the unit of berthd (`systemctl edit berth`)"
	if l.OpenFiles < lowFiles {
		out = append(out, warn("limit.files", "set LimitNOFILE=1048576 "+unit, "%s may open %d files: a node full of pods needs more", l.Of, l.OpenFiles))
	} else {
		out = append(out, ok("limit.files", "%d for %s", l.OpenFiles, l.Of))
	}
	if l.PIDsMax > 0 && l.PIDsNow*10 > l.PIDsMax*8 {
		out = append(out, fail("limit.processes", "set TasksMax=infinity "+unit, "%d of %d processes in the cgroup of %s", l.PIDsNow, l.PIDsMax, l.Of))
	}
	if l.MemoryMax > 0 && l.MemoryNow*10 > l.MemoryMax*9 {
		out = append(out, warn("limit.memory", "raise or remove MemoryMax "+unit, "%s uses %s of %s", l.Of, size(l.MemoryNow), size(l.MemoryMax)))
	}
	var missing []string
	for _, c := range neededCapabilities() {
		if l.Capabilities&(1<<c.bit) == 0 {
			missing = append(missing, c.name)
		}
	}
	if len(missing) > 0 {
		out = append(out, fail("limit.capabilities", "run berthd as root with all capabilities", "%s lacks %s", l.Of, strings.Join(missing, ", ")))
	} else if l.Capabilities&(1<<sysResource) == 0 {
		out = append(out, warn("limit.capabilities", "run berthd with all capabilities", "%s lacks CAP_SYS_RESOURCE: containers can't get a lower oom_score_adj or higher limits than it", l.Of))
	}
	return out
}

func checkDaemon(f Facts) []Finding {
	d := f.Daemon
	out := append(checkSocket("socket.cri", d.CRI, 0o117), checkSocket("socket.admin", d.Admin, 0o177)...)
	if d.Version != "" {
		if d.Version != d.Tool {
			out = append(out, warn("daemon.version", "install one version of both; after an upgrade `systemctl restart berth` (containers go on)", "berthd is %s, berthctl %s", d.Version, d.Tool))
		} else {
			out = append(out, ok("daemon.version", "%s", d.Version))
		}
	}
	for _, c := range d.Conditions {
		if !c.Status {
			out = append(out, fail("daemon.condition", "the message says what is missing; see docs/debugging.md", "%s is false: %s", c.Type, c.Message))
		} else {
			out = append(out, ok("daemon.condition", "%s", c.Type))
		}
	}
	if d.OldOperations > 0 {
		out = append(out, warn("daemon.operations", "`berthctl ops` lists them; a restart of berthd finishes or undoes them (containers go on)", "%d operations have not ended for %v", d.OldOperations, operationAge))
	}
	if len(d.OtherCRIServices) > 0 {
		out = append(out, warn("daemon.others", "stop and disable what the kubelet does not use", "other container runtimes serve on this node: %s", strings.Join(d.OtherCRIServices, ", ")))
	}
	return out
}

// checkSocket judges a socket; forbidden are permission bits it must not have.
func checkSocket(check string, s Socket, forbidden uint32) []Finding {
	switch {
	case !s.Exists:
		return []Finding{fail(check, "start the daemon: `systemctl start berth`; `journalctl -u berth` says why it ended", "%s does not exist: berthd does not run, or serves elsewhere", s.Path)}
	case s.Mode&forbidden != 0 || s.UID != 0:
		return []Finding{fail(check, fmt.Sprintf("`chown 0 %s; chmod %04o %s`", s.Path, 0o777&^forbidden, s.Path),
			"%s belongs to user %d with mode %04o: whoever may connect is root on this node", s.Path, s.UID, s.Mode)}
	case s.Error != "":
		return []Finding{fail(check, "`systemctl status berth`, `journalctl -u berth`", "%s does not answer: %s", s.Path, s.Error)}
	}
	return []Finding{ok(check, "%s", s.Path)}
}

package doctor

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berth-dev/berth/osthread"
)

const (
	roleState = "state"
	roleRun   = "run-time"
)

// diskFacts looks at the file system of a directory, or of the nearest one
// above it. Only an existing directory is tried out.
func diskFacts(role, dir string) Disk {
	d := Disk{Role: role, Path: dir}
	at := dir
	for !exists(at) && at != "/" {
		d.Missing, at = true, filepath.Dir(at)
	}
	var st unix.Statfs_t
	if err := unix.Statfs(at, &st); err != nil {
		d.WriteError = err.Error()
		return d
	}
	d.FSType = fsType(at)
	d.Size, d.Free = st.Blocks*uint64(st.Bsize), st.Bavail*uint64(st.Bsize)
	d.Inodes, d.FreeInodes = st.Files, st.Ffree
	d.ReadOnly = st.Flags&unix.ST_RDONLY != 0
	if d.Missing || d.ReadOnly || os.Geteuid() != 0 {
		return d
	}
	tmp, err := os.MkdirTemp(at, ".doctor-")
	if err != nil {
		d.WriteError = err.Error()
		return d
	}
	defer func() { _ = os.RemoveAll(tmp) }()
	for _, sub := range []string{"lower", "upper", "work", "merged"} {
		if err := os.Mkdir(filepath.Join(tmp, sub), 0o700); err != nil {
			d.WriteError = err.Error()
			return d
		}
	}
	d.NoDType = !tellsTypes(tmp)
	if role == roleState {
		if err := tryOverlay(tmp); err != nil {
			d.Overlay = err.Error()
		}
	}
	return d
}

// tellsTypes reports whether the entries of a directory with subdirectories
// come with their types.
func tellsTypes(dir string) bool {
	fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return true
	}
	defer func() { _ = unix.Close(fd) }()
	buf := make([]byte, 4096)
	n, err := unix.ReadDirent(fd, buf)
	if err != nil {
		return true
	}
	// struct linux_dirent64: inode 8, offset 8, length 2, type 1, name.
	for buf = buf[:n]; len(buf) > 18; {
		if buf[18] == unix.DT_UNKNOWN {
			return false
		}
		buf = buf[min(len(buf), int(buf[16])|int(buf[17])<<8):]
	}
	return true
}

// tryOverlay mounts overlay in a mount namespace that ends with the attempt.
func tryOverlay(dir string) error {
	return osthread.RunAndEnd(func() error {
		if err := unix.Unshare(unix.CLONE_FS | unix.CLONE_NEWNS); err != nil {
			return fmt.Errorf("make a mount namespace: %w", err)
		}
		if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
			return fmt.Errorf("make mounts private: %w", err)
		}
		opts := fmt.Sprintf("lowerdir=%[1]s/lower,upperdir=%[1]s/upper,workdir=%[1]s/work", dir)
		if err := unix.Mount("overlay", filepath.Join(dir, "merged"), "overlay", 0, opts); err != nil {
			return err
		}
		return unix.Unmount(filepath.Join(dir, "merged"), unix.MNT_DETACH)
	})
}

// fsType returns the type of the file system that holds path: that of the
// longest mount point above it.
func fsType(path string) string {
	best, kind := "", "unknown file system"
	for line := range strings.Lines(read("/proc/self/mountinfo")) {
		left, right, found := strings.Cut(line, " - ")
		f, g := strings.Fields(left), strings.Fields(right)
		if !found || len(f) < 5 || len(g) < 1 {
			continue
		}
		at := f[4]
		if (path == at || at == "/" || strings.HasPrefix(path, at+"/")) && len(at) >= len(best) {
			best, kind = at, g[0]
		}
	}
	return kind
}

func clockFacts(root string) Clock {
	c := Clock{Now: time.Now()}
	if st, err := os.Stat(filepath.Join(root, "berth.db")); err == nil {
		c.Newest = st.ModTime()
	}
	var tx unix.Timex
	state, err := unix.Adjtimex(&tx)
	c.Unsynced = err == nil && (state == unix.TIME_ERROR || tx.Status&unix.STA_UNSYNC != 0)
	return c
}

// limitFacts reads the limits of a process; of this one when pid is 0.
func limitFacts(pid int) Limits {
	l := Limits{Of: "the daemon"}
	dir := fmt.Sprintf("/proc/%d", pid)
	if pid == 0 {
		l.Of, dir = "this shell", "/proc/self"
	}
	for line := range strings.Lines(read(dir + "/limits")) {
		if rest, is := strings.CutPrefix(line, "Max open files"); is {
			l.OpenFiles = number(strings.Fields(rest)[0])
		}
	}
	for line := range strings.Lines(read(dir + "/status")) {
		if rest, is := strings.CutPrefix(line, "CapEff:"); is {
			l.Capabilities, _ = strconv.ParseUint(strings.TrimSpace(rest), 16, 64)
		}
	}
	for line := range strings.Lines(read(dir + "/cgroup")) {
		f := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if len(f) != 3 {
			continue
		}
		switch {
		case f[1] == "": // version 2, or the unified part of a hybrid
			l.fill(filepath.Join("/sys/fs/cgroup", f[2]), "memory.max", "memory.current")
		case strings.Contains(","+f[1]+",", ",pids,"):
			l.fill(filepath.Join("/sys/fs/cgroup/pids", f[2]), "", "")
		case strings.Contains(","+f[1]+",", ",memory,"):
			l.fill(filepath.Join("/sys/fs/cgroup/memory", f[2]), "memory.limit_in_bytes", "memory.usage_in_bytes")
		}
	}
	return l
}

// unlimited is what version 1 shows for no limit, nearly 2^63.
const unlimited = 1 << 62

func (l *Limits) fill(dir, memMax, memNow string) {
	if exists(filepath.Join(dir, "pids.max")) {
		l.PIDsMax, l.PIDsNow = number(read(dir+"/pids.max")), number(read(dir+"/pids.current"))
	}
	if memMax != "" && exists(filepath.Join(dir, memMax)) {
		l.MemoryMax, l.MemoryNow = number(read(dir+"/"+memMax)), number(read(dir+"/"+memNow))
		if l.MemoryMax >= unlimited {
			l.MemoryMax = 0
		}
	}
}

// number reads a decimal number; "max" and what is none are 0, "unlimited" the
// largest there is.
func number(text string) uint64 {
	if text == "unlimited" {
		return ^uint64(0)
	}
	v, err := strconv.ParseUint(text, 10, 64)
	if err != nil && !errors.Is(err, strconv.ErrRange) {
		return 0
	}
	return v
}

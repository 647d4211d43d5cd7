package doctor

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-dev/berth/config"
	"github.com/berth-dev/berth/cri/admin"
)

// operationAge is when an unfinished operation is worth a word: pulls and slow
// stops take minutes.
const operationAge = 15 * time.Minute

// Gather looks at the node. What it can't see stays zero.
func Gather(ctx context.Context, n Node) Facts {
	f := Facts{
		Root: os.Geteuid() == 0, Kernel: kernelFacts(), Cgroup: cgroupFacts(n.Config.Cgroup.Driver),
		Sysctls: sysctlFacts(), Security: securityFacts(), Handlers: handlerFacts(ctx, n.Config),
		Network: networkFacts(n.Config), Daemon: n.daemonFacts(ctx), Config: Config{Source: n.Source},
	}
	if n.ConfErr != nil {
		f.Config.Error = n.ConfErr.Error()
	}
	f.Disks = []Disk{diskFacts(roleState, n.Config.Paths.Root), diskFacts(roleRun, n.Config.Paths.Run)}
	f.Clock = clockFacts(n.Config.Paths.Root)
	f.Limits = limitFacts(f.Daemon.PID)
	return f
}

// read returns a small file's text without the white space around it, or "".
func read(path string) string {
	b, err := os.ReadFile(path)
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}

func kernelFacts() Kernel {
	var uts unix.Utsname
	_ = unix.Uname(&uts)
	k := Kernel{Release: unix.ByteSliceToString(uts.Release[:]), Machine: runtime.GOARCH, Calls: map[string]bool{}}
	for line := range strings.Lines(read("/proc/filesystems")) {
		if f := strings.Fields(line); len(f) > 0 {
			k.FileSystems = append(k.FileSystems, f[len(f)-1])
		}
	}
	if !slices.Contains(k.FileSystems, "overlay") && exec.Command("modprobe", "-n", "-q", "overlay").Run() == nil {
		k.FileSystems = append(k.FileSystems, "overlay")
	}
	k.Seccomp = strings.Contains(read("/proc/self/status"), "\nSeccomp:")
	if fd, err := unix.PidfdOpen(os.Getpid(), 0); err == nil {
		k.Calls["pidfd_open"] = true
		_ = unix.Close(fd)
	}
	if fd, err := unix.Openat2(unix.AT_FDCWD, "/", &unix.OpenHow{Flags: unix.O_PATH | unix.O_CLOEXEC}); err == nil {
		k.Calls["openat2"] = true
		_ = unix.Close(fd)
	}
	// An impossible descriptor: only a kernel without the call says ENOSYS.
	err := unix.MountSetattr(-1, "", 0, &unix.MountAttr{})
	k.Calls["mount_setattr"] = err != unix.ENOSYS && err != unix.EPERM
	return k
}

func cgroupFacts(driver string) Cgroup {
	c := Cgroup{Driver: driver, Systemd: exists("/run/systemd/system")}
	var st unix.Statfs_t
	if unix.Statfs("/sys/fs/cgroup", &st) != nil {
		return c
	}
	if st.Type == unix.CGROUP2_SUPER_MAGIC {
		c.Version, c.Controllers = 2, strings.Fields(read("/sys/fs/cgroup/cgroup.controllers"))
		return c
	}
	for _, dir := range []string{"cpu", "memory", "pids", "devices", "freezer", "cpuset", "blkio", "hugetlb"} {
		if exists(filepath.Join("/sys/fs/cgroup", dir, "cgroup.procs")) {
			c.Version = 1
			c.Controllers = append(c.Controllers, dir)
		}
	}
	c.Hybrid = exists("/sys/fs/cgroup/unified/cgroup.procs")
	return c
}

func sysctlFacts() map[string]string {
	out := map[string]string{}
	for _, r := range sysctlRules() {
		if b, err := os.ReadFile(filepath.Join("/proc/sys", strings.ReplaceAll(r.name, ".", "/"))); err == nil {
			out[r.name] = strings.TrimSpace(string(b))
		}
	}
	return out
}

func securityFacts() Security {
	var s Security
	if lsm := read("/sys/kernel/security/lsm"); lsm != "" {
		s.Modules = strings.Split(lsm, ",")
	}
	s.AppArmor = read("/sys/module/apparmor/parameters/enabled") == "Y"
	s.AppArmorParser, _ = exec.LookPath("apparmor_parser")
	switch read("/sys/fs/selinux/enforce") {
	case "0":
		s.SELinux = "permissive"
	case "1":
		s.SELinux = "enforcing"
	}
	return s
}

func handlerFacts(ctx context.Context, c config.Config) []Handler {
	var out []Handler
	for name := range c.Runtime.Handlers {
		out = append(out, handlerFact(ctx, Handler{Name: name, Default: name == c.Runtime.Default, Path: c.RuntimePath(name)}))
	}
	slices.SortFunc(out, func(a, b Handler) int { return strings.Compare(a.Name, b.Name) })
	return out
}

// handlerFact asks a runtime for version and features, where the daemon would
// find it: beside the programs of Berth, then in PATH.
func handlerFact(ctx context.Context, h Handler) Handler {
	path, err := exec.LookPath(h.Path)
	if self, serr := os.Executable(); serr == nil && filepath.Base(h.Path) == h.Path {
		if beside, berr := exec.LookPath(filepath.Join(filepath.Dir(self), h.Path)); berr == nil {
			path, err = beside, nil
		}
	}
	if err != nil {
		h.Error = h.Path + " is not there"
		return h
	}
	h.Path = path
	ctx, cancel := context.WithTimeout(ctx, callTime)
	defer cancel()
	out, err := exec.CommandContext(ctx, path, "--version").Output()
	if err != nil {
		h.Error = path + " --version: " + err.Error()
		return h
	}
	h.Version = regexp.MustCompile(`\d+\.\d+(\.\d+)?`).FindString(string(out))
	if out, err = exec.CommandContext(ctx, path, "features").Output(); err == nil {
		h.Features = featureNames(out)
	}
	return h
}

func (n *Node) daemonFacts(ctx context.Context) Daemon {
	d := Daemon{
		CRI: socketFacts(n.Config.CRISocket(), n.CRIErr), Admin: socketFacts(n.Config.AdminSocket(), n.AdminErr),
		Version: n.Info.GetVersion(), Tool: config.Version, PID: int(n.Info.GetPid()),
	}
	for _, s := range []string{"/run/containerd/containerd.sock", "/run/crio/crio.sock", "/run/cri-dockerd.sock"} {
		if s != n.Config.CRISocket() && exists(s) {
			d.OtherCRIServices = append(d.OtherCRIServices, s)
		}
	}
	ctx, cancel := context.WithTimeout(ctx, callTime)
	defer cancel()
	if r, err := n.CRI.Status(ctx, &runtimeapi.StatusRequest{}); err == nil {
		for _, c := range r.GetStatus().GetConditions() {
			d.Conditions = append(d.Conditions, Condition{Type: c.GetType(), Status: c.GetStatus(), Message: c.GetMessage()})
		}
	}
	if r, err := n.Admin.Operations(ctx, &admin.OperationsRequest{}); err == nil {
		for _, o := range r.GetOperations() {
			if time.Since(time.Unix(0, o.GetStartedAt())) > operationAge {
				d.OldOperations++
			}
		}
	}
	return d
}

func socketFacts(path string, err error) Socket {
	s := Socket{Path: path}
	var st unix.Stat_t
	if unix.Stat(path, &st) == nil {
		s.Exists, s.Mode, s.UID = true, st.Mode&0o777, st.Uid
	}
	if err != nil {
		s.Error = err.Error()
	}
	return s
}

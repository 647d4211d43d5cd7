package supervise

import (
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/berth-dev/berth/shim/cgroup"
	"github.com/berth-dev/berth/shim/runc"
	"github.com/berth-dev/berth/shim/wire"
)

// cleanup is the mode of that name: the working directory is that of a
// container whose shim is dead or does not answer.
func cleanup(args []string) int {
	if len(args) != 4 {
		say(2, "usage: berth-shim cleanup RUNTIME ROOT SYSTEMD ID")
		return 2
	}
	rt := runc.Runtime{Path: args[0], Root: args[1], SystemdCgroup: args[2] == "1"}
	l := &wire.Launch{}
	if b, err := readFile(wire.LaunchFile); err == nil {
		if known, err := wire.ParseLaunchRecord(b); err == nil {
			l = known
		}
	}
	if r := l.Create.Runtime; r.Path != "" {
		rt = runc.Runtime{Path: r.Path, Root: r.Root, SystemdCgroup: r.SystemdCgroup}
	}
	killShim(int(l.ShimPID))
	status := 0
	groups, err := cgroup.Detect()
	if err == nil && l.Cgroup != "" {
		if err := groups.Kill(l.Cgroup); err != nil {
			say(2, err.Error())
			status = 1
		}
	}
	if failure := deleteNow(rt, args[3]); failure != "" {
		say(2, failure)
		status = 1
	}
	if l.Cgroup != "" {
		if err := groups.Remove(l.Cgroup); err != nil {
			say(2, err.Error())
			status = 1
		}
	}
	if l.PID != 0 {
		writeLost(l.Create.ExitPath)
	}
	if status == 0 {
		sweepFiles()
	}
	return status
}

// killShim kills a shim that is alive but mute. Its pid may be another's by
// now, so it has to sit in this very directory and have the name.
func killShim(pid int) {
	if pid <= 1 {
		return
	}
	proc := "/proc/" + strconv.Itoa(pid)
	var a, b unix.Stat_t
	comm, err := readFile(proc + "/comm")
	if err != nil || !strings.HasPrefix(string(comm), "exe") && !strings.HasPrefix(string(comm), "berth-shim") {
		return
	}
	if unix.Stat(proc+"/cwd", &a) == nil && unix.Stat(".", &b) == nil && a.Dev == b.Dev && a.Ino == b.Ino {
		_ = unix.Kill(pid, unix.SIGKILL)
	}
}

// deleteNow runs runc delete --force and waits for it, within bounds.
func deleteNow(rt runc.Runtime, id string) string {
	log, path, err := memfd("runc-log")
	if err != nil {
		return "make log: " + err.Error()
	}
	argv := rt.Delete(path, id, true)
	pid, err := syscall.ForkExec(argv[0], argv, &syscall.ProcAttr{Env: childEnv(), Files: []uintptr{0, 1, 2}})
	if err != nil {
		return "run " + argv[0] + ": " + err.Error()
	}
	for limit := now() + callBound*1e6; now() < limit; {
		var ws syscall.WaitStatus
		got, err := syscall.Wait4(pid, &ws, syscall.WNOHANG, nil)
		if got == pid || err == syscall.ECHILD {
			if code, _ := exitCode(ws); code != 0 {
				return runc.Failure(content(log), nil, int(code))
			}
			return ""
		}
		ts := unix.NsecToTimespec(1e6)
		_ = unix.Nanosleep(&ts, nil)
	}
	_ = syscall.Kill(pid, unix.SIGKILL)
	return "runc delete: no answer"
}

// writeLost records an end that nobody saw, unless one was seen.
func writeLost(path string) {
	for _, p := range []string{path, wire.ExitFile} {
		if b, err := readFile(p); err == nil {
			if _, err := wire.ParseExitRecord(b); err == nil {
				return
			}
		}
	}
	writeExit(path, wire.Exit{Code: 255, Lost: true, FinishedAt: wallclock()})
}

// sweepFiles removes what a shim keeps in its directory but its exit record.
func sweepFiles() {
	for _, n := range []string{wire.SocketFile, pidFile, consoleFile, wire.LaunchFile} {
		_ = unix.Unlink(n)
	}
	fd, err := openFile(".", unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return
	}
	defer unix.Close(fd)
	buf := make([]byte, 4096)
	n, err := unix.ReadDirent(fd, buf)
	if err != nil || n <= 0 {
		return
	}
	_, _, names := unix.ParseDirent(buf[:n], -1, nil)
	for _, name := range names {
		if strings.HasPrefix(name, "exec-") {
			_ = unix.Unlink(name)
		}
	}
}

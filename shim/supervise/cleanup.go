package supervise

import (
	"errors"
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
	l, err := readLaunch()
	if err != nil {
		say(2, "read launch file: "+err.Error())
		return 1
	}
	if r := l.Create.Runtime; r.Path != "" {
		rt = runc.Runtime{Path: r.Path, Root: r.Root, SystemdCgroup: r.SystemdCgroup}
	}
	killShim(int(l.ShimPID))
	failures := erase(rt, args[3], l)
	for _, f := range failures {
		say(2, f)
	}
	if len(failures) > 0 {
		return 1
	}
	sweepFiles()
	return 0
}

// readLaunch reads the launch file. One that is missing or malformed says
// nothing, and the runtime has to know what there is to remove.
func readLaunch() (*wire.Launch, error) {
	b, err := readFile(wire.LaunchFile)
	if err != nil && err != unix.ENOENT {
		return nil, err
	}
	if l, err := wire.ParseLaunchRecord(b); err == nil {
		return l, nil
	}
	return &wire.Launch{}, nil
}

// erase kills and removes the container, and returns what it could not do. The
// container's end is recorded once all of its processes are dead, and not before.
func erase(rt runc.Runtime, id string, l *wire.Launch) (failures []string) {
	fail := func(err error) {
		if err != nil {
			failures = append(failures, err.Error())
		}
	}
	groups, err := cgroup.Detect()
	if err == nil && l.Cgroup != "" {
		err = groups.Kill(l.Cgroup)
	}
	fail(err)
	dead := err == nil
	if failure := deleteNow(rt, id); failure != "" {
		failures = append(failures, failure)
		dead = dead && l.Cgroup != "" // else only the runtime could kill it
	}
	sweepRestore(&l.Create)
	if l.Cgroup != "" && err == nil {
		fail(groups.Remove(l.Cgroup))
	}
	if l.Made() && dead {
		fail(writeLost(l.Create.ExitPath))
	}
	return failures
}

// killShim kills a shim that is alive but mute. Its pid may be another's by
// now, so it has to sit in this very directory and have the name.
func killShim(pid int) {
	if pid <= 1 {
		return
	}
	fd, err := unix.PidfdOpen(pid, 0) // whatever is found below is found of this process
	if err != nil {
		return
	}
	defer unix.Close(fd)
	proc := "/proc/" + strconv.Itoa(pid)
	var a, b unix.Stat_t
	comm, err := readFile(proc + "/comm")
	if err != nil || !strings.HasPrefix(string(comm), "exe") && !strings.HasPrefix(string(comm), "berth-shim") {
		return
	}
	if unix.Stat(proc+"/cwd", &a) == nil && unix.Stat(".", &b) == nil && a.Dev == b.Dev && a.Ino == b.Ino {
		_ = unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0)
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

// writeLost records an end that nobody saw, unless one was seen: what cannot be
// read may be the record of one.
func writeLost(path string) error {
	for _, p := range []string{path, wire.ExitFile} {
		b, err := readFile(p)
		if err == unix.ENOENT {
			continue
		}
		if err != nil {
			return errors.New("read exit record " + p + ": " + err.Error())
		}
		if _, err := wire.ParseExitRecord(b); err == nil {
			return nil
		}
	}
	writeExit(path, wire.Exit{Code: 255, Lost: true, FinishedAt: wallclock()})
	return nil
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

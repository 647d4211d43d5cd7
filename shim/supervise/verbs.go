package supervise

import (
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/berth-dev/berth/shim/runc"
	"github.com/berth-dev/berth/shim/wire"
)

const (
	pidFile     = "init.pid"
	consoleFile = "console.sock"
)

func (s *shim) saveLaunch() error {
	return writeFile(wire.LaunchFile, wire.AppendLaunchRecord(nil, &s.c.launch), false)
}

func (s *shim) create(c *conn, f wire.Frame) {
	if s.c.phase != 0 {
		c.fail(f.ID, wire.CodeExists, "this shim has a container already")
		return
	}
	l := &s.c.launch
	if wire.Decode(f.Body, &l.Create) != nil || l.Create.ID == "" || l.Create.Runtime.Path == "" {
		c.fail(f.ID, wire.CodeInvalid, "malformed request")
		return
	}
	rt := l.Create.Runtime
	s.c.rt = runc.Runtime{Path: rt.Path, Root: rt.Root, SystemdCgroup: rt.SystemdCgroup}
	s.c.phase = wire.PhaseCreating
	l.ShimPID = int64(unix.Getpid())
	err := s.saveLaunch()
	var ends stdioEnds
	if err == nil {
		s.c.io, ends, err = newStdio(s.loop, &l.Create)
		s.watchLog()
	}
	if err == nil && l.Create.Restore.Images != "" {
		s.conceive(c, f.ID, ends)
		return
	}
	listener, console := -1, ""
	if err == nil && l.Create.Terminal {
		console = consoleFile
		listener, err = listenUnix(consoleFile, unix.SOCK_STREAM)
	}
	if err != nil {
		ends.close()
		s.undoCreate(c, f.ID, "prepare output: "+err.Error())
		return
	}
	s.c.making = s.runtime("create", func(log string) []string { return s.c.rt.Create(log, l.Create.ID, pidFile, console) },
		&ends, func(failure string) {
			if failure = s.made(listener, failure); failure != "" {
				s.undoCreate(c, f.ID, failure)
				return
			}
			if len(s.end.waiting) > 0 {
				// Deleted after runc had ended and before that was seen here.
				c.fail(f.ID, wire.CodeState, "the container was deleted meanwhile")
				s.killAll()
				return
			}
			c.reply(f.ID, s.state())
		})
	ends.close()
}

// made is called when the runtime has made the container, or restored it, or failed
// to. It takes over what is there, and returns what went wrong.
func (s *shim) made(listener int, failure string) string {
	s.c.making = 0
	if failure == "" {
		failure = s.created(listener)
	}
	closeFD(&listener)
	_ = unix.Unlink(consoleFile)
	_ = unix.Unlink(pidFile)
	return failure
}

// created takes over what runc create made. It returns what went wrong.
func (s *shim) created(listener int) string {
	l := &s.c.launch
	text, err := readFile(pidFile)
	if err != nil {
		return "read pid file: " + err.Error()
	}
	pid, err := strconv.Atoi(string(text))
	if err != nil || pid <= 1 {
		return "runc wrote a malformed pid file"
	}
	if listener >= 0 {
		master, err := takeConsole(listener)
		if err != nil {
			return "receive console: " + err.Error()
		}
		s.c.io.console(master)
	}
	if err := s.c.io.begin(); err != nil {
		return "read output: " + err.Error()
	}
	l.PID = int64(pid)
	proc := "/proc/" + strconv.Itoa(pid)
	if text, err = readFile(proc + "/cgroup"); err == nil {
		l.Cgroup = s.groups.Path(string(text))
	}
	if l.Cgroup == "/" {
		l.Cgroup = ""
	}
	s.watchOOM()
	if err := s.saveLaunch(); err != nil {
		return "write launch file: " + err.Error()
	}
	s.c.phase = wire.PhaseCreated
	if sameNamespace(proc + "/ns/pid") {
		if err := s.kids.watchOrphans(); err != nil {
			return "watch orphans: " + err.Error()
		}
	}
	s.kids.adopt(pid, s.initEnded)
	return ""
}

func sameNamespace(path string) bool {
	var a, b [64]byte
	n, err := unix.Readlink(path, a[:])
	m, err2 := unix.Readlink("/proc/self/ns/pid", b[:])
	return err == nil && err2 == nil && string(a[:n]) == string(b[:m])
}

func (s *shim) signal(c *conn, f wire.Frame) {
	var m wire.Signal
	if wire.Decode(f.Body, &m) != nil || m.Number < 0 || m.Number > 64 {
		c.fail(f.ID, wire.CodeInvalid, "malformed request")
		return
	}
	sig := syscall.Signal(m.Number)
	if s.c.phase == wire.PhaseCreated && !s.c.born() && !s.end.begun {
		s.signalUnborn(sig)
		c.reply(f.ID, &wire.Reply{})
		return
	}
	if s.c.launch.PID == 0 || s.end.begun {
		c.fail(f.ID, wire.CodeNotFound, "the container has ended")
		return
	}
	s.c.oom.asked = s.c.oom.asked || sig == unix.SIGKILL
	err := s.kids.signal(int(s.c.launch.PID), sig)
	switch {
	case err == nil:
		c.reply(f.ID, &wire.Reply{})
	case err == syscall.ESRCH:
		c.fail(f.ID, wire.CodeNotFound, "the container has ended")
	default:
		c.fail(f.ID, wire.CodeFailed, err.Error())
	}
}

func (s *shim) resize(c *conn, f wire.Frame) {
	var m wire.Size
	if wire.Decode(f.Body, &m) != nil || uint64(m.Width) > 0xffff || uint64(m.Height) > 0xffff {
		c.fail(f.ID, wire.CodeInvalid, "malformed request")
		return
	}
	if s.c.io == nil || !s.c.io.tty || s.c.io.in < 0 {
		c.fail(f.ID, wire.CodeState, "the container has no terminal")
		return
	}
	ws := &unix.Winsize{Row: uint16(m.Height), Col: uint16(m.Width)}
	if err := unix.IoctlSetWinsize(s.c.io.in, unix.TIOCSWINSZ, ws); err != nil {
		c.fail(f.ID, wire.CodeFailed, err.Error())
		return
	}
	c.reply(f.ID, &wire.Reply{})
}

func (s *shim) reopen(c *conn, id uint32) {
	if s.c.io == nil || s.end.recorded {
		c.fail(id, wire.CodeState, "the container has no open log")
		return
	}
	if err := s.c.io.log.reopen(); err != nil {
		c.fail(id, wire.CodeFailed, "open log: "+err.Error())
		return
	}
	s.c.io.resume()
	c.reply(id, s.state())
}

func (s *shim) update(c *conn, id uint32, files []int) {
	if len(files) != 1 || s.c.launch.PID == 0 || s.end.begun {
		closeAll(files)
		c.fail(id, wire.CodeState, s.noProcess())
		return
	}
	s.runtime("update", func(log string) []string {
		return s.c.rt.Update(log, s.c.launch.Create.ID, fdPath(files[0]))
	}, nil, func(failure string) {
		closeAll(files)
		if failure != "" {
			c.fail(id, wire.CodeFailed, failure)
			return
		}
		c.reply(id, &wire.Reply{})
	})
}

func (s *shim) attach(c *conn, f wire.Frame) {
	var m wire.Attach
	if wire.Decode(f.Body, &m) != nil || c.tap {
		c.fail(f.ID, wire.CodeInvalid, "malformed request")
		return
	}
	if s.c.launch.PID == 0 || s.end.begun {
		c.fail(f.ID, wire.CodeState, s.noProcess())
		return
	}
	c.tap = true
	c.stdin = m.Stdin && s.c.io.in >= 0 && s.c.launch.Create.Stdin
	c.reply(f.ID, &wire.Reply{Terminal: s.c.io.tty, Stdin: c.stdin})
	s.c.io.tap(c)
}

func (s *shim) input(c *conn, data []byte) {
	if !c.tap || !c.stdin {
		return
	}
	if len(data) == 0 {
		s.detachStdin(c)
		return
	}
	if s.c.io.input(data) {
		c.pause(true)
	}
}

func (s *shim) detach(c *conn) {
	s.c.io.untap(c)
	s.detachStdin(c)
}

// detachStdin closes the container's stdin after its only client, if it is to
// have only one, and after what that one wrote has been taken.
func (s *shim) detachStdin(c *conn) {
	if !c.stdin {
		return
	}
	c.stdin = false
	if s.c.io.once {
		s.c.io.finishStdin()
	}
}

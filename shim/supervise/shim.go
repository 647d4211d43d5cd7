package supervise

import (
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/berth-dev/berth/shim/cgroup"
	"github.com/berth-dev/berth/shim/runc"
	"github.com/berth-dev/berth/shim/wire"
)

// shim is the supervisor of one container.
type shim struct {
	loop     *loop
	kids     *children
	listener int
	conns    map[*conn]struct{}
	groups   cgroup.Mode
	calls    []*call // runtime commands that have not ended, the oldest first
	gate     *gate   // a start without runtime command under way; nil: none is
	c        container
	execs    execs
	still    still
	end      ending
}

// call is a runtime command under way.
type call struct {
	command string
	since   int64 // ns since 1970
}

// container is what the shim knows about it.
type container struct {
	launch  wire.Launch
	rt      runc.Runtime
	phase   int64
	io      *stdio
	started int64
	oom     oomWatch
	exit    wire.Exit
	making  int // pid of runc create or restore while it runs
	unborn  unborn
}

// run is the mode "run". Descriptor 3 is the first connection.
func run() int {
	_ = unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
	unix.CloseOnExec(3)
	s := &shim{conns: map[*conn]struct{}{}}
	s.execs.stale = map[string]struct{}{}
	var err error
	if s.loop, err = newLoop(); err == nil {
		s.kids, err = newChildren(s.loop)
	}
	if err == nil {
		s.groups, err = cgroup.Detect()
	}
	if err == nil {
		s.listener, err = listenUnix(wire.SocketFile, unix.SOCK_SEQPACKET)
	}
	if err == nil {
		err = s.loop.add(s.listener, unix.EPOLLIN, func(uint32) { s.accept() })
	}
	if err != nil {
		say(2, "start: "+err.Error())
		return 1
	}
	s.open(3)
	s.loop.run()
	return 0
}

// closed is called after a connection has gone. A shim that was never asked
// for a container has no reason to stay.
func (s *shim) closed() {
	if s.c.phase == 0 && len(s.conns) == 0 {
		s.leave()
	}
}

// leave ends the process; nothing is left of the container.
func (s *shim) leave() {
	_ = unix.Unlink(wire.SocketFile)
	s.loop.done = true
}

func (s *shim) handle(c *conn, f wire.Frame, files []int) {
	if c.version == 0 {
		closeAll(files)
		s.greet(c, f)
		return
	}
	switch f.Kind {
	case wire.KindExec:
		s.exec(c, f, files)
		return
	case wire.KindUpdate:
		s.update(c, f.ID, files)
		return
	}
	closeAll(files)
	switch f.Kind {
	case wire.KindCreate:
		s.create(c, f)
	case wire.KindStart:
		s.start(c, f.ID)
	case wire.KindSignal:
		s.signal(c, f)
	case wire.KindResize:
		s.resize(c, f)
	case wire.KindReopen:
		s.reopen(c, f.ID)
	case wire.KindState:
		c.reply(f.ID, s.state())
	case wire.KindDelete:
		s.remove(c, f.ID)
	case wire.KindAttach:
		s.attach(c, f)
	case wire.KindStdin:
		s.input(c, f.Body)
	case wire.KindFreeze:
		s.freeze(c, f.ID)
	case wire.KindDump:
		s.dump(c, f)
	case wire.KindThaw:
		s.thaw(c, f.ID)
	case wire.KindKillExec:
		if c.exec != nil {
			c.exec.kill()
		}
	default:
		c.fail(f.ID, wire.CodeUnknown, "this shim does not know the request")
	}
}

func (s *shim) greet(c *conn, f wire.Frame) {
	var h wire.Hello
	if f.Kind != wire.KindHello || wire.Decode(f.Body, &h) != nil {
		c.close()
		return
	}
	c.send(wire.KindHello, f.ID, wire.Encode(&wire.Hello{Version: wire.Version, Oldest: wire.Oldest,
		PID: int64(unix.Getpid()), ID: s.c.launch.Create.ID}))
	v, err := h.Common()
	if err != nil {
		c.close()
		return
	}
	c.events, c.version = h.Events, v
}

func (s *shim) state() *wire.Reply {
	r := &wire.Reply{Phase: s.c.phase, PID: s.c.launch.PID, StartedAt: s.c.started,
		Terminal: s.c.launch.Create.Terminal, Stdin: s.c.launch.Create.Stdin}
	if s.c.io != nil {
		r.Log = s.c.io.health()
	}
	if len(s.calls) > 0 {
		r.Busy = wire.Busy{Command: s.calls[0].command, Since: s.calls[0].since}
	}
	if s.c.phase == wire.PhaseExited {
		r.Exit = s.c.exit
	}
	return r
}

// flutter is how long a log that was failing has to be well before that is
// told, in ms: a disk that is almost full lets every other line through.
const flutter = 1000

// watchLog tells the daemon when writes to the log begin to fail or cease to.
func (s *shim) watchLog() {
	told, waits := false, false
	log := s.c.io.log
	log.first = s.tellLog
	tell := func() {
		told = !told
		s.tellLog()
	}
	log.changed = func() {
		if log.errno != 0 && !told {
			tell()
		}
		if log.errno != 0 || !told || waits {
			return
		}
		waits = true
		s.loop.after(flutter, func() {
			if waits = false; log.errno == 0 && told {
				tell()
			}
		})
	}
}

// tellLog tells every daemon how the log fares.
func (s *shim) tellLog() {
	h := s.c.io.health()
	for c := range s.conns {
		if c.events && c.version >= wire.VersionLimits {
			c.send(wire.KindLogHealth, 0, wire.Encode(&h))
		}
	}
}

// runtime runs an OCI runtime command; argv makes the command line from the
// path of the log. failure is "" when it succeeded. With stdio the command's
// output is the container's, else it is kept for the message.
func (s *shim) runtime(name string, argv func(log string) []string, stdio *stdioEnds, done func(failure string)) int {
	log, path, err := memfd("runc-log")
	if err != nil {
		s.loop.after(0, func() { done("make log: " + err.Error()) })
		return 0
	}
	fds, errs := [3]int{-1, -1, -1}, -1
	if stdio != nil {
		fds = *stdio
	} else if errs, _, err = memfd("runc-stderr"); err == nil {
		fds[2] = errs
	}
	if len(s.calls) == 0 {
		// Whatever was reaped since the last call is not what this one will start.
		s.kids.settle()
	}
	this := &call{command: name, since: wallclock()}
	s.calls = append(s.calls, this)
	args := argv(path)
	fault(name + "/before")
	pid, err := s.kids.spawn(args, fds, func(ws syscall.WaitStatus) {
		fault(name + "/after")
		failure := ""
		if code, _ := exitCode(ws); code != 0 {
			var text []byte
			if errs >= 0 {
				text = content(errs)
			}
			failure = runc.Failure(content(log), text, int(code))
		}
		closeFD(&log)
		closeFD(&errs)
		s.over(this)
		done(failure)
		if len(s.calls) == 0 {
			s.kids.settle()
		}
	})
	if err != nil {
		closeFD(&log)
		closeFD(&errs)
		s.over(this)
		s.loop.after(0, func() { done("run " + args[0] + ": " + err.Error()) })
	}
	fault(name + "/running")
	return pid
}

// over forgets a runtime command that has ended.
func (s *shim) over(this *call) {
	for i, k := range s.calls {
		if k == this {
			s.calls = append(s.calls[:i], s.calls[i+1:]...)
			return
		}
	}
}

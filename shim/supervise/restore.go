package supervise

import (
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/berth-dev/berth/shim/runc"
	"github.com/berth-dev/berth/shim/wire"
)

// unborn is a container whose processes are restored at its start. Before, it
// has its output and nothing else.
type unborn struct {
	ends      stdioEnds // the container's, for the runtime
	restoring bool
	asked     []func(*wire.Reply) // who has asked for the start, while the runtime is at work
	signal    syscall.Signal      // came while the runtime was at work; 0: none did
}

// born reports whether a container has or had processes.
func (c *container) born() bool { return c.launch.Create.Restore.Images == "" || c.launch.PID != 0 }

// noProcess says why there is nothing to act on.
func (s *shim) noProcess() string {
	if s.c.phase == wire.PhaseCreated && !s.c.born() {
		return "its processes are not restored yet, start it first"
	}
	return "the container is neither created nor running"
}

// conceive ends the creation of such a container.
func (s *shim) conceive(c *conn, id uint32, ends stdioEnds) {
	l := &s.c.launch
	s.c.unborn.ends = ends
	l.Cgroup = l.Create.Restore.Cgroup
	if err := s.saveLaunch(); err != nil {
		s.c.unborn.ends.close()
		s.undoCreate(c, id, "write launch file: "+err.Error())
		return
	}
	s.c.phase = wire.PhaseCreated
	c.reply(id, s.state())
}

// restore is the start of such a container. It cannot be tried a second time; who
// asks while it goes on, as a daemon does that was started meanwhile, gets the
// answer to the first.
func (s *shim) restore(c *conn, id uint32) {
	l, u := &s.c.launch, &s.c.unborn
	if s.c.making != 0 {
		u.asked = append(u.asked, func(r *wire.Reply) { c.reply(id, r) })
		return
	}
	if u.restoring {
		c.fail(id, wire.CodeState, "the container is being restored, or that has failed")
		return
	}
	u.restoring = true
	listener, console := -1, ""
	if l.Create.Terminal {
		var err error
		if listener, err = listenUnix(consoleFile, unix.SOCK_STREAM); err != nil {
			c.fail(id, wire.CodeFailed, "prepare console: "+err.Error())
			return
		}
		console = consoleFile
	}
	u.asked = append(u.asked, func(r *wire.Reply) { c.reply(id, r) })
	at := wallclock()
	s.c.making = s.runtime("restore", func(log string) []string {
		r := &l.Create.Restore
		return s.c.rt.Restore(log, l.Create.ID, runc.RestoreOptions{Images: r.Images, Work: r.Work, PidFile: pidFile, Console: console})
	}, &u.ends, func(failure string) {
		s.restored(at, s.made(listener, failure))
	})
	u.ends.close()
}

// restored answers, and lets happen to the container what was asked for meanwhile.
func (s *shim) restored(at int64, failure string) {
	answer := func(r *wire.Reply) {
		for _, f := range s.c.unborn.asked {
			f(r)
		}
		s.c.unborn.asked = nil
	}
	if failure != "" {
		// What CRIU left is in the control group, as CRIU was itself.
		_, _ = s.groups.KillOnce(s.c.launch.Cgroup)
		s.c.launch.PID = 0
		s.c.io.discard() // what the runtime said is not the container's
		answer(&wire.Reply{Code: wire.CodeFailed, Message: failure})
		if len(s.end.waiting) > 0 || s.c.unborn.signal != 0 {
			s.abort(unix.SIGKILL)
		}
		return
	}
	s.c.started, s.c.phase = at, wire.PhaseRunning
	if len(s.end.waiting) > 0 {
		answer(&wire.Reply{Code: wire.CodeState, Message: "the container was deleted meanwhile"})
		s.killAll()
		return
	}
	if s.c.unborn.signal != 0 {
		_ = s.kids.signal(int(s.c.launch.PID), s.c.unborn.signal)
	}
	answer(&wire.Reply{Phase: s.c.phase, PID: s.c.launch.PID, StartedAt: at})
}

// signalUnborn ends a container that has no processes yet: whatever the signal
// would have meant to them, they are not there to say.
func (s *shim) signalUnborn(sig syscall.Signal) {
	switch {
	case s.c.making != 0:
		s.c.unborn.signal = sig
	case sig != 0:
		s.abort(sig)
	}
}

// abort ends a container without processes, as a signal would have ended them.
func (s *shim) abort(sig syscall.Signal) {
	s.c.unborn.ends.close()
	sweepRestore(&s.c.launch.Create)
	s.initEnded(syscall.WaitStatus(sig))
}

// sweepRestore removes what a runtime that was killed while it restored has left
// and does not know of any more: runc's mount of the root file system for CRIU.
func sweepRestore(c *wire.Create) {
	if c.Restore.Images == "" || c.Runtime.Root == "" {
		return
	}
	dir := c.Runtime.Root + "/" + c.ID
	_ = unix.Unmount(dir+"/criu-root", unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
	_ = unix.Rmdir(dir + "/criu-root")
	_ = unix.Rmdir(dir) // not while the runtime keeps its state there
}

package supervise

import (
	"strconv"

	"github.com/berth-dev/berth/shim/wire"
)

// Bounds of a checkpoint's first steps, in ms.
const (
	execBound   = 5000  // for commands that run in the container to end
	frozenBound = 10000 // for the kernel to stop all processes
	frozenPoll  = 5
	thawAgain   = 100 // pause after a thaw that failed
)

// still is the container while it stands still for a connection. The
// connection is a lease: when it ends, because the daemon died for example, the
// container goes on. Only a dump that is under way is let end before, since who
// kills CRIU in the middle loses the processes it has hold of.
type still struct {
	owner   *conn
	frozen  bool
	dumping bool
	execs   []func() // commands that wait until the container goes on
	waiting []func() // answers to thaw
}

func (s *shim) freeze(c *conn, id uint32) {
	switch {
	case s.c.phase != wire.PhaseRunning || s.end.begun:
		c.fail(id, wire.CodeState, "the container is not running")
	case s.c.launch.Cgroup == "":
		c.fail(id, wire.CodeState, "the container has no control group of its own")
	case s.still.owner != nil || s.still.dumping || s.still.frozen:
		c.fail(id, wire.CodeState, "a checkpoint of the container is under way")
	default:
		s.still.owner = c
		s.awaitExecs(c, id, now()+execBound*1e6)
	}
}

// refuse answers a freeze that came to nothing.
func (s *shim) refuse(c *conn, id uint32, code int64, msg string) {
	s.melt()
	c.fail(id, code, msg)
}

// awaitExecs waits for commands that were there before. CRIU takes the
// container's init and its descendants along, nothing else.
func (s *shim) awaitExecs(c *conn, id uint32, limit int64) {
	switch {
	case s.still.owner != c:
		if c.fd >= 0 {
			c.fail(id, wire.CodeState, "the container has ended")
		}
	case s.execs.live == 0:
		if err := s.groups.Freeze(s.c.launch.Cgroup); err != nil {
			s.refuse(c, id, wire.CodeFailed, err.Error())
			return
		}
		s.still.frozen = true
		s.awaitFrozen(c, id, now()+frozenBound*1e6)
	case now() > limit:
		s.refuse(c, id, wire.CodeState, "commands run in the container beside its own processes (exec, probes): "+
			strconv.Itoa(s.execs.live)+"; they cannot be taken along, end them and try again")
	default:
		s.loop.after(20, func() { s.awaitExecs(c, id, limit) })
	}
}

func (s *shim) awaitFrozen(c *conn, id uint32, limit int64) {
	if s.still.owner != c {
		if c.fd >= 0 {
			c.fail(id, wire.CodeState, "the container has ended")
		}
		return
	}
	ok, err := s.groups.Frozen(s.c.launch.Cgroup)
	switch {
	case err != nil:
		s.refuse(c, id, wire.CodeFailed, err.Error())
	case ok:
		c.reply(id, &wire.Reply{})
	case now() > limit:
		s.refuse(c, id, wire.CodeFailed, "not all processes stand still; one of them is in uninterruptible sleep")
	default:
		_ = s.groups.Freeze(s.c.launch.Cgroup) // v1 may have to be told again
		s.loop.after(frozenPoll, func() { s.awaitFrozen(c, id, limit) })
	}
}

func (s *shim) dump(c *conn, f wire.Frame) {
	var m wire.Dump
	if wire.Decode(f.Body, &m) != nil || m.Images == "" || m.Work == "" {
		c.fail(f.ID, wire.CodeInvalid, "malformed request")
		return
	}
	if s.still.owner != c || !s.still.frozen || s.still.dumping || s.end.begun {
		c.fail(f.ID, wire.CodeState, "the container does not stand still for this client")
		return
	}
	s.still.dumping = true
	s.runtime("checkpoint", func(log string) []string {
		return s.c.rt.Checkpoint(log, s.c.launch.Create.ID, m.Images, m.Work)
	}, nil, func(failure string) {
		s.still.dumping = false
		if s.still.owner == nil {
			s.melt()
		}
		if failure != "" {
			c.fail(f.ID, wire.CodeFailed, failure)
			return
		}
		c.reply(f.ID, &wire.Reply{})
	})
}

// thaw lets the container go on. Another client than the one it stands still for
// waits until that one has gone.
func (s *shim) thaw(c *conn, id uint32) {
	s.still.waiting = append(s.still.waiting, func() { c.reply(id, &wire.Reply{}) })
	if s.still.owner == c || s.still.owner == nil {
		s.melt()
	}
}

// melt ends the lease: the container goes on, with it the commands that waited,
// and who asked gets an answer. During a dump it is the dump's end that does it.
func (s *shim) melt() {
	s.still.owner = nil
	if s.still.dumping {
		return
	}
	if s.still.frozen {
		if err := s.groups.Thaw(s.c.launch.Cgroup); err != nil {
			say(2, "thaw: "+err.Error())
			s.loop.after(thawAgain, s.melt)
			return
		}
		s.still.frozen = false
	}
	execs, waiting := s.still.execs, s.still.waiting
	s.still.execs, s.still.waiting = nil, nil
	for _, f := range waiting {
		f()
	}
	for _, f := range execs {
		f()
	}
}

package supervise

import (
	"golang.org/x/sys/unix"

	"github.com/berth-dev/berth/shim/wire"
)

// gateFile is where the init of a container that runc has created waits: a FIFO
// in runc's state directory, to which it writes a byte before it becomes the
// container's program. To take that byte and to remove the FIFO is all that
// `runc start` does.
const gateFile = "exec.fifo"

// gate is a start by the shim itself, under way.
type gate struct {
	path string
	fd   int
	call *call
	done func(failure string)
}

func (s *shim) start(c *conn, id uint32) {
	if s.c.phase != wire.PhaseCreated || s.end.begun {
		c.fail(id, wire.CodeState, "the container is not in state created")
		return
	}
	if !s.c.born() {
		s.restore(c, id)
		return
	}
	// Taken before: a container may end before runc does.
	at := wallclock()
	s.c.started = at
	s.c.phase = wire.PhaseRunning
	done := func(failure string) {
		if failure == "" {
			c.reply(id, &wire.Reply{Phase: s.c.phase, PID: s.c.launch.PID, StartedAt: at})
			return
		}
		if !s.end.begun {
			s.c.started, s.c.phase = 0, wire.PhaseCreated
		}
		c.fail(id, wire.CodeFailed, failure)
	}
	if s.openGate(done) {
		return
	}
	s.runtime("start", func(log string) []string { return s.c.rt.Start(log, s.c.launch.Create.ID) }, nil, done)
}

// openGate starts the container without runc, if it waits at a FIFO. It spares
// the start of a program whose only work that is.
func (s *shim) openGate(done func(failure string)) bool {
	l := &s.c.launch.Create
	if !l.Gate || l.Runtime.Root == "" {
		return false
	}
	path := l.Runtime.Root + "/" + l.ID + "/" + gateFile
	fault("gate/before")
	fd, err := openFile(path, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_NOFOLLOW, 0)
	if err != nil {
		return false
	}
	if s.loop.add(fd, unix.EPOLLIN, func(uint32) { s.watchGate() }) != nil {
		closeFD(&fd)
		return false
	}
	s.gate = &gate{path: path, fd: fd, call: &call{command: "start", since: wallclock()}, done: done}
	s.calls = append(s.calls, s.gate.call)
	fault("gate/running")
	return true
}

// watchGate is called when init has written to the FIFO, or no longer can: it may
// have ended, before that or since.
func (s *shim) watchGate() {
	g := s.gate
	if g == nil {
		return
	}
	var b [1]byte
	n, err := unix.Read(g.fd, b[:])
	if (err == unix.EINTR || err == unix.EAGAIN) && !s.end.begun {
		return
	}
	fault("gate/after")
	failure := ""
	if n != 1 {
		failure = "its first process has ended"
	} else if err := unix.Unlink(g.path); err != nil && err != unix.ENOENT {
		// To runc the container would stay created.
		say(2, "remove "+g.path+": "+err.Error())
	}
	s.gate = nil
	s.loop.drop(&g.fd)
	s.over(g.call)
	g.done(failure)
}

package supervise

import (
	"bytes"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/berth-dev/berth/shim/wire"
)

// Bounds of the last steps, in ms.
const (
	killBound  = 10000 // leftovers in the group
	drainBound = 500   // output after everything is dead
	callBound  = 10000 // a runtime command
	flushBound = 2000  // frames for slow peers
)

// ending is the way from the end of init to the end of the shim.
type ending struct {
	begun    bool
	recorded bool
	since    int64 // of the present step, monotonic
	failed   bool  // runc delete did not succeed
	waiting  []func()
}

// initEnded is called when init has been reaped.
func (s *shim) initEnded(ws syscall.WaitStatus) {
	if s.end.begun {
		return
	}
	fault("exit/before")
	s.end.begun = true
	s.end.since = now()
	code, sig := exitCode(ws)
	s.c.exit = wire.Exit{Code: code, Signal: sig, StartedAt: s.c.started, FinishedAt: wallclock()}
	s.watchGate()
	s.lookForOOM() // at once: systemd removes a group that is empty
	s.melt()
	s.killLeftovers()
}

// killLeftovers empties the container's group: processes in a PID namespace
// that is not the container's own outlive its init.
func (s *shim) killLeftovers() {
	if s.c.launch.Cgroup != "" {
		n, _ := s.groups.KillOnce(s.c.launch.Cgroup)
		if n > 0 && now()-s.end.since < killBound*1e6 {
			s.loop.after(2, s.killLeftovers)
			return
		}
	}
	s.end.since = now()
	s.drain()
}

// drain reads the last output: all of it when the writers are dead.
func (s *shim) drain() {
	s.c.io.drain()
	if !s.c.io.ended() && now()-s.end.since < drainBound*1e6 {
		s.loop.after(20, s.drain)
		return
	}
	s.c.io.close()
	s.record()
}

// record decides about OOM, makes the end durable and tells everybody.
func (s *shim) record() {
	s.lookForOOM()
	s.c.exit.OOMKilled = s.c.oom.seen
	writeExit(s.c.launch.Create.ExitPath, s.c.exit)
	fault("exit/after")
	s.c.phase = wire.PhaseExited
	s.end.recorded = true
	body := wire.Encode(&s.c.exit)
	if h := s.c.io.health(); h.Dropped > 0 || h.Capped > 0 {
		s.tellLog()
	}
	for c := range s.conns {
		if c.events {
			c.send(wire.KindExited, 0, body)
		}
	}
	s.erase(false, s.finish)
}

// writeExit writes the exit record where it lasts, or, if that place is full
// or gone, where it lasts until the next boot.
func writeExit(path string, e wire.Exit) {
	b := wire.AppendExitRecord(nil, e)
	err := mkdirAll(parent(path))
	if err == nil {
		err = writeFile(path, b, true)
	}
	if err == nil {
		return
	}
	say(2, "write exit record "+path+": "+err.Error())
	if err = writeFile(wire.ExitFile, b, false); err != nil {
		say(2, "write exit record: "+err.Error())
	}
}

// erase runs runc delete, by force if it must, and gives up after a while: a
// stuck runtime may not keep the shim for ever.
func (s *shim) erase(force bool, then func()) {
	over := false
	pid := s.runtime("delete", func(log string) []string {
		return s.c.rt.Delete(log, s.c.launch.Create.ID, force)
	}, nil, func(failure string) {
		if over {
			return
		}
		over = true
		switch {
		case failure == "":
		case !force:
			s.erase(true, then)
			return
		default:
			s.end.failed = true
			say(2, "runc delete: "+failure)
		}
		then()
	})
	s.loop.after(callBound, func() {
		if over {
			return
		}
		over = true
		s.end.failed = true
		say(2, "runc delete: no answer")
		_ = s.kids.signal(pid, unix.SIGKILL)
		then()
	})
}

// finish lets replies and attached clients have the rest, then leaves.
func (s *shim) finish() {
	for name := range s.execs.stale {
		_ = s.groups.RemoveLeaf(s.c.launch.Cgroup, name)
	}
	if s.c.launch.Cgroup != "" && !s.end.failed {
		_ = s.groups.Remove(s.c.launch.Cgroup)
	}
	for _, f := range s.end.waiting {
		f()
	}
	s.end.since = now()
	s.lastWords()
}

func (s *shim) lastWords() {
	busy := len(s.calls) > 0 || s.execs.live > 0
	for c := range s.conns {
		busy = busy || len(c.queue) > 0
	}
	if busy && now()-s.end.since < flushBound*1e6 {
		s.loop.after(5, s.lastWords)
		return
	}
	if !s.end.failed {
		_ = unix.Unlink(wire.LaunchFile)
	}
	s.leave()
}

// undoCreate removes what a failed create left, answers, and ends the shim.
func (s *shim) undoCreate(c *conn, id uint32, failure string) {
	s.end.begun = true
	if s.c.io != nil {
		if failure == "exit status 1" {
			// The runtime kept no log; what it printed went to the container's stderr.
			if fd := s.c.io.streams[1].fd; fd >= 0 {
				if n, _ := unix.Read(fd, s.loop.in[:4096]); n > 0 {
					failure = strings.TrimSpace(string(s.loop.in[:n]))
				}
			}
		}
		s.c.io.discard()
		s.c.io.log.discard()
		s.c.io.close()
	}
	if g := s.c.launch.Cgroup; g != "" {
		_, _ = s.groups.KillOnce(g)
	}
	s.erase(true, func() {
		s.end.failed = false // there may have been nothing to delete
		c.fail(id, wire.CodeFailed, failure)
		s.finish()
	})
}

// remove ends the container whatever it does, and answers when all is gone.
func (s *shim) remove(c *conn, id uint32) {
	if s.c.phase == 0 {
		c.reply(id, &wire.Reply{})
		s.leave()
		return
	}
	s.end.waiting = append(s.end.waiting, func() {
		if s.end.failed {
			c.fail(id, wire.CodeFailed, "the runtime could not delete the container")
			return
		}
		c.reply(id, s.state())
	})
	if s.end.begun {
		return
	}
	switch {
	case s.c.making != 0:
		// What it has made, if it is too late for that, its callback removes.
		_ = s.kids.signal(s.c.making, unix.SIGKILL)
		if !s.c.born() {
			_, _ = s.groups.KillOnce(s.c.launch.Cgroup) // CRIU, and what it has restored
		}
	case !s.c.born():
		s.abort(unix.SIGKILL)
	default:
		s.killAll()
	}
}

// killAll kills init and everything in its group; init's end does the rest.
func (s *shim) killAll() {
	_ = s.kids.signal(int(s.c.launch.PID), unix.SIGKILL)
	if s.c.launch.Cgroup != "" {
		_, _ = s.groups.KillOnce(s.c.launch.Cgroup)
	}
	s.kids.linger()
}

// parseStat reads the parent and the session of a process.
func parseStat(pid int) (ppid, session int, ok bool) {
	b, err := readFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return 0, 0, false
	}
	// The command may hold anything; it ends at the last parenthesis.
	f := bytes.Fields(b[bytes.LastIndexByte(b, ')')+1:])
	if len(f) < 4 {
		return 0, 0, false
	}
	ppid, err = strconv.Atoi(string(f[1]))
	session, err2 := strconv.Atoi(string(f[3]))
	return ppid, session, err == nil && err2 == nil
}

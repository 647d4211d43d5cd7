package supervise

import (
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/berth-dev/berth/shim/runc"
	"github.com/berth-dev/berth/shim/wire"
)

// execs are the processes run in the container beside its own.
type execs struct {
	next  int
	live  int
	stale map[string]struct{} // leaf groups that still held something
}

// execution is one of them. It belongs to a connection and dies with it.
type execution struct {
	s       *shim
	c       *conn
	name    string
	leaf    bool
	calling int // pid of runc exec while it runs
	pid     int // once known, until reaped
	killed  bool
	tries   int
}

func (s *shim) exec(c *conn, f wire.Frame, files []int) {
	var m wire.Exec
	want := 3
	if err := wire.Decode(f.Body, &m); err == nil && m.Terminal {
		want = 1
	} else if m.Stdin {
		want = 4
	}
	if len(files) != want || c.exec != nil || c.tap || c.fd < 0 {
		closeAll(files)
		c.fail(f.ID, wire.CodeInvalid, "malformed request")
		return
	}
	if s.c.phase != wire.PhaseRunning || s.end.begun {
		closeAll(files)
		c.fail(f.ID, wire.CodeState, "the container is not running")
		return
	}
	if s.still.owner != nil || s.still.dumping || s.still.frozen {
		f.Body = append([]byte(nil), f.Body...)
		s.still.execs = append(s.still.execs, func() { s.exec(c, f, files) })
		return
	}
	s.execs.next++
	e := &execution{s: s, c: c, name: "exec-" + strconv.Itoa(s.execs.next)}
	c.exec = e
	o := runc.ExecOptions{Process: fdPath(files[0]), PidFile: e.name + ".pid"}
	listener := -1
	stdio := stdioEnds{-1, -1, -1}
	if m.Terminal {
		var err error
		if listener, err = listenUnix(e.name+".sock", unix.SOCK_STREAM); err != nil {
			closeAll(files)
			c.exec = nil
			c.fail(f.ID, wire.CodeFailed, "listen for console: "+err.Error())
			return
		}
		o.Console = e.name + ".sock"
	} else {
		stdio[1], stdio[2] = files[1], files[2]
		if m.Stdin {
			stdio[0] = files[3]
		}
	}
	if arg, err := s.groups.MakeLeaf(s.c.launch.Cgroup, e.name); err == nil {
		e.leaf, o.Cgroup = true, arg
	}
	s.execs.live++
	e.run(f.ID, o, stdio, files, listener)
}

// run calls runc and answers the request. It owns the files.
func (e *execution) run(id uint32, o runc.ExecOptions, stdio stdioEnds, files []int, listener int) {
	s := e.s
	done := func(failure string) {
		e.calling = 0
		closeAll(files[:1])
		var out []int
		if failure == "" {
			failure, out = e.started(listener)
		} else {
			e.pid = startedPID(e.name + ".pid")
		}
		closeFD(&listener)
		_ = unix.Unlink(e.name + ".pid")
		_ = unix.Unlink(e.name + ".sock")
		if failure != "" {
			closeAll(out)
			e.c.exec = nil
			e.c.fail(id, wire.CodeFailed, failure)
			e.undo()
			return
		}
		e.c.sendFiles(wire.KindReply, id, wire.Encode(&wire.Reply{PID: int64(e.pid)}), out)
		s.kids.adopt(e.pid, e.ended)
		if e.killed {
			e.sweep()
		}
	}
	s.scored(func() {
		e.calling = s.runtime("exec", func(log string) []string { return s.c.rt.Exec(log, s.c.launch.Create.ID, o) }, &stdio, done)
	})
	closeAll(files[1:])
}

// startedPID reads a pid file; 0 stands for one that is not there or malformed.
func startedPID(path string) int {
	text, err := readFile(path)
	if err != nil {
		return 0
	}
	pid, err := strconv.Atoi(string(text))
	if err != nil || pid <= 1 {
		return 0
	}
	return pid
}

// started reads what runc exec left: the pid and perhaps a console.
func (e *execution) started(listener int) (failure string, files []int) {
	if e.pid = startedPID(e.name + ".pid"); e.pid == 0 {
		return "runc left no pid file, or a malformed one", nil
	}
	if listener < 0 {
		return "", nil
	}
	master, err := takeConsole(listener)
	if err != nil {
		return "receive console: " + err.Error(), nil
	}
	return "", []int{master}
}

// undo ends what a failed runc exec may have started all the same: above all
// one that was killed after the process had begun. Whatever it was is this
// subreaper's child now, and kept the container's PID namespace until reaped.
func (e *execution) undo() {
	e.killed = true
	if e.pid != 0 {
		e.s.kids.adopt(e.pid, func(syscall.WaitStatus) { e.pid = 0 })
	}
	e.sweep()
}

func (e *execution) ended(ws syscall.WaitStatus) {
	e.pid = 0
	code, sig := exitCode(ws)
	e.c.send(wire.KindExecEnded, 0, wire.Encode(&wire.Exit{Code: code, Signal: sig, FinishedAt: wallclock()}))
	e.c.exec = nil
	if !e.killed {
		e.finish()
	}
}

// finish forgets the execution. Children that it left in the background stay,
// as they do everywhere; their group goes when they have.
func (e *execution) finish() {
	s := e.s
	s.execs.live--
	if !e.leaf {
		return
	}
	s.execs.stale[e.name] = struct{}{}
	for name := range s.execs.stale {
		if s.groups.RemoveLeaf(s.c.launch.Cgroup, name) == nil {
			delete(s.execs.stale, name)
		}
	}
}

// abandoned is called when the connection has gone before the process.
func (e *execution) abandoned() { e.kill() }

// kill ends the process and all it started.
func (e *execution) kill() {
	if e.killed {
		return
	}
	e.killed = true
	if e.calling != 0 {
		// What runc had under way dies with it; the callback sees to the rest.
		_ = e.s.kids.signal(e.calling, unix.SIGKILL)
		return
	}
	e.sweep()
}

// sweep kills until nothing is left, without waiting in the loop. What it kills
// may be children that nobody knows of, so it has them reaped.
func (e *execution) sweep() {
	s := e.s
	s.kids.linger()
	left := 0
	if e.leaf {
		left = s.groups.KillLeaf(s.c.launch.Cgroup, e.name)
	} else if s.kids.knows(e.pid) {
		left = killTree(e.pid)
	}
	if e.pid != 0 {
		_ = s.kids.signal(e.pid, unix.SIGKILL)
		left++
	}
	if e.tries++; left > 0 && e.tries < 500 {
		s.loop.after(int64(1+e.tries/10), e.sweep)
		return
	}
	e.finish()
}

// killTree kills a process, its session and all their descendants, for hosts
// where the process could not get a control group of its own.
func killTree(root int) int {
	type proc struct{ pid, parent, session int }
	var all []proc
	fd, err := openFile("/proc", unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return 0
	}
	defer unix.Close(fd)
	buf := make([]byte, 8192)
	for {
		n, err := unix.ReadDirent(fd, buf)
		if err != nil || n <= 0 {
			break
		}
		_, _, names := unix.ParseDirent(buf[:n], -1, nil)
		for _, name := range names {
			if pid, err := strconv.Atoi(name); err == nil {
				if parent, session, ok := parseStat(pid); ok {
					all = append(all, proc{pid, parent, session})
				}
			}
		}
	}
	doomed := map[int]bool{root: true}
	order := []int{root}
	for again := true; again; {
		again = false
		for _, p := range all {
			if !doomed[p.pid] && (doomed[p.parent] || p.session == root) {
				doomed[p.pid], again = true, true
				order = append(order, p.pid)
			}
		}
	}
	// Children first would let the parent fork anew: stop them all, then kill.
	// Whose parent was killed is nobody's descendant any more: what was stopped
	// is killed by the same descriptor, and the last found first.
	held := map[int]int{}
	for _, pid := range order {
		if fd := openIf(pid, doomed, root); fd >= 0 {
			_ = unix.PidfdSendSignal(fd, unix.SIGSTOP, nil, 0)
			held[pid] = fd
		}
	}
	for i := len(order) - 1; i >= 0; i-- {
		if fd, ok := held[order[i]]; ok {
			_ = unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0)
			_ = unix.Close(fd)
		}
	}
	return len(doomed) - 1
}

// openIf returns a pidfd of a process if it, and not another with its pid,
// still descends from the doomed; -1 otherwise.
func openIf(pid int, doomed map[int]bool, root int) int {
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return -1
	}
	parent, session, ok := parseStat(pid)
	if pid == root || ok && (doomed[parent] || session == root) {
		return fd
	}
	_ = unix.Close(fd)
	return -1
}

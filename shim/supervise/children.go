package supervise

import (
	"runtime"
	"syscall"

	"golang.org/x/sys/unix"
)

// children starts and reaps processes. As a subreaper the shim also inherits
// the container's init and exec'ed processes, which are adopted by pid.
type children struct {
	loop   *loop
	byPID  map[int]*child
	strays map[int]syscall.WaitStatus // ended before they were adopted
	null   int
	pause  int64 // ms to the next reap of linger; 0: none is due
	env    []string
	begun  int // programs started since the last collection
}

type child struct {
	pid, pidfd int
	done       func(syscall.WaitStatus)
}

func newChildren(l *loop) (*children, error) {
	null, err := openFile("/dev/null", unix.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	return &children{loop: l, byPID: map[int]*child{}, strays: map[int]syscall.WaitStatus{}, null: null, env: childEnv()}, nil
}

// spawn starts a program with three descriptors, each of which may be -1 for
// /dev/null, and calls done when it has ended.
func (c *children) spawn(argv []string, stdio [3]int, done func(syscall.WaitStatus)) (int, error) {
	files := make([]uintptr, 3)
	for i, fd := range stdio {
		if fd < 0 {
			fd = c.null
		}
		files[i] = uintptr(fd)
	}
	pid, err := syscall.ForkExec(argv[0], argv, &syscall.ProcAttr{Env: c.env, Files: files})
	if err != nil {
		return 0, err
	}
	c.adopt(pid, done)
	c.collect()
	return pid, nil
}

// collectEvery is how many programs are started between two collections of
// garbage. Go's own pace would let a shim that is probed grow by a megabyte
// first; a container that is not probed gets by without any, which costs less
// than what the collector keeps for itself.
const collectEvery = 64

// collect does it while the program just started runs.
func (c *children) collect() {
	if c.begun++; c.begun == collectEvery {
		c.begun = 0
		runtime.GC()
	}
}

// adopt watches a process that is, or is about to be, a child of this one.
func (c *children) adopt(pid int, done func(syscall.WaitStatus)) {
	if ws, ok := c.strays[pid]; ok {
		delete(c.strays, pid)
		if !unreaped(pid) {
			c.loop.after(0, func() { done(ws) })
			return
		}
	}
	k := &child{pid: pid, pidfd: -1, done: done}
	c.byPID[pid] = k
	fd, err := unix.PidfdOpen(pid, 0)
	if err == nil {
		k.pidfd = fd
		err = c.loop.add(fd, unix.EPOLLIN, func(uint32) { c.reap() })
	}
	if err != nil {
		c.loop.drop(&k.pidfd)
		c.poll(k)
	}
}

// unreaped reports whether a child has that pid now. How an earlier process of
// the same pid ended says nothing of it.
func unreaped(pid int) bool {
	for {
		err := unix.Waitid(unix.P_PID, pid, nil, unix.WEXITED|unix.WNOHANG|unix.WNOWAIT, nil)
		if err != unix.EINTR {
			return err == nil
		}
	}
}

// poll stands in for a pidfd that could not be had. One reason is that the
// process was reaped among more strays than are kept: how it ended is not known.
func (c *children) poll(k *child) {
	c.loop.after(50, func() {
		c.reap()
		if c.byPID[k.pid] != k {
			return
		}
		if syscall.Kill(k.pid, 0) == syscall.ESRCH {
			delete(c.byPID, k.pid)
			k.done(unknownEnd)
			return
		}
		c.poll(k)
	})
}

// unknownEnd is the wait status of exit code 255.
const unknownEnd = syscall.WaitStatus(255 << 8)

// linger reaps for some seconds, ever more seldom: after a kill that may hit
// children that were never adopted, whose ends nothing else would tell.
func (c *children) linger() {
	waits := c.pause != 0
	c.pause = 1
	if !waits {
		c.loop.after(c.pause, c.again)
	}
}

func (c *children) again() {
	c.reap()
	if c.pause *= 2; c.pause > lingerMax {
		c.pause = 0
		return
	}
	c.loop.after(c.pause, c.again)
}

// lingerMax is the longest pause of linger, in ms; the sum is twice that.
const lingerMax = 4096

// knows reports whether a process is watched and has not been reaped.
func (c *children) knows(pid int) bool { return c.byPID[pid] != nil }

// reap collects every child that has ended, known or not.
func (c *children) reap() {
	for {
		var ws syscall.WaitStatus
		pid, err := syscall.Wait4(-1, &ws, syscall.WNOHANG, nil)
		if err == syscall.EINTR {
			continue
		}
		if err != nil || pid <= 0 {
			return
		}
		k := c.byPID[pid]
		if k == nil {
			if _, again := c.strays[pid]; again || len(c.strays) < 1024 {
				c.strays[pid] = ws
			}
			continue
		}
		delete(c.byPID, pid)
		c.loop.drop(&k.pidfd)
		k.done(ws)
	}
}

// settle forgets the strays; to be called when no pid is waited for.
func (c *children) settle() { clear(c.strays) }

// signal sends a signal to a child that has not been reaped. It can't hit
// another process: the pid is the child's until it is reaped, here.
func (c *children) signal(pid int, sig syscall.Signal) error {
	if !c.knows(pid) {
		return syscall.ESRCH
	}
	return syscall.Kill(pid, sig)
}

// watchOrphans is for containers in this process's own PID namespace, whose
// orphans come to this subreaper at any time: a thread waits for them. Others
// have an init of their own that does it.
func (c *children) watchOrphans() error {
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		return err
	}
	again := make(chan struct{}, 1)
	go func() {
		for {
			err := unix.Waitid(unix.P_ALL, 0, nil, unix.WEXITED|unix.WNOWAIT, nil)
			if err == unix.EINTR {
				continue
			}
			if err != nil {
				return
			}
			_, _ = unix.Write(fd, []byte{1, 0, 0, 0, 0, 0, 0, 0})
			<-again
		}
	}()
	return c.loop.add(fd, unix.EPOLLIN, func(uint32) {
		var b [8]byte
		_, _ = unix.Read(fd, b[:])
		c.reap()
		select {
		case again <- struct{}{}:
		default:
		}
	})
}

// exitCode is the shell's convention: 128+signal for a killed process.
func exitCode(ws syscall.WaitStatus) (code, signal int64) {
	if ws.Signaled() {
		return 128 + int64(ws.Signal()), int64(ws.Signal())
	}
	return int64(ws.ExitStatus()), 0
}

package supervise

import (
	"time"

	"golang.org/x/sys/unix"

	"github.com/berth-dev/berth/shim/wire"
)

// releaseAfter is how long after the last traffic the buffers go back to the
// kernel, in ms. It is the only timer of its own that a quiet shim has, and it
// fires once. Beside it, Go's runtime looks around once a minute, and collects
// garbage every two minutes in a shim that has collected once.
const releaseAfter = 1000

const (
	readSize = 64 << 10
	outSize  = 256 << 10
)

// loop calls handlers when their descriptors are ready. All code of a shim
// runs in it, so nothing in the package needs a lock.
type loop struct {
	ep       int
	handlers map[int]func(events uint32)
	timers   []timer
	in       []byte // shared by all readers; contents last until the next read
	out      []byte // shared by all writers of logs
	dirty    bool   // buffers have been used since they were last released
	done     bool
}

type timer struct {
	at int64
	f  func()
}

func newLoop() (*loop, error) {
	ep, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, err
	}
	l := &loop{ep: ep, handlers: map[int]func(uint32){}}
	// Mapped, not allocated: what isn't touched costs nothing, and what was
	// can be given back.
	const flags = unix.MAP_ANON | unix.MAP_PRIVATE | unix.MAP_NORESERVE
	if l.in, err = unix.Mmap(-1, 0, wire.MaxFrame+4096, unix.PROT_READ|unix.PROT_WRITE, flags); err != nil {
		return nil, err
	}
	l.out, err = unix.Mmap(-1, 0, outSize, unix.PROT_READ|unix.PROT_WRITE, flags)
	return l, err
}

func (l *loop) add(fd int, events uint32, h func(uint32)) error {
	err := unix.EpollCtl(l.ep, unix.EPOLL_CTL_ADD, fd, &unix.EpollEvent{Events: events, Fd: int32(fd)})
	if err == nil {
		l.handlers[fd] = h
	}
	return err
}

// want changes the events that a descriptor is watched for: with none it is not
// watched at all.
func (l *loop) want(fd int, events uint32) {
	ev := &unix.EpollEvent{Events: events, Fd: int32(fd)}
	switch {
	case events == 0:
		_ = unix.EpollCtl(l.ep, unix.EPOLL_CTL_DEL, fd, nil)
	case unix.EpollCtl(l.ep, unix.EPOLL_CTL_MOD, fd, ev) == unix.ENOENT:
		_ = unix.EpollCtl(l.ep, unix.EPOLL_CTL_ADD, fd, ev)
	}
}

// drop forgets a descriptor and closes it.
func (l *loop) drop(fd *int) {
	if *fd < 0 {
		return
	}
	if _, ok := l.handlers[*fd]; ok {
		delete(l.handlers, *fd)
		_ = unix.EpollCtl(l.ep, unix.EPOLL_CTL_DEL, *fd, nil)
	}
	closeFD(fd)
}

// after calls f once in ms milliseconds.
func (l *loop) after(ms int64, f func()) {
	l.timers = append(l.timers, timer{at: now() + ms*1e6, f: f})
}

// now is monotonic, in ns.
func now() int64 {
	var ts unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts)
	return ts.Nano()
}

func wallclock() int64 { return time.Now().UnixNano() }

// wait returns how long epoll may sleep, in ms; -1 for ever.
func (l *loop) wait() int {
	best := int64(-1)
	if l.dirty {
		best = releaseAfter
	}
	if len(l.timers) > 0 {
		t := now()
		for i := range l.timers {
			ms := max((l.timers[i].at-t+999999)/1e6, 0)
			if best < 0 || ms < best {
				best = ms
			}
		}
	}
	return int(best)
}

func (l *loop) run() {
	var events [8]unix.EpollEvent
	for !l.done {
		n, err := unix.EpollWait(l.ep, events[:], l.wait())
		if err != nil && err != unix.EINTR {
			say(2, "epoll: "+err.Error())
			return
		}
		for i := 0; i < n; i++ {
			if h := l.handlers[int(events[i].Fd)]; h != nil {
				h(events[i].Events)
			}
		}
		if len(l.timers) > 0 {
			l.fire()
		} else if n == 0 && err == nil && l.dirty {
			l.release()
		}
	}
}

func (l *loop) fire() {
	t := now()
	due := l.timers
	l.timers = nil
	for _, d := range due {
		if d.at <= t {
			d.f()
			continue
		}
		l.timers = append(l.timers, d)
	}
}

func (l *loop) release() {
	_ = unix.Madvise(l.in, unix.MADV_DONTNEED)
	_ = unix.Madvise(l.out, unix.MADV_DONTNEED)
	l.dirty = false
}

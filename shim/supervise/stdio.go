package supervise

import (
	"golang.org/x/sys/unix"

	"github.com/berth-dev/berth/shim/crilog"
	"github.com/berth-dev/berth/shim/wire"
)

// maxStdin is how much input waits for a container that doesn't read.
const maxStdin = 256 << 10

// markAfter is how long after it dropped output the log says so, in ms.
const markAfter = 1000

// waitSize is how much is read at once when the log's limits make a container
// wait: they are overstepped by no more.
const waitSize = 4 << 10

// stream is one of the container's outputs.
type stream struct {
	fd     int
	kind   wire.Kind
	framer *crilog.Framer
}

func (s *stream) index() int { return int(s.kind - wire.KindStdout) }

// stdio is the container's own input and output.
type stdio struct {
	loop    *loop
	log     *logFile
	streams [2]stream // with a console only the first
	tty     bool
	peer    int // the console's other side: keeps reads from failing while nobody has it open
	in      int // write end of stdin; the master with a console; -1 when there is none
	pending []byte
	inEvent bool
	taps    []*conn // attached
	once    bool    // StdinOnce
	last    bool    // close stdin once pending is written
	halted  bool    // the log's limits let nothing be read
}

// stdioEnds are the container's ends, closed once runc has them.
type stdioEnds [3]int

func (e *stdioEnds) close() {
	for i := range e {
		closeFD(&e[i])
	}
}

func newStdio(l *loop, c *wire.Create) (*stdio, stdioEnds, error) {
	ends := stdioEnds{-1, -1, -1}
	io := &stdio{loop: l, tty: c.Terminal, peer: -1, in: -1, once: c.StdinOnce}
	io.streams[0] = stream{fd: -1, kind: wire.KindStdout, framer: crilog.NewFramer(crilog.Stdout, int(c.PartialBytes))}
	io.streams[1] = stream{fd: -1, kind: wire.KindStderr, framer: crilog.NewFramer(crilog.Stderr, int(c.PartialBytes))}
	var err error
	if io.log, err = openLog(c); err != nil {
		return io, ends, err
	}
	io.log.marker = func() { l.after(markAfter, func() { io.log.mark(false) }) }
	if c.Terminal {
		return io, ends, nil
	}
	for i := range io.streams {
		if io.streams[i].fd, ends[i+1], err = pipe(0); err != nil {
			return io, ends, err
		}
	}
	if c.Stdin {
		io.in, ends[0], err = pipe(1)
	}
	return io, ends, err
}

// pipe returns this process's end, the mine-th of the pair and non-blocking,
// and the container's.
func pipe(mine int) (own, other int, err error) {
	var p [2]int
	if err = unix.Pipe2(p[:], unix.O_CLOEXEC); err != nil {
		return -1, -1, err
	}
	_ = unix.SetNonblock(p[mine], true)
	return p[mine], p[1-mine], nil
}

// begin starts reading.
func (io *stdio) begin() error {
	for i := range io.streams {
		s := &io.streams[i]
		if s.fd < 0 {
			continue
		}
		if err := io.loop.add(s.fd, unix.EPOLLIN, func(ev uint32) { io.ready(s, ev) }); err != nil {
			return err
		}
	}
	return nil
}

// ready handles what epoll says of an output, which with a console is the
// input too.
func (io *stdio) ready(s *stream, ev uint32) {
	if ev&unix.EPOLLOUT != 0 {
		io.push()
	}
	if ev&^unix.EPOLLOUT != 0 && !io.halted {
		io.read(s)
		io.halt()
	}
}

// halt stops reading for as long as the log's limits say.
func (io *stdio) halt() {
	ms := io.log.limit.pause(now())
	if ms == 0 || io.halted {
		return
	}
	io.halted = true
	io.watch()
	if ms != forever {
		io.loop.after(ms, io.resume)
	}
}

// resume goes on reading, if the limits agree.
func (io *stdio) resume() {
	if io.halted {
		io.halted = false
		io.watch()
		io.halt()
	}
}

// watch asks for the events of the outputs that are wanted now. Without any, a
// descriptor is not watched at all: its hang-up would be told for ever.
func (io *stdio) watch() {
	for i := range io.streams {
		s := &io.streams[i]
		if s.fd < 0 {
			continue
		}
		var events uint32
		if !io.halted {
			events = unix.EPOLLIN
		}
		if io.tty && io.inEvent {
			events |= unix.EPOLLOUT
		}
		if io.loop.handlers[s.fd] == nil {
			continue // begin has not been called, or has ended
		}
		io.loop.want(s.fd, events)
	}
}

// console takes over the pty master.
func (io *stdio) console(master int) {
	_ = unix.SetNonblock(master, true)
	io.streams[0].fd = master
	io.in = master
	const flags = unix.O_RDWR | unix.O_NOCTTY | unix.O_CLOEXEC
	peer, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(master), unix.TIOCGPTPEER, flags)
	if errno == 0 {
		io.peer = int(peer)
	}
}

// read takes what there is, once. It reports whether there may be more.
func (io *stdio) read(s *stream) bool {
	if s.fd < 0 {
		return false
	}
	size := readSize
	if io.log.limit.waits() {
		size = waitSize
	}
	n, err := unix.Read(s.fd, io.loop.in[:size])
	switch {
	case err == unix.EAGAIN:
		return false
	case err == unix.EINTR:
		return true
	case err != nil || n == 0: // a console whose last user is gone is EIO
		io.end(s)
		return false
	}
	io.loop.dirty = true
	data := io.loop.in[:n]
	io.log.append(s.index(), s.framer, data, io.loop.out)
	for _, c := range append([]*conn(nil), io.taps...) {
		c.send(s.kind, 0, data)
	}
	return true
}

// end closes a stream after its last byte.
func (io *stdio) end(s *stream) {
	if s.fd < 0 {
		return
	}
	io.log.flush(s.index(), s.framer, io.loop.out)
	if io.tty {
		io.in = -1
	}
	io.loop.drop(&s.fd)
	for _, c := range append([]*conn(nil), io.taps...) {
		c.send(s.kind, 0, nil)
	}
}

// health is how the log fares.
func (io *stdio) health() wire.LogHealth {
	return wire.LogHealth{Dropped: io.log.dropped, Errno: int64(io.log.errno), Capped: io.log.capped, Paused: io.halted}
}

func (io *stdio) ended() bool { return io.streams[0].fd < 0 && io.streams[1].fd < 0 }

// drain reads what is left, within reason: a writer that outlived the
// container could go on for ever.
func (io *stdio) drain() {
	closeFD(&io.peer)
	for i := range io.streams {
		for n := 0; n < 1024 && io.read(&io.streams[i]); n++ {
		}
	}
}

// close ends both streams and frees everything.
func (io *stdio) close() {
	closeFD(&io.peer)
	for i := range io.streams {
		io.end(&io.streams[i])
	}
	io.closeStdin()
	io.log.mark(true)
	closeFD(&io.log.fd)
}

// discard closes the outputs without reading what is left in them.
func (io *stdio) discard() {
	for i := range io.streams {
		io.loop.drop(&io.streams[i].fd)
	}
	if io.tty {
		io.in = -1
	}
}

// input queues data for the container. It reports whether the sender should
// pause; resumed is called on every tap once there is room.
func (io *stdio) input(data []byte) (full bool) {
	if io.in < 0 {
		return false
	}
	io.pending = append(io.pending, data...)
	io.push()
	return len(io.pending) > maxStdin
}

func (io *stdio) push() {
	for len(io.pending) > 0 && io.in >= 0 {
		n, err := unix.Write(io.in, io.pending)
		if err == unix.EINTR {
			continue
		}
		if err == unix.EAGAIN {
			io.want(true)
			return
		}
		if err != nil { // nobody will ever read it
			io.closeStdin()
			break
		}
		io.pending = io.pending[n:]
	}
	io.pending = nil
	io.want(false)
	if io.last {
		io.closeStdin()
	}
	for _, c := range io.taps {
		c.pause(false)
	}
}

// want asks for an event when the container can take more input.
func (io *stdio) want(on bool) {
	if on == io.inEvent || io.in < 0 {
		return
	}
	io.inEvent = on
	if io.tty {
		io.watch()
		return
	}
	if on {
		_ = io.loop.add(io.in, unix.EPOLLOUT, func(uint32) { io.push() })
		return
	}
	delete(io.loop.handlers, io.in)
	_ = unix.EpollCtl(io.loop.ep, unix.EPOLL_CTL_DEL, io.in, nil)
}

func (io *stdio) closeStdin() {
	if io.in < 0 || io.tty {
		return
	}
	io.loop.drop(&io.in)
	io.pending, io.inEvent = nil, false
}

// finishStdin closes stdin when everything queued has been written.
func (io *stdio) finishStdin() {
	io.last = true
	io.push()
}

// tap lets a connection hear the output from now on. Of a stream that ended
// earlier it hears the end at once: nothing else would tell it.
func (io *stdio) tap(c *conn) {
	io.taps = append(io.taps, c)
	for i := range io.streams {
		if s := &io.streams[i]; s.fd < 0 {
			c.send(s.kind, 0, nil)
		}
	}
}

func (io *stdio) untap(c *conn) {
	for i, t := range io.taps {
		if t == c {
			io.taps = append(io.taps[:i:i], io.taps[i+1:]...)
			return
		}
	}
}

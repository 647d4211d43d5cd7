package supervise

import (
	"golang.org/x/sys/unix"

	"github.com/berth-dev/berth/shim/wire"
)

// maxQueue is how many bytes wait for a peer that does not read before it is
// cut off.
const maxQueue = 4 << 20

// conn is one connection of a daemon.
type conn struct {
	shim    *shim
	fd      int
	events  bool  // wants to hear of the container's end
	version int64 // 0 before the greeting
	mute    bool  // takes nothing any more; what it wrote before is still read
	stdin   bool  // an attachment that may write
	paused  bool
	exec    *execution
	tap     bool
	queue   [][]byte
	queued  int
	waiting []int // files not sent yet, with the first frame of the queue
}

func (s *shim) open(fd int) {
	_ = unix.SetNonblock(fd, true)
	c := &conn{shim: s, fd: fd}
	if err := s.loop.add(fd, unix.EPOLLIN, c.ready); err != nil {
		_ = unix.Close(fd)
		return
	}
	s.conns[c] = struct{}{}
}

func (s *shim) accept() {
	fd, _, err := unix.Accept4(s.listener, unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK)
	switch err {
	case nil:
		s.open(fd)
	case unix.EMFILE, unix.ENFILE, unix.ENOMEM, unix.ENOBUFS:
		// Who waits still waits, and epoll would say so again at once.
		s.loop.want(s.listener, 0)
		s.loop.after(acceptAgain, func() { s.loop.want(s.listener, unix.EPOLLIN) })
	}
}

// acceptAgain is the pause after a connection for which there was no descriptor
// or no memory, in ms.
const acceptAgain = 100

func (c *conn) ready(events uint32) {
	if events&unix.EPOLLOUT != 0 || c.paused {
		c.flush()
	}
	if events&^unix.EPOLLOUT == 0 || c.fd < 0 || c.paused {
		return
	}
	var oob [64]byte
	c.shim.loop.dirty = true
	buf := c.shim.loop.in
	n, oobn, flags, _, err := unix.Recvmsg(c.fd, buf, oob[:], unix.MSG_CMSG_CLOEXEC)
	if err == unix.EAGAIN || err == unix.EINTR || err == unix.ECONNRESET {
		return // a reset is told once, before what the peer had sent
	}
	files := parseRights(oob[:max(oobn, 0)])
	f, perr := wire.Parse(buf[:max(n, 0)])
	if err != nil || n == 0 || flags&(unix.MSG_TRUNC|unix.MSG_CTRUNC) != 0 || perr != nil {
		closeAll(files)
		c.close()
		return
	}
	c.shim.handle(c, f, files)
}

func closeAll(fds []int) {
	for _, fd := range fds {
		_ = unix.Close(fd)
	}
}

func (c *conn) send(kind wire.Kind, id uint32, body []byte) { c.sendFiles(kind, id, body, nil) }

// sendFiles sends a frame or queues it. The files are closed here.
func (c *conn) sendFiles(kind wire.Kind, id uint32, body []byte, files []int) {
	if c.fd < 0 || c.mute {
		closeAll(files)
		return
	}
	b := wire.Append(nil, wire.Frame{Kind: kind, ID: id, Body: body})
	if len(c.queue) == 0 {
		err := c.write(b, files)
		if err != unix.EAGAIN {
			closeAll(files)
			if err != nil {
				c.hungUp()
			}
			return
		}
	}
	c.queue = append(c.queue, b)
	c.queued += len(b)
	if len(files) > 0 {
		c.waiting = files
	}
	if c.queued > maxQueue {
		c.close()
		return
	}
	c.watch()
}

func (c *conn) write(b []byte, files []int) error {
	var oob []byte
	if len(files) > 0 {
		oob = unix.UnixRights(files...)
	}
	return retry(func() error {
		_, err := unix.SendmsgN(c.fd, b, oob, nil, unix.MSG_NOSIGNAL|unix.MSG_DONTWAIT)
		return err
	})
}

func (c *conn) flush() {
	for len(c.queue) > 0 {
		err := c.write(c.queue[0], c.waiting)
		if err == unix.EAGAIN {
			return
		}
		closeAll(c.waiting)
		c.waiting = nil
		if err != nil {
			c.hungUp()
			return
		}
		c.queued -= len(c.queue[0])
		c.queue = c.queue[1:]
	}
	c.queue = nil
	c.watch()
}

// hungUp is called when the peer takes nothing any more. Input for the container
// that it sent before is the container's.
func (c *conn) hungUp() {
	if !c.stdin {
		c.close()
		return
	}
	c.mute = true
	closeAll(c.waiting)
	c.queue, c.queued, c.waiting = nil, 0, nil
	c.watch()
}

// watch asks for the events that are wanted now. A connection that is paused is
// not watched for its end, which comes after what it has sent.
func (c *conn) watch() {
	var events uint32
	if !c.paused {
		events |= unix.EPOLLIN
	}
	if len(c.queue) > 0 {
		events |= unix.EPOLLOUT
	}
	c.shim.loop.want(c.fd, events)
}

// pause stops or resumes reading, for input the container does not take.
func (c *conn) pause(on bool) {
	if c.fd < 0 || c.paused == on {
		return
	}
	c.paused = on
	c.watch()
}

func (c *conn) close() {
	if c.fd < 0 {
		return
	}
	c.shim.loop.drop(&c.fd)
	closeAll(c.waiting)
	c.queue, c.waiting = nil, nil
	delete(c.shim.conns, c)
	if c.exec != nil {
		c.exec.abandoned()
	}
	if c.tap {
		c.shim.detach(c)
	}
	if c.shim.still.owner == c {
		c.shim.melt()
	}
	c.shim.closed()
}

func (c *conn) reply(id uint32, r *wire.Reply) { c.send(wire.KindReply, id, wire.Encode(r)) }

func (c *conn) fail(id uint32, code int64, msg string) {
	c.reply(id, &wire.Reply{Code: code, Message: msg})
}

package supervise

import (
	"errors"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berth-dev/berth/shim/crilog"
	"github.com/berth-dev/berth/shim/wire"
)

// chunk is how much content is framed before the output buffer is looked at:
// even a chunk of nothing but newlines fits what is kept free.
const (
	chunk = 4 << 10
	room  = outSize - chunk*48 - 32<<10
)

// logFile is a container's CRI log. A write that fails loses records, which
// are counted; it never holds the container up, and the next one tries again.
type logFile struct {
	path    string // "" : there is no log
	fd      int
	dropped int64
	errno   syscall.Errno // of the last failure; 0 once a write succeeded
	changed func()        // called when errno becomes 0 or ceases to be

	limit  limiter
	capped int64           // bytes that limit dropped
	first  func()          // called when limit drops for the first time
	untold [2]int64        // of these bytes, and records, those that no marker counts yet
	marker func()          // asks for mark to be called soon
	gates  [2]*crilog.Gate // of the streams
	tty    bool
}

var errNotRegular = errors.New("not a regular file")

func openLog(c *wire.Create) (*logFile, error) {
	partial := c.PartialBytes
	if partial <= 0 {
		partial = crilog.DefaultPartial
	}
	l := &logFile{path: c.LogPath, fd: -1, changed: func() {}, first: func() {}, marker: func() {}, tty: c.Terminal,
		limit: newLimiter(c.Limits, partial+maxHeader), gates: [2]*crilog.Gate{{}, {}}}
	return l, l.reopen()
}

// maxHeader is more than a record has beside its content.
const maxHeader = 64

// reopen opens the path anew. When that fails the old file stays in use.
func (l *logFile) reopen() error {
	if l.path == "" {
		return nil
	}
	// Without O_NONBLOCK a FIFO would hold up the shim until someone reads it.
	const flags = unix.O_WRONLY | unix.O_CREAT | unix.O_APPEND | unix.O_NOFOLLOW | unix.O_NONBLOCK
	fd, err := openFile(l.path, flags, 0o640)
	if err == unix.ENOENT {
		if err = mkdirAll(parent(l.path)); err == nil {
			fd, err = openFile(l.path, flags, 0o640)
		}
	}
	if err != nil {
		return err
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil || st.Mode&unix.S_IFMT != unix.S_IFREG {
		closeFD(&fd)
		return errNotRegular
	}
	closeFD(&l.fd)
	l.fd = fd
	l.limit.size, l.limit.full = st.Size, false
	l.mark(false)
	return nil
}

// append frames data of stream number i, read just now, and writes the
// records. scratch is the shared output buffer.
func (l *logFile) append(i int, f *crilog.Framer, data, scratch []byte) {
	if l.fd < 0 {
		return
	}
	var buf [40]byte
	stamp := crilog.AppendStamp(buf[:0], time.Now())
	out := scratch[:0]
	for len(data) > 0 {
		n := min(chunk, len(data))
		out = f.Append(out, stamp, data[:n])
		data = data[n:]
		if len(out) > room {
			l.put(i, out)
			out = scratch[:0]
		}
	}
	l.put(i, out)
}

func (l *logFile) flush(i int, f *crilog.Framer, scratch []byte) {
	if l.fd < 0 || f.Held() == 0 {
		return
	}
	var buf [40]byte
	l.put(i, f.Flush(scratch[:0], crilog.AppendStamp(buf[:0], time.Now())))
}

// put writes what the limits let through.
func (l *logFile) put(i int, records []byte) {
	if !l.limit.drops() {
		l.write(records)
		l.limit.wrote(int64(len(records)))
		return
	}
	if len(records) == 0 {
		return
	}
	if l.limit.full {
		l.lookAgain()
	}
	free, file := l.limit.room(now())
	kept, bytes, lost := l.gates[i].Keep(records, free)
	l.write(kept)
	l.limit.wrote(int64(len(kept)))
	if lost == 0 {
		return
	}
	first := l.untold[0] == 0
	if l.capped += bytes; l.capped == bytes {
		l.first()
	}
	l.untold[0] += bytes
	l.untold[1] += lost
	switch {
	case file && !l.limit.full:
		l.limit.full = true
		l.say("the log has reached its limit of " + decimal(l.limit.FileBytes) + " bytes a file, output is dropped until it is rotated")
	case first && !file:
		l.marker()
	}
}

// lookAgain sees whether someone truncated a file that was full.
func (l *logFile) lookAgain() {
	var st unix.Stat_t
	if unix.Fstat(l.fd, &st) == nil && st.Size < l.limit.size {
		l.limit.size, l.limit.full = st.Size, false
		l.mark(false)
	}
}

// mark tells in the log itself how much has been dropped since it last did.
// A file that is full gets its mark when it ends.
func (l *logFile) mark(last bool) {
	if l.untold[0] == 0 || l.limit.full && !last || l.fd < 0 {
		return
	}
	text := "dropped " + decimal(l.untold[1]) + " log records, " + decimal(l.untold[0]) + " bytes: the limit is " + l.limit.text()
	if l.say(text) {
		l.untold = [2]int64{}
		return
	}
	l.marker()
}

// say writes a record of the shim's own, limits or not; false: no stream is at
// the beginning of a line.
func (l *logFile) say(text string) bool {
	name := crilog.Stderr
	if l.tty || l.gates[1].Begun() {
		if name = crilog.Stdout; l.gates[0].Begun() {
			return false
		}
	}
	var buf [256]byte
	b := crilog.AppendStamp(buf[:0], time.Now())
	b = append(b, " "+name+" F [berth] "+text+"\n"...)
	l.write(b)
	l.limit.size += int64(len(b))
	return true
}

// discard removes the log of a container that was never made, if it is empty.
func (l *logFile) discard() {
	var st unix.Stat_t
	if l.fd >= 0 && unix.Fstat(l.fd, &st) == nil && st.Size == 0 {
		_ = unix.Unlink(l.path)
	}
}

func (l *logFile) write(b []byte) {
	l.writeBy(func(rest []byte) (int, error) { return unix.Write(l.fd, rest) }, b)
}

// writeBy writes records by a system call. After a short write the next call says
// why, unless there is room again; whatever follows, no torn record stays.
func (l *logFile) writeBy(call func([]byte) (int, error), b []byte) {
	if len(b) == 0 {
		return
	}
	for done := 0; done < len(b); {
		n, err := call(b[done:])
		if err == unix.EINTR {
			continue
		}
		if err != nil || n <= 0 {
			whole := crilog.Whole(b, done)
			l.takeBack(done - whole)
			l.lost(int64(len(b)-whole), err)
			return
		}
		done += n
	}
	l.well(0)
}

// takeBack removes the torn record that a short write left at the end.
func (l *logFile) takeBack(n int) {
	if n == 0 {
		return
	}
	if end, err := unix.Seek(l.fd, 0, unix.SEEK_END); err == nil {
		_ = unix.Ftruncate(l.fd, end-int64(n))
	}
}

func (l *logFile) lost(n int64, err error) {
	l.dropped += n
	e, ok := err.(syscall.Errno)
	if !ok {
		e = syscall.EIO
	}
	l.well(e)
}

// well notes how the last write went.
func (l *logFile) well(e syscall.Errno) {
	turned := (e == 0) != (l.errno == 0)
	l.errno = e
	if turned {
		l.changed()
	}
}

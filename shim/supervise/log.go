package supervise

import (
	"errors"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berth-dev/berth/shim/crilog"
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
}

var errNotRegular = errors.New("not a regular file")

func openLog(path string) (*logFile, error) {
	l := &logFile{path: path, fd: -1}
	return l, l.reopen()
}

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
	return nil
}

// append frames data read just now and writes the records. scratch is the
// shared output buffer.
func (l *logFile) append(f *crilog.Framer, data, scratch []byte) {
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
			l.write(out)
			out = scratch[:0]
		}
	}
	l.write(out)
}

func (l *logFile) flush(f *crilog.Framer, scratch []byte) {
	if l.fd < 0 || f.Held() == 0 {
		return
	}
	var buf [40]byte
	l.write(f.Flush(scratch[:0], crilog.AppendStamp(buf[:0], time.Now())))
}

func (l *logFile) write(b []byte) {
	for len(b) > 0 {
		n, err := unix.Write(l.fd, b)
		if err == unix.EINTR {
			continue
		}
		if err == nil && n > 0 {
			if n == len(b) {
				l.errno = 0
				return
			}
			// Short: the next call says why, unless there is room again.
			rest := b[n:]
			m, err := unix.Write(l.fd, rest)
			if err == nil && m > 0 {
				b = rest[m:]
				continue
			}
			l.takeBack(n - crilog.Whole(b, n))
			l.lost(int64(len(b)-crilog.Whole(b, n)), err)
			return
		}
		l.lost(int64(len(b)), err)
		return
	}
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
	l.errno = syscall.EIO
	if e, ok := err.(syscall.Errno); ok {
		l.errno = e
	}
}

package shim

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/berth-dev/berth/shim/wire"
)

// link is a connection to a shim: requests with replies by id, and a handler
// for all other frames. The handler runs on the link's only goroutine.
type link struct {
	conn  *net.UnixConn
	other func(f wire.Frame)
	done  chan struct{} // closed when the connection has ended

	version int64 // of the protocol, once greeted

	mu    sync.Mutex
	next  uint32
	calls map[uint32]chan answer
	ended bool
}

// oobSize is room for the descriptors of a frame, and some more.
var oobSize = unix.CmsgSpace(4 * wire.MaxFiles)

type answer struct {
	body  []byte
	kind  wire.Kind
	files []int
}

// dial connects to the shim of a container's directory. The address goes
// through a descriptor: socket addresses hold 107 bytes, directories more.
func dial(dir string) (*net.UnixConn, error) {
	fd, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	path := filepath.Join("/proc/self/fd", strconv.Itoa(fd), wire.SocketFile)
	return net.DialUnix("unixpacket", nil, &net.UnixAddr{Name: path, Net: "unixpacket"})
}

// newLink starts reading and says hello.
func newLink(ctx context.Context, c *net.UnixConn, events bool, other func(wire.Frame)) (*link, *wire.Hello, error) {
	l := &link{conn: c, other: other, done: make(chan struct{}), calls: map[uint32]chan answer{}}
	go l.read()
	h := &wire.Hello{Version: wire.Version, Oldest: wire.Oldest, Events: events, PID: int64(os.Getpid())}
	a, err := l.ask(ctx, wire.KindHello, wire.Encode(h), nil)
	theirs := &wire.Hello{}
	if err == nil {
		err = wire.Decode(a.body, theirs)
	}
	if err == nil {
		l.version, err = theirs.Common()
	}
	if err != nil {
		l.close()
		return nil, nil, fmt.Errorf("greet shim: %w", err)
	}
	return l, theirs, nil
}

func (l *link) close() {
	_ = l.conn.Close()
	<-l.done
}

// buffers hold one frame each. There are many links and hardly ever a frame, so
// a link has one only while a frame is there.
var buffers = sync.Pool{New: func() any { return new([wire.MaxFrame + 1]byte) }}

func (l *link) read() {
	defer l.finish()
	raw, err := l.conn.SyscallConn()
	if err != nil {
		return
	}
	for l.readOne(raw) {
	}
}

// readOne waits for a frame and handles it, and reports whether more may come.
func (l *link) readOne(raw syscall.RawConn) bool {
	var buf *[wire.MaxFrame + 1]byte
	oob := make([]byte, oobSize)
	var n, oobn, flags int
	var err error
	waited := raw.Read(func(fd uintptr) bool {
		buf = buffers.Get().(*[wire.MaxFrame + 1]byte)
		for {
			n, oobn, flags, _, err = unix.Recvmsg(int(fd), buf[:], oob, unix.MSG_CMSG_CLOEXEC)
			if err != unix.EINTR { //nolint:errorlint // an errno as the call returns it
				break
			}
		}
		if err == unix.EAGAIN { //nolint:errorlint // likewise
			buffers.Put(buf)
			buf = nil
			return false
		}
		return true
	})
	if buf == nil {
		return false // closed here
	}
	defer buffers.Put(buf)
	if waited != nil || err != nil || n == 0 {
		return false
	}
	files := rights(oob[:oobn])
	f, err := wire.Parse(buf[:n])
	if err != nil || flags&unix.MSG_TRUNC != 0 {
		closeFDs(files)
		return false
	}
	l.take(f, files)
	return true
}

// take passes a frame on to the call that it answers, or else to the handler.
func (l *link) take(f wire.Frame, files []int) {
	l.mu.Lock()
	ch := l.calls[f.ID]
	delete(l.calls, f.ID)
	if ch != nil {
		// Under the lock, so that who forgets the call finds an answer or
		// none can come. It has room for the only one there is.
		ch <- answer{body: append([]byte(nil), f.Body...), kind: f.Kind, files: files}
	}
	l.mu.Unlock()
	if ch == nil {
		closeFDs(files)
		if f.ID == 0 && l.other != nil {
			l.other(f)
		}
	}
}

func (l *link) finish() {
	_ = l.conn.Close()
	l.mu.Lock()
	l.ended = true
	calls := l.calls
	l.calls = nil
	l.mu.Unlock()
	for _, ch := range calls {
		close(ch)
	}
	close(l.done)
}

func rights(oob []byte) []int {
	msgs, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil
	}
	var out []int
	for i := range msgs {
		if fds, err := unix.ParseUnixRights(&msgs[i]); err == nil {
			out = append(out, fds...)
		}
	}
	return out
}

func closeFDs(fds []int) {
	for _, fd := range fds {
		_ = unix.Close(fd)
	}
}

// tell sends a frame that has no answer.
func (l *link) tell(kind wire.Kind, id uint32, body []byte, files []int) error {
	if len(body) > wire.MaxData {
		return fmt.Errorf("request of %d bytes: %w", len(body), errdefs.ErrInvalidArgument)
	}
	var oob []byte
	if len(files) > 0 {
		oob = unix.UnixRights(files...)
	}
	_, _, err := l.conn.WriteMsgUnix(wire.Append(nil, wire.Frame{Kind: kind, ID: id, Body: body}), oob, nil)
	return err
}

// ask sends a request and waits for its answer.
func (l *link) ask(ctx context.Context, kind wire.Kind, body []byte, files []int) (answer, error) {
	ch := make(chan answer, 1)
	l.mu.Lock()
	if l.ended {
		l.mu.Unlock()
		return answer{}, fmt.Errorf("%w: %w", errGone, errdefs.ErrUnavailable)
	}
	l.next++
	id := l.next
	l.calls[id] = ch
	l.mu.Unlock()
	if err := l.tell(kind, id, body, files); err != nil {
		l.forget(id)
		if errors.Is(err, unix.EPIPE) || errors.Is(err, unix.ECONNRESET) || errors.Is(err, net.ErrClosed) {
			err = fmt.Errorf("%w: %w", errGone, err)
		}
		return answer{}, fmt.Errorf("%w: %w", err, errdefs.ErrUnavailable)
	}
	select {
	case a, ok := <-ch:
		if !ok {
			return answer{}, fmt.Errorf("%w: %w", errGone, errdefs.ErrUnavailable)
		}
		return a, nil
	case <-ctx.Done():
		l.forget(id)
		select {
		case a := <-ch: // it came at the last moment
			closeFDs(a.files)
		default:
		}
		return answer{}, ctx.Err()
	}
}

func (l *link) forget(id uint32) {
	l.mu.Lock()
	delete(l.calls, id)
	l.mu.Unlock()
}

// call is ask for requests that are answered by a Reply.
func (l *link) call(ctx context.Context, kind wire.Kind, body []byte, files []int) (*wire.Reply, []int, error) {
	a, err := l.ask(ctx, kind, body, files)
	if err != nil {
		return nil, nil, err
	}
	r := &wire.Reply{}
	if err := wire.Decode(a.body, r); err != nil {
		closeFDs(a.files)
		return nil, nil, err
	}
	if err := replyError(r); err != nil {
		closeFDs(a.files)
		return r, nil, err
	}
	return r, a.files, nil
}

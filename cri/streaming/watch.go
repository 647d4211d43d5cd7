package streaming

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"time"
)

// lingerTime bounds how long a closed connection waits for its client to take
// the last bytes.
const lingerTime = 10 * time.Second

// watchedListener hands out connections that tell when their client has gone.
// After a protocol upgrade net/http no longer looks, and a session that neither
// reads nor writes would never learn it.
type watchedListener struct {
	net.Listener
	hangups *hangups
}

func (l watchedListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	t, ok := c.(*net.TCPConn)
	if !ok {
		return c, nil
	}
	w := &watchedConn{Conn: t, tcp: t}
	w.alive, w.gone = context.WithCancel(context.Background())
	w.unwatch = l.hangups.watch(t, w.gone)
	return w, nil
}

// Close stops accepting; sessions go on.
func (l watchedListener) Close() error {
	return errors.Join(l.Listener.Close(), l.hangups.close())
}

// watchedConn is a client's connection.
type watchedConn struct {
	net.Conn
	tcp     *net.TCPConn
	alive   context.Context
	gone    context.CancelFunc
	unwatch func()

	reading sync.Mutex // held by who reads
	mu      sync.Mutex
	closed  bool
}

// Read ends the session when nothing more can come. A passed deadline is how
// net/http takes a connection back from its own reader.
func (c *watchedConn) Read(p []byte) (int, error) {
	c.reading.Lock()
	defer c.reading.Unlock()
	if c.isClosed() {
		return 0, net.ErrClosed
	}
	n, err := c.Conn.Read(p)
	if err == nil {
		return n, nil
	}
	if c.isClosed() {
		return n, net.ErrClosed
	}
	if !errors.Is(err, os.ErrDeadlineExceeded) {
		c.gone()
	}
	return n, err
}

// Close ends the session. To close a connection while input waits in it unread
// makes the kernel throw away what the client has not read yet, such as how the
// session ended. So the client is told the end first, and its input is read
// away until it closes its side, for lingerTime at most.
func (c *watchedConn) Close() error {
	c.gone()
	c.unwatch()
	c.mu.Lock()
	before := c.closed
	c.closed = true
	if !before {
		_ = c.Conn.SetDeadline(time.Unix(1, 0)) // who reads or writes stops
	}
	c.mu.Unlock()
	if before {
		return net.ErrClosed
	}
	if err := c.tcp.CloseWrite(); err != nil { // the client has gone
		return c.Conn.Close()
	}
	go func() {
		c.reading.Lock()
		defer c.reading.Unlock()
		_ = c.Conn.SetReadDeadline(time.Now().Add(lingerTime))
		_, _ = io.Copy(io.Discard, onlyReader{c.Conn})
		_ = c.Conn.Close()
	}()
	return nil
}

// onlyReader hides how else a connection could be copied from.
type onlyReader struct{ io.Reader }

func (c *watchedConn) isClosed() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.closed
}

// deadline sets one unless the connection is closed: then the deadline is ours.
func (c *watchedConn) deadline(set func(time.Time) error, t time.Time) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return net.ErrClosed
	}
	return set(t)
}

// SetDeadline implements net.Conn.
func (c *watchedConn) SetDeadline(t time.Time) error { return c.deadline(c.Conn.SetDeadline, t) }

// SetReadDeadline implements net.Conn.
func (c *watchedConn) SetReadDeadline(t time.Time) error {
	return c.deadline(c.Conn.SetReadDeadline, t)
}

// SetWriteDeadline implements net.Conn.
func (c *watchedConn) SetWriteDeadline(t time.Time) error {
	return c.deadline(c.Conn.SetWriteDeadline, t)
}

// whileConnected is the http.Server's ConnContext: requests end with their
// connection.
func whileConnected(ctx context.Context, c net.Conn) context.Context {
	if t, ok := c.(interface{ NetConn() net.Conn }); ok { // TLS
		c = t.NetConn()
	}
	w, ok := c.(*watchedConn)
	if !ok {
		return ctx
	}
	ctx, cancel := context.WithCancel(ctx)
	context.AfterFunc(w.alive, cancel)
	return ctx
}

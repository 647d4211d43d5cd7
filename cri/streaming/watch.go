package streaming

import (
	"context"
	"errors"
	"net"
	"os"
)

// watchedListener hands out connections that tell when their client has gone.
// After a protocol upgrade net/http no longer looks, and a session that neither
// reads nor writes would never learn it; but the protocols always read.
type watchedListener struct{ net.Listener }

func (l watchedListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	w := &watchedConn{Conn: c}
	w.alive, w.gone = context.WithCancel(context.Background())
	return w, nil
}

type watchedConn struct {
	net.Conn
	alive context.Context
	gone  context.CancelFunc
}

// Read ends the session when nothing more can come. A passed deadline is how
// net/http takes a connection back from its own reader.
func (c *watchedConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
		c.gone()
	}
	return n, err
}

// Close ends the session as well.
func (c *watchedConn) Close() error {
	c.gone()
	return c.Conn.Close()
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

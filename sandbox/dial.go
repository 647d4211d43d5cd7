package sandbox

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"

	"github.com/containerd/errdefs"

	"github.com/berth-dev/berth/cni/netns"
)

// Dial connects to a TCP port on the loopback interface of a pod, IPv4 first,
// as port-forwarding wants it. FailedPrecondition when the sandbox is stopped.
func (m *Manager) Dial(ctx context.Context, id string, port uint16) (net.Conn, error) {
	rec, err := m.db.Sandbox(id)
	if err != nil {
		return nil, fmt.Errorf("dial port %d of sandbox %s: %w", port, id, err)
	}
	if !rec.Facts.StoppedAt.IsZero() {
		return nil, fmt.Errorf("dial port %d of sandbox %s: it is stopped: %w", port, id, errdefs.ErrFailedPrecondition)
	}
	var conn net.Conn
	dial := func() (err error) {
		conn, err = dialLoopback(ctx, port)
		return err
	}
	if hostNetwork(rec.Config) {
		err = dial()
	} else {
		err = netns.Do(m.at.pin(rec.ID, netns.Net), dial)
	}
	if err != nil {
		return nil, fmt.Errorf("dial port %d of sandbox %s: %w", port, id, err)
	}
	return conn, nil
}

// dialLoopback dials addresses one by one: each dial of a literal address makes
// its socket on the calling thread, which is what puts it into the namespace.
func dialLoopback(ctx context.Context, port uint16) (net.Conn, error) {
	var d net.Dialer
	p := strconv.Itoa(int(port))
	conn, err4 := d.DialContext(ctx, "tcp4", net.JoinHostPort("127.0.0.1", p))
	if err4 == nil {
		return conn, nil
	}
	conn, err6 := d.DialContext(ctx, "tcp6", net.JoinHostPort("::1", p))
	if err6 == nil {
		return conn, nil
	}
	return nil, errors.Join(err4, err6)
}

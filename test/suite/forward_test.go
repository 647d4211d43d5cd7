package suite

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"

	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/portforward"
	"k8s.io/client-go/transport/spdy"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/streaming/pkg/httpstream"
	streamspdy "k8s.io/streaming/pkg/httpstream/spdy"
)

func forwardStories() []story {
	return []story{
		{name: "forward/both families, half-closed", tell: forwardHalfClosed},
		{name: "forward/hundred at once", berth: true, tell: forwardMany},
		{name: "forward/nobody listens", tell: forwardRefused},
		{name: "forward/client vanishes", tell: forwardVanishes},
	}
}

// forward opens a port-forward session, inside a WebSocket where the runtime
// knows that.
func (p *pod) forward(t *testing.T, websocket bool) httpstream.Connection {
	t.Helper()
	r, err := p.n.rt.PortForward(t.Context(), &runtimeapi.PortForwardRequest{PodSandboxId: p.id})
	must(t, err)
	u := p.n.reachable(t, r.GetUrl())
	var d httpstream.Dialer
	if websocket {
		d, err = portforward.NewSPDYOverWebsocketDialerForStreaming(u, &rest.Config{Host: u.Host})
	} else {
		var rt *streamspdy.SpdyRoundTripper
		rt, err = streamspdy.NewRoundTripper(nil)
		d = spdy.NewDialerForStreaming(spdy.NewUpgraderForStreaming(rt), &http.Client{Transport: rt}, http.MethodPost, u)
	}
	must(t, err)
	conn, _, err := d.Dial(portforward.PortForwardProtocolV1Name)
	must(t, err)
	t.Cleanup(func() { conn.Close() })
	return conn
}

// tube is one forwarded connection.
type tube struct{ data, errs httpstream.Stream }

func dialTube(conn httpstream.Connection, port, id int) (*tube, error) {
	h := http.Header{}
	h.Set("port", fmt.Sprint(port))
	h.Set("requestID", fmt.Sprint(id))
	h.Set("streamType", "error")
	errs, err := conn.CreateStream(h)
	if err != nil {
		return nil, err
	}
	errs.Close()
	h.Set("streamType", "data")
	data, err := conn.CreateStream(h)
	return &tube{data, errs}, err
}

// echoed sends what an echo server sends back only after our half is closed.
func (x *tube) echoed(b []byte) error {
	if _, err := x.data.Write(b); err != nil {
		return err
	}
	if err := x.data.Close(); err != nil {
		return err
	}
	got, err := io.ReadAll(x.data)
	if msg, _ := io.ReadAll(x.errs); len(msg) > 0 {
		return fmt.Errorf("server: %s", msg)
	}
	if err == nil && !bytes.Equal(got, b) {
		err = fmt.Errorf("%d bytes came back of %d", len(got), len(b))
	}
	return err
}

func (n *node) transports() []bool {
	if n.own == nil {
		return []bool{false}
	}
	return []bool{false, true}
}

func forwardHalfClosed(t *testing.T, n *node) {
	p := n.pod(t)
	p.run(t, probe("echo", "127.0.0.1:7004")).waitLog(t, "listening")
	p.run(t, probe("echo", "[::1]:7006")).waitLog(t, "listening")
	early := p.run(t, probe("early", "127.0.0.1:7008"))
	early.waitLog(t, "listening")
	for i, websocket := range n.transports() {
		conn := p.forward(t, websocket)
		for _, port := range []int{7004, 7006} {
			x, err := dialTube(conn, port, port)
			must(t, err)
			if err := x.echoed(bytes.Repeat([]byte("ahoy"), 1<<18)); err != nil {
				t.Errorf("websocket %v, port %d: %v", websocket, port, err)
			}
		}
		if n.own == nil {
			continue
		}
		// The pod closes its half first, and still gets what the client says then.
		x, err := dialTube(conn, 7008, 7008)
		must(t, err)
		b, err := io.ReadAll(x.data)
		must(t, err)
		equal(t, "what the pod said first", string(b), "bye")
		_, err = x.data.Write(make([]byte, 100+i))
		must(t, err)
		must(t, x.data.Close())
		early.waitLog(t, fmt.Sprintf("got %d <nil>", 100+i))
	}
}

func forwardMany(t *testing.T, n *node) {
	p := n.pod(t)
	p.run(t, probe("echo", "127.0.0.1:7004")).waitLog(t, "listening")
	for _, websocket := range n.transports() {
		conn := p.forward(t, websocket)
		// All are open before the first one is used.
		var tubes []*tube
		for i := range 100 {
			x, err := dialTube(conn, 7004, i)
			must(t, err)
			tubes = append(tubes, x)
		}
		errs := make(chan error)
		for i, x := range tubes {
			go func() { errs <- x.echoed(bytes.Repeat([]byte{byte(i)}, 1000*i)) }()
		}
		for range tubes {
			if err := <-errs; err != nil {
				t.Error(err)
			}
		}
	}
}

func forwardRefused(t *testing.T, n *node) {
	p := n.pod(t)
	p.run(t, probe("echo", "127.0.0.1:7004")).waitLog(t, "listening")
	for _, websocket := range n.transports() {
		conn := p.forward(t, websocket)
		x, err := dialTube(conn, 7999, 1)
		must(t, err)
		msg, _ := io.ReadAll(x.errs)
		if !strings.Contains(string(msg), "7999") || !strings.Contains(string(msg), "refused") {
			t.Errorf("websocket %v: nobody listens, and the client hears %q", websocket, msg)
		}
		// Other connections of the session go on.
		x, err = dialTube(conn, 7004, 2)
		must(t, err)
		must(t, x.echoed([]byte("ahoy")))
	}
}

// forwardVanishes: connections into the pod end with their client.
func forwardVanishes(t *testing.T, n *node) {
	p := n.pod(t)
	c := p.run(t, probe("echo", "127.0.0.1:7004"))
	c.waitLog(t, "listening")
	for i, websocket := range n.transports() {
		conn := p.forward(t, websocket)
		x, err := dialTube(conn, 7004, 1)
		must(t, err)
		_, err = x.data.Write([]byte("and then nothing"))
		must(t, err)
		eventually(t, "the pod has the connection", func() bool { return strings.Contains(c.sh(t, "netstat -tn"), "ESTABLISHED") })
		conn.Close()
		eventually(t, "the connection into the pod ends", func() bool { return strings.Count(c.text(t), "connection ended") == i+1 })
	}
}

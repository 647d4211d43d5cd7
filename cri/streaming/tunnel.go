package streaming

import (
	"bufio"
	"fmt"
	"net"
	"net/http"
	"slices"
	"strings"

	"golang.org/x/net/websocket"
	"k8s.io/cri-streaming/pkg/streaming/portforward"
	"k8s.io/streaming/pkg/httpstream"
	"k8s.io/streaming/pkg/httpstream/spdy"
)

// tunnelPrefix is before the name of a protocol that is spoken over SPDY
// inside a WebSocket: port-forward of today's kubectl and crictl.
const tunnelPrefix = spdy.HeaderSpdy31 + "+"

// serveTunnel upgrades a request to a WebSocket and lets serve, which knows
// SPDY only, see an upgrade to SPDY on it.
func (s *Server) serveTunnel(w http.ResponseWriter, r *http.Request, serve http.HandlerFunc) {
	var protocol string
	websocket.Server{
		Handshake: func(c *websocket.Config, _ *http.Request) error {
			i := slices.IndexFunc(c.Protocol, func(p string) bool {
				name, ok := strings.CutPrefix(p, tunnelPrefix)
				return ok && slices.Contains(portforward.SupportedProtocols, name)
			})
			if i < 0 {
				return fmt.Errorf("none of the protocols %q is known", c.Protocol)
			}
			protocol = strings.TrimPrefix(c.Protocol[i], tunnelPrefix)
			c.Protocol = c.Protocol[i : i+1]
			return nil
		},
		Handler: func(ws *websocket.Conn) {
			ws.PayloadType = websocket.BinaryFrame
			inner := r.Clone(r.Context())
			inner.Header = http.Header{}
			inner.Header.Set(httpstream.HeaderConnection, httpstream.HeaderUpgrade)
			inner.Header.Set(httpstream.HeaderUpgrade, spdy.HeaderSpdy31)
			inner.Header.Set(httpstream.HeaderProtocolVersion, protocol)
			serve(&tunnelResponse{header: http.Header{}, conn: ws}, inner)
		},
	}.ServeHTTP(w, r)
}

// tunnelResponse hands out the WebSocket where the connection is asked for.
// The answer to the upgrade was given when the WebSocket was opened.
type tunnelResponse struct {
	header http.Header
	conn   net.Conn
}

// Header is for nobody.
func (t *tunnelResponse) Header() http.Header { return t.header }

// WriteHeader does nothing.
func (t *tunnelResponse) WriteHeader(int) {}

// Write does nothing.
func (t *tunnelResponse) Write(b []byte) (int, error) { return len(b), nil }

// Hijack implements http.Hijacker.
func (t *tunnelResponse) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	return t.conn, bufio.NewReadWriter(bufio.NewReader(t.conn), bufio.NewWriter(t.conn)), nil
}

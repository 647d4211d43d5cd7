package streaming

import (
	"context"
	"testing"
	"time"

	clientexec "k8s.io/client-go/tools/remotecommand"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// upWriter tells when the first output has come.
type upWriter chan struct{}

func (w upWriter) Write(p []byte) (int, error) { close(w); return len(p), nil }

// TestSilentClientVanishes: a session that neither reads nor writes ends when
// its client has gone.
func TestSilentClientVanishes(t *testing.T) {
	cert, key := certificate(t)
	for name, cfg := range map[string]Config{"http": {}, "tls": {TLSCert: cert, TLSKey: key}} {
		for proto, ws := range map[string]bool{"spdy": false, "websocket": true} {
			t.Run(name+"/"+proto, func(t *testing.T) {
				s, e := start(t, cfg)
				r, err := s.GetExec(&runtimeapi.ExecRequest{ContainerId: "c", Cmd: []string{"hang"}, Stdout: true})
				if err != nil {
					t.Fatal(err)
				}
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				up := make(upWriter)
				go func() { _ = client(t, r.GetUrl(), ws).StreamWithContext(ctx, clientexec.StreamOptions{Stdout: up}) }()
				<-up
				cancel()
				select {
				case <-e.ended:
				case <-time.After(30 * time.Second):
					t.Fatal("the session goes on without its client")
				}
			})
		}
	}
}

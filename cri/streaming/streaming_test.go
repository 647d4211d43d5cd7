package streaming

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"k8s.io/client-go/rest"
	clientexec "k8s.io/client-go/tools/remotecommand"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/cri-streaming/pkg/streaming/remotecommand"
)

// echo copies stdin to stdout; "hang" waits for the session's end.
type echo struct{ ended chan error }

//nolint:revive // argument-limit: the signature is cri-streaming's
func (e *echo) Exec(ctx context.Context, id string, cmd []string, in io.Reader, out, stderr io.WriteCloser, _ bool, _ <-chan remotecommand.TerminalSize) error {
	if len(cmd) > 0 && cmd[0] == "hang" {
		_, _ = out.Write([]byte("up"))
		<-ctx.Done()
		e.ended <- ctx.Err()
		return ctx.Err()
	}
	if in != nil {
		if _, err := io.Copy(out, in); err != nil {
			return err
		}
	}
	_, err := stderr.Write([]byte(id + strings.Join(cmd, ",")))
	return err
}

func (e *echo) Attach(context.Context, string, io.Reader, io.WriteCloser, io.WriteCloser, bool, <-chan remotecommand.TerminalSize) error {
	return nil
}

func (e *echo) PortForward(context.Context, string, int32, io.ReadWriteCloser) error { return nil }

func start(t *testing.T, cfg Config) (*Server, *echo) {
	t.Helper()
	s, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	e := &echo{ended: make(chan error, 1)}
	served := make(chan error, 1)
	go func() { served <- s.Serve(e) }()
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		_ = s.Shutdown(ctx)
		if err := <-served; err != nil {
			t.Error(err)
		}
	})
	return s, e
}

func client(t *testing.T, raw string, ws bool) clientexec.Executor {
	t.Helper()
	u, err := url.Parse(raw)
	if err != nil {
		t.Fatal(err)
	}
	cfg := &rest.Config{TLSClientConfig: rest.TLSClientConfig{Insecure: u.Scheme == "https"}}
	var x clientexec.Executor
	if ws {
		x, err = clientexec.NewWebSocketExecutorForProtocols(cfg, http.MethodGet, raw, "v4.channel.k8s.io")
	} else {
		x, err = clientexec.NewSPDYExecutor(cfg, http.MethodPost, u)
	}
	if err != nil {
		t.Fatal(err)
	}
	return x
}

func TestExec(t *testing.T) {
	cert, key := certificate(t)
	for name, cfg := range map[string]Config{"http": {}, "tls": {TLSCert: cert, TLSKey: key}} {
		for proto, ws := range map[string]bool{"spdy": false, "websocket": true} {
			t.Run(name+"/"+proto, func(t *testing.T) {
				s, _ := start(t, cfg)
				if !strings.HasPrefix(s.BaseURL(), map[string]string{"http": "http://127.0.0.1:", "tls": "https://127.0.0.1:"}[name]) {
					t.Errorf("base URL %s", s.BaseURL())
				}
				r, err := s.GetExec(&runtimeapi.ExecRequest{ContainerId: "c", Cmd: []string{"a"}, Stdin: !ws, Stdout: true, Stderr: true})
				if err != nil {
					t.Fatal(err)
				}
				var out, stderr bytes.Buffer
				opts := clientexec.StreamOptions{Stdout: &out, Stderr: &stderr}
				var payload []byte
				if !ws { // version 4 over WebSocket cannot say that stdin ended
					payload = bytes.Repeat([]byte("0123456789abcdef"), 64<<10)
					opts.Stdin = bytes.NewReader(payload)
				}
				err = client(t, r.GetUrl(), ws).StreamWithContext(t.Context(), opts)
				if err != nil || !bytes.Equal(out.Bytes(), payload) || stderr.String() != "ca" {
					t.Errorf("exec: %v, %d bytes, %q", err, out.Len(), stderr.String())
				}
				err = client(t, r.GetUrl(), ws).StreamWithContext(t.Context(), clientexec.StreamOptions{Stdout: &out, Stderr: &stderr})
				if err == nil {
					t.Error("the URL worked twice")
				}
			})
		}
	}
}

func TestShutdownEndsSessions(t *testing.T) {
	s, e := start(t, Config{})
	if err := s.Health(t.Context()); err != nil {
		t.Error(err)
	}
	r, err := s.GetExec(&runtimeapi.ExecRequest{ContainerId: "c", Cmd: []string{"hang"}, Stdout: true})
	if err != nil {
		t.Fatal(err)
	}
	pr, pw := io.Pipe()
	done := make(chan error, 1)
	go func() {
		done <- client(t, r.GetUrl(), false).StreamWithContext(t.Context(), clientexec.StreamOptions{Stdout: pw})
	}()
	if _, err := io.ReadFull(pr, make([]byte, 2)); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := s.Shutdown(ctx); err != nil {
		t.Error(err)
	}
	if err := <-e.ended; err == nil {
		t.Error("the session's context did not end")
	}
	if err := <-done; err == nil {
		t.Error("the client saw no error")
	}
	if s.Health(t.Context()) == nil {
		t.Error("healthy after the end")
	}
}

func TestNewErrors(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	if _, err := New(Config{Port: l.Addr().(*net.TCPAddr).Port}); err == nil || !strings.Contains(err.Error(), "streaming.port") {
		t.Errorf("port in use: %v", err)
	}
	if _, err := New(Config{TLSCert: "/nonexistent", TLSKey: "/nonexistent"}); err == nil {
		t.Error("missing certificate accepted")
	}
}

func certificate(t *testing.T) (cert, key string) {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "node"},
		NotAfter: time.Now().Add(time.Hour), IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &k.PublicKey, k)
	if err != nil {
		t.Fatal(err)
	}
	pk, err := x509.MarshalPKCS8PrivateKey(k)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	cert, key = filepath.Join(dir, "c.pem"), filepath.Join(dir, "k.pem")
	for path, b := range map[string]*pem.Block{cert: {Type: "CERTIFICATE", Bytes: der}, key: {Type: "PRIVATE KEY", Bytes: pk}} {
		if err := os.WriteFile(path, pem.EncodeToMemory(b), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return cert, key
}

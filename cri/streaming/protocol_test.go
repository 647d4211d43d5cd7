package streaming

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/portforward"
	clientexec "k8s.io/client-go/tools/remotecommand"
	"k8s.io/client-go/transport/spdy"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/cri-streaming/pkg/streaming/remotecommand"
	"k8s.io/streaming/pkg/httpstream"
	streamspdy "k8s.io/streaming/pkg/httpstream/spdy"
	utilexec "k8s.io/utils/exec"
)

// script is a Runtime whose sessions are functions.
type script struct {
	session func(ctx context.Context, in io.Reader, out, stderr io.WriteCloser, tty bool, resize <-chan remotecommand.TerminalSize) error
	forward func(ctx context.Context, port int32, stream io.ReadWriteCloser) error
}

//nolint:revive // argument-limit: the signature is cri-streaming's
func (s *script) Exec(ctx context.Context, _ string, _ []string, in io.Reader, out, stderr io.WriteCloser, tty bool, resize <-chan remotecommand.TerminalSize) error {
	return s.session(ctx, in, out, stderr, tty, resize)
}

//nolint:revive // argument-limit: the signature is cri-streaming's
func (s *script) Attach(ctx context.Context, _ string, in io.Reader, out, stderr io.WriteCloser, tty bool, resize <-chan remotecommand.TerminalSize) error {
	return s.session(ctx, in, out, stderr, tty, resize)
}

func (s *script) PortForward(ctx context.Context, _ string, port int32, stream io.ReadWriteCloser) error {
	return s.forward(ctx, port, stream)
}

func serve(t *testing.T, rt Runtime) *Server {
	t.Helper()
	s, err := New(Config{})
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- s.Serve(rt) }()
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		if err := s.Shutdown(ctx); err != nil {
			t.Error(err)
		}
		if err := <-served; err != nil {
			t.Error(err)
		}
	})
	return s
}

// executors are the protocols that clients of today speak.
func executors(t *testing.T, raw string) map[string]clientexec.Executor {
	t.Helper()
	u, err := url.Parse(raw)
	if err != nil {
		t.Fatal(err)
	}
	ws, err := clientexec.NewWebSocketExecutor(&rest.Config{}, http.MethodGet, raw)
	if err != nil {
		t.Fatal(err)
	}
	sp, err := clientexec.NewSPDYExecutor(&rest.Config{}, http.MethodPost, u)
	if err != nil {
		t.Fatal(err)
	}
	return map[string]clientexec.Executor{"v5": ws, "spdy": sp}
}

// eachProtocol runs a test with a fresh URL and each protocol, exec and attach.
func eachProtocol(t *testing.T, s *Server, q *runtimeapi.ExecRequest, test func(t *testing.T, x clientexec.Executor)) {
	for _, name := range []string{"v5", "spdy"} {
		for _, kind := range []string{kindExec, kindAttach} {
			t.Run(name+"/"+kind, func(t *testing.T) {
				r, err := s.GetExec(q)
				raw := r.GetUrl()
				if kind == kindAttach {
					var a *runtimeapi.AttachResponse
					a, err = s.GetAttach(&runtimeapi.AttachRequest{ContainerId: q.GetContainerId(),
						Stdin: q.GetStdin(), Stdout: q.GetStdout(), Stderr: q.GetStderr(), Tty: q.GetTty()})
					raw = a.GetUrl()
				}
				if err != nil {
					t.Fatal(err)
				}
				test(t, executors(t, raw)[name])
			})
		}
	}
}

// TestStdinEnds: the end of a client's input is the end of the process's.
func TestStdinEnds(t *testing.T) {
	s := serve(t, &script{session: func(_ context.Context, in io.Reader, out, stderr io.WriteCloser, _ bool, _ <-chan remotecommand.TerminalSize) error {
		if _, err := io.Copy(out, in); err != nil {
			return err
		}
		_, err := stderr.Write([]byte("end"))
		return err
	}})
	payload := bytes.Repeat([]byte("0123456789abcdef"), 256<<10)
	eachProtocol(t, s, &runtimeapi.ExecRequest{ContainerId: "c", Stdin: true, Stdout: true, Stderr: true}, func(t *testing.T, x clientexec.Executor) {
		var out, stderr bytes.Buffer
		err := x.StreamWithContext(t.Context(), clientexec.StreamOptions{Stdin: bytes.NewReader(payload), Stdout: &out, Stderr: &stderr})
		if err != nil || !bytes.Equal(out.Bytes(), payload) || stderr.String() != "end" {
			t.Errorf("%v, %d bytes, %q", err, out.Len(), stderr.String())
		}
	})
}

// TestEndOfSession: a client hears the exit code and all output, also when the
// process did not read what the client had to say.
func TestEndOfSession(t *testing.T) {
	last := bytes.Repeat([]byte("last words "), 50_000)
	var end error
	s := serve(t, &script{session: func(_ context.Context, in io.Reader, out, _ io.WriteCloser, _ bool, _ <-chan remotecommand.TerminalSize) error {
		if _, err := io.ReadFull(in, make([]byte, 10)); err != nil {
			return err
		}
		if _, err := out.Write(last); err != nil {
			return err
		}
		return end
	}})
	for name, tc := range map[string]struct {
		err  error
		code int
		text string
	}{
		"success": {},
		"code":    {err: utilexec.CodeExitError{Err: errors.New("exit code 7"), Code: 7}, code: 7, text: "exit code 7"},
		"trouble": {err: errors.New("no such thing"), text: "no such thing"},
	} {
		t.Run(name, func(t *testing.T) {
			end = tc.err
			eachProtocol(t, s, &runtimeapi.ExecRequest{ContainerId: "c", Stdin: true, Stdout: true}, func(t *testing.T, x clientexec.Executor) {
				if strings.HasSuffix(t.Name(), kindAttach) && tc.code != 0 {
					t.Skip("an attachment has no exit code")
				}
				var out bytes.Buffer
				err := x.StreamWithContext(t.Context(), clientexec.StreamOptions{Stdin: bytes.NewReader(make([]byte, 4<<20)), Stdout: &out})
				var exit utilexec.ExitError
				switch {
				case !bytes.Equal(out.Bytes(), last):
					t.Errorf("%d bytes of output, want %d (%v)", out.Len(), len(last), err)
				case tc.err == nil && err != nil, tc.err != nil && (err == nil || !strings.Contains(err.Error(), tc.text)):
					t.Errorf("ended with %v", err)
				case tc.code != 0 && (!errors.As(err, &exit) || exit.ExitStatus() != tc.code):
					t.Errorf("ended with %v", err)
				}
			})
		})
	}
}

// sizes is a client's queue of terminal sizes.
type sizes chan clientexec.TerminalSize

func (s sizes) Next() *clientexec.TerminalSize {
	v, ok := <-s
	if !ok {
		return nil
	}
	return &v
}

func TestSizes(t *testing.T) {
	s := serve(t, &script{session: func(_ context.Context, _ io.Reader, out, stderr io.WriteCloser, tty bool, resize <-chan remotecommand.TerminalSize) error {
		for range 2 {
			size := <-resize
			fmt.Fprintf(out, "%dx%d %t %t\n", size.Width, size.Height, tty, stderr == nil)
		}
		return nil
	}})
	eachProtocol(t, s, &runtimeapi.ExecRequest{ContainerId: "c", Stdout: true, Tty: true}, func(t *testing.T, x clientexec.Executor) {
		q := make(sizes, 2)
		q <- clientexec.TerminalSize{Width: 80, Height: 24}
		q <- clientexec.TerminalSize{Width: 65535, Height: 1}
		defer close(q)
		var out bytes.Buffer
		err := x.StreamWithContext(t.Context(), clientexec.StreamOptions{Stdout: &out, Tty: true, TerminalSizeQueue: q})
		if err != nil || out.String() != "80x24 true true\n65535x1 true true\n" {
			t.Errorf("%v, %q", err, out.String())
		}
	})
}

// TestClientVanishesUnread: a client that goes while its input is not read is
// missed all the same.
func TestClientVanishesUnread(t *testing.T) {
	ended := make(chan error, 1)
	s := serve(t, &script{session: func(ctx context.Context, _ io.Reader, out, _ io.WriteCloser, _ bool, _ <-chan remotecommand.TerminalSize) error {
		_, _ = out.Write([]byte("up"))
		<-ctx.Done()
		ended <- ctx.Err()
		return ctx.Err()
	}})
	eachProtocol(t, s, &runtimeapi.ExecRequest{ContainerId: "c", Stdin: true, Stdout: true}, func(t *testing.T, x clientexec.Executor) {
		ctx, cancel := context.WithCancel(t.Context())
		up := make(upWriter)
		done := make(chan error, 1)
		in, feed := io.Pipe()
		go func() {
			done <- x.StreamWithContext(ctx, clientexec.StreamOptions{Stdin: in, Stdout: up})
		}()
		<-up
		// More than the server passes on, and less than the kernel holds: what
		// the kernel cannot hold keeps the end of the connection back too.
		for range 3 {
			if _, err := feed.Write(make([]byte, 16<<10)); err != nil {
				t.Fatal(err)
			}
		}
		cancel()
		<-done
		in.Close()
		select {
		case <-ended:
		case <-time.After(time.Minute):
			t.Fatal("the session outlives its client")
		}
	})
}

// TestPortForward: SPDY alone and inside a WebSocket, several connections on
// one session, a half-close, and an error.
func TestPortForward(t *testing.T) {
	s := serve(t, &script{forward: func(_ context.Context, port int32, stream io.ReadWriteCloser) error {
		if port == 1 {
			return fmt.Errorf("nobody listens: %w", errdefs.ErrUnavailable)
		}
		b, err := io.ReadAll(stream) // until the client closes its half
		if err == nil {
			_, err = fmt.Fprintf(stream, "%d %s", port, b)
		}
		return err
	}})
	for name, dial := range map[string]func(u *url.URL) (httpstream.Dialer, error){
		"spdy": func(u *url.URL) (httpstream.Dialer, error) {
			rt, err := streamspdy.NewRoundTripper(nil)
			return spdy.NewDialerForStreaming(spdy.NewUpgraderForStreaming(rt), &http.Client{Transport: rt}, http.MethodPost, u), err
		},
		"websocket": func(u *url.URL) (httpstream.Dialer, error) {
			return portforward.NewSPDYOverWebsocketDialerForStreaming(u, &rest.Config{})
		},
	} {
		t.Run(name, func(t *testing.T) {
			r, err := s.GetPortForward(&runtimeapi.PortForwardRequest{PodSandboxId: "p"})
			if err != nil {
				t.Fatal(err)
			}
			u, _ := url.Parse(r.GetUrl())
			d, err := dial(u)
			if err != nil {
				t.Fatal(err)
			}
			conn, protocol, err := d.Dial(portforward.PortForwardProtocolV1Name)
			if err != nil || protocol != portforward.PortForwardProtocolV1Name {
				t.Fatal(protocol, err)
			}
			defer conn.Close()
			results := make(chan string)
			for i := range 100 {
				go func() { results <- forwardOne(conn, 1000+i, strings.Repeat("x", i*100)) }()
			}
			for range 100 {
				if msg := <-results; msg != "" {
					t.Error(msg)
				}
			}
			if msg := forwardOne(conn, 1, "x"); !strings.Contains(msg, "nobody listens") {
				t.Errorf("a port that nobody listens on: %q", msg)
			}
		})
	}
}

// forwardOne sends text to a port, closes its half and wants it back; it
// returns what was wrong.
func forwardOne(conn httpstream.Connection, port int, text string) string {
	h := http.Header{"Streamtype": {"error"}, "Port": {fmt.Sprint(port)}, "Requestid": {fmt.Sprint(port)}}
	errs, err := conn.CreateStream(h)
	if err != nil {
		return err.Error()
	}
	_ = errs.Close()
	h.Set("Streamtype", "data")
	data, err := conn.CreateStream(h)
	if err != nil {
		return err.Error()
	}
	_, werr := io.WriteString(data, text)
	_ = data.Close()
	got, _ := io.ReadAll(data)
	if msg, _ := io.ReadAll(errs); len(msg) > 0 {
		return string(msg)
	}
	if want := fmt.Sprintf("%d %s", port, text); string(got) != want {
		return fmt.Sprintf("port %d: %d bytes came back, want %d (%v)", port, len(got), len(want), werr)
	}
	return ""
}

func TestTokens(t *testing.T) {
	now := time.Unix(1000, 0)
	tk := tokens{live: map[string]ticket{}, now: func() time.Time { return now }}
	a, err := tk.put("a")
	if err != nil || len(a) < 22 {
		t.Fatal(a, err)
	}
	b, _ := tk.put("b")
	got := []any{tk.take("no such"), tk.take(a), tk.take(a)}
	now = now.Add(tokenLife + 1)
	got = append(got, tk.take(b))
	if d := cmp.Diff([]any{nil, "a", nil, nil}, got); d != "" {
		t.Error(d)
	}
	for range maxTokens {
		if _, err := tk.put("x"); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := tk.put("x"); !errdefs.IsResourceExhausted(err) {
		t.Errorf("token %d: %v", maxTokens+1, err)
	}
	now = now.Add(tokenLife + 1)
	if _, err := tk.put("x"); err != nil || len(tk.live) != 1 {
		t.Errorf("after their time %d tokens are left, %v", len(tk.live), err)
	}
}

// TestStrangers: a URL is good for what it was given out for, over GET and POST.
func TestStrangers(t *testing.T) {
	s := serve(t, &script{})
	ask := func(method, url string) int {
		q, err := http.NewRequestWithContext(t.Context(), method, url, nil)
		if err != nil {
			t.Fatal(err)
		}
		r, err := http.DefaultClient.Do(q)
		if err != nil {
			t.Fatal(err)
		}
		r.Body.Close()
		return r.StatusCode
	}
	r, err := s.GetExec(&runtimeapi.ExecRequest{ContainerId: "c", Stdout: true})
	if err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		method, url string
		want        int
	}{
		{http.MethodGet, s.BaseURL(), http.StatusNotFound},
		{http.MethodGet, s.BaseURL() + "exec/", http.StatusNotFound},
		{http.MethodGet, s.BaseURL() + "exec/unknown", http.StatusNotFound},
		{http.MethodDelete, r.GetUrl(), http.StatusMethodNotAllowed},
		{http.MethodPost, r.GetUrl() + "/more", http.StatusNotFound},
		{http.MethodPost, strings.Replace(r.GetUrl(), "/exec/", "/attach/", 1), http.StatusNotFound},
		// The attempt above has used it up.
		{http.MethodPost, r.GetUrl(), http.StatusNotFound},
	} {
		if got := ask(tc.method, tc.url); got != tc.want {
			t.Errorf("%s %s: %d, want %d", tc.method, tc.url, got, tc.want)
		}
	}
}

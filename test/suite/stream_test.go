package suite

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/portforward"
	"k8s.io/client-go/tools/remotecommand"
	"k8s.io/client-go/transport/spdy"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-dev/berth/test/harness"
)

func streamStories() []story {
	return []story{
		{name: "stream/exec", tell: streamExec},
		{name: "stream/exec with a terminal", tell: streamTTY},
		{name: "stream/attach", tell: streamAttach},
		{name: "stream/port forward", tell: portForward},
	}
}

// reachable rewrites a streaming URL so that it works from the test's own
// network namespace.
func (n *node) reachable(t *testing.T, raw string) *url.URL {
	t.Helper()
	u, err := url.Parse(raw)
	must(t, err)
	if n.netns != "" {
		local, stop, err := harness.Forward(n.netns, u.Host)
		must(t, err)
		t.Cleanup(stop)
		u.Host = local
	}
	return u
}

// wire is a protocol of exec and attach.
type wire string

const (
	overSPDY wire = "SPDY"
	overV4   wire = "v4.channel.k8s.io" // cannot say that stdin has ended
	overV5   wire = "v5.channel.k8s.io" // Berth's own: elsewhere API servers translate it
)

// wires are what a runtime speaks.
func (n *node) wires() []wire {
	if n.own == nil {
		return []wire{overSPDY, overV4}
	}
	return []wire{overSPDY, overV4, overV5}
}

func stream(t *testing.T, u *url.URL, w wire, o remotecommand.StreamOptions) error {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	return streamUntil(ctx, u, w, o)
}

// streamUntil runs a session that ends with ctx.
func streamUntil(ctx context.Context, u *url.URL, w wire, o remotecommand.StreamOptions) error {
	var ex remotecommand.Executor
	var err error
	if w == overSPDY {
		ex, err = remotecommand.NewSPDYExecutor(&rest.Config{Host: u.Host}, http.MethodPost, u)
	} else {
		ex, err = remotecommand.NewWebSocketExecutorForProtocols(&rest.Config{Host: u.Host}, http.MethodGet, u.String(), string(w))
	}
	if err != nil {
		return err
	}
	return ex.StreamWithContext(ctx, o)
}

func (c *container) execURL(t *testing.T, tty bool, cmd ...string) *url.URL {
	t.Helper()
	r, err := c.p.n.rt.Exec(t.Context(), &runtimeapi.ExecRequest{ContainerId: c.id, Cmd: cmd, Stdin: true, Stdout: true, Stderr: !tty, Tty: tty})
	must(t, err)
	return c.p.n.reachable(t, r.GetUrl())
}

func streamExec(t *testing.T, n *node) {
	c := n.pod(t).run(t, probe("sleep"))
	for _, ws := range n.wires() {
		var out, stderr bytes.Buffer
		err := stream(t, c.execURL(t, false, "/bin/sh", "-c", "head -n 1; echo err >&2; exit 5"), ws, remotecommand.StreamOptions{
			Stdin: strings.NewReader("through stdin\n"), Stdout: &out, Stderr: &stderr,
		})
		if err == nil || !strings.Contains(err.Error(), "exit code 5") {
			t.Errorf("%s: got %v, want exit code 5", ws, err)
		}
		equal(t, "stdout", out.String(), "through stdin\n")
		equal(t, "stderr", stderr.String(), "err\n")
	}
}

// oneSize is a terminal size that never changes.
type oneSize chan remotecommand.TerminalSize

func (s oneSize) Next() *remotecommand.TerminalSize {
	v, ok := <-s
	if !ok {
		return nil
	}
	return &v
}

func streamTTY(t *testing.T, n *node) {
	c := n.pod(t).run(t, probe("sleep"))
	size := make(oneSize, 1)
	size <- remotecommand.TerminalSize{Width: 123, Height: 45}
	defer close(size)
	// Stdin stays open: its end would hang the terminal up.
	in, hold := io.Pipe()
	defer hold.Close()
	var out bytes.Buffer
	must(t, stream(t, c.execURL(t, true, "/bin/sh", "-c", "until [ \"$(stty size)\" = '45 123' ]; do sleep 0.1; done; stty size; tty"), overSPDY, remotecommand.StreamOptions{
		Stdin: in, Stdout: &out, Tty: true, TerminalSizeQueue: size,
	}))
	has(t, "terminal", out.String(), "45 123", "/dev/pts/")
}

func streamAttach(t *testing.T, n *node) {
	c := n.pod(t).run(t, probe("cat"), func(c *runtimeapi.ContainerConfig) { c.Stdin, c.StdinOnce = true, true })
	r, err := n.rt.Attach(t.Context(), &runtimeapi.AttachRequest{ContainerId: c.id, Stdin: true, Stdout: true, Stderr: true})
	must(t, err)
	var out bytes.Buffer
	err = stream(t, n.reachable(t, r.GetUrl()), overSPDY, remotecommand.StreamOptions{Stdin: strings.NewReader("ahoy\n"), Stdout: &out, Stderr: io.Discard})
	must(t, err)
	equal(t, "echo", out.String(), "ahoy\n")
	equal(t, "exit code after stdin's end", c.wait(t).GetExitCode(), 0)
	equal(t, "log", c.text(t), "ahoy\n")
}

func portForward(t *testing.T, n *node) {
	p := n.pod(t)
	p.run(t, probe("serve", "8080")).waitLog(t, "listening")
	r, err := n.rt.PortForward(t.Context(), &runtimeapi.PortForwardRequest{PodSandboxId: p.id, Port: []int32{8080}})
	must(t, err)
	u := n.reachable(t, r.GetUrl())
	transport, upgrader, err := spdy.RoundTripperFor(&rest.Config{Host: u.Host})
	must(t, err)
	stop, ready := make(chan struct{}), make(chan struct{})
	defer close(stop)
	f, err := portforward.New(spdy.NewDialer(upgrader, &http.Client{Transport: transport}, http.MethodPost, u), []string{"0:8080"}, stop, ready, io.Discard, io.Discard)
	must(t, err)
	failed := make(chan error, 1)
	go func() { failed <- f.ForwardPorts() }()
	select {
	case <-ready:
	case err := <-failed:
		t.Fatal(err)
	case <-time.After(patience):
		t.Fatal("port forwarding does not get ready")
	}
	ports, err := f.GetPorts()
	must(t, err)
	// Again and again: the first answer has broken connections before.
	for range 3 {
		equal(t, "answer", get(t, "", fmt.Sprintf("127.0.0.1:%d", ports[0].Local), "/healthz"), "ok\n")
	}
}

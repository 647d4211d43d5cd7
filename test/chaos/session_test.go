package chaos

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/remotecommand"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-dev/berth/test/harness"
	"github.com/berth-dev/berth/test/images/numbered"
)

// session is an exec or an attachment that is open when the daemon is killed.
type session struct {
	what string
	v5   bool // over WebSocket, whose client can tell an end from a loss
	stop func()
	done chan error
	up   chan struct{} // closed at the first output
	once sync.Once
	mu   sync.Mutex
	in   *numbered.Checker // of an attachment
}

func (s *session) Write(p []byte) (int, error) {
	s.once.Do(func() { close(s.up) })
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.in.Write(p)
}

// follow runs a session at a URL.
func (n *node) follow(what, raw string, v5 bool) (*session, error) {
	u, err := url.Parse(raw)
	if err != nil {
		return nil, err
	}
	local, stop, err := harness.Forward(n.h.Space().NetNS(), u.Host)
	if err != nil {
		return nil, err
	}
	u.Host = local
	cfg := &rest.Config{Host: u.Host}
	x, err := remotecommand.NewSPDYExecutor(cfg, http.MethodPost, u)
	if v5 {
		x, err = remotecommand.NewWebSocketExecutor(cfg, http.MethodGet, u.String())
	}
	if err != nil {
		stop()
		return nil, err
	}
	s := &session{what: what, v5: v5, stop: stop, done: make(chan error, 1), up: make(chan struct{}), in: numbered.Inside()}
	go func() {
		s.done <- x.StreamWithContext(n.t.Context(), remotecommand.StreamOptions{Stdout: s, Stderr: io.Discard})
	}()
	select {
	case <-s.up:
		return s, nil
	case err := <-s.done:
		stop()
		return nil, fmt.Errorf("%s ends before it has begun: %w", what, err)
	case <-time.After(patience):
		return nil, fmt.Errorf("%s: no output", what)
	}
}

func (n *node) attach(w *writer, v5 bool) (*session, error) {
	r, err := n.rt.Attach(n.t.Context(), &runtimeapi.AttachRequest{ContainerId: w.id, Stdout: true, Stderr: true})
	if err != nil {
		return nil, err
	}
	return n.follow("attachment to "+w.name, r.GetUrl(), v5)
}

// execMark is in the command line of processes that must end with the daemon.
const execMark = "chaos-session"

func (n *node) exec(w *writer, v5 bool) (*session, error) {
	cmd := []string{"/bin/sh", "-c", "echo up; sleep 100000 & wait", execMark}
	r, err := n.rt.Exec(n.t.Context(), &runtimeapi.ExecRequest{ContainerId: w.id, Cmd: cmd, Stdout: true, Stderr: true})
	if err != nil {
		return nil, err
	}
	return n.follow("exec in "+w.name, r.GetUrl(), v5)
}

// over waits for the session's end, which the client must see, and checks what
// an attachment read. It returns the number of lines. A client that speaks SPDY
// takes the end of its connection for that of the session; this is client-go's.
func (s *session) over(n *node) (lines int) {
	n.t.Helper()
	defer s.stop()
	var err error
	select {
	case err = <-s.done:
	case <-time.After(patience):
		n.t.Fatalf("%s goes on without a daemon", s.what)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if strings.HasPrefix(s.what, "attach") && s.in.Err() != nil {
		n.t.Errorf("%s: %v", s.what, s.in.Err())
	}
	if s.v5 && err == nil {
		n.t.Errorf("%s: the client saw no error", s.what)
	}
	return s.in.Lines
}

// marked counts processes that came from exec sessions: their shells by the
// mark, and what these started by the command.
func (n *node) marked() int {
	count := 0
	procs, _ := filepath.Glob("/proc/[0-9]*")
	for _, p := range procs {
		cmd, _ := os.ReadFile(p + "/cmdline")
		if !bytes.Contains(cmd, []byte(execMark)) && !bytes.HasPrefix(cmd, []byte("sleep\x00100000\x00")) {
			continue
		}
		cg, _ := os.ReadFile(p + "/cgroup")
		for id := range n.h.Shims() {
			if bytes.Contains(cg, []byte(id)) {
				count++
				break
			}
		}
	}
	return count
}

// probe runs commands in containers until ctx ends, as a kubelet does. A
// daemon that is away is an excuse, everything else is not.
func (n *node) probe(ctx context.Context, ws []*writer, count *counter) error {
	for i := 0; ctx.Err() == nil; i++ {
		w := ws[i%len(ws)]
		word, code := "probe-"+strconv.Itoa(i), int32(i%7)
		r, err := n.rt.ExecSync(context.WithoutCancel(ctx), &runtimeapi.ExecSyncRequest{ContainerId: w.id, Timeout: 60,
			Cmd: []string{"/bin/sh", "-c", fmt.Sprintf("echo %s; exit %d", word, code)}})
		switch {
		case status.Code(err) == codes.Unavailable:
			count.add("interrupted", 1)
			time.Sleep(50 * time.Millisecond)
			continue
		case err != nil:
			return fmt.Errorf("probe of %s: %w", w.name, err)
		case string(r.GetStdout()) != word+"\n" || r.GetExitCode() != code || len(r.GetStderr()) > 0:
			return fmt.Errorf("probe of %s: %q %q, code %d, want %s, code %d", w.name, r.GetStdout(), r.GetStderr(), r.GetExitCode(), word, code)
		}
		count.add("good", 1)
	}
	return nil
}

package suite

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"k8s.io/client-go/tools/remotecommand"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-dev/berth/test/harness"
	"github.com/berth-dev/berth/test/images/numbered"
)

func sessionStories() []story {
	return []story{
		{name: "session/several attachers", berth: true, tell: severalAttachers},
		{name: "session/detach and attach again", tell: attachAgain},
		{name: "session/container with a terminal", tell: attachTTY},
		{name: "session/client vanishes", tell: clientVanishes},
		{name: "session/exec goes on without its client", berth: true, alone: true, tell: keptExec},
		{name: "session/tar", tell: tarBothWays},
	}
}

// attached is a client that is attached to a container.
type attached struct {
	in   io.WriteCloser
	out  *watched
	done chan error
	stop context.CancelFunc
}

// watched is output that can be waited for.
type watched struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (w *watched) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.buf.Write(p)
}

func (w *watched) String() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.buf.String()
}

// attach attaches to everything the container has.
func (c *container) attach(t *testing.T, w wire, sizes remotecommand.TerminalSizeQueue) *attached {
	t.Helper()
	tty := c.config.GetTty()
	a := &attached{out: &watched{}, done: make(chan error, 1)}
	r, err := c.p.n.rt.Attach(t.Context(), &runtimeapi.AttachRequest{ContainerId: c.id, Stdin: true, Stdout: true, Stderr: !tty, Tty: tty})
	must(t, err)
	u := c.p.n.reachable(t, r.GetUrl())
	in, feed := io.Pipe()
	a.in = feed
	o := remotecommand.StreamOptions{Stdin: in, Stdout: a.out, Tty: tty, TerminalSizeQueue: sizes}
	if !tty {
		o.Stderr = io.Discard
	}
	var ctx context.Context
	ctx, a.stop = context.WithCancel(t.Context())
	go func() { a.done <- streamUntil(ctx, u, w, o); in.Close() }()
	return a
}

func (a *attached) say(t *testing.T, s string) {
	t.Helper()
	_, err := io.WriteString(a.in, s)
	must(t, err)
}

func (a *attached) hears(t *testing.T, want string) {
	t.Helper()
	eventually(t, fmt.Sprintf("the client reads %q", want), func() bool { return strings.Contains(a.out.String(), want) })
}

// ended waits for the end of the session.
func (a *attached) ended(t *testing.T) error {
	t.Helper()
	defer a.stop()
	select {
	case err := <-a.done:
		return err
	case <-time.After(patience):
		t.Fatal("the session does not end")
		return nil
	}
}

// gate is a writer that waits until it is opened.
type gate struct {
	open chan struct{}
	at   chan struct{} // closed when the first write waits
	once sync.Once
}

func (g *gate) Write(p []byte) (int, error) {
	g.once.Do(func() { close(g.at) })
	<-g.open
	return len(p), nil
}

// reader is an attachment that checks what it reads.
type reader struct {
	mu    sync.Mutex
	check *numbered.Checker
	done  chan error
}

func (r *reader) Write(p []byte) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.check.Write(p)
}

// at is the line that comes next, once a whole line has come.
func (r *reader) at() (uint64, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.check.Next(), r.check.Lines > 0
}

// watch attaches to the output only.
func (c *container) watch(t *testing.T, w wire, out io.Writer) chan error {
	t.Helper()
	r, err := c.p.n.rt.Attach(t.Context(), &runtimeapi.AttachRequest{ContainerId: c.id, Stdout: true})
	must(t, err)
	u, done := c.p.n.reachable(t, r.GetUrl()), make(chan error, 1)
	go func() { done <- streamUntil(t.Context(), u, w, remotecommand.StreamOptions{Stdout: out}) }()
	return done
}

// severalAttachers: each reads every line from when it came, and one that does
// not read holds up neither them nor the log, and hears that it lost output.
// The others set the pace, so that none of them can be too slow.
func severalAttachers(t *testing.T, n *node) {
	c := n.pod(t).run(t, probe("cat"), func(c *runtimeapi.ContainerConfig) { c.Stdin = true })
	slow := &gate{open: make(chan struct{}), at: make(chan struct{})}
	cut := c.watch(t, overV5, slow)
	var readers []*reader
	for _, w := range []wire{overSPDY, overV4, overV5} {
		r := &reader{check: numbered.Inside()}
		r.done = c.watch(t, w, r)
		readers = append(readers, r)
	}
	feeder := c.attach(t, overV5, nil)
	defer feeder.stop()
	next := uint64(0)
	feed := func(lines int) {
		var b []byte
		for range lines {
			b = numbered.Append(b, next)
			next++
		}
		feeder.say(t, string(b))
	}
	eventually(t, "all are attached", func() bool {
		feed(2)
		all := true
		for _, r := range readers {
			_, ok := r.at()
			all = all && ok
		}
		return all
	})
	<-slow.at
	// More in all than sockets and queues could hold for the one that does not
	// read, and each time much less than is held for one that does.
	for range 128 {
		feed(1000)
		eventually(t, "all readers have what was written", func() bool {
			for _, r := range readers {
				if at, _ := r.at(); at != next {
					return false
				}
			}
			return true
		})
	}
	c.stop(t, 0)
	for i, r := range readers {
		must(t, <-r.done)
		if r.check.Err() != nil {
			t.Errorf("attachment %d: %v", i, r.check.Err())
		}
	}
	close(slow.open)
	if err := <-cut; err == nil || !strings.Contains(err.Error(), "output is lost") {
		t.Errorf("the client that did not read ended with %v", err)
	}
	check := numbered.From(0)
	io.WriteString(check, c.text(t))
	if check.Err() != nil || check.Next() != next {
		t.Errorf("log: %d lines of %d; %v", check.Next(), next, check.Err())
	}
}

// attachAgain: without StdinOnce a container's input outlives its clients.
func attachAgain(t *testing.T, n *node) {
	c := n.pod(t).run(t, probe("cat"), func(c *runtimeapi.ContainerConfig) { c.Stdin = true })
	wires := n.wires()
	a, b := c.attach(t, overSPDY, nil), c.attach(t, wires[len(wires)-1], nil)
	a.say(t, "from a\n")
	a.hears(t, "from a\n")
	b.say(t, "from b\n")
	a.hears(t, "from b\n")
	b.hears(t, "from b\n")
	a.stop()
	if a.ended(t) == nil {
		t.Error("the client that left saw no error")
	}
	b.say(t, "still here\n")
	b.hears(t, "still here\n")
	b.in.Close()
	b.stop()
	b.ended(t)
	d := c.attach(t, overSPDY, nil)
	d.say(t, "again\n")
	d.hears(t, "again\n")
	if strings.Contains(d.out.String(), "from") {
		t.Error("an attachment told what was before it")
	}
	c.stop(t, 0)
	must(t, d.ended(t))
	equal(t, "log", c.text(t), "from a\nfrom b\nstill here\nagain\n")
}

// attachTTY: size, input and output of a container's own terminal, shared by
// two clients, and an exit code that the shell was told through it.
func attachTTY(t *testing.T, n *node) {
	c := n.pod(t).run(t, shell("until [ \"$(stty size)\" = '33 91' ]; do sleep 0.1; done; stty -echo; echo sized; while read l; do case $l in exit*) exit 5;; *) echo got $l;; esac; done"),
		func(c *runtimeapi.ContainerConfig) { c.Tty, c.Stdin = true, true })
	size := make(oneSize, 1)
	size <- remotecommand.TerminalSize{Width: 91, Height: 33}
	defer close(size)
	a := c.attach(t, overSPDY, size)
	a.hears(t, "sized")
	wires := n.wires()
	b := c.attach(t, wires[len(wires)-1], nil)
	b.say(t, "one\n")
	a.hears(t, "got one\r\n")
	b.hears(t, "got one\r\n")
	a.stop()
	a.ended(t)
	b.say(t, "two\nexit\n")
	b.hears(t, "got two\r\n")
	must(t, b.ended(t))
	equal(t, "exit code", c.wait(t).GetExitCode(), 5)
}

// clientVanishes: the exec'ed processes of a client end with it, and nobody else's.
func clientVanishes(t *testing.T, n *node) {
	c := n.pod(t).run(t, probe("sleep"))
	other := c.leave(t, overSPDY, "3333", false)
	defer other.stop()
	for _, w := range n.wires() {
		c.leave(t, w, "4444", true)
		eventually(t, string(w)+": what the client ran has ended", func() bool { return !strings.Contains(c.sh(t, "ps"), "sleep 4444") })
	}
	has(t, "processes", c.sh(t, "ps"), "sleep 3333")
	equal(t, "container", c.status(t).GetState(), runtimeapi.ContainerState_CONTAINER_RUNNING)
}

// leave runs processes in a session, and leaves it.
func (c *container) leave(t *testing.T, w wire, seconds string, now bool) *attached {
	t.Helper()
	a := &attached{out: &watched{}, done: make(chan error, 1)}
	u := c.execURL(t, false, "/bin/sh", "-c", "sleep "+seconds+" & echo up; sleep "+seconds)
	in, feed := io.Pipe()
	a.in = feed
	var ctx context.Context
	ctx, a.stop = context.WithCancel(t.Context())
	go func() {
		a.done <- streamUntil(ctx, u, w, remotecommand.StreamOptions{Stdin: in, Stdout: a.out, Stderr: io.Discard})
		in.Close()
	}()
	a.hears(t, "up\n")
	if now {
		a.stop()
		a.ended(t)
	}
	return a
}

// keptExec is clientVanishes on a node that is told to let processes go on.
func keptExec(t *testing.T, n *node) {
	s := n.spare(t, harness.Config{TOML: "[streaming]\nkeep_exec = true\n"}, nil, nil)
	c := s.pod(t).run(t, probe("sleep"))
	u := c.execURL(t, false, "/bin/sh", "-c", "echo up; cat; i=0; while [ $i -lt 20000 ]; do echo more and more output; i=$((i+1)); done; echo done > /tmp/done")
	ctx, cancel := context.WithCancel(t.Context())
	a := &attached{out: &watched{}, done: make(chan error, 1), stop: cancel}
	in, feed := io.Pipe()
	defer feed.Close()
	go func() {
		a.done <- streamUntil(ctx, u, overV5, remotecommand.StreamOptions{Stdin: in, Stdout: a.out, Stderr: io.Discard})
		in.Close()
	}()
	a.hears(t, "up\n")
	cancel()
	a.ended(t)
	eventually(t, "the process does all its work", func() bool { return c.sh(t, "cat /tmp/done 2>/dev/null || true") == "done" })
}

// tarBothWays sends an archive through exec and gets it back.
func tarBothWays(t *testing.T, n *node) {
	mb := 20
	if s := os.Getenv("BERTH_TAR_MB"); s != "" {
		var err error
		mb, err = strconv.Atoi(s)
		must(t, err)
	}
	content := make([]byte, mb<<20)
	rand.Read(content)
	sum := fmt.Sprintf("%x", sha256.Sum256(content))
	var archive bytes.Buffer
	w := tar.NewWriter(&archive)
	must(t, w.WriteHeader(&tar.Header{Name: "big", Mode: 0o644, Size: int64(len(content)), Format: tar.FormatPAX}))
	_, err := w.Write(content)
	must(t, err)
	must(t, w.Close())
	c := n.pod(t).run(t, probe("sleep"))
	for _, wr := range n.wires() {
		if wr == overV4 {
			continue
		}
		began := time.Now()
		must(t, stream(t, c.execURL(t, false, "/bin/tar", "xf", "-", "-C", "/tmp"), wr, remotecommand.StreamOptions{Stdin: &onlyRead{bytes.NewReader(archive.Bytes())}, Stdout: io.Discard, Stderr: io.Discard}))
		in := time.Since(began)
		has(t, "digest in the container", c.sh(t, "sha256sum /tmp/big"), sum)
		began = time.Now()
		back := sha256.New()
		pr, pw := io.Pipe()
		done := make(chan error, 1)
		go func() {
			tr := tar.NewReader(pr)
			_, err := tr.Next()
			if err == nil {
				_, err = io.Copy(back, tr)
			}
			io.Copy(io.Discard, pr)
			done <- err
		}()
		must(t, stream(t, c.execURL(t, false, "/bin/tar", "cf", "-", "-C", "/tmp", "big"), wr, remotecommand.StreamOptions{Stdin: strings.NewReader(""), Stdout: pw, Stderr: io.Discard}))
		pw.Close()
		must(t, <-done)
		equal(t, "digest of what came back", fmt.Sprintf("%x", back.Sum(nil)), sum)
		rate := func(d time.Duration) float64 { return float64(mb) / d.Seconds() }
		t.Logf("%s: %d MiB in at %.0f MiB/s, out at %.0f MiB/s; daemon's peak memory %s", wr, mb, rate(in), rate(time.Since(began)), n.peak())
	}
}

// onlyRead hides what else a reader can do, so that it is read in pieces.
type onlyRead struct{ io.Reader }

// peak is the most memory the daemon has held so far.
func (n *node) peak() string {
	if n.own == nil {
		return "unknown"
	}
	b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", n.own.PID()))
	for l := range strings.Lines(string(b)) {
		if v, ok := strings.CutPrefix(l, "VmHWM:"); ok {
			return strings.TrimSpace(v)
		}
	}
	return "unknown"
}

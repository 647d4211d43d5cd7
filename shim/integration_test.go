package shim

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/berth-dev/berth/shim/cgroup"
)

// TestDependencies keeps the shim small.
func TestDependencies(t *testing.T) {
	out, err := exec.Command("go", "list", "-deps", "github.com/berth-dev/berth/cmd/berth-shim").Output()
	if err != nil {
		t.Fatal(err)
	}
	banned := strings.Fields("net net/http encoding/json os os/exec os/signal fmt log context runtime/debug")
	for _, p := range strings.Fields(string(out)) {
		first, _, _ := strings.Cut(p, "/")
		ours := strings.HasPrefix(p, "github.com/berth-dev/berth/shim/") || p == "github.com/berth-dev/berth/cmd/berth-shim"
		if strings.Contains(first, ".") && !ours && p != "golang.org/x/sys/unix" || slices.Contains(banned, p) {
			t.Errorf("the shim depends on %s", p)
		}
	}
}

func TestIntegrationExit(t *testing.T) {
	r := newRig(t)
	for _, tc := range []struct {
		name, script string
		code, sig    int
	}{
		{"zero", "true", 0, 0},
		{"code", "exit 42", 42, 0},
		{"signal", "kill -9 $$; sleep 100", 137, 9},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c := r.create(t, tc.name, tc.script, func(_ *CreateRequest, s *specs.Spec) {
				if tc.sig != 0 { // PID 1 can't kill itself
					s.Process.Args = []string{"sleep", "1000"}
				}
			})
			if c.PID <= 1 || c.ShimPID <= 1 {
				t.Errorf("%+v", c)
			}
			before := time.Now()
			r.start(t, tc.name)
			if tc.sig != 0 {
				if err := r.m.Signal(r.ctx, tc.name, syscall.SIGKILL); err != nil {
					t.Fatal(err)
				}
			}
			e := r.exit(t)
			want := Exit{ID: tc.name, Code: int32(tc.code), Signal: tc.sig, At: e.At, StartedAt: e.StartedAt}
			if d := cmp.Diff(want, e); d != "" || e.At.Before(before) || e.At.Before(e.StartedAt) {
				t.Errorf("%+v %s", e, d)
			}
			if st, err := r.m.Reconnect(r.ctx, tc.name); err != nil || st.Phase != PhaseExited || st.Exit.Code != e.Code {
				t.Errorf("%+v %v", st, err)
			}
			if err := r.m.Delete(r.ctx, tc.name, r.rt); err != nil {
				t.Fatal(err)
			}
			if err := r.m.Signal(r.ctx, tc.name, syscall.SIGTERM); !errdefs.IsNotFound(err) {
				t.Errorf("signal after the end: %v", err)
			}
		})
	}
}

func TestIntegrationCreateFails(t *testing.T) {
	r := newRig(t)
	r.bundle(t, "bad", "", func(s *specs.Spec) { s.Process.Args = []string{"no-such-program"} })
	req := CreateRequest{ID: "bad", Runtime: r.rt, LogPath: r.logPath("bad")}
	_, err := r.m.Create(r.ctx, req)
	if err == nil || !strings.Contains(err.Error(), "no-such-program") || !strings.Contains(err.Error(), "not found") {
		t.Errorf("error without the reason: %v", err)
	}
	if r.m.remains("bad", r.rt) {
		t.Error("something remains")
	}
	if st, err := r.m.Reconnect(r.ctx, "bad"); err != nil || st.Phase != PhaseGone {
		t.Error(st, err)
	}
	// The same call succeeds once the cause is gone.
	r.create(t, "bad", "true", nil)
}

func TestIntegrationOOM(t *testing.T) {
	r := newRig(t)
	limit := int64(12 << 20)
	r.create(t, "oom", "x=x; while :; do x=$x$x; done", func(_ *CreateRequest, s *specs.Spec) {
		s.Linux.Resources = &specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: &limit}}
	})
	r.start(t, "oom")
	if e := r.exit(t); !e.OOMKilled || e.Code == 0 {
		t.Errorf("%+v", e)
	}
}

// TestIntegrationOOMChild: the verdict counts a child too, and the code is
// that of the container's first process.
func TestIntegrationOOMChild(t *testing.T) {
	r := newRig(t)
	limit := int64(12 << 20)
	r.create(t, "child", "sh -c 'x=x; while :; do x=$x$x; done'; exit 4", func(_ *CreateRequest, s *specs.Spec) {
		s.Linux.Resources = &specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: &limit}}
	})
	r.start(t, "child")
	if e := r.exit(t); !e.OOMKilled || e.Code != 4 {
		t.Errorf("%+v", e)
	}
}

func TestIntegrationLog(t *testing.T) {
	r := newRig(t)
	r.create(t, "log", "echo out; echo err >&2; printf %s 0123456789abcdef; echo; printf tail", func(c *CreateRequest, _ *specs.Spec) {
		c.PartialBytes = 10
	})
	r.start(t, "log")
	r.exit(t)
	got := r.lines(t, "log")
	slices.Sort(got)
	want := []string{"stderr F err", "stdout F abcdef", "stdout F out", "stdout F tail", "stdout P 0123456789"}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
	st, err := os.Stat(r.logPath("log"))
	if err != nil || st.Mode().Perm() != 0o640 {
		t.Error(st, err)
	}
}

func TestIntegrationReopen(t *testing.T) {
	r := newRig(t)
	r.create(t, "re", "while read x; do echo $x; done", func(c *CreateRequest, _ *specs.Spec) { c.Stdin, c.StdinOnce = true, true })
	r.start(t, "re")
	a, err := r.m.Attach(r.ctx, "re", true)
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	in := bufio.NewReader(a.Stdout)
	echo := func(s string) {
		t.Helper()
		if _, err := io.WriteString(a.Stdin, s+"\n"); err != nil {
			t.Fatal(err)
		}
		if got, err := in.ReadString('\n'); err != nil || got != s+"\n" {
			t.Fatal(got, err)
		}
	}
	echo("one")
	if err := os.RemoveAll(filepath.Dir(r.logPath("re"))); err != nil {
		t.Fatal(err)
	}
	echo("lost with its directory")
	if err := r.m.ReopenLog(r.ctx, "re"); err != nil {
		t.Fatal(err)
	}
	echo("two")
	if d := cmp.Diff([]string{"stdout F two"}, r.lines(t, "re")); d != "" {
		t.Error(d)
	}
	// StdinOnce: the end of input ends the container.
	if err := a.Stdin.Close(); err != nil {
		t.Fatal(err)
	}
	if e := r.exit(t); e.Code != 1 && e.Code != 0 {
		t.Errorf("%+v", e)
	}
}

func TestIntegrationAttachSeveral(t *testing.T) {
	r := newRig(t)
	r.create(t, "many", "cat", func(c *CreateRequest, _ *specs.Spec) { c.Stdin, c.StdinOnce = true, false })
	r.start(t, "many")
	var all []*Attached
	for range 3 {
		a, err := r.m.Attach(r.ctx, "many", true)
		if err != nil {
			t.Fatal(err)
		}
		defer a.Close()
		all = append(all, a)
	}
	// In step with the first two, so that only the third, which never reads,
	// is slow: it is cut off; the others and the log get all.
	const rounds = 48
	piece := bytes.Repeat([]byte("0123456789abcde\n"), 1<<13) // 128 KiB, more than a pipe holds
	for range rounds {
		errs := make(chan error, 3)
		go func() { _, err := all[0].Stdin.Write(piece); errs <- err }()
		for _, a := range all[:2] {
			go func() {
				got := make([]byte, len(piece))
				_, err := io.ReadFull(a.Stdout, got)
				if err == nil && !bytes.Equal(got, piece) {
					err = errors.New("other bytes")
				}
				errs <- err
			}()
		}
		for range 3 {
			if err := <-errs; err != nil {
				t.Fatal(err)
			}
		}
	}
	if _, err := io.Copy(io.Discard, all[2].Stdout); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("the slow one was not cut off: %v", err)
	}
	_ = all[0].Close() // without StdinOnce the container goes on
	if _, err := io.WriteString(all[1].Stdin, "end\n"); err != nil {
		t.Fatal(err)
	}
	until(t, "last line in the log", func() bool { l := r.lines(t, "many"); return l[len(l)-1] == "stdout F end" })
	if n := len(r.lines(t, "many")); n != rounds<<13+1 {
		t.Errorf("%d lines in the log", n)
	}
}

// TestIntegrationAttachLate: a stream that the container closed before is at
// its end for a client that attaches later, and not cut off.
func TestIntegrationAttachLate(t *testing.T) {
	r := newRig(t)
	r.create(t, "late", "exec 2>&-; echo closed; read x; echo $x", func(c *CreateRequest, _ *specs.Spec) { c.Stdin, c.StdinOnce = true, true })
	r.start(t, "late")
	until(t, "stderr closed", func() bool { return slices.Contains(r.lines(t, "late"), "stdout F closed") })
	a, err := r.m.Attach(r.ctx, "late", true)
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	if _, err := io.WriteString(a.Stdin, "hello\n"); err != nil {
		t.Fatal(err)
	}
	if out, err := io.ReadAll(a.Stdout); err != nil || string(out) != "hello\n" {
		t.Errorf("stdout %q %v", out, err)
	}
	if out, err := io.ReadAll(a.Stderr); err != nil || len(out) != 0 {
		t.Errorf("stderr %q %v", out, err)
	}
}

func TestIntegrationTTY(t *testing.T) {
	r := newRig(t)
	r.create(t, "tty", "stty size; read x; echo got $x; exit 3", func(c *CreateRequest, _ *specs.Spec) { c.Terminal, c.Stdin = true, true })
	if err := r.m.Resize(r.ctx, "tty", 91, 33); err != nil {
		t.Fatal(err)
	}
	a, err := r.m.Attach(r.ctx, "tty", true)
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	if a.Stderr != nil {
		t.Error("a terminal with a stderr")
	}
	r.start(t, "tty")
	if _, err := io.WriteString(a.Stdin, "hello\n"); err != nil {
		t.Fatal(err)
	}
	out, _ := io.ReadAll(a.Stdout)
	if !bytes.Contains(out, []byte("33 91")) || !bytes.Contains(out, []byte("got hello")) {
		t.Errorf("%q", out)
	}
	if e := r.exit(t); e.Code != 3 {
		t.Errorf("%+v", e)
	}
}

func TestIntegrationReconnect(t *testing.T) {
	r := newRig(t)
	r.create(t, "stays", "i=0; while [ $i -lt 300 ]; do echo $i; i=$((i+1)); done; sleep 1000", nil)
	r.create(t, "ends", "sleep 0.2; exit 5", nil)
	lost := r.create(t, "lost", "sleep 1000", nil)
	lostLive := r.create(t, "lostlive", "sleep 1000", nil)
	for _, id := range []string{"stays", "ends", "lost", "lostlive"} {
		r.start(t, id)
	}
	_ = r.m.Close() // the daemon is gone
	_ = syscall.Kill(lost.ShimPID, syscall.SIGKILL)
	until(t, "record of the ended", func() bool { _, err := os.Stat(r.m.exitPath("ends")); return err == nil })
	r.m = r.manager(t)
	states := map[string]State{}
	for _, id := range []string{"stays", "ends", "lost", "lostlive", "never"} {
		s, err := r.m.Reconnect(r.ctx, id)
		if err != nil {
			t.Fatal(id, err)
		}
		states[id] = s
	}
	if s := states["stays"]; s.Phase != PhaseRunning || s.StartedAt.IsZero() {
		t.Errorf("%+v", s)
	}
	if s := states["ends"]; s.Phase != PhaseExited || s.Exit.Code != 5 {
		t.Errorf("%+v", s)
	}
	if s := states["lost"]; s.Phase != PhaseExited || !s.Exit.Lost || s.Exit.Code != 255 {
		t.Errorf("%+v", s)
	}
	if alive(lost.PID) {
		t.Error("the container of a dead shim lives")
	}
	if s := states["never"]; s.Phase != PhaseGone {
		t.Errorf("%+v", s)
	}
	_ = syscall.Kill(lostLive.ShimPID, syscall.SIGKILL)
	if e := r.exit(t); e.ID != "lostlive" || !e.Lost {
		t.Errorf("%+v", e)
	}
	until(t, "log", func() bool { return len(r.lines(t, "stays")) == 300 })
	for i, l := range r.lines(t, "stays") {
		if l != fmt.Sprintf("stdout F %d", i) {
			t.Fatal(i, l)
		}
	}
	if err := r.m.Delete(r.ctx, "stays", r.rt); err != nil {
		t.Fatal(err)
	}
	if e := r.exit(t); e.ID != "stays" || e.Code != 137 || e.Lost {
		t.Errorf("%+v", e)
	}
	select {
	case e := <-r.m.Exits():
		t.Errorf("twice: %+v", e)
	default:
	}
}

// alive is false for a zombie as well, which the machine's init may be slow to reap.
func alive(pid int) bool {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	return err == nil && !bytes.Contains(b, []byte(") Z ")) && !bytes.Contains(b, []byte(") X "))
}

// TestIntegrationStuckRuntime: a runtime that never answers blocks nobody.
func TestIntegrationStuckRuntime(t *testing.T) {
	r := newRig(t)
	r.create(t, "st", "sleep 1000", nil)
	stuck := filepath.Join(t.TempDir(), "stuck")
	text := "#!/bin/sh\ncase \"$*\" in *create*) exec sleep 1000;; esac\nexec " + r.rt.Path + " \"$@\"\n"
	if err := os.WriteFile(stuck, []byte(text), 0o755); err != nil {
		t.Fatal(err)
	}
	r.bundle(t, "hang", "true")
	ctx, cancel := context.WithTimeout(r.ctx, 300*time.Millisecond)
	defer cancel()
	rt := r.rt
	rt.Path = stuck
	_, err := r.m.Create(ctx, CreateRequest{ID: "hang", Runtime: rt})
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Error(err)
	}
	if r.m.remains("hang", rt) {
		t.Error("something remains")
	}
	if st, err := r.m.State(r.ctx, "st"); err != nil || st.Phase != PhaseCreated {
		t.Error(st, err)
	}
}

func TestIntegrationUpdate(t *testing.T) {
	r := newRig(t)
	limit := int64(64 << 20)
	r.create(t, "up", "sleep 1000", nil)
	r.start(t, "up")
	if err := r.m.Update(r.ctx, "up", r.rt, &specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: &limit}}); err != nil {
		t.Fatal(err)
	}
	g, _ := cgroup.Detect()
	file := "/memory.limit_in_bytes"
	if g.V2() {
		file = "/memory.max"
	}
	b, err := os.ReadFile(g.Dir("memory", "/"+groupRoot()+"/up") + file)
	if err != nil || strings.TrimSpace(string(b)) != fmt.Sprint(limit) {
		t.Errorf("%s %v", b, err)
	}
}

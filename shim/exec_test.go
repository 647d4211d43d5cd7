package shim

import (
	"bytes"
	"io"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/berth-dev/berth/shim/cgroup"
)

func (r *rig) execRun(t testing.TB, id, script string) (string, int32) {
	t.Helper()
	e, err := r.m.Exec(r.ctx, id, ExecRequest{Process: process("sh", "-c", script)})
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	out, _ := io.ReadAll(e.Stdout)
	code, err := e.Wait(r.ctx)
	if err != nil {
		t.Fatal(err)
	}
	return string(out), code
}

func TestIntegrationExec(t *testing.T) {
	r := newRig(t)
	r.create(t, "ex", "sleep 1000", nil)
	if _, err := r.m.Exec(r.ctx, "ex", ExecRequest{Process: process("true")}); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("exec before start: %v", err)
	}
	r.start(t, "ex")
	if out, code := r.execRun(t, "ex", "echo hi; exit 7"); out != "hi\n" || code != 7 {
		t.Error(out, code)
	}
	if _, err := r.m.Exec(r.ctx, "ex", ExecRequest{Process: process("nope")}); err == nil || !strings.Contains(err.Error(), "nope") {
		t.Error(err)
	}
	e, err := r.m.Exec(r.ctx, "ex", ExecRequest{Process: process("cat"), Stdin: true})
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		_, _ = e.Stdin.Write(bytes.Repeat([]byte{0, 255}, 1<<20))
		_ = e.Stdin.Close()
	}()
	if out, err := io.ReadAll(e.Stdout); len(out) != 2<<20 || err != nil {
		t.Error(len(out), err)
	}
	if code, err := e.Wait(r.ctx); code != 0 || err != nil {
		t.Error(code, err)
	}
	_ = e.Close()
	p := process("sh", "-c", "stty size; read x; exit $x")
	p.Terminal, p.ConsoleSize = true, &specs.Box{Width: 70, Height: 20}
	if e, err = r.m.Exec(r.ctx, "ex", ExecRequest{Process: p, Stdin: true}); err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	if err := e.Resize(80, 25); err != nil {
		t.Error(err)
	}
	_, _ = io.WriteString(e.Stdin, "9\n")
	if code, err := e.Wait(r.ctx); code != 9 || err != nil {
		t.Error(code, err)
	}
}

// TestIntegrationExecTree: everything an exec started dies with it, sessions
// and orphans included; the container does not.
func TestIntegrationExecTree(t *testing.T) {
	r := newRig(t)
	r.create(t, "tree", "sleep 1000", nil)
	r.start(t, "tree")
	g, err := cgroup.Detect()
	if err != nil {
		t.Fatal(err)
	}
	group := "/" + groupRoot() + "/tree"
	procs := func() int { p, _ := g.Pids(group); return len(p) }
	idle := procs()
	const script = "sleep 1000 & setsid sleep 1000 & (setsid sh -c 'sleep 1000 & sleep 1000' &); wait"
	for name, end := range map[string]func(*Exec){
		"kill":  func(e *Exec) { _ = e.Kill(r.ctx); _, _ = e.Wait(r.ctx); _ = e.Close() },
		"close": func(e *Exec) { _ = e.Close() },
	} {
		e, err := r.m.Exec(r.ctx, "tree", ExecRequest{Process: process("sh", "-c", script)})
		if err != nil {
			t.Fatal(err)
		}
		until(t, "tree has grown", func() bool { return procs() >= idle+5 })
		end(e)
		until(t, name+" kills the tree", func() bool { return procs() == idle })
	}
	// A background child that keeps stdout open does not hold up Wait.
	e, err := r.m.Exec(r.ctx, "tree", ExecRequest{Process: process("sh", "-c", "sleep 1000 & exit 4")})
	if err != nil {
		t.Fatal(err)
	}
	if code, err := e.Wait(r.ctx); code != 4 || err != nil {
		t.Error(code, err)
	}
	_ = e.Close()
	if st, err := r.m.State(r.ctx, "tree"); err != nil || st.Phase != PhaseRunning {
		t.Error(st, err)
	}
}

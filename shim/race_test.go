package shim

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/berth-dev/berth/shim/cgroup"
)

// wrap puts a script around the runtime that runs after a successful command
// of the given name, before the command is seen to have ended.
func (r *rig) wrap(t *testing.T, command, after string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "runtime")
	text := "#!/bin/sh\ncase \"$*\" in *' " + command + " '*) " + r.rt.Path + " \"$@\" || exit 1; " + after +
		"; exit 0;; esac\nexec " + r.rt.Path + " \"$@\"\n"
	if err := os.WriteFile(path, []byte(text), 0o755); err != nil {
		t.Fatal(err)
	}
	r.rt.Path = path
}

func (r *rig) processes(t *testing.T, id string) int {
	t.Helper()
	g, err := cgroup.Detect()
	if err != nil {
		t.Fatal(err)
	}
	pids, err := g.Pids("/" + groupRoot() + "/" + id)
	if err != nil {
		t.Fatal(err)
	}
	return len(pids)
}

// slowExec makes the runtime's exec take its time once the process has begun,
// and returns the file that tells so.
func (r *rig) slowExec(t *testing.T) (begun string) {
	t.Helper()
	begun = filepath.Join(t.TempDir(), "begun")
	r.wrap(t, "exec", ": > "+begun+"; sleep 2")
	return begun
}

// abandonedExec is an exec whose caller gives up after the process has begun and
// before the runtime has ended.
func (r *rig) abandonedExec(t *testing.T, id, begun string) {
	t.Helper()
	ctx, cancel := context.WithCancel(r.ctx)
	defer cancel()
	failed := make(chan error, 1)
	go func() {
		_, err := r.m.Exec(ctx, id, ExecRequest{Process: process("sleep", "999")})
		failed <- err
	}()
	until(t, "the process has begun", func() bool { _, err := os.Stat(begun); return err == nil })
	cancel()
	if err := <-failed; !errors.Is(err, context.Canceled) {
		t.Fatalf("exec: %v", err)
	}
}

// TestIntegrationExecAbandonedInRuntime: the process ends with its caller
// although the runtime is still at work.
func TestIntegrationExecAbandonedInRuntime(t *testing.T) {
	r := newRig(t)
	begun := r.slowExec(t)
	r.create(t, "late", "sleep 1000", nil)
	r.start(t, "late")
	idle := r.processes(t, "late")
	r.abandonedExec(t, "late", begun)
	until(t, "the process is killed", func() bool { return r.processes(t, "late") == idle })
	time.Sleep(100 * time.Millisecond)
	if n := r.processes(t, "late"); n != idle {
		t.Errorf("%d processes, %d before", n, idle)
	}
	asked := time.Now()
	if err := r.m.Delete(r.ctx, "late", r.rt); err != nil || time.Since(asked) > 20*time.Second {
		t.Errorf("delete: %v after %v", err, time.Since(asked))
	}
}

// TestIntegrationEndAfterAbandonedExec: such an exec leaves no zombie that would
// hold up the end of the container's PID namespace.
func TestIntegrationEndAfterAbandonedExec(t *testing.T) {
	r := newRig(t)
	begun := r.slowExec(t)
	r.create(t, "end", "until [ -e /tmp/go ]; do sleep 0.02; done; exit 7", nil)
	r.start(t, "end")
	r.abandonedExec(t, "end", begun)
	if err := os.WriteFile(filepath.Join(r.cfg.RunDir, "end", "rootfs/tmp/go"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if e := r.exit(t); e.Code != 7 {
		t.Errorf("%+v", e)
	}
}

// TestIntegrationDeleteAsCreateEnds: the runtime has ended, the shim does not
// know yet, and Delete comes first.
func TestIntegrationDeleteAsCreateEnds(t *testing.T) {
	r := newRig(t)
	dir := t.TempDir()
	r.wrap(t, "create", "echo $$ > "+dir+"/pid; until [ -e "+dir+"/go ]; do sleep 0.02; done")
	r.bundle(t, "dc", "sleep 1000")
	made := make(chan error, 1)
	go func() {
		_, err := r.m.Create(r.ctx, CreateRequest{ID: "dc", Runtime: r.rt})
		made <- err
	}()
	var wrapper string
	until(t, "the container is made", func() bool {
		b, _ := os.ReadFile(dir + "/pid")
		wrapper = string(b)
		return len(b) > 1 && b[len(b)-1] == '\n'
	})
	l, err := r.m.readLaunch("dc")
	if err != nil {
		t.Fatal(err)
	}
	_ = unix.Kill(int(l.ShimPID), unix.SIGSTOP)
	defer unix.Kill(int(l.ShimPID), unix.SIGCONT)
	until(t, "the shim stands still", func() bool { return status(t, int(l.ShimPID))["State"][0] == 'T' })
	deleted := make(chan error, 1)
	begun := time.Now()
	go func() { deleted <- r.m.Delete(r.ctx, "dc", r.rt) }()
	until(t, "the deletion waits in the shim's socket", func() bool { return r.unread(t, "dc") > 0 })
	if err := os.WriteFile(dir+"/go", nil, 0o600); err != nil {
		t.Fatal(err)
	}
	until(t, "the runtime ends", func() bool { return !alive(number(t, wrapper)) })
	_ = unix.Kill(int(l.ShimPID), unix.SIGCONT)
	if err := <-deleted; err != nil || time.Since(begun) > 20*time.Second {
		t.Errorf("delete: %v after %v", err, time.Since(begun))
	}
	if err := <-made; !errdefs.IsFailedPrecondition(err) {
		t.Errorf("create: %v", err)
	}
	if r.m.remains("dc", r.rt) || r.processes(t, "dc") > 0 {
		t.Error("something remains")
	}
}

// TestIntegrationManyOrphans: however many unknown children the shim has
// reaped, it sees every exec's end.
func TestIntegrationManyOrphans(t *testing.T) {
	r := newRig(t)
	r.wrap(t, "exec", "sleep 0.2") // the process ends before the shim knows its pid
	script := "i=0; while [ $i -lt 1500 ]; do (true &); i=$((i+1)); done; : > /tmp/done; sleep 1000"
	r.create(t, "orphans", script, func(_ *CreateRequest, s *specs.Spec) {
		s.Linux.Namespaces = s.Linux.Namespaces[1:] // without "pid"
	})
	r.start(t, "orphans")
	until(t, "all have begun", func() bool {
		_, err := os.Stat(filepath.Join(r.cfg.RunDir, "orphans", "rootfs/tmp/done"))
		return err == nil
	})
	until(t, "all have ended", func() bool { return r.processes(t, "orphans") <= 2 })
	for range 3 {
		e, err := r.m.Exec(r.ctx, "orphans", ExecRequest{Process: process("sh", "-c", "exit 3")})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(r.ctx, time.Minute)
		if code, err := e.Wait(ctx); err != nil || code != 3 {
			t.Errorf("code %d, %v", code, err)
		}
		cancel()
		_ = e.Close()
	}
}

// TestIntegrationClosedManager: it takes no container for one whose shim died.
func TestIntegrationClosedManager(t *testing.T) {
	r := newRig(t)
	c := r.create(t, "healthy", "sleep 1000", nil)
	r.start(t, "healthy")
	closed := r.manager(t)
	_ = closed.Close()
	if err := closed.Delete(r.ctx, "healthy", r.rt); !errdefs.IsUnavailable(err) {
		t.Errorf("delete: %v", err)
	}
	if st, err := closed.Reconnect(r.ctx, "healthy"); !errdefs.IsUnavailable(err) {
		t.Errorf("reconnect: %+v, %v", st, err)
	}
	if err := closed.Delete(r.ctx, "nobody", r.rt); err != nil {
		t.Errorf("delete of nothing: %v", err)
	}
	if !alive(c.PID) || !alive(c.ShimPID) {
		t.Error("the container or its shim was killed")
	}
}

// TestIntegrationLogIsFIFO: it holds nobody up.
func TestIntegrationLogIsFIFO(t *testing.T) {
	r := newRig(t)
	fifo := filepath.Join(t.TempDir(), "log")
	if err := unix.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	r.bundle(t, "fifo", "true")
	ctx, cancel := context.WithTimeout(r.ctx, time.Minute)
	defer cancel()
	for _, reader := range []bool{false, true} {
		if reader {
			f, err := os.OpenFile(fifo, os.O_RDWR, 0)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
		}
		_, err := r.m.Create(ctx, CreateRequest{ID: "fifo", Runtime: r.rt, LogPath: fifo})
		if err == nil || ctx.Err() != nil || r.m.remains("fifo", r.rt) {
			t.Errorf("create with reader %v: %v", reader, err)
		}
	}
}

// unread is how many bytes of requests the container's shim has not read yet.
func (r *rig) unread(t *testing.T, id string) (n int) {
	t.Helper()
	r.m.mu.Lock()
	s := r.m.shims[id]
	r.m.mu.Unlock()
	raw, err := s.link.conn.SyscallConn()
	if err == nil {
		err = errors.Join(raw.Control(func(fd uintptr) { n, err = unix.IoctlGetInt(int(fd), unix.SIOCOUTQ) }), err)
	}
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func number(t *testing.T, s string) int {
	t.Helper()
	n, err := strconv.Atoi(strings.TrimSpace(s))
	if err != nil {
		t.Fatal(err)
	}
	return n
}

package shim

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/berth-dev/berth/shim/cgroup"
	"github.com/berth-dev/berth/shim/wire"
)

// restores stands in for a runtime with CRIU: it makes the container anew, waits
// in the control group if it is told to, and fails with what is in a file.
const restores = `case " $* " in *" restore "*)
	log=$(echo "$*" | sed 's/.*--log \([^ ]*\).*/\1/')
	[ "$(cat "$DIR/images/pages")" = memory ] || exit 9
	for id; do :; done
	mkdir -p "$ROOT/$id/criu-root" && mount --bind "$DIR" "$ROOT/$id/criu-root"
	touch "$DIR/begun"
	while [ -d "$DIR" ] && [ ! -e "$DIR/go" ]; do sleep 0.02; done
	umount "$ROOT/$id/criu-root" && rmdir "$ROOT/$id/criu-root" "$ROOT/$id"
	if [ -s "$DIR/go" ]; then cat "$DIR/go" >"$log"; echo words of the runtime >&2; exit 1; fi
	shift $(($# - 1))
	exec "$RUNC" --root "$ROOT" run --detach --bundle . --pid-file init.pid "$1" ;;
esac
exec "$RUNC" "$@"
`

// restorable makes a container that is to be restored, and returns where the
// stand-in looks for what to do.
func (r *rig) restorable(t *testing.T, id, script string) (dir string) {
	t.Helper()
	dir = t.TempDir()
	runc := r.rt.Path
	rt := r.rt
	rt.Path = filepath.Join(dir, "runc")
	text := fmt.Sprintf("#!/bin/sh\nDIR=%s\nRUNC=%s\nROOT=%s\n%s", dir, runc, rt.Root, restores)
	for _, err := range []error{os.Mkdir(dir+"/images", 0o700), os.WriteFile(dir+"/images/pages", []byte("memory"), 0o600), os.WriteFile(rt.Path, []byte(text), 0o755)} {
		if err != nil {
			t.Fatal(err)
		}
	}
	r.bundle(t, id, script)
	made, err := r.m.Create(r.ctx, CreateRequest{ID: id, Runtime: rt, LogPath: r.logPath(id),
		Restore: Restore{Images: dir + "/images", Work: dir, Cgroup: "/" + groupRoot() + "/" + id}})
	if err != nil || made.PID != 0 || made.ShimPID == 0 {
		t.Fatal(made, err)
	}
	t.Cleanup(func() {
		if err := r.m.Delete(r.ctx, id, rt); err != nil {
			t.Error(err)
		}
	})
	return dir
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

// TestIntegrationRestore: a container without processes is created, found again,
// and has its processes from its start on, as any other.
func TestIntegrationRestore(t *testing.T) {
	r := newRig(t)
	dir := r.restorable(t, "back", "echo here; trap 'exit 7' TERM; while :; do sleep 0.02; done")
	r.m.Close()
	r.m = r.manager(t)
	st, err := r.m.Reconnect(r.ctx, "back")
	if err != nil || st.Phase != PhaseCreated || st.PID != 0 || !st.StartedAt.IsZero() {
		t.Fatalf("%+v, %v", st, err)
	}
	if _, err := os.Stat(dir + "/begun"); err == nil {
		t.Error("restored before it was started")
	}
	if _, err := r.m.Exec(r.ctx, "back", ExecRequest{Process: process("true")}); err == nil {
		t.Error("a command ran in it")
	}
	if _, err := r.m.Freeze(r.ctx, "back"); !errdefs.IsFailedPrecondition(err) {
		t.Error(err)
	}
	if err := r.m.Update(r.ctx, "back", r.rt, &specs.LinuxResources{}); !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), "start it first") {
		t.Error(err)
	}
	write(t, dir+"/go", "")
	started, err := r.m.Start(r.ctx, "back")
	if err != nil || started.PID <= 1 || started.At.IsZero() {
		t.Fatal(started, err)
	}
	until(t, "its output is in the log", func() bool { return strings.Contains(strings.Join(r.lines(t, "back"), ""), "here") })
	if st, err = r.m.State(r.ctx, "back"); err != nil || st.Phase != PhaseRunning || st.PID != started.PID {
		t.Errorf("%+v, %v", st, err)
	}
	if _, err := r.m.Start(r.ctx, "back"); !errdefs.IsFailedPrecondition(err) {
		t.Error(err)
	}
	e, err := r.m.Exec(r.ctx, "back", ExecRequest{Process: process("sh", "-c", "exit 4")})
	if err != nil {
		t.Fatal(err)
	}
	if code, err := e.Wait(r.ctx); code != 4 || err != nil {
		t.Error(code, err)
	}
	if err := e.Close(); err != nil {
		t.Error(err)
	}
	if err := r.m.Signal(r.ctx, "back", syscall.SIGTERM); err != nil {
		t.Error(err)
	}
	if x := r.exit(t); x.ID != "back" || x.Code != 7 || !x.StartedAt.Equal(started.At) {
		t.Errorf("%+v", x)
	}
}

// TestIntegrationRestoreEnds: a container without processes ends when it is told
// to, before the restoring and in the midst of it.
func TestIntegrationRestoreEnds(t *testing.T) {
	r := newRig(t)
	const loop = "echo here; while :; do sleep 0.02; done"
	r.restorable(t, "before", loop)
	if err := r.m.Signal(r.ctx, "before", syscall.SIGTERM); err != nil {
		t.Error(err)
	}
	if x := r.exit(t); x.ID != "before" || x.Code != 143 || x.Signal != 15 || !x.StartedAt.IsZero() || x.Lost {
		t.Errorf("%+v", x)
	}
	if err := r.m.Signal(r.ctx, "before", syscall.SIGTERM); !errdefs.IsNotFound(err) {
		t.Error(err)
	}

	r.restorable(t, "deleted", loop)
	if err := r.m.Delete(r.ctx, "deleted", r.rt); err != nil {
		t.Error(err)
	}
	if x := r.exit(t); x.ID != "deleted" || x.Code != 137 {
		t.Errorf("%+v", x)
	}

	start := func(id, dir string) chan error {
		done := make(chan error, 1)
		go func() { _, err := r.m.Start(r.ctx, id); done <- err }()
		until(t, "the restoring begins", func() bool { _, err := os.Stat(dir + "/begun"); return err == nil })
		return done
	}
	dir := r.restorable(t, "amid", loop)
	done := start("amid", dir)
	if err := r.m.Signal(r.ctx, "amid", syscall.SIGKILL); err != nil {
		t.Error(err)
	}
	if st, err := r.m.State(r.ctx, "amid"); err != nil || st.Phase != PhaseCreated {
		t.Error(st, err)
	}
	write(t, dir+"/go", "")
	if err := <-done; err != nil {
		t.Error(err)
	}
	if x := r.exit(t); x.ID != "amid" || x.Code != 137 || x.StartedAt.IsZero() {
		t.Errorf("%+v", x)
	}

	// Another daemon asks while it goes on, and gets the same answer.
	dir = r.restorable(t, "joined", loop)
	done = start("joined", dir)
	l, err := r.m.session(r.ctx, "joined")
	if err != nil {
		t.Fatal(err)
	}
	again := make(chan answer, 1)
	l.link.mu.Lock()
	l.link.next++
	number := l.link.next
	l.link.calls[number] = again
	l.link.mu.Unlock()
	if err := l.link.tell(wire.KindStart, number, nil, nil); err != nil {
		t.Fatal(err)
	}
	if st, err := r.m.State(r.ctx, "joined"); err != nil || st.Busy.Command != "restore" {
		t.Error(st, err)
	}
	write(t, dir+"/go", "")
	if err := <-done; err != nil {
		t.Error(err)
	}
	var reply wire.Reply
	if a, ok := <-again; !ok || wire.Decode(a.body, &reply) != nil || reply.Code != 0 || reply.PID <= 1 || reply.StartedAt == 0 {
		t.Error(ok, reply)
	}

	dir = r.restorable(t, "gone", loop)
	done = start("gone", dir)
	if err := r.m.Delete(r.ctx, "gone", r.rt); err != nil {
		t.Error(err)
	}
	if err := <-done; err == nil {
		t.Error("started")
	}
	if _, err := os.Lstat(filepath.Join(r.rt.Root, "gone")); err == nil {
		t.Error("the runtime's directory is left")
	}
	if x := r.exit(t); x.ID != "gone" || x.Code != 137 {
		t.Errorf("%+v", x)
	}
}

// TestIntegrationRestoreFails: nothing of it is left, whatever the runtime had
// made, and it cannot be tried again with what is half used.
func TestIntegrationRestoreFails(t *testing.T) {
	r := newRig(t)
	dir := r.restorable(t, "fails", "exit 0")
	write(t, dir+"/go", `{"level":"error","msg":"criu failed: type NOTIFY errno 0"}`)
	for range 2 {
		_, err := r.m.Start(r.ctx, "fails")
		if err == nil {
			t.Fatal("started")
		}
		if st, serr := r.m.State(r.ctx, "fails"); serr != nil || st.Phase != PhaseCreated || st.PID != 0 {
			t.Error(st, serr, err)
		}
	}
	if err := r.m.Delete(r.ctx, "fails", r.rt); err != nil {
		t.Error(err)
	}
	if b, err := os.ReadFile(r.logPath("fails")); err != nil || len(b) > 0 {
		t.Errorf("%q in its log, %v", b, err)
	}
	if x := r.exit(t); x.ID != "fails" || x.Code != 137 || !x.StartedAt.IsZero() {
		t.Errorf("%+v", x)
	}
	if _, err := os.Lstat(filepath.Join(r.rt.Root, "fails")); err == nil {
		t.Error("the runtime's directory is left")
	}

	// The shim dies while the runtime is at work in the container's group.
	dir = r.restorable(t, "dead", "exit 0")
	ctx, cancel := context.WithCancel(r.ctx)
	done := make(chan error, 1)
	go func() { _, err := r.m.Start(ctx, "dead"); done <- err }()
	until(t, "the restoring begins", func() bool { _, err := os.Stat(dir + "/begun"); return err == nil })
	l, err := r.m.readLaunch("dead")
	if err != nil || l.Create.Restore.Images != dir+"/images" || l.Cgroup == "" {
		t.Fatal(l, err)
	}
	groups, err := cgroup.Detect()
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Kill(int(l.ShimPID), unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err == nil {
		t.Error("started")
	}
	cancel()
	if x := r.exit(t); x.ID != "dead" || !x.Lost {
		t.Errorf("%+v", x)
	}
	if _, err := os.Lstat(filepath.Join(r.rt.Root, "dead")); err == nil {
		t.Error("the runtime's directory is left")
	}
	write(t, dir+"/go", "x") // the runtime, an orphan that the group does not hold here, ends
	if err := r.m.Delete(r.ctx, "dead", r.rt); err != nil {
		t.Error(err)
	}
	if dir := groups.Dir("pids", l.Cgroup); dir != "" {
		if _, err := os.Stat(dir); err == nil {
			t.Errorf("%s is left", dir)
		}
	}
}

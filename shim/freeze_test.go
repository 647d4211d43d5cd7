package shim

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/berth-dev/berth/shim/cgroup"
)

// counts makes a container that prints numbers, and returns how to see whether
// it stands still.
func (r *rig) counts(t *testing.T, id string) (frozen func() bool, goesOn func()) {
	t.Helper()
	r.create(t, id, "i=0; while :; do i=$((i+1)); echo $i; sleep 0.01; done", func(*CreateRequest, *specs.Spec) {})
	r.start(t, id)
	groups, err := cgroup.Detect()
	if err != nil {
		t.Fatal(err)
	}
	frozen = func() bool {
		is, err := groups.Frozen("/" + groupRoot() + "/" + id)
		if err != nil {
			t.Fatal(err)
		}
		return is
	}
	goesOn = func() {
		t.Helper()
		until(t, "the container goes on", func() bool { return !frozen() })
		n := len(r.lines(t, id))
		until(t, "the container counts on", func() bool { return len(r.lines(t, id)) > n+2 })
	}
	until(t, "the container counts", func() bool { return len(r.lines(t, id)) > 2 })
	return frozen, goesOn
}

// TestIntegrationFreeze: nothing of the container runs, commands that are asked
// for wait, and those that were there before are waited for.
func TestIntegrationFreeze(t *testing.T) {
	r := newRig(t)
	frozen, goesOn := r.counts(t, "still")
	before, err := r.m.Exec(r.ctx, "still", ExecRequest{Process: process("sleep", "0.2")})
	if err != nil {
		t.Fatal(err)
	}
	defer before.Close()
	var f *Frozen
	until(t, "it stands still", func() bool { // the shim's patience with commands is shorter than this test's
		f, err = r.m.Freeze(r.ctx, "still")
		return !errdefs.IsFailedPrecondition(err)
	})
	if err != nil || !frozen() {
		t.Fatal(frozen(), err)
	}
	if code, err := before.Wait(r.ctx); code != 0 || err != nil {
		t.Errorf("the command that was there before: %d, %v", code, err)
	}
	if _, err := r.m.Freeze(r.ctx, "still"); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("a second time: %v", err)
	}
	later := make(chan error, 1)
	go func() {
		e, err := r.m.Exec(r.ctx, "still", ExecRequest{Process: process("true")})
		if err == nil {
			_, err = e.Wait(r.ctx)
			err = errors.Join(err, e.Close())
		}
		later <- err
	}()
	if st, err := r.m.State(r.ctx, "still"); err != nil || st.Phase != PhaseRunning {
		t.Error(st, err)
	}
	select {
	case err := <-later:
		t.Errorf("a command ran in a container that stands still: %v", err)
	default:
	}
	if err := f.Thaw(r.ctx); err != nil {
		t.Fatal(err)
	}
	if err := <-later; err != nil {
		t.Error(err)
	}
	goesOn()
	if err := r.m.Thawed(r.ctx, "still"); err != nil {
		t.Error(err)
	}
	if err := r.m.Thawed(r.ctx, "unknown"); err != nil {
		t.Error(err)
	}
}

// slowCheckpoint stands in for CRIU: it says that it has begun and takes until
// a file is there.
const slowCheckpoint = `case " $* " in *" checkpoint "*)
	echo '{"level":"error","msg":"no CRIU here"}' >"$(echo "$*" | sed 's/.*--log \([^ ]*\).*/\1/')"
	touch "$DIR/begun"
	until [ -e "$DIR/go" ]; do sleep 0.02; done
	exit $(cat "$DIR/go") ;;
esac
exec "$RUNC" "$@"
`

// TestIntegrationFrozenByTheDead: a daemon that dies lets go of what it had
// stopped, but not before CRIU is through.
func TestIntegrationFrozenByTheDead(t *testing.T) {
	r := newRig(t)
	dir := t.TempDir()
	script := "#!/bin/sh\nDIR=" + dir + "\nRUNC=" + r.rt.Path + "\n" + slowCheckpoint
	r.rt.Path = filepath.Join(dir, "runc")
	if err := os.WriteFile(r.rt.Path, []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	frozen, goesOn := r.counts(t, "dead")
	f, err := r.m.Freeze(r.ctx, "dead")
	if err != nil {
		t.Fatal(err)
	}
	f.link.close()
	goesOn()

	if f, err = r.m.Freeze(r.ctx, "dead"); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(r.ctx)
	dumped := make(chan error, 1)
	go func() { dumped <- f.Dump(ctx, dir, dir) }()
	until(t, "CRIU begins", func() bool { _, err := os.Stat(dir + "/begun"); return err == nil })
	cancel()
	if err := <-dumped; !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	f.link.close()
	thawed := make(chan error, 1)
	go func() { thawed <- r.m.Thawed(r.ctx, "dead") }()
	if _, err := r.m.State(r.ctx, "dead"); err != nil {
		t.Error(err)
	}
	if !frozen() {
		t.Error("the container goes on in the middle of a dump")
	}
	if err := os.WriteFile(dir+"/go", []byte("0"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := <-thawed; err != nil || frozen() {
		t.Error(frozen(), err)
	}
	goesOn()

	if f, err = r.m.Freeze(r.ctx, "dead"); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(dir+"/go", []byte("1"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := f.Dump(r.ctx, dir, dir); !errdefs.IsUnknown(err) || !frozen() {
		t.Error(frozen(), err)
	}
	if err := f.Thaw(r.ctx); err != nil {
		t.Error(err)
	}
	goesOn()
	if err := r.m.Delete(r.ctx, "dead", r.rt); err != nil {
		t.Error(err)
	}
	if _, err := r.m.Freeze(r.ctx, "dead"); !errdefs.IsNotFound(err) {
		t.Error(err)
	}
}

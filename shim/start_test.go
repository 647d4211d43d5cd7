package shim

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// gated makes the rig's runtime a runc that fails when it is asked to start a
// container; needs a runc.
func (r *rig) gated(t *testing.T) func(*CreateRequest, *specs.Spec) {
	t.Helper()
	if out, _ := exec.Command(r.rt.Path, "--version").Output(); !strings.HasPrefix(string(out), "runc ") {
		t.Skip("containers of this OCI runtime do not wait at a FIFO")
	}
	script := "#!/bin/sh\nfor a in \"$@\"; do [ \"$a\" = start ] && exit 9; done\nexec " + r.rt.Path + " \"$@\"\n"
	path := filepath.Join(t.TempDir(), "runc")
	if err := os.WriteFile(path, []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	r.rt.Path = path
	return func(req *CreateRequest, _ *specs.Spec) { req.Gate = true }
}

func (r *rig) gate(id string) string { return filepath.Join(r.rt.Root, id, "exec.fifo") }

// TestIntegrationGate: the shim starts a container at its FIFO, and runc knows it
// as running.
func TestIntegrationGate(t *testing.T) {
	r := newRig(t)
	change := r.gated(t)
	r.create(t, "gate", "echo here; sleep 1000", change)
	r.start(t, "gate")
	if _, err := os.Lstat(r.gate("gate")); !os.IsNotExist(err) {
		t.Errorf("the FIFO is left: %v", err)
	}
	out, err := exec.Command(r.rt.Path, "--root", r.rt.Root, "state", "gate").Output()
	var st specs.State
	if err == nil {
		err = json.Unmarshal(out, &st)
	}
	if err != nil || st.Status != specs.StateRunning {
		t.Errorf("%+v %v", st, err)
	}
	if _, err := r.m.Start(r.ctx, "gate"); err == nil {
		t.Error("a second start is accepted")
	}
	until(t, "output", func() bool {
		l, err := os.ReadFile(r.logPath("gate"))
		return err == nil && strings.Contains(string(l), "here")
	})
}

// TestIntegrationGateShort: a container that ends at once was started all the same.
func TestIntegrationGateShort(t *testing.T) {
	r := newRig(t)
	change := r.gated(t)
	for _, id := range strings.Fields("a b c d e f g h i j k l") {
		r.create(t, id, "", func(req *CreateRequest, s *specs.Spec) {
			change(req, s)
			s.Process.Args = []string{"true"}
		})
		r.start(t, id)
		if e := r.exit(t); e.Code != 0 || e.StartedAt.IsZero() {
			t.Errorf("%s: %+v", id, e)
		}
	}
}

// TestIntegrationGateDead: a container that is killed before it gets to its FIFO
// was not started, and its start does not hang.
func TestIntegrationGateDead(t *testing.T) {
	r := newRig(t)
	c := r.create(t, "dead", "sleep 1000", r.gated(t))
	if err := unix.Kill(c.PID, unix.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	failed := make(chan error, 1)
	go func() {
		_, err := r.m.Start(r.ctx, "dead")
		failed <- err
	}()
	until(t, "the start is under way", func() bool {
		st, err := r.m.State(r.ctx, "dead")
		return err == nil && st.Busy.Command == "start"
	})
	time.Sleep(50 * time.Millisecond)
	select {
	case err := <-failed:
		t.Fatalf("started although it stands still: %v", err)
	default:
	}
	if err := r.m.Signal(r.ctx, "dead", syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if err := <-failed; err == nil || !strings.Contains(err.Error(), "ended") {
		t.Errorf("start: %v", err)
	}
	if e := r.exit(t); e.Code != 137 {
		t.Errorf("%+v", e)
	}
}

// TestIntegrationGateElse: what is not a FIFO at that place is left to the runtime.
func TestIntegrationGateElse(t *testing.T) {
	r := newRig(t)
	real := r.rt.Path
	change := r.gated(t)
	r.rt.Path = real
	r.create(t, "else", "sleep 1000", change)
	if err := os.Rename(r.gate("else"), r.gate("else")+".real"); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("exec.fifo.real", r.gate("else")); err != nil {
		t.Fatal(err)
	}
	r.start(t, "else")
	if _, err := os.Lstat(r.gate("else")); !os.IsNotExist(err) {
		t.Errorf("runc was not asked: %v", err)
	}
}

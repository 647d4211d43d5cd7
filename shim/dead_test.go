package shim

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"

	"github.com/berth-dev/berth/shim/wire"
)

// deadRig is a manager and the directory of a container whose shim is dead. The
// cleanup fails as long as the file "stuck" is there, and counts its runs.
func deadRig(t *testing.T, id string) (m *Manager, run string) {
	t.Helper()
	dir := t.TempDir()
	run = filepath.Join(dir, "run", id)
	program := filepath.Join(dir, "berth-shim")
	const script = "#!/bin/sh\necho >> runs\n[ ! -e stuck ] || { echo 'kill cgroup: busy' >&2; exit 1; }\n"
	if err := errors.Join(os.MkdirAll(run, 0o700), os.WriteFile(program, []byte(script), 0o700),
		os.WriteFile(filepath.Join(run, "stuck"), nil, 0o600),
		os.WriteFile(filepath.Join(run, wire.LaunchFile), wire.AppendLaunchRecord(nil, &wire.Launch{ShimPID: 1, PID: 1}), 0o600)); err != nil {
		t.Fatal(err)
	}
	m, err := New(Config{Binary: program, RunDir: filepath.Join(dir, "run"), StateDir: filepath.Join(dir, "state")})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = m.Close() })
	return m, run
}

// runs is how often the cleanup has been run.
func runs(run string) int {
	b, _ := os.ReadFile(filepath.Join(run, "runs"))
	return len(b)
}

// TestStuckIsNotEnded: a container whose shim died has not ended while its
// processes could not be killed.
func TestStuckIsNotEnded(t *testing.T) {
	id := strings.Repeat("cd", 32)
	m, run := deadRig(t, id)
	st, err := m.Reconnect(t.Context(), id)
	if !errdefs.IsUnavailable(err) || !strings.Contains(err.Error(), "kill cgroup: busy") || st.Exit != nil {
		t.Fatalf("%+v, %v", st, err)
	}
	if err := os.Remove(filepath.Join(run, "stuck")); err != nil {
		t.Fatal(err)
	}
	if st, err := m.Reconnect(t.Context(), id); err != nil || st.Phase != PhaseExited || !st.Exit.Lost || st.Exit.Code != 255 {
		t.Fatalf("%+v, %v", st, err)
	}
}

// TestStuckIsTriedAgain: the end of a shim that was watched is told when its
// container could be killed at last.
func TestStuckIsTriedAgain(t *testing.T) {
	id := strings.Repeat("ce", 32)
	m, run := deadRig(t, id)
	l := listenIn(t, run)
	go func() {
		if c, err := l.AcceptUnix(); err == nil {
			_ = l.Close() // nobody listens any more when it hangs up
			greetAndGo(c)
		}
	}()
	s, err := m.session(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	s.link.close()
	until(t, "it was tried again", func() bool { return runs(run) >= 2 })
	select {
	case x := <-m.Exits():
		t.Fatalf("told while its processes live: %+v", x)
	default:
	}
	if err := os.Remove(filepath.Join(run, "stuck")); err != nil {
		t.Fatal(err)
	}
	if x := <-m.Exits(); x.ID != id || !x.Lost {
		t.Fatalf("%+v", x)
	}
}

// TestUnreadIsNotAbsent: only a file that is not there is none; no descriptor or
// a bad disk say nothing of the container.
func TestUnreadIsNotAbsent(t *testing.T) {
	id := strings.Repeat("cf", 32)
	for _, name := range []string{wire.ExitFile, wire.LaunchFile} {
		m, run := deadRig(t, id)
		path := filepath.Join(run, name)
		_ = os.Remove(path)
		if err := os.Mkdir(path, 0o700); err != nil { // reads of it fail
			t.Fatal(err)
		}
		if st, err := m.Reconnect(t.Context(), id); !errdefs.IsUnavailable(err) {
			t.Errorf("%s: reconnect: %+v, %v", name, st, err)
		}
		if runs(run) > 0 {
			t.Errorf("%s: it was cleaned up", name)
		}
		if name == wire.LaunchFile {
			continue
		}
		if _, _, err := m.LastExit(id); !errdefs.IsUnavailable(err) {
			t.Errorf("last exit: %v", err)
		}
		if st, err := m.State(t.Context(), id); !errdefs.IsUnavailable(err) {
			t.Errorf("state: %+v, %v", st, err)
		}
	}
}

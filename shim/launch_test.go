package shim

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/berth-dev/berth/shim/wire"
)

// prepareEnv marks a daemon that has begun to start a shim, and then waits to be
// killed: its value is a shim program and the container's directory.
const prepareEnv = "BERTH_SHIM_TEST_PREPARE"

// prepareOnly is that daemon.
func prepareOnly(what string) int {
	program, dir, _ := strings.Cut(what, ":")
	m, err := New(Config{Binary: program, RunDir: filepath.Dir(dir), StateDir: dir})
	if err != nil {
		return 1
	}
	id := filepath.Base(dir)
	m.Prepare(id)
	c, _, err := m.prepared(id)
	if err != nil {
		fmt.Println(err)
		return 1
	}
	fmt.Println(c.pid)
	select {}
}

// inDir are the processes whose working directory is that of a container, zombies
// not among them.
func (m *Manager) inDir(id string) (pids []int) {
	all, _ := filepath.Glob("/proc/[0-9]*/cwd")
	for _, p := range all {
		to, err := os.Readlink(p)
		if err == nil && strings.TrimSuffix(to, " (deleted)") == m.runDir(id) {
			pid, _ := strconv.Atoi(strings.Split(p, "/")[2])
			pids = append(pids, pid)
		}
	}
	return pids
}

// nothing checks that no process and no file but its log is left of a shim that no
// container was asked of, and that it was reaped.
func nothing(t *testing.T, m *Manager, id string, pid int) {
	t.Helper()
	if left := m.inDir(id); len(left) > 0 {
		t.Errorf("processes are left: %v", left)
	}
	for _, name := range []string{wire.SocketFile, wire.LaunchFile} {
		if _, err := os.Lstat(filepath.Join(m.runDir(id), name)); !os.IsNotExist(err) {
			t.Errorf("%s is left: %v", name, err)
		}
	}
	if _, err := os.Lstat(fmt.Sprintf("/proc/%d", pid)); pid != 0 && err == nil {
		t.Errorf("process %d was not reaped", pid)
	}
}

// early waits until the shim that Prepare has started listens, and returns its PID.
func (r *rig) early(t *testing.T, id string) int {
	t.Helper()
	until(t, "the shim listens", func() bool {
		c, err := dial(r.m.runDir(id))
		if err != nil {
			return false
		}
		_ = c.Close()
		return true
	})
	pids := r.m.inDir(id)
	if len(pids) != 1 {
		t.Fatalf("processes in the directory: %v", pids)
	}
	return pids[0]
}

// TestIntegrationPrepared: the container is made by the shim that Prepare has
// started, which is reaped when it has ended.
func TestIntegrationPrepared(t *testing.T) {
	r := newRig(t)
	r.bundle(t, "p", "exit 3")
	r.m.Prepare("p")
	pid := r.early(t, "p")
	c := r.createPrepared(t, "p")
	if c.ShimPID != pid {
		t.Errorf("shim %d was made ready, %d made the container", pid, c.ShimPID)
	}
	if b, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid)); err != nil || string(b) != binary+"\x00run\x00p\x00" {
		t.Errorf("command line %q, %v", b, err)
	}
	if sid, err := unix.Getsid(pid); err != nil || sid != pid {
		t.Errorf("session %d, %v; process %d", sid, err, pid)
	}
	r.start(t, "p")
	if e := r.exit(t); e.Code != 3 {
		t.Errorf("%+v", e)
	}
	until(t, "the shim is reaped", func() bool { return unix.Kill(pid, 0) != nil })
}

// createPrepared makes a container whose bundle is there, and sees to its removal.
func (r *rig) createPrepared(t *testing.T, id string) Created {
	t.Helper()
	t.Cleanup(func() {
		if err := r.m.Delete(r.ctx, id, r.rt); err != nil {
			t.Error(err)
		}
	})
	c, err := r.m.Create(r.ctx, CreateRequest{ID: id, Runtime: r.rt, LogPath: r.logPath(id)})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// TestIntegrationPreparedForNothing: a creation that fails before it comes to the
// shim deletes it, however far its start has come.
func TestIntegrationPreparedForNothing(t *testing.T) {
	r := newRig(t)
	r.bundle(t, "p", "true")
	for _, wait := range []time.Duration{0, 200 * time.Microsecond, time.Millisecond, 3 * time.Millisecond, -1} {
		r.m.Prepare("p")
		pid := 0
		if time.Sleep(wait); wait < 0 {
			pid = r.early(t, "p")
		}
		if err := r.m.Delete(r.ctx, "p", r.rt); err != nil {
			t.Fatal(err)
		}
		nothing(t, r.m, "p", pid)
	}
	r.createPrepared(t, "p") // nothing is in the way of the next one
}

// TestIntegrationPreparedByTheDead: a shim leaves by itself when the daemon dies
// before it has asked for a container.
func TestIntegrationPreparedByTheDead(t *testing.T) {
	r := newRig(t)
	for i := range 5 {
		id := "d" + strconv.Itoa(i)
		r.bundle(t, id, "true")
		daemon := exec.Command("/proc/self/exe")
		daemon.Env = append(os.Environ(), prepareEnv+"="+binary+":"+r.m.runDir(id))
		out, err := daemon.StdoutPipe()
		if err == nil {
			err = daemon.Start()
		}
		if err != nil {
			t.Fatal(err)
		}
		line, _ := bufio.NewReader(out).ReadString('\n')
		pid, err := strconv.Atoi(strings.TrimSpace(line))
		if err != nil {
			t.Errorf("the daemon says %q", line)
		} else if i == 0 && r.early(t, id) != pid {
			t.Errorf("process %d is not the shim", pid)
		}
		_ = daemon.Process.Kill()
		_ = daemon.Wait()
		until(t, "the shim leaves", func() bool { return len(r.m.inDir(id)) == 0 })
		nothing(t, r.m, id, 0)
	}
}

// TestPrepareFails: why a shim did not start, or not speak, is told by Create, and
// nothing of it is left.
func TestPrepareFails(t *testing.T) {
	for name, tc := range map[string]struct {
		script string // "": there is no program
		says   string
		is     func(error) bool
	}{
		"absent":     {"", "no such file", func(err error) bool { return errors.Is(err, os.ErrNotExist) }},
		"ends":       {"echo broken >&2; exit 2", "broken", errdefs.IsUnavailable},
		"no threads": {"echo 'runtime: failed to create new OS thread' >&2; exit 2", "kernel.threads-max", errdefs.IsResourceExhausted},
		"mute":       {"exec sleep 1000", "deadline", func(err error) bool { return err != nil }},
	} {
		for _, prepare := range []bool{false, true} {
			t.Run(fmt.Sprint(name, prepare), func(t *testing.T) {
				dir := t.TempDir()
				program := filepath.Join(dir, "berth-shim")
				if err := os.MkdirAll(filepath.Join(dir, "run", "c"), 0o700); err != nil {
					t.Fatal(err)
				}
				if tc.script != "" {
					if err := os.WriteFile(program, []byte("#!/bin/sh\n[ $1 != cleanup ] || exit 0\n"+tc.script+"\n"), 0o700); err != nil {
						t.Fatal(err)
					}
				}
				m, err := New(Config{Binary: program, RunDir: filepath.Join(dir, "run"), StateDir: filepath.Join(dir, "state")})
				if err != nil {
					t.Fatal(err)
				}
				defer m.Close()
				if prepare {
					m.Prepare("c")
				}
				ctx, cancel := context.WithTimeout(t.Context(), time.Second)
				defer cancel()
				_, err = m.Create(ctx, CreateRequest{ID: "c", Runtime: Runtime{Path: "/bin/true", Root: dir}})
				if err == nil || !strings.Contains(err.Error(), tc.says) || !tc.is(err) {
					t.Errorf("create: %v", err)
				}
				nothing(t, m, "c", 0)
			})
		}
	}
}

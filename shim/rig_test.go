package shim

import (
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// ConformanceRig is what the suite of shimtest, which imports this package,
// needs of a rig.
type ConformanceRig struct{ r *rig }

// NewConformanceRig makes one.
func NewConformanceRig(t *testing.T) *ConformanceRig { return &ConformanceRig{newRig(t)} }

// Manager is the present one.
func (c *ConformanceRig) Manager() *Manager { return c.r.m }

// Request prepares a container.
func (c *ConformanceRig) Request(t *testing.T, id string) CreateRequest {
	r := c.r
	r.bundle(t, id, "trap 'exit 3' TERM; : > /tmp/ready; while :; do sleep 0.05; done")
	t.Cleanup(func() {
		if err := r.m.Delete(r.ctx, id, r.rt); err != nil {
			t.Error(err)
		}
	})
	return CreateRequest{ID: id, Runtime: r.rt, LogPath: r.logPath(id)}
}

// Ready waits until a started container has set its trap: until then its first
// process ignores the signal.
func (c *ConformanceRig) Ready(t *testing.T, id string) {
	until(t, "the trap is set", func() bool {
		_, err := os.Stat(filepath.Join(c.r.cfg.RunDir, id, "rootfs/tmp/ready"))
		return err == nil
	})
}

// Again makes the next daemon's manager.
func (c *ConformanceRig) Again(t *testing.T, kill string) *Manager {
	pid := 0
	if kill != "" {
		st, err := c.r.m.State(c.r.ctx, kill)
		if err != nil {
			t.Fatal(err)
		}
		pid = st.PID
	}
	if err := c.r.m.Close(); err != nil {
		t.Fatal(err)
	}
	if kill != "" {
		if err := unix.Kill(pid, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		until(t, "exit record", func() bool { _, err := os.Stat(c.r.m.exitPath(kill)); return err == nil })
	}
	c.r.m = c.r.manager(t)
	return c.r.m
}

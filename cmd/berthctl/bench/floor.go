package bench

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"time"
)

// Names of what the floor measures.
const (
	floorCreate = "oci create"
	floorStart  = "oci start"
	floorUp     = "oci create+start"
	floorExec   = "oci exec"
	floorDown   = "oci kill+delete"
)

// floor runs containers with the OCI runtime alone.
type floor struct {
	oci    string
	dir    string // its own: state of the OCI runtime, bundles
	bundle bundle
	exec   []string
	last   atomic.Int64
}

// container is one of the floor's.
type ociContainer struct {
	id, dir string
	pid     int
}

func (f *floor) run(ctx context.Context, args ...string) (time.Duration, error) {
	global := []string{"--root", filepath.Join(f.dir, "state")}
	if f.bundle.systemd {
		global = append(global, "--systemd-cgroup")
	}
	cmd := exec.CommandContext(ctx, f.oci, append(global, args...)...)
	var stderr bytes.Buffer
	log, err := os.CreateTemp(f.dir, "stderr-")
	if err != nil {
		return 0, err
	}
	defer log.Close()
	defer func() { _ = os.Remove(log.Name()) }()
	// A file, as a pipe would be held open by the container.
	cmd.Stderr = log
	if err := cmd.Run(); err != nil {
		if b, rerr := os.ReadFile(log.Name()); rerr == nil {
			stderr.Write(b)
		}
		return 0, fmt.Errorf("%s %s: %w: %s", f.oci, strings.Join(args, " "), err, strings.TrimSpace(stderr.String()))
	}
	return cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime(), nil
}

// up creates and starts a container.
func (f *floor) up(ctx context.Context, r *recorder) (*ociContainer, time.Duration, error) {
	id := fmt.Sprintf("floor-%d-%d", os.Getpid(), f.last.Add(1))
	c := &ociContainer{id: id, dir: filepath.Join(f.dir, id)}
	doc, err := f.bundle.document(id)
	if err != nil {
		return nil, 0, err
	}
	if err := errors.Join(os.Mkdir(c.dir, 0o700), os.WriteFile(filepath.Join(c.dir, "config.json"), doc, 0o600)); err != nil {
		return nil, 0, err
	}
	var used time.Duration
	pidFile := filepath.Join(c.dir, "pid")
	begun := time.Now()
	for _, step := range []struct {
		name string
		args []string
	}{
		{floorCreate, []string{"create", "--bundle", c.dir, "--pid-file", pidFile, id}},
		{floorStart, []string{"start", id}},
	} {
		err := r.time(step.name, func() error {
			d, err := f.run(ctx, step.args...)
			used += d
			return err
		})
		if err != nil {
			return nil, 0, err
		}
	}
	r.add(floorUp, time.Since(begun))
	raw, err := os.ReadFile(pidFile)
	if err == nil {
		c.pid, err = strconv.Atoi(string(raw))
	}
	// What the container's process used before it became the container's program.
	return c, used + cpu(nil, []int{c.pid}), err
}

func (f *floor) execIn(ctx context.Context, r *recorder, c *ociContainer) (used time.Duration, err error) {
	err = r.time(floorExec, func() (err error) {
		used, err = f.run(ctx, append([]string{"exec", c.id}, f.exec...)...)
		return err
	})
	return used, err
}

// down kills a container and deletes it as soon as it is dead.
func (f *floor) down(ctx context.Context, r *recorder, c *ociContainer) error {
	return r.time(floorDown, func() error {
		if _, err := f.run(ctx, "kill", c.id, "KILL"); err != nil {
			return err
		}
		for alive(c.pid) {
			time.Sleep(200 * time.Microsecond)
		}
		_, err := f.run(ctx, "delete", c.id)
		return err
	})
}

// alive says that a process runs; a zombie does not.
func alive(pid int) bool {
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return false
	}
	f := strings.Fields(string(raw[bytes.LastIndexByte(raw, ')')+1:]))
	return len(f) > 0 && f[0] != "Z" && f[0] != "X"
}

// round runs n containers with some workers, as the pods of a round are run.
func (f *floor) round(ctx context.Context, n, workers, execs int) (map[string]Stats, *Rates, error) {
	var r recorder
	var upCPU, execCPU atomic.Int64
	all := make([]*ociContainer, n)
	upTook, err := spread(ctx, n, workers, func(ctx context.Context, i int) error {
		c, used, err := f.up(ctx, &r)
		all[i] = c
		upCPU.Add(int64(used))
		return err
	})
	if err == nil {
		_, err = spread(ctx, n*execs, workers, func(ctx context.Context, i int) error {
			used, err := f.execIn(ctx, &r, all[i%n])
			execCPU.Add(int64(used))
			return err
		})
	}
	var downTook time.Duration
	if err == nil {
		downTook, err = spread(ctx, n, workers, func(ctx context.Context, i int) error { return f.down(ctx, &r, all[i]) })
	}
	if err != nil {
		return nil, nil, fmt.Errorf("floor of %d containers: %w", n, err)
	}
	rates := &Rates{UpPerSecond: perSecond(n, upTook), DownPerSecond: perSecond(n, downTook), CPUPerUp: millis(time.Duration(upCPU.Load()) / time.Duration(n))}
	if execs > 0 {
		rates.CPUPerExec = millis(time.Duration(execCPU.Load()) / time.Duration(n*execs))
	}
	return r.stats(), rates, nil
}

// close kills and deletes what is left of the floor's containers.
func (f *floor) close(ctx context.Context) error {
	entries, err := os.ReadDir(filepath.Join(f.dir, "state"))
	if errors.Is(err, os.ErrNotExist) {
		err = nil
	}
	for _, e := range entries {
		_, derr := f.run(ctx, "delete", "--force", e.Name())
		err = errors.Join(err, derr)
	}
	return err
}

// forkExec measures a program of this machine that does nothing.
func forkExec(ctx context.Context, n int) (*Stats, error) {
	program, err := exec.LookPath("true")
	if err != nil {
		return nil, err
	}
	return repeat(n, func() error { return exec.CommandContext(ctx, program).Run() })
}

// fsync measures a write of a page and its way to the disk of dir.
func fsync(dir string, n int) (*Stats, error) {
	f, err := os.CreateTemp(dir, ".berthctl-bench-")
	if err != nil {
		return nil, fmt.Errorf("measure the disk: %w; name a directory on the disk of the runtime's state with --state-dir", err)
	}
	defer f.Close()
	defer func() { _ = os.Remove(f.Name()) }()
	page := make([]byte, 4096)
	return repeat(n, func() error {
		_, err := f.Write(page)
		return errors.Join(err, f.Sync())
	})
}

func repeat(n int, f func() error) (*Stats, error) {
	var r recorder
	for range n {
		if err := r.time("", f); err != nil {
			return nil, err
		}
	}
	s := r.stats()[""]
	return &s, nil
}

package shim

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/berth-dev/berth/shim/cgroup"
)

// binary is the shim under test, built once by TestMain.
var binary string

func TestMain(m *testing.M) { os.Exit(run(m)) }

func run(m *testing.M) int {
	if group := os.Getenv(watchdogEnv); group != "" {
		return watchdog(group)
	}
	if what := os.Getenv(prepareEnv); what != "" {
		return prepareOnly(what)
	}
	dir, err := os.MkdirTemp("", "berth-shim-test")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	binary = filepath.Join(dir, "berth-shim")
	cmd := exec.Command("go", "build", "-trimpath", "-ldflags=-s -w", "-o", binary, "github.com/berth-dev/berth/cmd/berth-shim")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "build shim: %s\n", out)
		return 1
	}
	stop, err := startWatchdog()
	if err != nil {
		fmt.Fprintf(os.Stderr, "start watchdog: %v\n", err)
		return 1
	}
	defer stop()
	fds := countFDs()
	code := m.Run()
	if left := leaks(fds); code == 0 && len(left) > 0 {
		fmt.Fprintf(os.Stderr, "left behind:\n%s\n", strings.Join(left, "\n"))
		return 1
	}
	return code
}

func countFDs() int {
	names, _ := os.ReadDir("/proc/self/fd")
	return len(names)
}

// leaks looks, for a while, for processes of our shim, mounts and cgroups of
// our tests, and descriptors.
func leaks(fds int) []string {
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		left := leftNow(fds)
		if len(left) == 0 || time.Now().After(deadline) {
			return left
		}
	}
}

func leftNow(fds int) []string {
	var left []string
	procs, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, p := range procs {
		if b, err := os.ReadFile(p); err == nil && strings.HasPrefix(string(b), binary) {
			left = append(left, p+" "+string(b))
		}
	}
	mounts, _ := os.ReadFile("/proc/self/mountinfo")
	if bytes.Contains(mounts, []byte("TestIntegration")) {
		left = append(left, "a mount of a test")
	}
	groups, _ := filepath.Glob("/sys/fs/cgroup/*/" + groupRoot())
	left = append(left, groups...)
	if n := countFDs(); n > fds+4 { // the poller's own and what the testing package keeps
		left = append(left, fmt.Sprintf("%d descriptors, %d before", n, fds))
	}
	return left
}

func groupRoot() string { return fmt.Sprintf("berth-shim-test-%d", os.Getpid()) }

// rig is a place for containers.
type rig struct {
	*testing.T
	m   *Manager
	cfg Config
	rt  Runtime
	ctx context.Context
}

func newRig(tb testing.TB) *rig {
	tb.Helper()
	if os.Getuid() != 0 {
		tb.Skip("needs root")
	}
	runc := findRunc()
	if runc == "" {
		tb.Skip("needs runc: set BERTH_TEST_RUNC")
	}
	if busybox() == "" {
		tb.Skip("needs busybox (package busybox-static)")
	}
	dir := tb.TempDir()
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	r := &rig{ctx: ctx, rt: Runtime{Path: runc, Root: filepath.Join(dir, "runc")},
		cfg: Config{Binary: binary, RunDir: filepath.Join(dir, "run"), StateDir: filepath.Join(dir, "state")}}
	r.T, _ = tb.(*testing.T)
	r.m = r.manager(tb)
	tb.Cleanup(func() {
		_ = r.m.Close()
		cancel()
		if g, err := cgroup.Detect(); err == nil {
			if err := g.Remove("/" + groupRoot()); err != nil {
				tb.Error(err)
			}
		}
	})
	return r
}

func (r *rig) manager(tb testing.TB) *Manager {
	m, err := New(r.cfg)
	if err != nil {
		tb.Fatal(err)
	}
	return m
}

func findRunc() string {
	if p := os.Getenv("BERTH_TEST_RUNC"); p != "" {
		return p
	}
	if p, err := filepath.Abs("../bin/runc"); err == nil {
		if _, err := os.Stat(p); err == nil {
			return p
		}
	}
	p, _ := exec.LookPath("runc")
	return p
}

func busybox() string {
	for _, p := range []string{"/bin/busybox", "/usr/bin/busybox"} {
		if _, err := os.Stat(p); err == nil {
			return p
		}
	}
	return ""
}

// bundle makes the bundle of a container that runs a shell script.
func (r *rig) bundle(tb testing.TB, id, script string, change ...func(*specs.Spec)) {
	tb.Helper()
	dir := filepath.Join(r.cfg.RunDir, id)
	for _, d := range []string{"bin", "proc", "dev", "sys", "tmp"} {
		if err := os.MkdirAll(filepath.Join(dir, "rootfs", d), 0o755); err != nil {
			tb.Fatal(err)
		}
	}
	b, err := os.ReadFile(busybox())
	if err != nil {
		tb.Fatal(err)
	}
	if err := os.WriteFile(dir+"/rootfs/bin/busybox", b, 0o755); err != nil {
		tb.Fatal(err)
	}
	for _, n := range strings.Fields("sh sleep cat echo setsid true head tail tr stty kill dd printf yes") {
		_ = os.Symlink("busybox", dir+"/rootfs/bin/"+n)
	}
	s := &specs.Spec{Version: "1.2.0", Hostname: "t",
		Process: process("sh", "-c", script),
		Root:    &specs.Root{Path: "rootfs"},
		Mounts: []specs.Mount{{Destination: "/proc", Type: "proc", Source: "proc"},
			{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"mode=755", "size=65536k"}},
			{Destination: "/dev/pts", Type: "devpts", Source: "devpts", Options: []string{"newinstance", "ptmxmode=0666", "mode=0620"}}},
		Linux: &specs.Linux{CgroupsPath: "/" + groupRoot() + "/" + id,
			Namespaces: []specs.LinuxNamespace{{Type: "pid"}, {Type: "mount"}, {Type: "ipc"}, {Type: "uts"}, {Type: "network"}}}}
	for _, f := range change {
		f(s)
	}
	if b, err = json.Marshal(s); err != nil {
		tb.Fatal(err)
	}
	if err := os.WriteFile(dir+"/config.json", b, 0o600); err != nil {
		tb.Fatal(err)
	}
}

func process(args ...string) *specs.Process {
	caps := []string{"CAP_KILL", "CAP_SETUID", "CAP_SETGID", "CAP_DAC_OVERRIDE"}
	return &specs.Process{Args: args, Cwd: "/", Env: []string{"PATH=/bin"},
		Capabilities: &specs.LinuxCapabilities{Bounding: caps, Effective: caps, Permitted: caps}}
}

func (r *rig) logPath(id string) string { return filepath.Join(r.cfg.StateDir, id, "logs", "0.log") }

// create makes a container and sees to its removal.
func (r *rig) create(tb testing.TB, id, script string, change func(*CreateRequest, *specs.Spec)) Created {
	tb.Helper()
	req := CreateRequest{ID: id, Runtime: r.rt, LogPath: r.logPath(id)}
	r.bundle(tb, id, script, func(s *specs.Spec) {
		if change != nil {
			change(&req, s)
		}
		s.Process.Terminal = req.Terminal
	})
	c, err := r.m.Create(r.ctx, req)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if err := r.m.Delete(r.ctx, id, r.rt); err != nil {
			tb.Error(err)
		}
	})
	return c
}

func (r *rig) start(tb testing.TB, id string) {
	tb.Helper()
	if _, err := r.m.Start(r.ctx, id); err != nil {
		tb.Fatal(err)
	}
}

func (r *rig) exit(tb testing.TB) Exit {
	tb.Helper()
	select {
	case e := <-r.m.Exits():
		return e
	case <-time.After(time.Minute):
		tb.Fatal("no exit arrived")
		return Exit{}
	}
}

// lines returns the log's records without their times.
func (r *rig) lines(tb testing.TB, id string) []string {
	tb.Helper()
	b, err := os.ReadFile(r.logPath(id))
	if err != nil {
		tb.Fatal(err)
	}
	var out []string
	for _, l := range strings.Split(strings.TrimSuffix(string(b), "\n"), "\n") {
		_, rest, _ := strings.Cut(l, " ")
		out = append(out, rest)
	}
	return out
}

func until(tb testing.TB, what string, f func() bool) {
	tb.Helper()
	for deadline := time.Now().Add(time.Minute); !f(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			tb.Fatal("never happened: " + what)
		}
	}
}

package shim

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// startHolder runs the holder mode in a PID namespace of its own and waits
// until it is confined.
func startHolder(t *testing.T) *exec.Cmd {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root")
	}
	ready, theirs, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer ready.Close()
	cmd := exec.Command(binary, "holder", "x")
	cmd.ExtraFiles = []*os.File{theirs}
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWPID}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	_ = theirs.Close()
	if said, err := io.ReadAll(ready); err != nil || string(said) != "\x00" {
		t.Fatalf("holder: %q, %v", said, err)
	}
	return cmd
}

// status reads fields of /proc/PID/status.
func status(t *testing.T, pid int) map[string]string {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]string{}
	for _, l := range strings.Split(string(b), "\n") {
		k, v, _ := strings.Cut(l, ":")
		out[k] = strings.Join(strings.Fields(v), " ")
	}
	return out
}

// TestIntegrationHolder: what the holder keeps of the node is nothing.
func TestIntegrationHolder(t *testing.T) {
	cmd := startHolder(t)
	pid := cmd.Process.Pid
	want := map[string]string{"Uid": "65534 65534 65534 65534", "Gid": "65534 65534 65534 65534", "Groups": "",
		"NoNewPrivs": "1", "SigIgn": "fffffffffffbfeff"}
	for _, set := range []string{"CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"} {
		want[set] = "0000000000000000"
	}
	tasks, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*", pid))
	for _, task := range tasks {
		var tid int
		_, _ = fmt.Sscan(filepath.Base(task), &tid)
		got := status(t, tid)
		for k, v := range want {
			if got[k] != v {
				t.Errorf("thread %d: %s is %q, not %q", tid, k, got[k], v)
			}
		}
		for _, dir := range []string{"root", "cwd"} {
			if names, err := os.ReadDir(task + "/" + dir + "/"); err != nil || len(names) > 0 {
				t.Errorf("%s of thread %d shows %v, %v", dir, tid, names, err)
			}
		}
	}
	proc := fmt.Sprintf("/proc/%d/", pid)
	if b, err := os.ReadFile(proc + "mountinfo"); err != nil || strings.Count(string(b), "\n") != 1 {
		t.Errorf("mounts: %s %v", b, err)
	}
	fds, _ := os.ReadDir(proc + "fd")
	for _, fd := range fds {
		if to, _ := os.Readlink(proc + "fd/" + fd.Name()); !strings.HasPrefix(to, "/memfd:null") {
			t.Errorf("descriptor %s is %s", fd.Name(), to)
		}
	}
	if f, err := os.OpenFile(proc+"root/x", os.O_CREATE|os.O_WRONLY, 0o600); err == nil {
		_ = f.Close()
		t.Error("its root can be written to")
	}
	if b, _ := os.ReadFile(proc + "cmdline"); !strings.HasSuffix(string(b), "\x00holder\x00x\x00") {
		t.Errorf("command line %q", b)
	}
	m := rollup(t, pid)
	t.Logf("holder: %d KiB anonymous memory, %d threads", m["Anonymous"], len(tasks))
	programStaysReadOnly(t, cmd)
}

// programStaysReadOnly is the attack by which a container once replaced its
// runtime: open /proc/1/exe, wait until nobody executes it, open it for writing.
func programStaysReadOnly(t *testing.T, cmd *exec.Cmd) {
	f, err := os.Open(fmt.Sprintf("/proc/%d/exe", cmd.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	_ = cmd.Process.Kill()
	_ = cmd.Wait()
	again, err := os.OpenFile(fmt.Sprintf("/proc/self/fd/%d", f.Fd()), os.O_WRONLY, 0)
	if err == nil {
		_ = again.Close()
		t.Error("the program can be opened for writing through its holder")
	} else if !strings.Contains(err.Error(), "read-only") && !strings.Contains(err.Error(), "permitted") {
		t.Errorf("refused for the wrong reason: %v", err)
	}
	if err := f.Chmod(0o777); err == nil {
		t.Error("its mode can be changed")
	}
}

// TestIntegrationHolderSignals: from outside only TERM and KILL end it.
func TestIntegrationHolderSignals(t *testing.T) {
	cmd := startHolder(t)
	for s := syscall.Signal(1); s <= 64; s++ {
		switch s {
		case syscall.SIGKILL, syscall.SIGTERM, syscall.SIGSTOP, 32, 33: // two are the C library's
		default:
			_ = cmd.Process.Signal(s)
		}
	}
	if st := status(t, cmd.Process.Pid); st["State"][0] == 'Z' {
		t.Fatal("a signal killed it")
	}
	// One that comes while the holder does not wait for it may be lost.
	until(t, "SIGTERM ends it", func() bool {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		return status(t, cmd.Process.Pid)["State"][0] == 'Z'
	})
	if err := cmd.Wait(); err != nil {
		t.Errorf("ended by SIGTERM: %v", err)
	}
}

// TestIntegrationHolderFromInside: a container with the capability to trace
// anyone sees through PID 1 nothing of the node and can't end it, and its
// orphans are reaped.
func TestIntegrationHolderFromInside(t *testing.T) {
	r := newRig(t)
	cmd := startHolder(t)
	pidns := fmt.Sprintf("/proc/%d/ns/pid", cmd.Process.Pid)
	const script = `echo root: $(ls -A /proc/1/root/ /proc/1/cwd/); echo fds: $(ls /proc/1/fd)
for s in HUP INT TERM KILL; do kill -$s 1; done
i=0; while [ $i -lt 20000 ]; do kill -TERM 1; i=$((i+1)); done
for i in 1 2 3 4 5; do (sleep 0.01 &); done
(: >> /proc/1/exe) 2>/dev/null && echo wrote program
echo own: $(ls /proc/self/fd)
i=0; while z=$(grep -l 'State:.Z' /proc/[0-9]*/status 2>/dev/null) && [ $i -lt 300 ]; do sleep 0.1; i=$((i+1)); done; echo zombies: $z
[ -d /proc/1 ] && echo alive`
	r.create(t, "inside", script, func(_ *CreateRequest, s *specs.Spec) {
		for i := range s.Linux.Namespaces {
			if s.Linux.Namespaces[i].Type == "pid" {
				s.Linux.Namespaces[i].Path = pidns
			}
		}
		caps := []string{"CAP_SYS_PTRACE", "CAP_KILL", "CAP_DAC_OVERRIDE", "CAP_DAC_READ_SEARCH", "CAP_FOWNER", "CAP_SYS_ADMIN", "CAP_SYS_CHROOT"}
		s.Process.Capabilities = &specs.LinuxCapabilities{Bounding: caps, Effective: caps, Permitted: caps}
	})
	root := filepath.Join(r.cfg.RunDir, "inside", "rootfs", "bin")
	for _, n := range []string{"ls", "grep"} {
		_ = os.Symlink("busybox", filepath.Join(root, n))
	}
	r.start(t, "inside")
	r.exit(t)
	got := map[string]string{}
	for _, l := range r.lines(t, "inside") {
		if _, l, ok := strings.Cut(l, " F "); ok {
			k, v, _ := strings.Cut(l, ":")
			got[k] = strings.TrimSpace(v)
		}
	}
	alive := 0
	if _, ok := got["alive"]; ok {
		alive = 1
	}
	if alive == 0 || got["root"] != "/proc/1/cwd/: /proc/1/root/:" || got["fds"] != "0 1 2" || got["zombies"] != "" {
		t.Errorf("seen from a container: %v", got)
	}
	if _, ok := got["wrote program"]; ok {
		t.Error("a container could write to the shim's program")
	}
	// ls itself has the directory open as 3.
	if got["own"] != "0 1 2 3" {
		t.Errorf("descriptors of a container's process: %s", got["own"])
	}
	if st := status(t, cmd.Process.Pid); st["State"][0] == 'Z' {
		t.Error("the container ended the holder")
	}
}

// TestIntegrationDescriptors: neither a container's nor an exec's process has
// a descriptor but its own three.
func TestIntegrationDescriptors(t *testing.T) {
	r := newRig(t)
	c := r.create(t, "fds", "echo up; sleep 1000", func(c *CreateRequest, _ *specs.Spec) { c.Stdin = true })
	r.start(t, "fds")
	until(t, "it runs", func() bool { b, _ := os.ReadFile(r.logPath("fds")); return strings.Contains(string(b), "up\n") })
	e, err := r.m.Exec(r.ctx, "fds", ExecRequest{Process: process("sh", "-c", "echo $$; exec cat"), Stdin: true})
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	if _, err := bufio.NewReader(e.Stdout).ReadString('\n'); err != nil {
		t.Fatal(err)
	}
	pids, err := os.ReadFile("/proc/" + fmt.Sprint(c.PID) + "/cgroup")
	if err != nil || len(pids) == 0 {
		t.Fatal(err)
	}
	tree, _ := filepath.Glob("/proc/[0-9]*")
	want, _ := os.Readlink(fmt.Sprintf("/proc/%d/ns/pid", c.PID))
	seen := 0
	for _, p := range tree {
		if ns, _ := os.Readlink(p + "/ns/pid"); ns != want {
			continue
		}
		seen++
		fds, _ := os.ReadDir(p + "/fd")
		if len(fds) != 3 {
			t.Errorf("%s has %d descriptors", p, len(fds))
		}
	}
	if seen < 2 {
		t.Errorf("%d processes seen", seen)
	}
}

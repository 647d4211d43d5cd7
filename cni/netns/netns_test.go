package netns

import (
	"errors"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: makes namespaces and mounts")
	}
}

func mountsBelow(t *testing.T, dir string) int {
	t.Helper()
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	return strings.Count(string(b), " "+dir)
}

func TestCheckSysctls(t *testing.T) {
	all := []string{Net, IPC, UTS}
	for _, c := range []struct {
		name  string
		kinds []string
		bad   string
	}{
		{"net.ipv4.ip_forward", all, ""},
		{"net/ipv4/conf/eth0.100/forwarding", all, ""},
		{"kernel.shmmax", all, ""},
		{"kernel.shm_rmid_forced", all, ""},
		{"kernel.msgmax", all, ""},
		{"kernel.sem", all, ""},
		{"fs.mqueue.msg_max", all, ""},
		{"kernel.domainname", all, ""},
		{"kernel.hostname", all, "not namespaced"},
		{"vm.overcommit_memory", all, "not namespaced"},
		{"kernel.panic", all, "not namespaced"},
		{"net", all, "not namespaced"},
		{"net/../kernel/panic", all, "malformed"},
		{"net..ipv4", all, "malformed"},
		{"", all, "malformed"},
		{"net.ipv4.ip_forward", []string{IPC, UTS}, "needs a pod net namespace"},
		{"kernel.sem", []string{Net}, "needs a pod ipc namespace"},
	} {
		err := CheckSysctls(map[string]string{c.name: "1"}, c.kinds)
		if c.bad == "" {
			if err != nil {
				t.Errorf("%q: %v", c.name, err)
			}
			continue
		}
		if !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), c.bad) || !strings.Contains(err.Error(), `"`+c.name+`"`) {
			t.Errorf("%q: got %v, want InvalidArgument with %q and the name", c.name, err, c.bad)
		}
	}
}

func TestSplitSysctls(t *testing.T) {
	now, later := SplitSysctls(map[string]string{
		"net.ipv4.ip_forward":               "1",
		"net.ipv4.conf.all.rp_filter":       "0",
		"net.ipv4.conf.eth0.rp_filter":      "0",
		"net/ipv6/conf/eth0.1/forwarding":   "1",
		"net.ipv4.neigh.default.gc_thresh1": "9",
		"kernel.sem":                        "1 2 3 4",
	})
	wantLater := map[string]string{"net.ipv4.conf.eth0.rp_filter": "0", "net/ipv6/conf/eth0.1/forwarding": "1"}
	if d := cmp.Diff(wantLater, later); d != "" {
		t.Error(d)
	}
	if len(now) != 4 {
		t.Errorf("now: %v", now)
	}
}

func TestIntegrationCreateAndUnpin(t *testing.T) {
	needRoot(t)
	dir := filepath.Join(t.TempDir(), "ns")
	pins, err := Create(Spec{Dir: dir, Kinds: []string{Net, IPC, UTS}, Hostname: "pod-one",
		Sysctls: map[string]string{"net.ipv4.ip_unprivileged_port_start": "80", "kernel.shm_rmid_forced": "1",
			"fs.mqueue.msg_max": "20", "kernel.domainname": "example.org"}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { UnpinAll(dir) })
	got, err := Pinned(dir)
	if err != nil || !cmp.Equal(got, []string{Net, IPC, UTS}) {
		t.Fatalf("pinned: %v, %v", got, err)
	}
	out, err := exec.Command("nsenter", "--net="+pins[Net], "--ipc="+pins[IPC], "--uts="+pins[UTS], "sh", "-c",
		"uname -n; cat /proc/sys/net/ipv4/ip_unprivileged_port_start /proc/sys/kernel/shm_rmid_forced /proc/sys/fs/mqueue/msg_max /proc/sys/kernel/domainname").CombinedOutput()
	if err != nil || string(out) != "pod-one\n80\n1\n20\nexample.org\n" {
		t.Fatalf("inside: %q, %v", out, err)
	}
	if err := Do(pins[Net], dialLoopback); err != nil {
		t.Errorf("loopback: %v", err)
	}
	for range 2 {
		if err := UnpinAll(dir); err != nil {
			t.Fatal(err)
		}
	}
	if n := mountsBelow(t, dir); n != 0 {
		t.Errorf("%d mounts left", n)
	}
	if _, err := os.Lstat(dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("directory left: %v", err)
	}
}

func ownNet(t *testing.T) string {
	t.Helper()
	l, err := os.Readlink("/proc/self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func dialLoopback() error {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	defer l.Close()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return unix.Connect(fd, &unix.SockaddrInet4{Port: l.Addr().(*net.TCPAddr).Port, Addr: [4]byte{127, 0, 0, 1}})
}

func TestIntegrationCreateFailureLeavesNothing(t *testing.T) {
	needRoot(t)
	dir := filepath.Join(t.TempDir(), "ns")
	_, err := Create(Spec{Dir: dir, Kinds: []string{Net}, Sysctls: map[string]string{"net.ipv4.no_such_thing": "1"}})
	if !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), "net.ipv4.no_such_thing") {
		t.Fatalf("got %v", err)
	}
	if _, err := os.Lstat(dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("directory left: %v", err)
	}
}

func TestIntegrationCreateReplacesPins(t *testing.T) {
	needRoot(t)
	dir := filepath.Join(t.TempDir(), "ns")
	t.Cleanup(func() { UnpinAll(dir) })
	for range 3 {
		if _, err := Create(Spec{Dir: dir, Kinds: []string{Net}}); err != nil {
			t.Fatal(err)
		}
	}
	if n := mountsBelow(t, dir); n != 1 {
		t.Errorf("%d mounts, want 1", n)
	}
}

func TestIntegrationUnpinBusyAndStacked(t *testing.T) {
	needRoot(t)
	dir := filepath.Join(t.TempDir(), "ns")
	pins, err := Create(Spec{Dir: dir, Kinds: []string{Net}})
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("/proc/self/ns/net", pins[Net], "none", unix.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(pins[Net]) // makes a plain unmount busy
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := UnpinAll(dir); err != nil {
		t.Fatal(err)
	}
	if n := mountsBelow(t, dir); n != 0 {
		t.Errorf("%d mounts left", n)
	}
}

func TestIntegrationPinPIDFromHolder(t *testing.T) {
	needRoot(t)
	dir := filepath.Join(t.TempDir(), "ns")
	cmd := exec.Command("sleep", "1000")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWPID}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait(); UnpinAll(dir) })
	pins, err := PinFrom(cmd.Process.Pid, dir, PID)
	if err != nil {
		t.Fatal(err)
	}
	if ok, err := IsPinned(pins[PID]); !ok || err != nil {
		t.Fatalf("pinned: %v, %v", ok, err)
	}
	out, err := exec.Command("nsenter", "--pid="+pins[PID], "sh", "-c", "echo $$").CombinedOutput()
	if err != nil || string(out) == "1\n" {
		t.Errorf("inside: %q, %v", out, err)
	}
}

func TestIntegrationDoInParallelKeepsThreadsClean(t *testing.T) {
	needRoot(t)
	base := t.TempDir()
	own := ownNet(t)
	var wg sync.WaitGroup
	for i := range 10 {
		dir := filepath.Join(base, string(rune('a'+i)))
		pins, err := Create(Spec{Dir: dir, Kinds: []string{Net}})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { UnpinAll(dir) })
		for range 10 {
			wg.Go(func() {
				err := Do(pins[Net], func() error {
					in, err := os.Readlink("/proc/thread-self/ns/net")
					if err == nil && in == own {
						err = errors.New("not inside")
					}
					return err
				})
				if err != nil {
					t.Error(err)
				}
				if now, err := os.Readlink("/proc/thread-self/ns/net"); err != nil || now != own {
					t.Errorf("caller's thread is in %q, %v", now, err)
				}
			})
		}
	}
	wg.Wait()
}

func TestDoReportsMissingNamespace(t *testing.T) {
	err := Do(filepath.Join(t.TempDir(), "none"), func() error { return nil })
	if !errors.Is(err, os.ErrNotExist) {
		t.Errorf("got %v", err)
	}
}

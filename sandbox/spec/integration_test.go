package spec

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// runtimePath finds runc, or skips the test.
func runtimePath(t *testing.T) string {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root to run containers")
	}
	for _, p := range []string{os.Getenv("BERTH_TEST_RUNC"), "../../bin/runc", "runc"} {
		if found, err := exec.LookPath(p); p != "" && err == nil {
			if found, err = filepath.Abs(found); err == nil {
				return found
			}
		}
	}
	t.Skip("no runc: set BERTH_TEST_RUNC or put it in PATH")
	return ""
}

// busyboxRoot makes a root file system of one static program, or skips the test.
func busyboxRoot(t *testing.T, dir string) {
	t.Helper()
	path, err := exec.LookPath("busybox")
	if err != nil {
		t.Skip("no busybox (Debian: busybox-static)")
	}
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range []string{"bin", "etc", "tmp"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "bin/busybox"), b, 0o755); err != nil {
		t.Fatal(err)
	}
}

// hostCapabilities is what this test may hand out.
func hostCapabilities(t *testing.T) []string {
	t.Helper()
	mask, err := strconv.ParseUint(statusField(t, "/proc/self/status", "CapBnd"), 16, 64)
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for i, name := range knownCapabilities() {
		if mask&(1<<i) != 0 {
			out = append(out, name)
		}
	}
	return out
}

func statusField(t *testing.T, file, field string) string {
	t.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		if v, ok := strings.CutPrefix(line, field+":"); ok {
			return strings.TrimSpace(v)
		}
	}
	t.Fatalf("no %s in %s", field, file)
	return ""
}

// runInside builds the specification for in with a shell script as command and
// returns what the script prints in the container.
func runInside(t *testing.T, in Input, script string) string {
	t.Helper()
	runc, dir := runtimePath(t), t.TempDir()
	busyboxRoot(t, filepath.Join(dir, "rootfs"))
	id := fmt.Sprintf("berth-spec-%d-%d", os.Getpid(), time.Now().UnixNano())
	in.Container.Command = []string{"/bin/busybox", "sh", "-c", script}
	in.CgroupsPath = "/" + id
	s, err := Build(in)
	if err != nil {
		t.Fatal(err)
	}
	b, err := json.Marshal(s)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "config.json"), b, 0o600); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	root := filepath.Join(dir, "state")
	t.Cleanup(func() {
		// Nothing is left to delete after a run that went well.
		_ = exec.Command(runc, "--root", root, "delete", "--force", id).Run()
	})
	out, err := exec.CommandContext(ctx, runc, "--root", root, "run", "--bundle", dir, id).CombinedOutput()
	if err != nil {
		t.Fatalf("runc run: %v\n%s", err, out)
	}
	return string(out)
}

// realInput is a container on this machine, with the node's network, IPC and
// hostname, and a PID namespace of its own.
func realInput(t *testing.T) Input {
	t.Helper()
	in := base()
	in.Pod = Pod{SandboxID: "s1", PrivatePID: true, Hostname: "web-0"}
	b, err := os.ReadFile("/proc/sys/kernel/osrelease")
	if err != nil {
		t.Fatal(err)
	}
	_, v2 := os.Stat("/sys/fs/cgroup/cgroup.controllers")
	in.Host = Host{
		Controllers: Controllers{CgroupV2: v2 == nil}, SeccompEnabled: true, KernelVersion: strings.TrimSpace(string(b)),
		Capabilities: hostCapabilities(t), RecursiveReadOnly: true, RestrictOOMScoreAdj: true,
	}
	return in
}

func wantAll(t *testing.T, out string, want ...string) {
	t.Helper()
	for _, w := range want {
		if !strings.Contains(out, w) {
			t.Errorf("%q is not in the container's output:\n%s", w, out)
		}
	}
}

const look = `echo cwd=$PWD; cd /bin; ./busybox grep -E '^(Uid|Gid|Groups|CapEff|CapAmb|CapBnd|NoNewPrivs|Seccomp):' /proc/self/status
./busybox env; echo pid=$$; echo oom=$(./busybox cat /proc/self/oom_score_adj)`

func TestIntegrationProcessSeenFromInside(t *testing.T) {
	in := realInput(t)
	in.User = User{UID: 1000, GID: 2000, Groups: []uint32{2000, 3000}, Home: "/home/a"}
	in.Container.WorkingDir = "/tmp"
	in.Container.Envs = []*runtimeapi.KeyValue{{Key: "A", Value: []byte("1")}}
	sec(&in).Capabilities = caps("", "ALL", "NET_BIND_SERVICE")
	sec(&in).NoNewPrivs = true
	sec(&in).Seccomp = profile(runtimeapi.SecurityProfile_RuntimeDefault, "")
	res(&in).OomScoreAdj = 500
	wantAll(t, runInside(t, in, look),
		"Uid:\t1000\t1000\t1000\t1000", "Gid:\t2000\t2000\t2000\t2000", "Groups:\t2000 3000",
		"CapEff:\t0000000000000400", "CapAmb:\t0000000000000400", "CapBnd:\t0000000000000400",
		"NoNewPrivs:\t1", "Seccomp:\t2", "HOSTNAME=web-0", "HOME=/home/a", "A=1", "cwd=/tmp", "pid=1", "oom=500")
}

func TestIntegrationDefaultProcess(t *testing.T) {
	wantAll(t, runInside(t, realInput(t), look),
		"Uid:\t0\t0\t0\t0", "CapAmb:\t0000000000000000", "NoNewPrivs:\t0", "Seccomp:\t0", "PATH=/usr/local/sbin", "cwd=/")
}

func TestIntegrationPrivileged(t *testing.T) {
	in := realInput(t)
	privileged(&in)
	sec(&in).MaskedPaths = []string{"/proc/version"}
	sec(&in).Seccomp = profile(runtimeapi.SecurityProfile_RuntimeDefault, "")
	in.Host.AllDevices = []HostDevice{{HostPath: "/dev/berth-null", Type: "c", Major: 1, Minor: 3, Mode: 0o666}}
	out := runInside(t, in, look+`
./busybox cat /proc/version; ./busybox grep ' /sys ' /proc/self/mountinfo; echo x >/dev/berth-null && echo device`)
	wantAll(t, out, "CapEff:\t"+statusField(t, "/proc/self/status", "CapBnd"), "Seccomp:\t0", "Linux version", " /sys rw,", "device")
}

func TestIntegrationMountsAndMasks(t *testing.T) {
	in := realInput(t)
	host := t.TempDir()
	if err := os.WriteFile(filepath.Join(host, "f"), []byte("from the host\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	mount(&in, &runtimeapi.Mount{ContainerPath: "/a/b", HostPath: host, Readonly: true, MountOptions: []string{"noexec", "nodev"}}, "")
	mount(&in, &runtimeapi.Mount{ContainerPath: "/a", HostPath: t.TempDir()}, "")
	mount(&in, &runtimeapi.Mount{ContainerPath: "/rro", HostPath: host, Readonly: true, RecursiveReadOnly: true}, "")
	sec(&in).ReadonlyRootfs = true
	sec(&in).MaskedPaths, sec(&in).ReadonlyPaths = []string{"/proc/version"}, []string{"/proc/sys"}
	// On v1 runc leaves the directory above the controllers writable: the controllers count.
	out := runInside(t, in, `cd /bin; ./busybox cat /a/b/f; echo "version:$(./busybox cat /proc/version):"
./busybox grep -E ' (/|/a|/a/b|/rro|/sys|/proc/sys|/dev/shm|/sys/fs/cgroup) ' /proc/self/mountinfo
echo x >/x; echo x >/a/x && echo wrote; echo x >/rro/x; ./busybox ls /dev/null /dev/ptmx
for d in /sys/fs/cgroup/*/; do ./busybox mkdir $d/made; done; ./busybox ls -d /sys/fs/cgroup/*/made || echo no cgroup made; :`)
	wantAll(t, out, "from the host", "version::", " / ro,", " /a rw,", " /a/b ro,nodev,noexec,", " /rro ro,", " /sys ro,", " /proc/sys ro,",
		"/dev/shm", "no cgroup made", "can't create /x", "wrote", "can't create /rro/x", "/dev/null", "/dev/ptmx")
	if in.Host.CgroupV2 {
		wantAll(t, out, " /sys/fs/cgroup ro,")
	}
}

func TestIntegrationDeviceRules(t *testing.T) {
	in := realInput(t)
	in.Container.Devices = []*runtimeapi.Device{{HostPath: "/dev/kmsg", ContainerPath: "/dev/mine"}}
	in.Devices = []HostDevice{{HostPath: "/dev/kmsg", ContainerPath: "/dev/mine", Type: "c", Major: 1, Minor: 11, Mode: 0o666, Permissions: "r"}}
	// 1:11 is kmsg: not one of the nodes every container may use.
	out := runInside(t, in, `: >/dev/null && echo null; echo x >/dev/mine; ./bin/busybox ls -l /dev/mine; :`)
	wantAll(t, out, "null", "can't create /dev/mine: Operation not permitted", "1,  11")
}

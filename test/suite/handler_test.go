package suite

import (
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-dev/berth/test/harness"
)

func handlerStories() []story {
	return []story{
		{name: "handler/several", owned: true, alone: true, tell: handlers},
		{name: "handler/base specification", owned: true, alone: true, tell: baseSpecification},
		{name: "handler/block I/O", owned: true, alone: true, tell: blockIO},
		{name: "handler/features", tell: features},
	}
}

const handlerTOML = `
[runtime]
default = "runc"
[runtime.handlers.runc]
[runtime.handlers.other]
path = %q
pids_limit = 77
cgroup_writable = true
device_ownership_from_security_context = true
privileged_without_host_devices = true
seccomp_default = true
seccomp_native_only = true
pod_annotations = ["run.test/*"]
[runtime.handlers.gone]
path = "/no/such/runtime"
[container]
blockio_classes = %q
`

// handlers has a second configuration of runc, and one whose program is missing.
func handlers(t *testing.T, n *node) {
	programs, err := harness.Find(*binDir)
	must(t, err)
	classes := filepath.Join(t.TempDir(), "blockio.yaml")
	must(t, os.WriteFile(classes, []byte("Classes: {plain: []}\n"), 0o644))
	s := n.spare(t, harness.Config{TOML: fmt.Sprintf(handlerTOML, programs.Runc, classes)}, nil, nil)
	run := func(handler string, edits ...func(*runtimeapi.PodSandboxConfig)) *pod {
		t.Helper()
		c := s.podConfig(t)
		for _, e := range edits {
			e(c)
		}
		r, err := s.rt.RunPodSandbox(t.Context(), &runtimeapi.RunPodSandboxRequest{Config: c, RuntimeHandler: handler})
		must(t, err)
		p := &pod{n: s, id: r.GetPodSandboxId(), config: c}
		t.Cleanup(func() { p.remove(t) })
		return p
	}
	node := filepath.Join(t.TempDir(), "device")
	makeDevice(t, node, 250, 83)
	must(t, unix.Chown(node, 11, 12))
	with := func(c *runtimeapi.ContainerConfig) {
		c.Devices = []*runtimeapi.Device{{HostPath: node, ContainerPath: "/dev/mine", Permissions: "r"}}
		c.Linux.SecurityContext.RunAsUser, c.Linux.SecurityContext.RunAsGroup = &runtimeapi.Int64Value{Value: 1000}, &runtimeapi.Int64Value{Value: 2000}
	}
	annotated := func(c *runtimeapi.PodSandboxConfig) {
		c.Annotations = map[string]string{"run.test/a": "let through", "other.test/b": "kept back", "blockio.resources.beta.kubernetes.io/pod": "plain"}
	}
	p := run("other", annotated)
	equal(t, "handler in the status", p.status(t).GetRuntimeHandler(), "other")
	c := p.run(t, probe("sleep"), with)
	equal(t, "processes", c.control(t, "pids/pids.max", "pids.max"), "77")
	equal(t, "owner of a device", c.sh(t, "stat -c %u:%g /dev/mine"), "1000:2000")
	has(t, "seccomp without being asked for", c.sh(t, "grep Seccomp: /proc/1/status"), "2")
	nativeOnly(t, run("runc").run(t, probe("sleep")), c)
	r, err := s.rt.ContainerStatus(t.Context(), &runtimeapi.ContainerStatusRequest{ContainerId: c.id, Verbose: true})
	must(t, err)
	info := r.GetInfo()["info"]
	has(t, "annotations of the specification", info, "let through")
	if strings.Contains(info, "kept back") {
		t.Error("an annotation that no pattern lets through is in the specification")
	}
	c = p.run(t, probe("sleep"))
	dir := map[bool]string{false: "/sys/fs/cgroup/pids", true: "/sys/fs/cgroup"}[v2()]
	c.sh(t, "mkdir "+dir+"/mine && rmdir "+dir+"/mine")
	has(t, "unknown class", p.n.pod(t, func(c *runtimeapi.PodSandboxConfig) {
		c.Annotations = map[string]string{"blockio.resources.beta.kubernetes.io/pod": "gold"}
	}).refuse(t, codes.InvalidArgument), `"gold"`)

	plain := run("").run(t, probe("sleep"), with)
	equal(t, "owner of a device elsewhere", plain.sh(t, "stat -c %u:%g /dev/mine"), "11:12")
	if got, _ := strconv.Atoi(plain.control(t, "pids/pids.max", "pids.max")); got == 77 {
		t.Error("the default handler has the other's limit")
	}
	has(t, "cgroups", run("").run(t, probe("sleep")).fails(t, "mkdir "+dir+"/mine"), "Read-only")

	priv := run("other", privilegedPod).run(t, probe("sleep"), security(func(s *runtimeapi.LinuxContainerSecurityContext) { s.Privileged = true }))
	equal(t, "devices of the node", priv.sh(t, "ls /dev/kmsg 2>/dev/null || echo none"), "none")

	gone := run("gone")
	has(t, "a runtime that is missing", gone.refuse(t, codes.FailedPrecondition), "/no/such/runtime")
	_, err = s.rt.RunPodSandbox(t.Context(), &runtimeapi.RunPodSandboxRequest{Config: s.podConfig(t), RuntimeHandler: "nobody"})
	wantCode(t, "an unknown handler", err, codes.InvalidArgument)
	has(t, "the refusal", err.Error(), "nobody", "gone, other, runc")
	st, err := s.rt.Status(t.Context(), &runtimeapi.StatusRequest{})
	must(t, err)
	for _, h := range st.GetRuntimeHandlers() {
		if h.GetName() == "gone" && (h.GetFeatures().GetRecursiveReadOnlyMounts() || h.GetFeatures().GetUserNamespaces()) {
			t.Errorf("a runtime that is missing has features: %v", h)
		}
	}
}

// features compares what is advertised with what happens.
func features(t *testing.T, n *node) {
	st, err := n.rt.Status(t.Context(), &runtimeapi.StatusRequest{})
	must(t, err)
	var found *runtimeapi.RuntimeHandlerFeatures
	for _, h := range st.GetRuntimeHandlers() {
		if h.GetName() == "" {
			found = h.GetFeatures()
		}
	}
	if found == nil {
		t.Fatal("the default handler has no entry")
	}
	p := n.pod(t)
	c := p.containerConfig(t, probe("exit", "0"), func(c *runtimeapi.ContainerConfig) {
		c.Mounts = []*runtimeapi.Mount{{HostPath: t.TempDir(), ContainerPath: "/v", Readonly: true, RecursiveReadOnly: true}}
	})
	_, err = n.rt.CreateContainer(t.Context(), &runtimeapi.CreateContainerRequest{PodSandboxId: p.id, Config: c, SandboxConfig: p.config})
	equal(t, "recursive read-only mounts", err == nil, found.GetRecursiveReadOnlyMounts())
	cfg := n.podConfig(t)
	cfg.Linux.SecurityContext.NamespaceOptions.UsernsOptions = &runtimeapi.UserNamespace{Uids: idMappings(), Gids: idMappings()}
	r, err := n.rt.RunPodSandbox(t.Context(), &runtimeapi.RunPodSandboxRequest{Config: cfg})
	equal(t, "user namespaces", err == nil, found.GetUserNamespaces())
	if err == nil {
		(&pod{n: n, id: r.GetPodSandboxId(), config: cfg}).remove(t)
	}
	equal(t, "user namespaces with the node's network", st.GetFeatures().GetUserNamespacesHostNetwork(), found.GetUserNamespaces())
}

const basedTOML = `
[runtime.handlers.runc]
[runtime.handlers.based]
path = %q
base_spec = %q
`

// baseOfHandler has things that nobody else decides, and some that others do.
const baseOfHandler = `{
  "ociVersion": "1.0.2",
  "process": {
    "cwd": "/nowhere", "args": ["/nowhere"], "user": {"uid": 7, "gid": 7},
    "env": ["BASE=of the handler", "TAKEN=of the handler"],
    "rlimits": [{"type": "RLIMIT_NOFILE", "soft": 77, "hard": 88}]
  },
  "mounts": [{"destination": "/based", "type": "tmpfs", "source": "based", "options": ["size=64k", "nosuid"]}],
  "linux": {"resources": {"cpu": {"shares": 300, "quota": 30000, "period": 60000}}}
}`

func baseSpecification(t *testing.T, n *node) {
	programs, err := harness.Find(*binDir)
	must(t, err)
	file := filepath.Join(t.TempDir(), "base.json")
	must(t, os.WriteFile(file, []byte(baseOfHandler), 0o644))
	s := n.spare(t, harness.Config{TOML: fmt.Sprintf(basedTOML, programs.Runc, file)}, nil, nil)
	run := func(handler string) *container {
		t.Helper()
		c := s.podConfig(t)
		r, err := s.rt.RunPodSandbox(t.Context(), &runtimeapi.RunPodSandboxRequest{Config: c, RuntimeHandler: handler})
		must(t, err)
		p := &pod{n: s, id: r.GetPodSandboxId(), config: c}
		t.Cleanup(func() { p.remove(t) })
		return p.run(t, shell("exec sleep 1000"), func(c *runtimeapi.ContainerConfig) {
			c.Envs = []*runtimeapi.KeyValue{{Key: "TAKEN", Value: []byte("of the client")}}
			c.Linux.Resources.CpuQuota, c.Linux.Resources.CpuPeriod = 20000, 50000
		})
	}
	quota := func(c *container) string {
		if v2() {
			return c.control(t, "", "cpu.max")
		}
		return c.control(t, "cpu/cpu.cfs_quota_us", "") + " " + c.control(t, "cpu/cpu.cfs_period_us", "")
	}
	c := run("based")
	equal(t, "variables", c.sh(t, "echo $BASE, $TAKEN"), "of the handler, of the client")
	has(t, "limit of files", strings.Join(strings.Fields(c.sh(t, "grep 'open files' /proc/1/limits")), " "), "open files 77 88")
	has(t, "mount", c.sh(t, "grep ' /based ' /proc/self/mountinfo"), "nosuid", "size=64k")
	if !v2() {
		equal(t, "shares, which the client left open", c.control(t, "cpu/cpu.shares", ""), "300")
	}
	equal(t, "quota, which is the client's", quota(c), "20000 50000")
	equal(t, "user, which is never the base's", c.sh(t, "id -u"), "0")

	c = run("")
	equal(t, "variables of another handler", c.sh(t, "echo $BASE, $TAKEN"), ", of the client")
	equal(t, "mount of another handler", c.sh(t, "grep -c ' /based ' /proc/self/mountinfo || true"), "0")
	equal(t, "quota with another handler", quota(c), "20000 50000")
}

// loopDevice returns a block device of its own, on a file of a mebibyte.
func loopDevice(t *testing.T) (path, number string) {
	t.Helper()
	file, err := os.Create(filepath.Join(t.TempDir(), "disk"))
	must(t, err)
	defer file.Close()
	must(t, file.Truncate(1<<20))
	ctl, err := os.OpenFile("/dev/loop-control", os.O_RDWR, 0)
	if err != nil {
		t.Skipf("no loop devices here: %v", err)
	}
	defer ctl.Close()
	dir := t.TempDir()
	for range 50 {
		nr, err := unix.IoctlRetInt(int(ctl.Fd()), unix.LOOP_CTL_GET_FREE)
		must(t, err)
		path = filepath.Join(dir, "loop"+strconv.Itoa(nr))
		must(t, unix.Mknod(path, unix.S_IFBLK|0o600, int(unix.Mkdev(7, uint32(nr)))))
		dev, err := os.OpenFile(path, os.O_RDWR, 0)
		must(t, err)
		err = unix.IoctlSetInt(int(dev.Fd()), unix.LOOP_SET_FD, int(file.Fd()))
		if err == nil {
			t.Cleanup(func() {
				must(t, unix.IoctlSetInt(int(dev.Fd()), unix.LOOP_CLR_FD, 0))
				must(t, dev.Close())
			})
			return path, "7:" + strconv.Itoa(nr)
		}
		must(t, dev.Close())
		must(t, os.Remove(path))
		if !errors.Is(err, unix.EBUSY) { // else another one was faster
			must(t, err)
		}
	}
	t.Fatal("found no free loop device")
	return "", ""
}

// blockIO has a class with a limit, and reads from its device.
func blockIO(t *testing.T, n *node) {
	device, number := loopDevice(t)
	file := filepath.Join(t.TempDir(), "blockio.yaml")
	must(t, os.WriteFile(file, fmt.Appendf(nil, "Classes:\n  slow:\n  - Devices: [%s]\n    ThrottleReadBps: 128Ki\n    ThrottleWriteIOPS: 5\n", device), 0o644))
	s := n.spare(t, harness.Config{TOML: fmt.Sprintf("[container]\nblockio_classes = %q\n", file)}, nil, nil)
	p := s.pod(t, func(c *runtimeapi.PodSandboxConfig) {
		c.Annotations = map[string]string{"blockio.resources.beta.kubernetes.io/container.slow": "slow"}
	})
	with := func(name string) *container {
		return p.run(t, probe("sleep"), func(c *runtimeapi.ContainerConfig) {
			c.Metadata.Name = name
			c.Devices = []*runtimeapi.Device{{HostPath: device, ContainerPath: "/dev/disk", Permissions: "r"}}
		})
	}
	slow, free := with("slow"), with("free")
	start := time.Now()
	slow.sh(t, "dd if=/dev/disk of=/dev/null bs=65536 count=4 iflag=direct 2>/dev/null")
	t.Logf("256 KiB at 128 KiB a second took %v", time.Since(start))
	if v2() {
		has(t, "limits", slow.control(t, "", "io.max"), number+" rbps=131072 ", "wiops=5")
		has(t, "what was read", slow.control(t, "", "io.stat"), number+" rbytes=262144 ")
		equal(t, "limits of the other", free.control(t, "", "io.max"), "")
		return
	}
	equal(t, "bytes", slow.control(t, "blkio/blkio.throttle.read_bps_device", ""), number+" 131072")
	equal(t, "operations", slow.control(t, "blkio/blkio.throttle.write_iops_device", ""), number+" 5")
	has(t, "what was read", slow.control(t, "blkio/blkio.throttle.io_service_bytes", ""), number+" Read 262144")
	equal(t, "limits of the other", free.control(t, "blkio/blkio.throttle.read_bps_device", ""), "")
}

// nativeOnly runs a program of 32 bits where all may run, and where only those of
// the node's own architecture may. It is the smallest that there can be: it ends
// with code 0.
func nativeOnly(t *testing.T, everybody, native *container) {
	t.Helper()
	if runtime.GOARCH != "amd64" {
		return
	}
	const i386 = "7f454c460101010000000000000000000200030001000000540040003400000000000000000000" +
		"00340020000100000000000000010000000000000000004000000040005d0000005d0000000500" +
		"000000100000b80100000031dbcd80"
	code := func(c *container) string {
		raw, err := hex.DecodeString(i386)
		must(t, err)
		text := ""
		for _, b := range raw {
			text += fmt.Sprintf("\\x%02x", b)
		}
		return c.sh(t, "printf '"+text+"' >/tmp/old && chmod 755 /tmp/old && /tmp/old; echo ended $?")
	}
	if got := code(everybody); got != "ended 0" {
		t.Logf("this kernel runs no programs of i386: %s", got)
		return
	}
	has(t, "a program of 32 bits", code(native), "ended 159") // SIGSYS
}

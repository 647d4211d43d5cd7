package suite

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// usernsRoot is what root of the pods below is on the node.
const usernsRoot = 200000

func usernsStories() []story {
	return []story{
		{name: "userns/seen from inside and outside", tell: usernsInside},
		{name: "userns/shared process namespace", tell: usernsSharedPID},
		{name: "userns/node's network", tell: usernsHostNetwork},
		{name: "userns/volumes", tell: usernsVolumes},
		{name: "userns/restart of the daemon", owned: true, tell: usernsRestart},
		{name: "userns/refusals", berth: true, tell: usernsRefusals},
	}
}

func idMappings() []*runtimeapi.IDMapping {
	return []*runtimeapi.IDMapping{{HostId: usernsRoot, Length: 65536}}
}

// usernsPod runs a pod with a user namespace, where the runtime has that.
func (n *node) usernsPod(t *testing.T, edits ...func(*runtimeapi.PodSandboxConfig)) *pod {
	t.Helper()
	st, err := n.rt.Status(t.Context(), &runtimeapi.StatusRequest{})
	must(t, err)
	for _, h := range st.GetRuntimeHandlers() {
		if h.GetName() == "" && !h.GetFeatures().GetUserNamespaces() {
			t.Skip("this node cannot do user namespaces")
		}
	}
	return n.pod(t, append([]func(*runtimeapi.PodSandboxConfig){func(c *runtimeapi.PodSandboxConfig) {
		c.Linux.SecurityContext.NamespaceOptions.UsernsOptions = &runtimeapi.UserNamespace{Uids: idMappings(), Gids: idMappings()}
	}}, edits...)...)
}

// owner asks the kernel which user namespace owns the process's namespace.
func owner(t *testing.T, pid int, kind string) string {
	t.Helper()
	f, err := os.Open("/proc/" + strconv.Itoa(pid) + "/ns/" + kind)
	must(t, err)
	defer f.Close()
	fd, err := unix.IoctlRetInt(int(f.Fd()), unix.NS_GET_USERNS)
	must(t, err)
	defer unix.Close(fd)
	name, err := os.Readlink("/proc/self/fd/" + strconv.Itoa(fd))
	must(t, err)
	return name
}

func usernsInside(t *testing.T, n *node) {
	p := n.usernsPod(t, func(c *runtimeapi.PodSandboxConfig) {
		c.Hostname = "mapped"
		c.DnsConfig = &runtimeapi.DNSConfig{Servers: []string{"192.0.2.1"}}
		c.Linux.Sysctls = map[string]string{"net.ipv4.ip_unprivileged_port_start": "77", "kernel.shm_rmid_forced": "1"}
	})
	c := p.run(t, shell("echo started; exec sleep 1000"), security(func(s *runtimeapi.LinuxContainerSecurityContext) {
		s.Capabilities = &runtimeapi.Capability{AddCapabilities: []string{"NET_ADMIN"}}
	}))
	c.waitLog(t, "started")
	equal(t, "map inside", strings.Join(strings.Fields(c.sh(t, "cat /proc/self/uid_map /proc/self/gid_map")), " "), "0 200000 65536 0 200000 65536")
	equal(t, "setgroups", c.sh(t, "cat /proc/self/setgroups"), "allow")
	equal(t, "user inside", c.sh(t, "id -u"), "0")
	equal(t, "root file system inside", c.sh(t, "stat -c %u:%g / /bin /home/alice | xargs"), "0:0 0:0 1000:1000")
	equal(t, "files of the pod", c.sh(t, "stat -c %u:%g /etc/hosts /etc/hostname /etc/resolv.conf /dev/shm /dev/mqueue /proc/sys/kernel/shm_rmid_forced | xargs"),
		"0:0 0:0 0:0 0:0 0:0 0:0")
	equal(t, "sysctls", c.sh(t, "cat /proc/sys/net/ipv4/ip_unprivileged_port_start /proc/sys/kernel/shm_rmid_forced | xargs"), "77 1")
	equal(t, "hostname", c.sh(t, "hostname; cat /etc/hostname"), "mapped\nmapped")
	has(t, "resolv.conf", c.sh(t, "echo '# mine' >>/etc/resolv.conf; cat /etc/resolv.conf"), "192.0.2.1", "# mine")
	equal(t, "writing and owning", c.sh(t, "touch /new /dev/shm/new; chown 7:8 /new; stat -c %u:%g /new; rm /bin/vi; ls /bin/vi 2>&1 | wc -l"), "7:8\n1")
	has(t, "network", c.sh(t, "ip address show eth0; ip link set lo down && ip link set lo up && echo mine"), "inet ", "mine")

	pid := c.pid(t)
	status, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/status")
	must(t, err)
	has(t, "user outside", string(status), "Uid:\t200000\t200000\t200000\t200000", "Gid:\t200000\t")
	own, err := os.Readlink("/proc/" + strconv.Itoa(pid) + "/ns/user")
	must(t, err)
	for _, kind := range []string{"net", "ipc", "uts", "pid", "mnt"} {
		equal(t, "owner of the "+kind+" namespace", owner(t, pid, kind), own)
	}
	if n.own != nil {
		var st unix.Stat_t
		must(t, unix.Stat(n.own.Dir("state", "containers", c.id, "upper", "new"), &st))
		equal(t, "owner on the disk", st.Uid, 7)
		noIdmapOutside(t, n)
	}
	r := c.exec(t, "/bin/sh", "-c", "cat /proc/self/uid_map; grep CapEff /proc/self/status")
	has(t, "exec", string(r.GetStdout()), "200000")
	has(t, "as another user", p.output(t, shell("id -u; cat /proc/self/uid_map"), security(func(s *runtimeapi.LinuxContainerSecurityContext) {
		s.RunAsUser = &runtimeapi.Int64Value{Value: 1000}
	})), "1000\n", "200000")
}

// noIdmapOutside looks for mounts of the machinery in the daemon's own
// namespace: one overlay for each root file system, and nothing else.
func noIdmapOutside(t *testing.T, n *node) {
	t.Helper()
	b, err := os.ReadFile("/proc/" + strconv.Itoa(n.own.PID()) + "/mountinfo")
	must(t, err)
	for l := range strings.Lines(string(b)) {
		if f := strings.Fields(l); len(f) > 5 && strings.HasPrefix(f[4], n.own.Dir()) && strings.Contains(f[5], "idmapped") {
			t.Errorf("an idmapped mount shows on the node: %s", l)
		}
	}
}

func usernsSharedPID(t *testing.T, n *node) {
	p := n.usernsPod(t, func(c *runtimeapi.PodSandboxConfig) {
		c.Linux.SecurityContext.NamespaceOptions.Pid = runtimeapi.NamespaceMode_POD
	})
	a, b := p.run(t, probe("sleep")), p.run(t, probe("sleep"))
	equal(t, "one PID namespace", a.sh(t, "readlink /proc/self/ns/pid"), b.sh(t, "readlink /proc/self/ns/pid"))
	has(t, "the other's process", a.sh(t, "ps"), "/probe")
	has(t, "the first process is nobody", a.sh(t, "grep Uid /proc/1/status"), "65534")
	a.sh(t, "(sleep 0.1 &)")
	eventually(t, "orphans are reaped", func() bool { return !strings.Contains(b.sh(t, "ps"), "sleep 0.1") })
}

func usernsHostNetwork(t *testing.T, n *node) {
	p := n.usernsPod(t, func(c *runtimeapi.PodSandboxConfig) {
		c.Linux.SecurityContext.NamespaceOptions.Network = runtimeapi.NamespaceMode_NODE
	})
	c := p.run(t, probe("sleep"))
	has(t, "map", c.sh(t, "cat /proc/self/uid_map"), "200000")
	has(t, "sysfs is there", c.sh(t, "ls /sys/class/net"), "lo")
	if r := c.exec(t, "/bin/sh", "-c", "ip link set lo down"); r.GetExitCode() == 0 {
		t.Error("a pod with a user namespace may change the node's network")
	}
	if r := c.exec(t, "/bin/sh", "-c", "echo 1 >/sys/kernel/mm/ksm/run"); r.GetExitCode() == 0 {
		t.Error("/sys can be written to")
	}
}

func usernsVolumes(t *testing.T, n *node) {
	p := n.usernsPod(t)
	mapped, plain := t.TempDir(), t.TempDir()
	for _, dir := range []string{mapped, plain} {
		must(t, os.WriteFile(filepath.Join(dir, "f"), []byte("hello\n"), 0o600))
		must(t, os.Chown(filepath.Join(dir, "f"), 33, 44))
	}
	c := p.run(t, probe("sleep"), func(c *runtimeapi.ContainerConfig) {
		c.Mounts = []*runtimeapi.Mount{
			{ContainerPath: "/mapped", HostPath: mapped, UidMappings: idMappings(), GidMappings: idMappings(), MountOptions: []string{"noexec"}},
			{ContainerPath: "/plain", HostPath: plain},
			{ContainerPath: "/rro", HostPath: mapped, Readonly: true, RecursiveReadOnly: true, UidMappings: idMappings(), GidMappings: idMappings()},
		}
	})
	equal(t, "owners", c.sh(t, "stat -c %u:%g /mapped/f /plain/f | xargs"), "33:44 65534:65534")
	equal(t, "content", c.sh(t, "cat /mapped/f; touch /mapped/new; chown 5:6 /mapped/new"), "hello")
	has(t, "options", c.sh(t, "grep ' /mapped ' /proc/self/mountinfo"), "noexec")
	if r := c.exec(t, "/bin/sh", "-c", "cat /plain/f || touch /rro/x"); r.GetExitCode() == 0 {
		t.Error("what is not mapped can be read, or what is read-only written")
	}
	var st unix.Stat_t
	must(t, unix.Stat(filepath.Join(mapped, "new"), &st))
	equal(t, "owner on the node", st.Uid, 5)
}

func usernsRestart(t *testing.T, n *node) {
	p := n.usernsPod(t, func(c *runtimeapi.PodSandboxConfig) {
		c.Linux.SecurityContext.NamespaceOptions.Pid = runtimeapi.NamespaceMode_POD
	})
	before := p.run(t, probe("sleep"))
	must(t, n.own.Kill())
	must(t, n.own.Start(t.Context()))
	equal(t, "pod", p.status(t).GetState(), runtimeapi.PodSandboxState_SANDBOX_READY)
	after := p.run(t, probe("sleep"))
	equal(t, "one user namespace", after.sh(t, "readlink /proc/self/ns/user"), before.sh(t, "readlink /proc/self/ns/user"))
	// A pin that is gone must not go unnoticed. Status comes from memory: the pod
	// may read READY until the start has looked at it, but takes no container.
	must(t, n.own.Kill())
	must(t, n.own.Space().Command(t.Context(), "umount", n.own.Dir("run", "ns", p.id, "user")).Run())
	must(t, n.own.Start(t.Context()))
	_, err := n.rt.CreateContainer(t.Context(), &runtimeapi.CreateContainerRequest{
		PodSandboxId: p.id, Config: p.containerConfig(t, probe("sleep")), SandboxConfig: p.config,
	})
	if err == nil {
		t.Error("a container was made in a pod without its user namespace")
	}
	eventually(t, "the pod without its user namespace is told as NOTREADY", func() bool {
		return p.status(t).GetState() == runtimeapi.PodSandboxState_SANDBOX_NOTREADY
	})
}

func usernsRefusals(t *testing.T, n *node) {
	p := n.usernsPod(t)
	c := p.containerConfig(t, func(c *runtimeapi.ContainerConfig) {
		c.Linux.SecurityContext.NamespaceOptions = &runtimeapi.NamespaceOption{Pid: runtimeapi.NamespaceMode_CONTAINER,
			UsernsOptions: &runtimeapi.UserNamespace{Mode: runtimeapi.NamespaceMode_NODE}}
	})
	_, err := n.rt.CreateContainer(t.Context(), &runtimeapi.CreateContainerRequest{PodSandboxId: p.id, Config: c, SandboxConfig: p.config})
	wantCode(t, "container on the node's user namespace", err, codes.InvalidArgument)
	c = p.containerConfig(t, func(c *runtimeapi.ContainerConfig) {
		c.Mounts = []*runtimeapi.Mount{{ContainerPath: "/p", HostPath: "/proc/tty", UidMappings: idMappings(), GidMappings: idMappings()}}
	})
	_, err = n.rt.CreateContainer(t.Context(), &runtimeapi.CreateContainerRequest{PodSandboxId: p.id, Config: c, SandboxConfig: p.config})
	wantCode(t, "idmapped mount of a file system without", err, codes.FailedPrecondition)
	has(t, "the refusal", err.Error(), "/proc/tty")
}

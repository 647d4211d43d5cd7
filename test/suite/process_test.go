package suite

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func processStories() []story {
	return []story{
		{name: "process/command args env", tell: commandArgsEnv},
		{name: "process/users and groups", tell: users},
		{name: "process/capabilities", tell: capabilities},
		{name: "process/seccomp and no new privileges", tell: seccomp},
		{name: "process/mounts", tell: mounts},
		{name: "process/mount propagation", tell: propagation},
		{name: "process/read-only root and masks", tell: readOnly},
		{name: "process/privileged", tell: privileged},
		{name: "process/devices", tell: devices},
	}
}

func commandArgsEnv(t *testing.T, n *node) {
	p := n.pod(t)
	has(t, "image's command", p.output(t, image("cmd:1")), "from image\n", "/var/run\n", "FROM_IMAGE=yes\n", "SHARED=image\n")
	out := p.output(t, image("cmd:1"), func(c *runtimeapi.ContainerConfig) {
		c.Command, c.Args = []string{"/bin/sh", "-c"}, []string{"pwd; env"}
		c.WorkingDir = "/made/on/demand"
		c.Envs = []*runtimeapi.KeyValue{{Key: "SHARED", Value: []byte("config")}, {Key: "EMPTY"}, {Key: "EQ", Value: []byte("a=b")}}
	})
	has(t, "configured command", out, "/made/on/demand\n", "SHARED=config\n", "EMPTY=\n", "EQ=a=b\n", "FROM_IMAGE=yes\n")
	has(t, "arguments replace CMD only", p.output(t, probe("both")), "to stdout\n", "to stderr\n")
}

func users(t *testing.T, n *node) {
	p := n.pod(t)
	user := func(f func(*runtimeapi.LinuxContainerSecurityContext)) []edit {
		return []edit{probe("ids"), security(f)}
	}
	for _, c := range []struct {
		name  string
		edits []edit
		want  []string
	}{
		{"root", []edit{probe("ids")}, []string{"Uid: 0 0 0 0", "Gid: 0 0 0 0"}},
		{"image's user", []edit{image("user:1"), probe("ids")}, []string{"Uid: 1000 ", "Gid: 1000 ", "50000"}},
		{"number", user(func(s *runtimeapi.LinuxContainerSecurityContext) { s.RunAsUser = &runtimeapi.Int64Value{Value: 4242} }), []string{"Uid: 4242 ", "Gid: 0 "}},
		{"name", user(func(s *runtimeapi.LinuxContainerSecurityContext) { s.RunAsUsername = "alice" }), []string{"Uid: 1000 ", "Gid: 1000 "}},
		{"group", user(func(s *runtimeapi.LinuxContainerSecurityContext) {
			s.RunAsUser, s.RunAsGroup = &runtimeapi.Int64Value{Value: 7}, &runtimeapi.Int64Value{Value: 8}
			s.SupplementalGroups = []int64{901, 902}
		}), []string{"Uid: 7 ", "Gid: 8 ", "901 902"}},
	} {
		has(t, c.name, p.output(t, c.edits...), c.want...)
	}
}

// allCapabilities are those of the node, as the kernel writes them.
func allCapabilities(t *testing.T) string {
	t.Helper()
	_, after, _ := strings.Cut(read(t, "/proc/self/status"), "CapBnd:")
	return strings.Fields(after)[0]
}

func capabilities(t *testing.T, n *node) {
	p := n.pod(t)
	caps := func(add, drop []string) edit {
		return security(func(s *runtimeapi.LinuxContainerSecurityContext) {
			s.Capabilities = &runtimeapi.Capability{AddCapabilities: add, DropCapabilities: drop}
		})
	}
	has(t, "none", p.output(t, probe("ids"), caps(nil, []string{"ALL"})), "CapEff: 0000000000000000")
	has(t, "only one", p.output(t, probe("ids"), caps([]string{"NET_ADMIN"}, []string{"ALL"})), "CapEff: 0000000000001000")
	has(t, "those of every container", p.output(t, probe("ids")), "CapEff: 00000000a80425fb")
	has(t, "without one", p.output(t, probe("ids"), caps(nil, []string{"CHOWN"})), "CapEff: 00000000a80425fa")
	has(t, "all", p.output(t, probe("ids"), caps([]string{"ALL"}, nil)), "CapEff: "+allCapabilities(t))
	has(t, "all but one", p.output(t, probe("ids"), caps([]string{"all"}, []string{"CAP_CHOWN"})), "CapEff: "+strings.TrimSuffix(allCapabilities(t), "f")+"e")
}

func seccomp(t *testing.T, n *node) {
	p := n.pod(t)
	profile := func(k runtimeapi.SecurityProfile_ProfileType) edit {
		return security(func(s *runtimeapi.LinuxContainerSecurityContext) {
			s.Seccomp = &runtimeapi.SecurityProfile{ProfileType: k}
			s.NoNewPrivs = true
		})
	}
	standard, off := runtimeapi.SecurityProfile_RuntimeDefault, runtimeapi.SecurityProfile_Unconfined
	equal(t, "default", p.output(t, probe("keyctl"), profile(standard)), "blocked\n")
	equal(t, "unconfined", p.output(t, probe("keyctl"), profile(off)), "allowed\n")
	has(t, "status", p.output(t, probe("ids"), profile(standard)), "Seccomp: 2", "NoNewPrivs: 1")
	has(t, "status of one that asks for neither", p.output(t, probe("ids")), "Seccomp: 0", "NoNewPrivs: 0")
}

func mounts(t *testing.T, n *node) {
	p := n.pod(t)
	dir := t.TempDir()
	must(t, os.WriteFile(filepath.Join(dir, "file"), []byte("from host"), 0o644))
	must(t, os.Symlink(dir, filepath.Join(dir, "link")))
	c := p.run(t, probe("sleep"), func(c *runtimeapi.ContainerConfig) {
		c.Mounts = []*runtimeapi.Mount{
			{HostPath: dir, ContainerPath: "/rw"},
			{HostPath: dir, ContainerPath: "/ro", Readonly: true},
			{HostPath: filepath.Join(dir, "file"), ContainerPath: "/one-file", Readonly: true},
			{HostPath: filepath.Join(dir, "link"), ContainerPath: "/through-link"},
		}
	})
	for _, path := range []string{"/rw/file", "/ro/file", "/one-file", "/through-link/file"} {
		equal(t, path, c.sh(t, "cat "+path), "from host")
	}
	c.sh(t, "echo back > /rw/answer")
	if b, err := os.ReadFile(filepath.Join(dir, "answer")); err != nil || string(b) != "back\n" {
		t.Errorf("written through the mount: %q, %v", b, err)
	}
	if r := c.exec(t, "/bin/sh", "-c", "echo x > /ro/x"); r.GetExitCode() == 0 {
		t.Error("a read-only mount was written")
	}
	equal(t, "mounts in the status", len(c.status(t).GetMounts()), 4)
}

// propagation has a container for each mode: runc makes all mounts of a
// container shared when one of them has to be.
func propagation(t *testing.T, n *node) {
	p := n.pod(t, privilegedPod)
	for _, c := range []struct {
		mode runtimeapi.MountPropagation
		want string
	}{
		{runtimeapi.MountPropagation_PROPAGATION_PRIVATE, "-"},
		{runtimeapi.MountPropagation_PROPAGATION_HOST_TO_CONTAINER, "master:"},
		{runtimeapi.MountPropagation_PROPAGATION_BIDIRECTIONAL, "shared:"},
	} {
		dir := t.TempDir()
		for _, sub := range []string{"node", "own"} {
			must(t, os.Mkdir(filepath.Join(dir, sub), 0o755))
		}
		made := p.run(t, probe("sleep"), func(cc *runtimeapi.ContainerConfig) {
			cc.Mounts = []*runtimeapi.Mount{{HostPath: dir, ContainerPath: "/here", Propagation: c.mode}}
			cc.Linux.SecurityContext.Privileged = true
		})
		// The seventh field is the first of those that name peer groups, if any.
		has(t, c.mode.String(), strings.Fields(made.sh(t, "grep ' /here ' /proc/self/mountinfo"))[6], c.want)
		if n.own != nil { // its mounts are not the machine's
			propagates(t, n, made, dir, c.mode)
		}
	}
}

// propagates mounts on the node and in the container, and looks from the other side.
func propagates(t *testing.T, n *node, c *container, dir string, mode runtimeapi.MountPropagation) {
	t.Helper()
	count := map[bool]string{false: "0", true: "1"}
	node := func(script string) string {
		t.Helper()
		out, err := n.own.Space().Command(context.Background(), "sh", "-c", script).CombinedOutput()
		if err != nil {
			t.Errorf("%s: %v: %s", script, err, out)
		}
		return strings.TrimSpace(string(out))
	}
	node("mount -t tmpfs later " + dir + "/node")
	t.Cleanup(func() { node("umount -l " + dir + "/node") })
	equal(t, mode.String()+": a mount of the node's", c.sh(t, "grep -c ' /here/node ' /proc/self/mountinfo || true"),
		count[mode != runtimeapi.MountPropagation_PROPAGATION_PRIVATE])
	c.sh(t, "mount -t tmpfs later /here/own")
	equal(t, mode.String()+": a mount of the container's", node("grep -c ' "+dir+"/own ' /proc/self/mountinfo || true"),
		count[mode == runtimeapi.MountPropagation_PROPAGATION_BIDIRECTIONAL])
	c.sh(t, "umount -l /here/own")
}

func readOnly(t *testing.T, n *node) {
	p := n.pod(t)
	c := p.run(t, probe("sleep"), security(func(s *runtimeapi.LinuxContainerSecurityContext) {
		s.ReadonlyRootfs = true
		s.MaskedPaths, s.ReadonlyPaths = []string{"/etc/passwd", "/home"}, []string{"/proc/sys"}
	}))
	if r := c.exec(t, "/bin/sh", "-c", "echo x > /x"); r.GetExitCode() == 0 {
		t.Error("a read-only root was written")
	}
	equal(t, "masked file", c.sh(t, "cat /etc/passwd | wc -c"), "0")
	for _, f := range []string{"/etc/hosts", "/etc/hostname", "/etc/resolv.conf"} {
		if r := c.exec(t, "/bin/sh", "-c", "echo x >> "+f); r.GetExitCode() == 0 {
			t.Errorf("%s was written below a read-only root", f)
		}
	}
	equal(t, "masked directory", c.sh(t, "ls -A /home"), "")
	if r := c.exec(t, "/bin/sh", "-c", "echo x > /proc/sys/kernel/domainname"); r.GetExitCode() == 0 {
		t.Error("a read-only path was written")
	}
}

func privilegedPod(c *runtimeapi.PodSandboxConfig) { c.Linux.SecurityContext.Privileged = true }

func privileged(t *testing.T, n *node) {
	p := n.pod(t, privilegedPod)
	c := p.run(t, probe("sleep"), security(func(s *runtimeapi.LinuxContainerSecurityContext) {
		s.Privileged, s.MaskedPaths, s.ReadonlyPaths = true, nil, nil
	}))
	c.sh(t, "mkdir /tmp/m && mount -t tmpfs none /tmp/m && umount /tmp/m")
	has(t, "seccomp", c.sh(t, "/probe ids"), "Seccomp: 0")
	plain := n.pod(t).run(t, probe("sleep"))
	if r := plain.exec(t, "/bin/sh", "-c", "mkdir /tmp/m && mount -t tmpfs none /tmp/m"); r.GetExitCode() == 0 {
		t.Error("an ordinary container may mount")
	}
}

// makeDevice makes a device that no driver serves.
func makeDevice(t *testing.T, path string, major, minor uint32) {
	t.Helper()
	must(t, unix.Mknod(path, unix.S_IFCHR|0o666, int(unix.Mkdev(major, minor))))
}

// devices takes a device that no driver serves: where the control group lets an
// open through, the kernel says so (ENXIO), and nothing happens.
func devices(t *testing.T, n *node) {
	dev := filepath.Join(t.TempDir(), "nobody")
	makeDevice(t, dev, 250, 77)
	c := n.pod(t).run(t, probe("sleep"), func(c *runtimeapi.ContainerConfig) {
		c.Devices = []*runtimeapi.Device{
			{HostPath: "/dev/zero", ContainerPath: "/dev/nought", Permissions: "rwm"},
			{HostPath: dev, ContainerPath: "/dev/reader", Permissions: "r"},
		}
	})
	equal(t, "bytes read", c.sh(t, "head -c 4 /dev/nought | wc -c"), "4")
	has(t, "permitted read", c.sh(t, "cat /dev/reader 2>&1 || true"), "No such device")
	has(t, "forbidden write", c.sh(t, "dd if=/dev/null of=/dev/reader conv=notrunc 2>&1 || true"), "not permitted")
	has(t, "device that was not given", c.sh(t, "mknod /x c 250 78 && cat /x 2>&1 || true"), "not permitted")
}

package suite

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func securityStories() []story {
	return []story{
		{name: "security/privileged, point by point", tell: privilegedPoints},
		{name: "security/proc mount types", tell: procMount},
		{name: "security/groups merged and strict", tell: groupPolicies},
		{name: "security/ambient capabilities", tell: ambient},
		{name: "security/seccomp of the node's own", tell: seccompLocalhost},
		{name: "security/apparmor default", berth: true, tell: appArmorDefault},
		{name: "security/apparmor of the node's own", tell: appArmorLocalhost},
		{name: "security/apparmor unconfined", tell: appArmorUnconfined},
		{name: "security/apparmor refused", berth: true, tell: appArmorRefused},
		{name: "security/apparmor default comes back", owned: true, tell: appArmorAgain},
		{name: "security/selinux labels", berth: true, tell: selinuxLabels},
		{name: "security/selinux relabelled volumes", berth: true, tell: selinuxVolumes},
		{name: "security/selinux refused", berth: true, tell: selinuxRefused},
	}
}

// apparmor asks for a profile.
func apparmor(kind runtimeapi.SecurityProfile_ProfileType, ref string) edit {
	return security(func(s *runtimeapi.LinuxContainerSecurityContext) {
		s.Apparmor = &runtimeapi.SecurityProfile{ProfileType: kind, LocalhostRef: ref}
	})
}

const (
	profileDefault    = runtimeapi.SecurityProfile_RuntimeDefault
	profileUnconfined = runtimeapi.SecurityProfile_Unconfined
	profileLocalhost  = runtimeapi.SecurityProfile_Localhost
)

// unmasked may do what only profiles and masks forbid here.
func unmasked(c *runtimeapi.ContainerConfig) {
	s := c.Linux.SecurityContext
	s.Capabilities = &runtimeapi.Capability{AddCapabilities: []string{"SYS_ADMIN"}}
	s.MaskedPaths, s.ReadonlyPaths = nil, nil
}

// refuse creates what must not be, and returns why it is not.
func (p *pod) refuse(t *testing.T, code codes.Code, edits ...edit) string {
	t.Helper()
	c := p.containerConfig(t, edits...)
	r, err := p.n.rt.CreateContainer(t.Context(), &runtimeapi.CreateContainerRequest{PodSandboxId: p.id, Config: c, SandboxConfig: p.config})
	if err == nil {
		t.Errorf("container %s was made", r.GetContainerId())
		return ""
	}
	wantCode(t, "refusal", err, code)
	if _, serr := os.Stat(filepath.Join(p.config.LogDirectory, c.LogPath)); serr == nil {
		t.Errorf("a log is left of a container that was not made (%v)", err)
	}
	return err.Error()
}

// fails runs a script that must not succeed, and returns what it said.
func (c *container) fails(t *testing.T, script string) string {
	t.Helper()
	r := c.exec(t, "/bin/sh", "-c", script)
	if r.GetExitCode() == 0 {
		t.Errorf("%s: succeeded: %s", script, r.GetStdout())
	}
	return string(r.GetStdout()) + string(r.GetStderr())
}

// privilegedPoints goes through the eight points of the CRI's text.
func privilegedPoints(t *testing.T, n *node) {
	p := n.pod(t, privilegedPod)
	c := p.run(t, probe("sleep"), security(func(s *runtimeapi.LinuxContainerSecurityContext) {
		s.Privileged = true
		s.Seccomp = &runtimeapi.SecurityProfile{ProfileType: profileDefault}
		s.Apparmor = &runtimeapi.SecurityProfile{ProfileType: profileDefault}
		s.SelinuxOptions = &runtimeapi.SELinuxOption{Level: "s0:c1,c2"}
		s.Capabilities = &runtimeapi.Capability{DropCapabilities: []string{"ALL"}}
	}))
	has(t, "1: all capabilities", c.sh(t, "grep -E 'Cap(Eff|Prm|Bnd)' /proc/self/status"), "CapEff:\t"+allCapabilities(t))
	equal(t, "2: nothing is masked", c.sh(t, "grep -c -E ' /proc/kcore | /sys/firmware ' /proc/self/mountinfo || true"), "0")
	for _, path := range []string{"/proc", "/sys"} {
		has(t, "3: writable "+path, c.sh(t, "grep ' "+path+" ' /proc/self/mountinfo"), " rw,")
	}
	// A profile is followed by its mode in brackets; an SELinux label is not.
	if profile := c.sh(t, "cat /proc/self/attr/current 2>/dev/null || true"); strings.Contains(profile, "(") {
		t.Errorf("4: AppArmor: %q", profile)
	}
	has(t, "5: seccomp", c.sh(t, "grep Seccomp: /proc/self/status"), "0")
	c.sh(t, "mknod /made c 250 79")
	has(t, "6: any device", c.sh(t, "cat /made 2>&1 || true"), "No such device") // the control group let it through
	has(t, "7: the node's devices", c.sh(t, "ls /dev"), "kmsg")
	if label := c.sh(t, "cat /proc/self/attr/current 2>/dev/null || true"); strings.Contains(label, "c1,c2") {
		t.Errorf("8: SELinux: %q", label)
	}
	has(t, "a privileged container elsewhere", n.pod(t).refuse(t, codes.InvalidArgument, security(func(s *runtimeapi.LinuxContainerSecurityContext) { s.Privileged = true })), "privileged")
}

// procMount is what the kubelet sends for procMount Default and Unmasked.
func procMount(t *testing.T, n *node) {
	p := n.pod(t)
	masks := func(masked, readonly []string) edit {
		return security(func(s *runtimeapi.LinuxContainerSecurityContext) { s.MaskedPaths, s.ReadonlyPaths = masked, readonly })
	}
	standard := p.run(t, probe("sleep"), masks([]string{"/proc/keys", "/proc/timer_list", "/proc/no-such"}, []string{"/proc/sys", "/proc/bus"}))
	equal(t, "a masked file", standard.sh(t, "cat /proc/keys | wc -c"), "0")
	standard.fails(t, "echo x >/proc/sys/kernel/domainname")
	open := p.run(t, probe("sleep"), masks(nil, nil))
	equal(t, "mounts below an unmasked proc", open.sh(t, "grep -c ' /proc/' /proc/self/mountinfo || true"), "0")
	for _, bad := range [][2][]string{{{"proc/keys"}, nil}, {nil, {"sys"}}} {
		has(t, "a relative path", p.refuse(t, codes.InvalidArgument, masks(bad[0], bad[1])), "not absolute")
	}
}

func groupPolicies(t *testing.T, n *node) {
	p := n.pod(t)
	for _, c := range []struct {
		policy runtimeapi.SupplementalGroupsPolicy
		want   string
	}{
		{runtimeapi.SupplementalGroupsPolicy_Merge, "1000 50000 901"},
		{runtimeapi.SupplementalGroupsPolicy_Strict, "1000 901"},
	} {
		made := p.run(t, image("user:1"), probe("sleep"), security(func(s *runtimeapi.LinuxContainerSecurityContext) {
			s.SupplementalGroups, s.SupplementalGroupsPolicy = []int64{901}, c.policy
		}))
		// The kernel sorts them.
		got := strings.Fields(made.sh(t, "grep Groups: /proc/1/status"))[1:]
		want := strings.Fields(c.want)
		if len(got) != len(want) {
			t.Errorf("%s: %v, want %v", c.policy, got, want)
		}
		for _, g := range want {
			has(t, c.policy.String(), " "+strings.Join(got, " ")+" ", " "+g+" ")
		}
		user := made.status(t).GetUser().GetLinux()
		equal(t, "uid in the status", user.GetUid(), 1000)
		equal(t, "gid in the status", user.GetGid(), 1000)
		equal(t, "groups in the status", len(user.GetSupplementalGroups()), len(want))
	}
	st, err := n.rt.Status(t.Context(), &runtimeapi.StatusRequest{})
	must(t, err)
	equal(t, "the feature is advertised", st.GetFeatures().GetSupplementalGroupsPolicy(), true)
	has(t, "a group without a user", p.refuse(t, codes.InvalidArgument, security(func(s *runtimeapi.LinuxContainerSecurityContext) {
		s.RunAsGroup = &runtimeapi.Int64Value{Value: 5}
	})), "run_as_group")
	has(t, "an unknown name", p.refuse(t, codes.InvalidArgument, security(func(s *runtimeapi.LinuxContainerSecurityContext) {
		s.RunAsUsername = "nobody-here"
	})), "nobody-here")
}

func ambient(t *testing.T, n *node) {
	out := n.pod(t).output(t, shell("grep -E 'Cap(Eff|Amb|Inh)' /proc/self/status | xargs"), security(func(s *runtimeapi.LinuxContainerSecurityContext) {
		s.RunAsUser = &runtimeapi.Int64Value{Value: 1000}
		s.Capabilities = &runtimeapi.Capability{DropCapabilities: []string{"ALL"}, AddAmbientCapabilities: []string{"NET_BIND_SERVICE"}}
	}))
	has(t, "a user's capability", out, "CapEff: 0000000000000400", "CapAmb: 0000000000000400", "CapInh: 0000000000000400")
}

func seccompLocalhost(t *testing.T, n *node) {
	p := n.pod(t)
	file := filepath.Join(t.TempDir(), "profile.json")
	must(t, os.WriteFile(file, []byte(`{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["mkdir","mkdirat"],"action":"SCMP_ACT_ERRNO"}]}`), 0o644))
	profile := func(ref string) edit {
		return security(func(s *runtimeapi.LinuxContainerSecurityContext) {
			s.Seccomp = &runtimeapi.SecurityProfile{ProfileType: profileLocalhost, LocalhostRef: ref}
		})
	}
	old := security(func(s *runtimeapi.LinuxContainerSecurityContext) { s.SeccompProfilePath = "localhost/" + file })
	for name, e := range map[string]edit{"named": profile(file), "by its old name": old} {
		c := p.run(t, probe("sleep"), e)
		has(t, "a forbidden call, "+name, c.fails(t, "mkdir /x"), "not permitted")
		c.sh(t, "touch /y")
	}
	has(t, "a missing profile", p.refuse(t, codes.InvalidArgument, profile(file+".no")), "does not exist")
}

// needAppArmor skips the test where the kernel has none.
func needAppArmor(t *testing.T) {
	t.Helper()
	if b, _ := os.ReadFile("/sys/module/apparmor/parameters/enabled"); !strings.HasPrefix(string(b), "Y") {
		t.Skip("this kernel has no AppArmor: make vm RUN=lsm")
	}
}

func appArmorDefault(t *testing.T, n *node) {
	needAppArmor(t)
	p := n.pod(t)
	old := security(func(s *runtimeapi.LinuxContainerSecurityContext) { s.ApparmorProfile = "runtime/default" })
	for name, e := range map[string]edit{"named": apparmor(profileDefault, ""), "by its old name": old, "not asked for": unmasked} {
		c := p.run(t, probe("sleep"), unmasked, e)
		equal(t, name, c.sh(t, "cat /proc/self/attr/current"), "berth-default (enforce)")
		equal(t, name+", first process", c.sh(t, "cat /proc/1/attr/current"), "berth-default (enforce)")
		has(t, "a mount", c.fails(t, "mkdir -p /tmp/m && mount -t tmpfs none /tmp/m"), "denied")
		has(t, "a sysctl", c.fails(t, "echo x >/proc/sys/kernel/domainname"), "denied")
		has(t, "the kernel's memory", c.fails(t, "head -c 1 /proc/kcore"), "denied")
		has(t, "a file of proc", c.fails(t, "echo h >/proc/sysrq-trigger"), "denied")
		c.sh(t, "touch /x && mkdir /d && rm -r /x /d && echo 0 >/proc/self/oom_score_adj")
		c.sh(t, "echo $(cat /proc/sys/kernel/shmmax) >/proc/sys/kernel/shmmax")
		c.sh(t, "sleep 1000 & kill $!")
		c.stop(t, 5)
	}
}

const testProfile = `profile berth-suite flags=(attach_disconnected) {
  file, network, capability, signal, ptrace,
  deny /forbidden/** w,
}`

// loadProfile loads the test's profile until the test ends.
func loadProfile(t *testing.T) {
	t.Helper()
	run := func(flag string) {
		cmd := exec.Command("apparmor_parser", flag, "--skip-cache")
		cmd.Stdin = strings.NewReader(testProfile)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("apparmor_parser %s: %v\n%s", flag, err, out)
		}
	}
	run("--replace")
	t.Cleanup(func() { run("--remove") })
}

func appArmorLocalhost(t *testing.T, n *node) {
	needAppArmor(t)
	loadProfile(t)
	p := n.pod(t)
	old := security(func(s *runtimeapi.LinuxContainerSecurityContext) { s.ApparmorProfile = "localhost/berth-suite" })
	for name, e := range map[string]edit{
		"named": apparmor(profileLocalhost, "berth-suite"), "named as the old field has it": apparmor(profileLocalhost, "localhost/berth-suite"),
		"by its old name": old,
	} {
		c := p.run(t, probe("sleep"), e)
		equal(t, name, c.sh(t, "cat /proc/self/attr/current"), "berth-suite (enforce)")
		has(t, name, c.fails(t, "mkdir -p /forbidden; touch /forbidden/x"), "denied")
		c.sh(t, "touch /allowed")
	}
}

func appArmorUnconfined(t *testing.T, n *node) {
	needAppArmor(t)
	p := n.pod(t)
	old := security(func(s *runtimeapi.LinuxContainerSecurityContext) { s.ApparmorProfile = "unconfined" })
	for name, e := range map[string]edit{"named": apparmor(profileUnconfined, ""), "by its old name": old} {
		c := p.run(t, probe("sleep"), unmasked, e)
		has(t, name, c.sh(t, "cat /proc/self/attr/current"), "unconfined")
		c.sh(t, "mkdir -p /tmp/m && mount -t tmpfs none /tmp/m && umount /tmp/m")
	}
}

func appArmorRefused(t *testing.T, n *node) {
	p := n.pod(t)
	has(t, "a profile that is not loaded", p.refuse(t, codes.FailedPrecondition, apparmor(profileLocalhost, "no-such-profile")), "no-such-profile")
	has(t, "no name", p.refuse(t, codes.InvalidArgument, apparmor(profileLocalhost, "")), "localhost_ref")
	has(t, "a name too many", p.refuse(t, codes.InvalidArgument, apparmor(profileUnconfined, "x")), "localhost_ref")
}

// appArmorAgain takes the default profile away under the daemon.
func appArmorAgain(t *testing.T, n *node) {
	needAppArmor(t)
	f, err := os.OpenFile("/sys/kernel/security/apparmor/.remove", os.O_WRONLY, 0)
	must(t, err)
	_, err = f.WriteString("berth-default")
	must(t, err)
	must(t, f.Close())
	has(t, "profile of the next container", n.pod(t).output(t, shell("cat /proc/self/attr/current")), "berth-default (enforce)")
}

// needSELinux skips the test where no policy labels anything.
func needSELinux(t *testing.T) {
	t.Helper()
	if _, err := os.Stat("/sys/fs/selinux/enforce"); err != nil {
		t.Skip("SELinux is not on: make vm RUN=selinux")
	}
}

// label returns the label of a file on the node.
func label(t *testing.T, path string) string {
	t.Helper()
	var b [500]byte
	n, err := unix.Lgetxattr(path, "security.selinux", b[:])
	must(t, err)
	return strings.TrimRight(string(b[:n]), "\x00")
}

func selinuxLabels(t *testing.T, n *node) {
	needSELinux(t)
	current := func(c *container) string { return strings.TrimRight(c.sh(t, "cat /proc/1/attr/current"), "\x00") }
	p := n.pod(t)
	a, b := p.run(t, probe("sleep")), p.run(t, probe("sleep"))
	other := n.pod(t).run(t, probe("sleep"))
	mine := current(a)
	has(t, "a container's label", mine, ":container_t:s0:c")
	equal(t, "containers of one pod", current(b), mine)
	if current(other) == mine {
		t.Errorf("two pods have the label %s", mine)
	}
	level := strings.SplitN(mine, ":", 4)[3]
	for _, m := range []string{"/", "/dev/shm"} {
		has(t, "files of "+m, a.sh(t, "grep ' "+m+" ' /proc/self/mountinfo"), "container_file_t:"+level)
	}
	for _, f := range []string{"/etc/hostname", "/etc/resolv.conf", "/etc/hosts"} {
		has(t, f, label(t, fmt.Sprintf("/proc/%d/root%s", a.pid(t), f)), "container_file_t:"+level)
	}
	equal(t, "an exec'ed process", strings.TrimRight(a.sh(t, "cat /proc/self/attr/current"), "\x00"), mine)
	asked := p.run(t, probe("sleep"), security(func(s *runtimeapi.LinuxContainerSecurityContext) {
		s.SelinuxOptions = &runtimeapi.SELinuxOption{Level: "s0:c7,c8"}
	}))
	has(t, "a level of the client's", current(asked), ":container_t:s0:c7,c8")
	leveled := n.pod(t, func(c *runtimeapi.PodSandboxConfig) {
		c.Linux.SecurityContext.SelinuxOptions = &runtimeapi.SELinuxOption{Level: "s0:c9,c10"}
	})
	has(t, "a level of the pod's", current(leveled.run(t, probe("sleep"))), ":container_t:s0:c9,c10")
	priv := n.pod(t, privilegedPod).run(t, probe("sleep"), security(func(s *runtimeapi.LinuxContainerSecurityContext) { s.Privileged = true }))
	if strings.Contains(current(priv), "container_t") {
		t.Errorf("a privileged container is confined: %s", current(priv))
	}
	has(t, "files of a privileged container", priv.sh(t, "grep ' / ' /proc/self/mountinfo"), ":container_file_t:s0:c")
	if n.own != nil {
		must(t, n.own.Kill())
		must(t, n.own.Start(t.Context()))
		equal(t, "after a restart of the daemon", current(p.run(t, probe("sleep"))), mine)
	}
}

func selinuxVolumes(t *testing.T, n *node) {
	needSELinux(t)
	dir := t.TempDir()
	must(t, os.MkdirAll(filepath.Join(dir, "a/b"), 0o755))
	must(t, os.WriteFile(filepath.Join(dir, "a/b/f"), []byte("x"), 0o644))
	must(t, os.Symlink("/etc/passwd", filepath.Join(dir, "link")))
	before := label(t, "/etc/passwd")
	c := n.pod(t).run(t, probe("sleep"), func(c *runtimeapi.ContainerConfig) {
		c.Mounts = []*runtimeapi.Mount{{ContainerPath: "/v", HostPath: dir, SelinuxRelabel: true}}
	})
	level := strings.SplitN(strings.TrimRight(c.sh(t, "cat /proc/1/attr/current"), "\x00"), ":", 4)[3]
	for _, f := range []string{"", "a", "a/b", "a/b/f", "link"} {
		has(t, "label of "+f, label(t, filepath.Join(dir, f)), "container_file_t:"+level)
	}
	equal(t, "what a link of the volume names", label(t, "/etc/passwd"), before)
	own := t.TempDir()
	was := label(t, own)
	n.pod(t, privilegedPod).run(t, probe("sleep"), func(c *runtimeapi.ContainerConfig) {
		c.Linux.SecurityContext.Privileged = true
		c.Mounts = []*runtimeapi.Mount{{ContainerPath: "/v", HostPath: own, SelinuxRelabel: true}}
	})
	equal(t, "a volume of a privileged container", label(t, own), was)
}

func selinuxRefused(t *testing.T, n *node) {
	options := func(o *runtimeapi.SELinuxOption) edit {
		return security(func(s *runtimeapi.LinuxContainerSecurityContext) { s.SelinuxOptions = o })
	}
	p := n.pod(t)
	has(t, "a type that is two", p.refuse(t, codes.InvalidArgument, options(&runtimeapi.SELinuxOption{Type: "a:b"})), "selinux_options")
	needSELinux(t)
	has(t, "a type the policy has not", p.refuse(t, codes.InvalidArgument, options(&runtimeapi.SELinuxOption{Type: "no_such_t"})), "no_such_t")
	has(t, "files of a privileged container with a level the policy has not", n.pod(t, privilegedPod).refuse(t, codes.InvalidArgument,
		options(&runtimeapi.SELinuxOption{Level: "s0,c4,c5"}), security(func(s *runtimeapi.LinuxContainerSecurityContext) { s.Privileged = true })), "s0,c4,c5")
	has(t, "a directory of the system", p.refuse(t, codes.InvalidArgument, func(c *runtimeapi.ContainerConfig) {
		c.Mounts = []*runtimeapi.Mount{{ContainerPath: "/v", HostPath: "/usr", SelinuxRelabel: true}}
	}), "/usr")
}

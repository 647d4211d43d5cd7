package confine

import (
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// fakeAppArmor is a kernel with the profiles given, and a parser that adds
// what it is told to the list.
func fakeAppArmor(t *testing.T, profiles, parser string) appArmor {
	t.Helper()
	dir := t.TempDir()
	a := appArmor{params: dir, policy: filepath.Join(dir, "profiles"), parser: filepath.Join(dir, "parser")}
	for file, content := range map[string]string{"enabled": "Y\n", "profiles": profiles, "parser": "#!/bin/sh\n" + strings.ReplaceAll(parser, "DIR", dir)} {
		if err := os.WriteFile(filepath.Join(dir, file), []byte(content), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return a
}

func TestAppArmorLoadsWhatIsMissing(t *testing.T) {
	a := fakeAppArmor(t, "docker-default (enforce)\n", `sed -n 's/^profile \([^ ]*\) .*/\1 (enforce)/p' >>DIR/profiles; echo "$@" >>DIR/calls`)
	if !a.enabled() {
		t.Error("not on")
	}
	for range 2 { // the second time there is nothing to do
		names, err := a.ensure(t.Context())
		if err != nil || !slices.Equal(names, []string{"docker-default", DefaultProfile}) {
			t.Fatalf("%v, %v", names, err)
		}
	}
	calls, err := os.ReadFile(filepath.Join(a.params, "calls"))
	if err != nil || string(calls) != "--replace --skip-cache\n" {
		t.Errorf("the parser was called so: %q, %v", calls, err)
	}
}

func TestAppArmorTrouble(t *testing.T) {
	a := fakeAppArmor(t, "x (enforce)\n", "echo no such rule; exit 1")
	names, err := a.ensure(t.Context())
	if err == nil || !strings.Contains(err.Error(), "no such rule") || !slices.Equal(names, []string{"x"}) {
		t.Errorf("a parser that fails: %v, %v", names, err)
	}
	n := &Node{cfg: Config{Logger: slog.New(slog.DiscardHandler)}, appArmor: &a}
	s := n.Security(t.Context())
	if !s.AppArmor || s.AppArmorDefault != "" || !strings.Contains(s.AppArmorTrouble, "no such rule") || !slices.Equal(s.AppArmorProfiles, []string{"x"}) {
		t.Errorf("%+v", s)
	}
	a.policy = filepath.Join(t.TempDir(), "no")
	if _, err := a.ensure(t.Context()); !errors.Is(err, errdefs.ErrFailedPrecondition) {
		t.Errorf("no securityfs: %v", err)
	}
	if (appArmor{params: t.TempDir()}).enabled() {
		t.Error("on without a kernel that has it")
	}
}

func TestParseProfiles(t *testing.T) {
	got := parseProfiles([]byte("a (enforce)\n/usr/bin/man (complain)\nb//null-/x y (z) (enforce)\n\n"))
	if want := []string{"a", "/usr/bin/man", "b//null-/x y (z)"}; !slices.Equal(got, want) {
		t.Errorf("%q", got)
	}
}

func TestNodeWithoutModules(t *testing.T) {
	n := &Node{}
	if s := n.Security(t.Context()); s.AppArmor || s.SELinux {
		t.Errorf("%+v", s)
	}
	level, err := n.TakeLevel("a")
	if level != "" || err != nil || n.CheckLabel("nonsense") != nil || n.Relabel("/etc", "x") != nil {
		t.Error("a node without SELinux does something about labels")
	}
}

func TestLevels(t *testing.T) {
	var l levels
	l.keep("old", "s0:c2,c3")
	l.keep("unlabelled", "")
	next := []int{2, 2, 3, 2, 2, 2} // pairs (2, 3), (2, 3), (2, 3): all the same
	intn := func(int) int { n := next[0]; next = next[1:]; return n }
	take := func(pod, want string) {
		t.Helper()
		if got, err := l.take(pod, intn); err != nil || got != want {
			t.Errorf("%s: %q, %v, want %q", pod, got, err, want)
		}
	}
	take("a", "s0:c2,c4")
	take("b", "s0:c3,c4") // 3 and 2 again, then 3 and 3, which is no pair
	take("a", "s0:c2,c4")
	l.drop("old")
	take("c", "s0:c2,c3")
}

func TestLevelsRunOut(t *testing.T) {
	taken := map[string]bool{}
	for range 8 * 7 / 2 {
		level, ok := pick(taken, 5, 2, 8)
		if !ok || taken[level] {
			t.Fatalf("after %d: %q, %v", len(taken), level, ok)
		}
		taken[level] = true
	}
	if level, ok := pick(taken, 5, 2, 8); ok {
		t.Errorf("more than there are: %q", level)
	}
}

const outLabel = "system_u:object_r:container_file_t:s0:c5,c6"

// labelled makes a tree with links that lead out of it, or skips where the
// file system keeps no labels.
func labelled(t *testing.T) (dir, outside string) {
	t.Helper()
	dir, outside = t.TempDir(), t.TempDir()
	if err := unix.Setxattr(outside, selinuxAttr, []byte(outLabel), 0); err != nil {
		t.Skipf("labels need root and a file system that keeps them: %v", err)
	}
	file := filepath.Join(outside, "f")
	for _, err := range []error{
		os.MkdirAll(filepath.Join(dir, "a/b"), 0o755), os.WriteFile(filepath.Join(dir, "a/b/f"), nil, 0o644), os.WriteFile(file, nil, 0o644),
		os.Symlink(outside, filepath.Join(dir, "a/link")), os.Symlink("nowhere", filepath.Join(dir, "dangling")), unix.Mkfifo(filepath.Join(dir, "pipe"), 0o644),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	return dir, outside
}

func TestRelabel(t *testing.T) {
	dir, outside := labelled(t)
	const label, wrong, third = "system_u:object_r:container_file_t:s0:c1,c2", "system_u:object_r:container_file_t:s0", "system_u:object_r:container_file_t:s0:c3,c4"
	before, _ := getLabel(filepath.Join(outside, "f"), true) // with SELinux every file has one
	if err := relabel(dir, label); err != nil {
		t.Fatal(err)
	}
	all := []string{"", "a", "a/b", "a/b/f", "a/link", "dangling", "pipe"}
	times := map[string]unix.Timespec{}
	for _, p := range all {
		path := filepath.Join(dir, p)
		if got, err := getLabel(path, false); err != nil || got != label {
			t.Errorf("%s: %q, %v", p, got, err)
		}
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil {
			t.Fatal(err)
		}
		times[p] = st.Ctim
	}
	if got, _ := getLabel(outside, true); got != outLabel {
		t.Errorf("a link was followed: %q", got)
	}
	if got, _ := getLabel(filepath.Join(outside, "f"), true); got != before {
		t.Errorf("a file behind a link has another label: %q", got)
	}
	// The kernel's stamps are some milliseconds coarse: go on when new ones differ.
	for tick := filepath.Join(t.TempDir(), "tick"); ; {
		var st unix.Stat_t
		if err := os.WriteFile(tick, []byte("x"), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := unix.Lstat(tick, &st); err != nil {
			t.Fatal(err)
		}
		if st.Ctim != times["a/b/f"] && st.Ctim != times["pipe"] {
			break
		}
	}
	// One file is wrong: it is mended, and the others are not written to.
	if err := unix.Setxattr(filepath.Join(dir, "a/b/f"), selinuxAttr, []byte(wrong+"\x00"), 0); err != nil {
		t.Fatal(err)
	}
	if err := relabel(dir, label); err != nil {
		t.Fatal(err)
	}
	for _, p := range all {
		var st unix.Stat_t
		if err := unix.Lstat(filepath.Join(dir, p), &st); err != nil {
			t.Fatal(err)
		}
		if written := st.Ctim != times[p]; written != (p == "a/b/f") {
			t.Errorf("%s: written is %v", p, written)
		}
	}
	if err := relabel(filepath.Join(dir, "a/b/f"), third); err != nil {
		t.Fatal(err)
	}
	if got, _ := getLabel(filepath.Join(dir, "a/b/f"), false); got != third {
		t.Errorf("a volume that is a file: %q", got)
	}
}

func TestRelabelRefuses(t *testing.T) {
	for _, p := range []string{"/", "/etc", "/usr/", "/var/lib/../lib", "/proc/1", "/sys/fs/cgroup"} {
		if err := relabel(p, "x"); !errors.Is(err, errdefs.ErrInvalidArgument) {
			t.Errorf("%s: %v", p, err)
		}
	}
	if err := relabel(filepath.Join(t.TempDir(), "no"), "x"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a path that is not there: %v", err)
	}
}

const classFile = `
Classes:
  slow:
    - Weight: 80
    - Devices: [/dev/null-and-nothing*]
      ThrottleReadBps: 1M
`

func TestClasses(t *testing.T) {
	file := filepath.Join(t.TempDir(), "blockio.yaml")
	if err := os.WriteFile(file, []byte(classFile), 0o644); err != nil {
		t.Fatal(err)
	}
	log := slog.New(slog.DiscardHandler)
	with := &Node{classes: loadClasses(file, "", log)}
	const pod, one, mine = "blockio.resources.beta.kubernetes.io/pod", "blockio.resources.beta.kubernetes.io/container.c", "io.kubernetes.cri.blockio-class"
	for _, c := range []struct {
		name       string
		node       *Node
		annotation string
		class      string
		want       error
	}{
		{"pod", with, pod, "slow", nil},
		{"container", with, one, "slow", nil},
		{"unknown", with, pod, "fast", errdefs.ErrInvalidArgument},
		{"no file", &Node{}, pod, "slow", errdefs.ErrFailedPrecondition},
		{"bad file", &Node{classes: loadClasses(filepath.Join(t.TempDir(), "no"), "", log)}, pod, "slow", errdefs.ErrFailedPrecondition},
	} {
		// Loading a bad file leaves the good one's classes: the library has one set.
		got, err := c.node.Classes("c", nil, map[string]string{c.annotation: c.class})
		if !errors.Is(err, c.want) || (c.want == nil) != (got.BlockIO != nil && got.BlockIO.Weight != nil && *got.BlockIO.Weight == 80) {
			t.Errorf("%s: %+v, %v", c.name, got, err)
		}
	}
	if got, err := with.Classes("c", map[string]string{mine: "slow"}, nil); err != nil || got.BlockIO == nil {
		t.Errorf("container's annotation: %+v, %v", got, err)
	}
	if got, err := with.Classes("c", nil, map[string]string{"blockio.resources.beta.kubernetes.io/container.other": "slow"}); err != nil || got.BlockIO != nil {
		t.Errorf("another container's class: %+v, %v", got, err)
	}
}

func TestRDTClasses(t *testing.T) {
	ask := map[string]string{"rdt.resources.beta.kubernetes.io/pod": "gold"}
	_, err := (&Node{}).Classes("c", nil, ask)
	if !errors.Is(err, errdefs.ErrFailedPrecondition) || !strings.Contains(err.Error(), "container.rdt_classes") {
		t.Errorf("no file: %v", err)
	}
	if _, err := os.Stat("/sys/fs/resctrl/schemata"); err == nil {
		t.Skip("this kernel has resctrl")
	}
	file := filepath.Join(t.TempDir(), "rdt.yaml")
	if err := os.WriteFile(file, []byte("partitions: {p: {classes: {gold: {}}}}\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	_, err = (&Node{classes: loadClasses("", file, slog.New(slog.DiscardHandler))}).Classes("c", nil, ask)
	if !errors.Is(err, errdefs.ErrFailedPrecondition) || !strings.Contains(err.Error(), `RDT class "gold"`) {
		t.Errorf("a kernel without resctrl: %v", err)
	}
	t.Log(err)
}

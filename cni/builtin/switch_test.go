package builtin

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/containernetworking/cni/libcni"
	"github.com/google/go-cmp/cmp"
)

func chainNamed(t *testing.T, name string) chain {
	t.Helper()
	all := chains()
	i := slices.IndexFunc(all, func(c chain) bool { return c.name == name })
	if i < 0 {
		t.Fatalf("the suite has no chain %s", name)
	}
	return all[i]
}

// TestIntegrationOldIPTables: what programs set up with the older iptables, whose
// tables nftables does not show, they take away again after the node has turned to
// plugins in-process. A network namespace that has had such tables has them for
// good, so the test runs in one of its own.
func TestIntegrationOldIPTables(t *testing.T) {
	bin := pluginDir(t)
	const own = "BERTH_TEST_OLD_IPTABLES"
	if os.Getenv(own) == "" {
		cmd := exec.Command("/proc/self/exe", "-test.run", "^TestIntegrationOldIPTables$", "-test.v")
		cmd.Env = append(slices.DeleteFunc(os.Environ(), func(e string) bool { return strings.HasPrefix(e, inNode+"=") }), own+"=1")
		out, err := cmd.CombinedOutput()
		if strings.Contains(string(out), "--- SKIP") {
			t.Skip("there is no older iptables here")
		}
		if err != nil || !strings.Contains(string(out), "--- PASS") {
			t.Errorf("%v\n%s", err, out)
		}
		return
	}
	path := t.TempDir()
	for _, name := range []string{"iptables", "ip6tables", "iptables-save", "ip6tables-save", "iptables-restore", "ip6tables-restore"} {
		family, rest, _ := strings.Cut(name, "-")
		old, err := exec.LookPath(strings.TrimSuffix(family+"-legacy-"+rest, "-"))
		if err != nil {
			t.Skip(err)
		}
		if err := os.Symlink(old, filepath.Join(path, name)); err != nil {
			t.Fatal(err)
		}
	}
	if out, err := exec.Command("iptables-legacy", "-t", "nat", "-S").CombinedOutput(); err != nil {
		t.Skipf("the kernel has no older tables: %s", out)
	}
	t.Setenv("PATH", path+":"+os.Getenv("PATH"))
	var want, got seen
	for name, s := range map[string]*seen{"reference": &want, "reference-then-in-process": &got} {
		i := slices.IndexFunc(ways(), func(w way) bool { return w.name == name })
		t.Run(name, func(t *testing.T) { *s = chainNamed(t, "default-gateway").run(t, bin, ways()[i]) })
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("-reference +reference-then-in-process:\n%s", d)
	}
	for _, family := range []string{"iptables", "ip6tables"} {
		out, err := exec.Command(family, "-t", "nat", "-S").CombinedOutput()
		if err != nil || strings.Contains(string(out), "suite-pod") || strings.Contains(string(out), "-A CNI-DN-") {
			t.Errorf("rules of pods are left: %v\n%s", err, out)
		}
	}
}

// TestIntegrationKeepLinks: DEL as the daemon has it takes addresses and rules at
// once and leaves the link to the end of the namespace, with which it goes.
func TestIntegrationKeepLinks(t *testing.T) {
	bin := pluginDir(t)
	for _, name := range []string{"dual-stack", "ptp"} {
		t.Run(name, func(t *testing.T) {
			c, w := chainNamed(t, name), newWorld(t)
			e := newSeam(t, Types()...)
			e.set.cfg.KeepLinks = true
			data := filepath.Join(w.dir, "ipam")
			list := c.list(t, data)
			lib := libcni.NewCNIConfigWithCacheDir([]string{bin}, filepath.Join(w.dir, "cache"), e)
			ns := w.namespaceFor("kept")
			rt := &libcni.RuntimeConf{ContainerID: "suite-kept", NetNS: ns, IfName: "eth0", CapabilityArgs: map[string]any{"portMappings": c.ports}}
			if _, err := lib.AddNetworkList(t.Context(), list, rt); err != nil {
				t.Fatal(err)
			}
			for range 2 {
				if err := lib.DelNetworkList(t.Context(), list, rt); err != nil {
					t.Fatal(err)
				}
			}
			if n := c.held(t, data); n != 0 {
				t.Errorf("%d addresses are taken", n)
			}
			if rules := w.sh("nft list ruleset"); strings.Contains(rules, "suite-kept") || strings.Contains(rules, "10.77.0.2") {
				t.Errorf("rules are left:\n%s", rules)
			}
			if addrs := w.in(ns, "ip -o addr show dev eth0"); strings.Contains(addrs, "10.77.") || strings.Contains(addrs, "fd00:77:") {
				t.Errorf("the pod has addresses:\n%s", addrs)
			}
			w.end(ns)
			w.eventually("the links are gone", func() bool { return !strings.Contains(w.sh("ip -o link"), "veth") })
		})
	}
}

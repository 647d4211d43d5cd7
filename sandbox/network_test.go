package sandbox

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-dev/berth/cni"
	"github.com/berth-dev/berth/cni/netns"
	"github.com/berth-dev/berth/store"
)

// inProcess returns a node whose pods need no plugin program.
func inProcess(t testing.TB) *node {
	n := newNode(t)
	n.builtin = []string{"bridge", "host-local", "loopback", "portmap"}
	n.open(t)
	return n
}

// load runs and stops pods, so many at a time, and returns how long each took.
func (n *node) load(t testing.TB, pods, parallel int) (run, stop []time.Duration) {
	t.Helper()
	var next atomic.Int32
	var mu sync.Mutex
	var wg sync.WaitGroup
	for range parallel {
		wg.Go(func() {
			for i := next.Add(1); i <= int32(pods); i = next.Add(1) {
				rec := newRecord(func(c *runtimeapi.PodSandboxConfig) {
					c.Metadata.Name = fmt.Sprintf("load-%d", i)
					c.PortMappings = []*runtimeapi.PortMapping{{HostPort: 20000 + i, ContainerPort: 80}}
				})
				t0 := time.Now()
				if _, err := n.Run(t.Context(), rec); err != nil {
					t.Error(err)
					return
				}
				t1 := time.Now()
				if err := n.Stop(t.Context(), rec.ID); err != nil {
					t.Error(err)
				}
				t2 := time.Now()
				if err := n.Remove(t.Context(), rec.ID); err != nil {
					t.Error(err)
				}
				mu.Lock()
				run, stop = append(run, t1.Sub(t0)), append(stop, t2.Sub(t1))
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	slices.Sort(run)
	slices.Sort(stop)
	return run, stop
}

// 200 pods, 32 at a time, all of them up at once at the end.
func TestIntegrationManyInProcess(t *testing.T) {
	n := inProcess(t)
	const pods, parallel = 200, 32
	ids := make(chan string, pods)
	var next atomic.Int32
	var wg sync.WaitGroup
	for range parallel {
		wg.Go(func() {
			for i := next.Add(1); i <= pods; i = next.Add(1) {
				rec := newRecord(func(c *runtimeapi.PodSandboxConfig) {
					c.Metadata.Name = fmt.Sprintf("many-%d", i)
					c.PortMappings = []*runtimeapi.PortMapping{{HostPort: 20000 + i, ContainerPort: 80}}
				})
				if _, err := n.Run(t.Context(), rec); err != nil {
					t.Error(err)
					continue
				}
				ids <- rec.ID
			}
		})
	}
	wg.Wait()
	close(ids)
	seen := map[string]bool{}
	var all []string
	for id := range ids {
		rec, err := n.db.Sandbox(id)
		if err != nil {
			t.Fatal(err)
		}
		for _, ip := range rec.Facts.Network.IPs {
			if seen[ip] {
				t.Errorf("address %s was given twice", ip)
			}
			seen[ip] = true
		}
		all = append(all, id)
	}
	if len(seen) != 2*pods {
		t.Errorf("%d addresses, want %d", len(seen), 2*pods)
	}
	var left atomic.Int32
	left.Store(int32(len(all)))
	for range parallel {
		wg.Go(func() {
			for i := left.Add(-1); i >= 0; i = left.Add(-1) {
				if err := n.Stop(t.Context(), all[i]); err != nil {
					t.Error(err)
				}
				if err := n.Remove(t.Context(), all[i]); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	files, err := os.ReadDir(filepath.Join(n.ipam, "berth-test"))
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		if f.Name() != "lock" && !strings.HasPrefix(f.Name(), "last_reserved_ip.") {
			t.Errorf("address %s is still reserved", f.Name())
		}
	}
}

// With nothing configured, pods are on the built-in network, and a bad file that comes
// later leaves them there.
func TestIntegrationDefaultNetwork(t *testing.T) {
	n := inProcess(t)
	if err := os.Remove(filepath.Join(n.conf, "10-test.conflist")); err != nil {
		t.Fatal(err)
	}
	network, err := cni.New(cni.Config{ConfDir: n.conf, BinDirs: []string{filepath.Join(n.dir, "no-programs")},
		CacheDir: filepath.Join(n.dir, "state", "cni"), Builtin: n.builtin, KeepLinks: true,
		Default: &cni.Default{Bridge: "berthtest1", Subnets: []string{"10.201.0.0/24", "fd00:201::/64"}, DataDir: n.ipam}})
	if err != nil {
		t.Fatal(err)
	}
	n.net = network
	if err := network.Status(t.Context()).Err; err != nil {
		t.Fatal(err)
	}
	run, _ := n.load(t, 3, 1)
	if len(run) != 3 {
		t.Errorf("%d of 3 pods ran", len(run))
	}
	if err := os.WriteFile(filepath.Join(n.conf, "10-bad.conflist"), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	// The file is nobody's network yet, and takes none from anybody: it is named.
	network.Start()
	t.Cleanup(network.Close)
	for end := time.Now().Add(time.Minute); ; time.Sleep(20 * time.Millisecond) {
		r := network.Status(t.Context())
		if r.Err == nil && strings.Contains(r.Note, "10-bad.conflist") {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("with a bad file: %+v", r)
		}
	}
}

// otherHostPorts are rules of another runtime's pod, in the table that plugins share.
const otherHostPorts = `table ip cni_hostport {
	chain hostports { tcp dport 9999 dnat to 10.9.9.9:80 comment "other"; }
	chain hostip_hostports { }
	chain hostports_all { jump hostip_hostports; jump hostports; }
	chain prerouting { type nat hook prerouting priority dstnat; policy accept; fib daddr type local jump hostports_all; }
	chain output { type nat hook output priority -100; policy accept; fib daddr type local jump hostports_all; }
	chain masquerading { type nat hook postrouting priority srcnat; policy accept; }
}`

// The built-in network is taken away again, and nothing tells that it was there:
// not while pods are on it, and nothing that was there before.
func TestIntegrationBuiltinNetworkIsReset(t *testing.T) {
	n := inProcess(t)
	if err := os.Remove(filepath.Join(n.conf, "10-test.conflist")); err != nil {
		t.Fatal(err)
	}
	sh := func(script string) string {
		t.Helper()
		out, err := exec.Command("sh", "-c", script).CombinedOutput()
		if err != nil {
			t.Fatalf("%s: %v: %s", script, err, out)
		}
		return string(out)
	}
	// Tests before this one have left the node as networks do.
	sh("for l in $(ip -o link show type bridge | cut -d: -f2); do ip link del $l; done; nft flush ruleset")
	sh("echo 0 >/proc/sys/net/ipv4/ip_forward; echo 0 >/proc/sys/net/ipv6/conf/all/forwarding")
	sh("ip link add berthtest2 type veth peer name berthtest3; echo 1 >/proc/sys/net/ipv4/conf/berthtest2/forwarding")
	sh("nft add table inet mine; nft '" + otherHostPorts + "'")
	t.Cleanup(func() { sh("ip link del berthtest2; nft flush ruleset") })
	// Without what the kernel brings about a little later by itself: carriers,
	// link-local addresses and the end of the search for duplicates.
	look := func() string {
		return sh("{ ip -o link | sed 's/^[0-9]*: //; s/ qlen.*//'; ip -o addr | sed 's/^[0-9]*: //'; ip route; ip -6 route; } | grep -v fe80: |" +
			" sed 's/NO-CARRIER,//; s/,LOWER_UP//; s/ state [A-Z]*//; s/ tentative//; s/ linkdown//'; nft list ruleset; grep -r . /proc/sys/net/ipv4/ip_forward /proc/sys/net/ipv[46]/conf/*/forwarding")
	}
	before := look()
	cache := filepath.Join(n.dir, "state", "cni")
	if done, err := cni.ResetBuiltin(t.Context(), cache); err != nil || len(done) != 0 {
		t.Errorf("without the network: %v, %v", done, err)
	}
	var err error
	if n.net, err = cni.New(cni.Config{ConfDir: n.conf, BinDirs: []string{filepath.Join(n.dir, "no-programs")},
		CacheDir: cache, Builtin: n.builtin, KeepLinks: true,
		Default: &cni.Default{Bridge: "berthtest1", Subnets: []string{"10.201.0.0/24", "fd00:201::/64"}, DataDir: n.ipam}}); err != nil {
		t.Fatal(err)
	}
	for range 2 { // it comes back, and goes again
		rec := newRecord(func(c *runtimeapi.PodSandboxConfig) {
			c.PortMappings = []*runtimeapi.PortMapping{{HostPort: 20000, ContainerPort: 80}}
		})
		if _, err := n.Run(t.Context(), rec); err != nil {
			t.Fatal(err)
		}
		with := look()
		if _, err := cni.ResetBuiltin(t.Context(), cache); !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), rec.ID) {
			t.Errorf("with a pod: %v", err)
		}
		if d := cmp.Diff(with, look()); d != "" {
			t.Errorf("a refused reset changed the node:\n%s", d)
		}
		n.stopAndRemove(t, rec.ID)
		done, err := cni.ResetBuiltin(t.Context(), cache)
		if err != nil || len(done) < 4 {
			t.Errorf("reset: %v, %v", done, err)
		}
		if d := cmp.Diff(before, look()); d != "" {
			t.Errorf("left on the node:\n%s\ndone: %v", d, done)
		}
		if _, err := os.Stat(filepath.Join(n.ipam, "berth-berthtest1")); err == nil {
			t.Error("addresses are left")
		}
		if done, err := cni.ResetBuiltin(t.Context(), cache); err != nil || len(done) != 0 {
			t.Errorf("a second time: %v, %v", done, err)
		}
	}
}

// After a restart of the node the addresses of its pods are free at once, though
// the power took the notes of the attachments with it, and nobody stopped the pods.
func TestIntegrationAddressesAfterReboot(t *testing.T) {
	n := inProcess(t)
	noted, lost := newRecord(nil), newRecord(nil)
	for _, rec := range []store.Sandbox{noted, lost} {
		if _, err := n.Run(t.Context(), rec); err != nil {
			t.Fatal(err)
		}
	}
	unpin := func(id string) { // as the end of the boot does
		t.Helper()
		if err := netns.UnpinAll(n.at.nsDir(id)); err != nil {
			t.Fatal(err)
		}
	}
	unpin(noted.ID)
	unpin(lost.ID)
	for _, f := range []string{"intents/" + lost.ID, "results"} {
		if err := os.RemoveAll(filepath.Join(n.dir, "state", "cni", f)); err != nil {
			t.Fatal(err)
		}
	}
	n.open(t)
	n.cfg.BootID = "another"
	n.recover(t)
	files, err := os.ReadDir(filepath.Join(n.ipam, "berth-test"))
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		if net.ParseIP(f.Name()) != nil {
			t.Errorf("address %s is still reserved", f.Name())
		}
	}
	for _, rec := range []store.Sandbox{noted, lost} {
		n.stopAndRemove(t, rec.ID)
	}
}

// A pod whose network namespace somebody took away is stopped and removed
// without a trace, and its address and host port are free.
func TestIntegrationNamespaceIsTakenAway(t *testing.T) {
	for name, make := range map[string]func(testing.TB) *node{"programs": newNode, "in-process": inProcess} {
		t.Run(name, func(t *testing.T) {
			n := make(t)
			// The bridge program finds its masquerading rules by what the interface has.
			conf := filepath.Join(n.conf, "10-test.conflist")
			text, err := os.ReadFile(conf)
			if err != nil {
				t.Fatal(err)
			}
			if name == "programs" {
				text = []byte(strings.Replace(string(text), `"ipMasq":true,`, "", 1))
			}
			if err := os.WriteFile(conf, text, 0o600); err != nil {
				t.Fatal(err)
			}
			pod := func(name string) store.Sandbox {
				return newRecord(func(c *runtimeapi.PodSandboxConfig) {
					c.Metadata.Name = name
					c.PortMappings = []*runtimeapi.PortMapping{{HostPort: 20080, ContainerPort: 80}}
				})
			}
			rec, next := pod("first"), pod("next")
			if _, err := n.Run(t.Context(), rec); err != nil {
				t.Fatal(err)
			}
			if _, err := n.Run(t.Context(), next); !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), "default/first") {
				t.Errorf("a host port that a pod has: %v", err)
			}
			n.assertNothing(t, next.ID)
			pin := n.at.pin(rec.ID, netns.Net)
			if err := unix.Unmount(pin, unix.MNT_DETACH); err != nil {
				t.Fatal(err)
			}
			if err := os.Remove(pin); err != nil {
				t.Fatal(err)
			}
			n.stopAndRemove(t, rec.ID)
			if _, err := n.Run(t.Context(), next); err != nil {
				t.Fatal(err)
			}
			n.stopAndRemove(t, next.ID)
		})
	}
}

// BenchmarkNetwork compares plugin programs with plugins in-process for a
// bridge, host-local and portmap chain of both address families.
func BenchmarkNetwork(b *testing.B) {
	for _, kind := range []struct {
		name string
		make func(testing.TB) *node
	}{{"programs", newNode}, {"in-process", inProcess}} {
		for _, parallel := range []int{1, 8, 32} {
			b.Run(fmt.Sprintf("%s/%d", kind.name, parallel), func(b *testing.B) {
				n := kind.make(b)
				b.ResetTimer()
				run, stop := n.load(b, b.N, parallel)
				for name, d := range map[string][]time.Duration{"run": run, "stop": stop} {
					if len(d) > 0 {
						b.ReportMetric(float64(d[len(d)/2].Microseconds())/1000, name+"-p50-ms")
						b.ReportMetric(float64(d[len(d)*99/100].Microseconds())/1000, name+"-p99-ms")
					}
				}
			})
		}
	}
}

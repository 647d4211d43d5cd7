package sandbox

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-dev/berth/cni"
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

// With nothing configured, pods are on the built-in network; with a bad file they are not.
func TestIntegrationDefaultNetwork(t *testing.T) {
	n := inProcess(t)
	if err := os.Remove(filepath.Join(n.conf, "10-test.conflist")); err != nil {
		t.Fatal(err)
	}
	net, err := cni.New(cni.Config{ConfDir: n.conf, BinDirs: []string{filepath.Join(n.dir, "no-programs")},
		CacheDir: filepath.Join(n.dir, "state", "cni"), Builtin: n.builtin, KeepLinks: true,
		Default: &cni.Default{Bridge: "berthtest1", Subnets: []string{"10.201.0.0/24", "fd00:201::/64"}, DataDir: n.ipam}})
	if err != nil {
		t.Fatal(err)
	}
	n.net = net
	if err := net.Status(t.Context()); err != nil {
		t.Fatal(err)
	}
	run, _ := n.load(t, 3, 1)
	if len(run) != 3 {
		t.Errorf("%d of 3 pods ran", len(run))
	}
	if err := os.WriteFile(filepath.Join(n.conf, "10-bad.conflist"), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := net.Status(t.Context()); err == nil || !strings.Contains(err.Error(), "10-bad.conflist") {
		t.Errorf("with a bad file: %v", err)
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

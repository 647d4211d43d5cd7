package e2e

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/berth-dev/berth/test/harness"
	"github.com/berth-dev/berth/test/images"
)

var (
	binDir = flag.String("bin", "", "directory of berthd and berth-shim; empty: bin of the module")
	k8sDir = flag.String("k8s", "", "directory of the programs of Kubernetes; empty: bin/k8s of the module")
	full   = flag.Bool("full", false, "also the cases that take minutes")
)

// world is a cluster with one node, which the cases share. A case works in a
// Kubernetes namespace of its own.
type world struct {
	*cluster
	n   *node
	reg *images.Registry
}

// testCase is one thing that must work; slow ones are told only with -full.
type testCase struct {
	name string
	slow bool
	tell func(t *testing.T, k *kube)
}

func TestIntegrationKubernetes(t *testing.T) {
	w := newWorld(t)
	var table strings.Builder
	defer func() { fmt.Print("\n", table.String()) }()
	for _, c := range cases() {
		start, told := time.Now(), false
		ok := t.Run(c.name, func(t *testing.T) {
			if c.slow && !*full {
				t.Skip("takes minutes: told with -full")
			}
			told = true
			k := w.kube(t)
			defer k.end()
			c.tell(t, k)
		})
		verdict := "not told"
		if told {
			verdict = map[bool]string{true: "works", false: "FAILS"}[ok]
		}
		fmt.Fprintf(&table, "%-8s %6.1f s  %s\n", verdict, time.Since(start).Seconds(), c.name)
	}
	t.Run("nothing is left", func(t *testing.T) { w.leftovers(t) })
}

func cases() []testCase {
	var all []testCase
	for _, part := range [][]testCase{workloadCases(), streamCases(), volumeCases(), resourceCases(), securityCases(), networkCases(), restartCases(), nodesCases()} {
		all = append(all, part...)
	}
	return all
}

// programs finds what a cluster is made of, or skips the test.
func programs(t *testing.T) (harness.Programs, string) {
	t.Helper()
	if os.Getenv("BERTH_E2E") == "" {
		t.Skip("a whole Kubernetes: run by `make e2e`")
	}
	p, err := harness.Find(*binDir)
	if err != nil {
		t.Fatal(err)
	}
	if missing := p.Missing(true); len(missing) > 0 {
		t.Fatalf("this machine lacks: %s", strings.Join(missing, "; "))
	}
	bin := *k8sDir
	if bin == "" {
		bin = filepath.Join(p.Bin, "k8s")
	}
	if bin, err = filepath.Abs(bin); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler", "kube-proxy", "kubelet", "kubectl"} {
		if _, err := os.Stat(filepath.Join(bin, name)); err != nil {
			t.Fatalf("%v: run `hack/setup k8s`", err)
		}
	}
	return p, bin
}

func newWorld(t *testing.T) *world {
	t.Helper()
	progs, bin := programs(t)
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	c, err := newCluster(ctx, bin, progs)
	if err != nil {
		t.Fatal(err)
	}
	w := &world{cluster: c}
	t.Cleanup(func() {
		if t.Failed() {
			t.Log(w.tails())
		}
		if err := w.close(); err != nil {
			t.Error(err)
		}
	})
	w.reg = serve(ctx, t, c)
	w.n, err = c.addNode(ctx, nodeConfig{
		name: "node-1", addr: controlAddr, pods: "203.0.113.0/25", space: c.space, reg: w.reg, berth: secondHandler(progs),
	})
	if err != nil {
		t.Fatal(err)
	}
	return w
}

// serve serves the catalog on the machines' network.
func serve(ctx context.Context, t *testing.T, c *cluster) *images.Registry {
	t.Helper()
	parts, err := images.LoadParts(ctx)
	if err != nil {
		t.Fatal(err)
	}
	all, err := images.Catalog(parts)
	if err != nil {
		t.Fatal(err)
	}
	reg, err := images.Serve(all, func() (l net.Listener, err error) {
		err = harness.InNetNS(c.space.NetNS(), func() (e error) {
			l, e = net.Listen("tcp", controlAddr+":0")
			return e
		})
		return l, err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { reg.Close() })
	return reg
}

// tails are the last lines of every log.
func (w *world) tails() string {
	var b strings.Builder
	for _, p := range w.plane {
		b.WriteString(p.tail(5))
	}
	for _, n := range w.nodes {
		fmt.Fprintf(&b, "%s:\n%s%s%s", n.name, n.kubelet.tail(40), n.proxy.tail(5), n.berth.LogTail())
	}
	return b.String()
}

// leftovers checks that the removed pods left nothing on the node.
func (w *world) leftovers(t *testing.T) {
	t.Helper()
	err := until(t.Context(), time.Minute, func(ctx context.Context) error {
		conn, err := w.n.berth.Conn()
		if err != nil {
			return err
		}
		return noPods(ctx, conn)
	})
	if err != nil {
		t.Error(err)
	}
	// They name the node's directory and would count.
	if err := errors.Join(w.n.kubelet.end(syscall.SIGTERM), w.n.proxy.end(syscall.SIGTERM)); err != nil {
		t.Error(err)
	}
	if left := w.n.berth.WaitLeftovers(t.Context()); len(left) > 0 {
		t.Errorf("left on the node:\n%s", strings.Join(left, "\n"))
	}
}

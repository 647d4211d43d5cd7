package sandbox

import (
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// TestIntegrationRealHolder runs the shim binary's own holder mode, not the
// test's stand-in.
func TestIntegrationRealHolder(t *testing.T) {
	n := newNode(t)
	bin := filepath.Join(t.TempDir(), "berth-shim")
	build := exec.Command("go", "build", "-o", bin, "github.com/berth-dev/berth/cmd/berth-shim")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("berth-shim does not build: %s", out)
	}
	n.cfg.ShimBinary = bin
	rec, err := n.Run(t.Context(), newRecord(func(c *runtimeapi.PodSandboxConfig) {
		c.Linux.SecurityContext.NamespaceOptions.Pid = runtimeapi.NamespaceMode_POD
	}))
	if err != nil {
		t.Fatal(err)
	}
	if !isHolder(rec.Facts.HolderPID, rec.ID) {
		t.Errorf("process %d is not the holder", rec.Facts.HolderPID)
	}
	n.stopAndRemove(t, rec.ID)
}

// TestIntegrationParallelPods attaches pods at the same time through real
// plugins. One pod goes first: the portmap program makes its chains without a
// lock, and several at once fail on a node that never had them.
func TestIntegrationParallelPods(t *testing.T) {
	n := newNode(t)
	first := newRecord(func(c *runtimeapi.PodSandboxConfig) {
		c.PortMappings = []*runtimeapi.PortMapping{{HostPort: 18999, ContainerPort: 80}}
	})
	if _, err := n.Run(t.Context(), first); err != nil {
		t.Fatal(err)
	}
	defer n.stopAndRemove(t, first.ID)
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			rec := newRecord(func(c *runtimeapi.PodSandboxConfig) {
				c.PortMappings = []*runtimeapi.PortMapping{{HostPort: int32(19000 + i), ContainerPort: 80}}
			})
			if _, err := n.Run(t.Context(), rec); err != nil {
				t.Error(err)
				return
			}
			if err := n.Remove(t.Context(), rec.ID); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if left := n.db.Sandboxes(); len(left) != 1 {
		t.Errorf("%d records are there, want the first pod's alone", len(left))
	}
}

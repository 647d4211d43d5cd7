package crash

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// earlier builds the Berth that testdata keeps (hack/freeze-release), whose
// database has schema 1 and whose shims speak protocol 1, or with
// BERTH_UPGRADE_FROM that of any commit. It returns the directory of its programs.
func earlier(t *testing.T) string {
	t.Helper()
	src, out := t.TempDir(), t.TempDir()
	script := `tar xzf testdata/berth-schema1.tar.gz -C "$1"`
	if os.Getenv("BERTH_UPGRADE_FROM") != "" {
		script = `git -C ../.. archive "$BERTH_UPGRADE_FROM" | tar x -C "$1"`
	}
	script += ` && cd "$1" && go build -trimpath -o "$2" ./cmd/berthd ./cmd/berth-shim`
	cmd := exec.Command("sh", "-c", script, "sh", src, out)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOWORK=off")
	if text, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build the earlier Berth: %v\n%s", err, text)
	}
	return out
}

// install puts programs in the place of others as package managers do: what
// runs keeps the file it was started from.
func install(t *testing.T, from, to string) {
	t.Helper()
	for _, name := range []string{"berthd", "berth-shim"} {
		b, err := os.ReadFile(filepath.Join(from, name))
		must(t, err)
		must(t, os.WriteFile(filepath.Join(to, name+".new"), b, 0o755))
		must(t, os.Rename(filepath.Join(to, name+".new"), filepath.Join(to, name)))
	}
}

// TestIntegrationUpgrade puts this Berth in the place of an earlier one whose
// pods run, and the earlier one back: each daemon goes on with what the other
// has left, and with its shims.
func TestIntegrationUpgrade(t *testing.T) {
	bin, old := t.TempDir(), earlier(t)
	install(t, old, bin)
	n := openFrom(t, "", bin)
	n.pull()
	p := n.newPod(runtimeapi.NamespaceMode_POD)
	p.plain = true
	p.run()
	a, b, c := p.create("a", counting), p.create("b", "exit 3"), p.create("c", "sleep 1; exit 4")
	a.start()
	b.start()
	b.ends(3, "Error")
	n.swap(built.dir, bin, a) // the upgrade
	p.lists(map[string]runtimeapi.ContainerState{a.id: running, b.id: exited, c.id: runtimeapi.ContainerState_CONTAINER_CREATED})
	b.ends(3, "Error")
	c.start() // made by the one, started by the other
	c.ends(4, "Error")
	d := p.create("d", counting)
	d.start()
	n.swap(old, bin, a, d) // the way back
	e := p.create("e", counting)
	e.start()
	n.swap(built.dir, bin, a, d, e) // and here again
	for _, x := range []*container{a, d, e} {
		x.stop(20)
		x.ends(7, "Error")
		x.counted("bye")
	}
	p.stop()
	p.remove()
	n.removeImage()
	n.clean(p.cgroup)
	n.noImages()
}

// swap kills the daemon, puts the programs of another version in the place of
// its own, starts that one, and uses the containers that run as clients do.
func (n *node) swap(version, bin string, runs ...*container) {
	n.t.Helper()
	was := func(c *container) string {
		s := c.status()
		return fmt.Sprint(s.GetState(), s.GetStartedAt(), " ", n.h.Shims()[c.id])
	}
	var before []string
	for _, c := range runs {
		before = append(before, was(c))
	}
	must(n.t, n.h.Kill())
	install(n.t, version, bin)
	n.restartWhole()
	for i, c := range runs {
		if now := was(c); now != before[i] {
			n.t.Errorf("container %s has state, start and shim %s, had %s", c.name, now, before[i])
		}
		if got := c.p.status().GetNetwork().GetIp(); got != c.p.ip {
			n.t.Errorf("the pod's address is %s, was %s", got, c.p.ip)
		}
		n.exec(c)
		n.update(c)
		n.must("reopen log", func(ctx context.Context) error {
			_, err := n.rt.ReopenContainerLog(ctx, &runtimeapi.ReopenContainerLogRequest{ContainerId: c.id})
			return err
		})
		c.counted()
	}
}

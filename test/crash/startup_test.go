package crash

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	bolt "go.etcd.io/bbolt"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func removeLog(c *container) error { return os.Remove(filepath.Join(c.p.logs, c.name+".log")) }

// TestIntegrationCorruptRecords damages the records of a container and of a
// sandbox: both are set aside, what they stood for is reaped, the rest works.
func TestIntegrationCorruptRecords(t *testing.T) {
	n := open(t)
	n.pull()
	p, q := n.newPod(runtimeapi.NamespaceMode_CONTAINER), n.newPod(runtimeapi.NamespaceMode_POD)
	q.config.PortMappings[0].HostPort = 8081
	p.run()
	q.run()
	a, b, c := p.create("a", counting), p.create("b", counting), q.create("c", counting)
	for _, x := range []*container{a, b, c} {
		x.start()
	}
	must(t, n.h.Kill())
	damage(t, n.h.Dir("state", "berth.db"), map[string]string{"containers": b.id, "sandboxes": q.id})
	n.restart()
	p.lists(map[string]runtimeapi.ContainerState{a.id: running, c.id: c.status().GetState()})
	n.eventually("the shim of a container without a record is gone", func() bool { return n.h.Shims()[b.id] == 0 })
	c.stop(0)
	c.remove()
	b2 := p.create("b", counting) // the name is free again
	b2.start()
	p.stop()
	p.remove()
	// The cgroup of a sandbox whose record is lost is the client's to remove.
	must(t, removeGroups(q.cgroup))
	n.clean(p.cgroup, q.cgroup)
}

// removeGroups removes an empty cgroup, with those below it, in every hierarchy.
func removeGroups(name string) error {
	var dirs []string
	for _, root := range []string{"/sys/fs/cgroup/" + name, "/sys/fs/cgroup/*/" + name} {
		for _, below := range []string{"/*", ""} {
			found, err := filepath.Glob(root + below)
			if err != nil {
				return err
			}
			dirs = append(dirs, found...)
		}
	}
	var errs []error
	for _, d := range dirs {
		if info, err := os.Stat(d); err == nil && info.IsDir() {
			errs = append(errs, os.Remove(d))
		}
	}
	return errors.Join(errs...)
}

// damage overwrites records, by bucket.
func damage(t *testing.T, file string, keys map[string]string) {
	t.Helper()
	db, err := bolt.Open(file, 0o600, &bolt.Options{Timeout: time.Second})
	must(t, err)
	must(t, db.Update(func(tx *bolt.Tx) error {
		for bucket, key := range keys {
			b := tx.Bucket([]byte(bucket))
			if b.Get([]byte(key)) == nil {
				t.Errorf("no record %s/%s", bucket, key)
			}
			if err := b.Put([]byte(key), []byte("\xff\x00 not a record")); err != nil {
				return err
			}
		}
		return nil
	}))
	must(t, db.Close())
}

// TestIntegrationDeadShims kills daemon and shims together.
func TestIntegrationDeadShims(t *testing.T) {
	n := open(t)
	n.pull()
	p := n.newPod(runtimeapi.NamespaceMode_CONTAINER)
	p.run()
	a, b := p.create("a", counting), p.create("b", counting)
	a.start()
	must(t, n.h.Kill())
	for _, pid := range n.h.Shims() {
		must(t, syscall.Kill(pid, syscall.SIGKILL))
	}
	n.restart()
	a.ends(255, "ContainerStatusUnknown")
	b.ends(255, "ContainerStatusUnknown")
	p.lists(map[string]runtimeapi.ContainerState{a.id: exited, b.id: exited})
	p.stop()
	p.remove()
	n.clean(p.cgroup)
}

// TestIntegrationMissingLayer deletes a layer: its image counts as absent, and
// a pull repairs it.
func TestIntegrationMissingLayer(t *testing.T) {
	n := open(t)
	n.pull()
	must(t, n.h.Kill())
	dirs, err := filepath.Glob(n.h.Dir("state", "layers", strings.Repeat("?", 64)))
	must(t, err)
	must(t, os.RemoveAll(dirs[0]))
	n.restart()
	n.must("image status", func(ctx context.Context) error {
		r, err := n.im.ImageStatus(ctx, &runtimeapi.ImageStatusRequest{Image: &runtimeapi.ImageSpec{Image: testImage}})
		if r.GetImage() != nil {
			t.Errorf("an image without its layer is there: %v", r)
		}
		return err
	})
	n.workload(runtimeapi.NamespaceMode_POD)
}

// TestIntegrationOrphans lays out what no record knows, beside things of other
// people, and expects just the former to be reaped.
func TestIntegrationOrphans(t *testing.T) {
	n := open(t)
	must(t, n.h.Kill())
	id, group := strings.Repeat("0123456789abcdef", 4), "/sys/fs/cgroup/pids/berth/"+strings.Repeat("0123456789abcdef", 4)
	others := []string{"run/ns/other", "run/sandboxes/other", "run/containers/other", "state/containers/other"}
	script := "set -e; cd " + n.h.Dir() + `
mkdir -p run/ns/$0 run/sandboxes/$0/shm run/containers/$0/rootfs state/containers/$0/upper state/sandboxes/$0
touch run/ns/$0/net; mount --bind /proc/self/ns/net run/ns/$0/net
mount -t tmpfs shm run/sandboxes/$0/shm
mount -t tmpfs rootfs run/containers/$0/rootfs
mkdir -p ` + strings.Join(others, " ")
	out, err := n.h.Space().Command(t.Context(), "sh", "-c", script, id).CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if _, err := os.Stat("/sys/fs/cgroup/pids"); err == nil {
		must(t, os.MkdirAll(group, 0o755))
		t.Cleanup(func() { _ = os.Remove(group) })
	}
	n.restart()
	if _, err := os.Stat(group); err == nil {
		t.Error("the cgroup of an unknown sandbox is left")
	}
	for _, o := range others {
		if err := os.Remove(n.h.Dir(o)); err != nil {
			t.Errorf("other people's directory: %v", err)
		}
	}
	n.clean()
}

// TestIntegrationReboot loses all that does not outlive a boot.
func TestIntegrationReboot(t *testing.T) {
	n := open(t)
	n.pull()
	p := n.newPod(runtimeapi.NamespaceMode_POD)
	p.run()
	a, b, c := p.create("a", counting), p.create("b", "echo before; exit 3"), p.create("c", counting)
	a.start()
	b.start()
	b.ends(3, "Error")
	n.eventually("there is a log", func() bool { return len(a.log()) > 0 })
	must(t, n.h.Reboot(t.Context()))
	n.restart()
	if s := p.status(); s.GetState() == ready {
		t.Error("a sandbox of the last boot is ready")
	}
	b.ends(3, "Error")
	for _, x := range []*container{a, c} {
		if s := x.status(); s.GetState() != exited || s.GetReason() == "" || s.GetReason() == "Completed" || s.GetExitCode() == 0 {
			t.Errorf("container of the last boot: %v", s)
		}
	}
	a.counted()
	p2 := n.newPod(runtimeapi.NamespaceMode_POD)
	p2.run() // beside what is left of the old one
	p2.create("a", counting).start()
	p.stop()
	p.remove()
	p2.stop()
	p2.remove()
	n.clean(p.cgroup, p2.cgroup)
}

// TestIntegrationRestartTime measures a restart with 300 ended and 50 live
// containers; only the full run takes the time to make them.
func TestIntegrationRestartTime(t *testing.T) {
	if !full() {
		t.Skip("only with BERTH_CRASH=full: makes 350 containers")
	}
	n := open(t)
	n.pull()
	const pods = 10
	var all []*pod
	var live []*container
	for range pods {
		p := n.newPod(runtimeapi.NamespaceMode_CONTAINER)
		p.config.PortMappings = nil
		p.run()
		all = append(all, p)
		for i := range 35 {
			c := p.create("c"+string(rune('A'+i)), map[bool]string{true: counting, false: "exit 3"}[i < 5])
			c.start()
			if i < 5 {
				live = append(live, c)
			}
		}
	}
	n.eventually("300 containers have ended", func() bool { return n.count(exited) == 300 })
	for range 3 {
		must(t, n.h.Kill())
		begun := time.Now()
		n.restart()
		took := time.Since(begun)
		if n.count(exited) != 300 || n.count(running) != len(live) {
			t.Errorf("%d have ended and %d run", n.count(exited), n.count(running))
		}
		t.Logf("restart with 300 ended and %d live containers: %v until the first answer", len(live), took.Round(time.Millisecond))
	}
	groups := []string{}
	for _, p := range all {
		p.stop()
		p.remove()
		groups = append(groups, p.cgroup)
	}
	n.clean(groups...)
}

func (n *node) count(st runtimeapi.ContainerState) (count int) {
	n.t.Helper()
	n.must("list containers", func(ctx context.Context) error {
		r, err := n.rt.ListContainers(ctx, &runtimeapi.ListContainersRequest{Filter: &runtimeapi.ContainerFilter{State: &runtimeapi.ContainerStateValue{State: st}}})
		count = len(r.GetContainers())
		return err
	})
	return count
}

package crash

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	bolt "go.etcd.io/bbolt"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-dev/berth/cri/admin"
	"github.com/berth-dev/berth/store"
)

func removeLog(c *container) error { return os.Remove(filepath.Join(c.p.logs, c.name+".log")) }

// TestIntegrationLostDatabase loses the database under running containers: they
// keep running, with their names, logs, addresses and exit codes.
func TestIntegrationLostDatabase(t *testing.T) {
	for name, lose := range map[string]func(file string) error{
		"gone":    os.Remove,
		"garbage": func(file string) error { return os.WriteFile(file, make([]byte, 1<<16), 0o600) },
	} {
		t.Run(name, func(t *testing.T) {
			n := open(t)
			n.pull()
			p := n.newPod(runtimeapi.NamespaceMode_POD)
			p.run()
			a, b := p.create("a", counting), p.create("b", "exit 3")
			a.start()
			b.start()
			b.ends(3, "Error")
			address, shim := p.status().GetNetwork().GetIp(), n.h.Shims()[a.id]
			must(t, n.h.Kill())
			must(t, lose(n.h.Dir("state", "berth.db")))
			n.restart()
			p.lists(map[string]runtimeapi.ContainerState{a.id: running, b.id: exited})
			b.ends(3, "Error")
			if s := p.status(); s.GetState() != ready || s.GetNetwork().GetIp() != address || n.h.Shims()[a.id] != shim {
				t.Errorf("the pod is another one: %v", s)
			}
			n.must("exec", func(ctx context.Context) error {
				_, err := n.rt.ExecSync(ctx, &runtimeapi.ExecSyncRequest{ContainerId: a.id, Cmd: []string{"true"}})
				return err
			})
			p.create("c", counting).start() // the image is known, too
			a.stop(0)
			a.counted()
			p.stop()
			p.remove()
			n.clean(p.cgroup)
		})
	}
}

// TestIntegrationCorruptRecords damages the records of a container and of a
// sandbox, and their copies: both are set aside, what they stood for is reaped,
// the rest works.
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
	keys := map[string]string{"containers": b.id, "sandboxes": q.id}
	damage(t, n.h.Dir("state", "berth.db"), keys)
	for bucket, id := range keys {
		must(t, os.Truncate(n.h.Dir("state", bucket, id, "record"), 9))
	}
	n.restartWhole()
	p.lists(map[string]runtimeapi.ContainerState{a.id: running, c.id: c.status().GetState()})
	n.eventually("the shim of a container without a record is gone", func() bool { return n.h.Shims()[b.id] == 0 })
	c.stop(0)
	c.remove()
	for bucket, id := range keys {
		if out := n.tool(0, "quarantine", "ls"); !strings.Contains(out, bucket+"/"+id) {
			t.Errorf("berthctl quarantine ls:\n%s", out)
		}
		if out := n.tool(0, "quarantine", "show", id[:20]); !strings.Contains(out, "not a reco") {
			t.Errorf("berthctl quarantine show:\n%s", out)
		}
		n.tool(0, "quarantine", "drop", bucket+"/"+id)
		n.tool(4, "quarantine", "drop", bucket+"/"+id)
	}
	b2 := p.create("b", counting) // the name is free again
	b2.start()
	p.stop()
	p.remove()
	// The cgroup of a sandbox whose record is lost is the client's to remove.
	n.eventually("its cgroup can be removed", func() bool { return removeGroups(q.cgroup) == nil })
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
	n.restartWhole()
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
	n.restartWhole()
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
	d := p.create("d", "until [ -e /logs/end ]; do sleep 0.05; done; exit 4", p.logs)
	a.start()
	b.start()
	d.start()
	b.ends(3, "Error")
	n.eventually("there is a log", func() bool { return len(a.log()) > 0 })
	// One ends while the daemon is away, so that only its record tells of it.
	must(t, n.h.Kill())
	must(t, os.WriteFile(filepath.Join(p.logs, "end"), nil, 0o644))
	n.eventually("the shim is gone", func() bool { return n.h.Shims()[d.id] == 0 })
	must(t, n.h.Reboot(t.Context()))
	n.restart()
	if s := p.status(); s.GetState() == ready {
		t.Error("a sandbox of the last boot is ready")
	}
	b.ends(3, "Error")
	d.ends(4, "Error")
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

// start starts the daemon and says how long it took to answer, and to recover.
func (n *node) timedStart(what string) {
	n.t.Helper()
	begun := time.Now()
	n.rush = false // do not wait
	n.restart()
	answered := time.Since(begun)
	for settled := false; !settled; time.Sleep(time.Millisecond) {
		must(n.t, n.admin(func(c admin.AdminClient) error {
			r, err := c.Recovery(n.t.Context(), &admin.RecoveryRequest{})
			settled = r.GetSettled()
			return err
		}))
	}
	n.t.Logf("start with %s: %v until the first answer, %v until all is recovered", what,
		answered.Round(time.Millisecond), time.Since(begun).Round(time.Millisecond))
}

// TestIntegrationRestartTime measures restarts with 500 live containers; only the
// full run takes the time to make so many.
func TestIntegrationRestartTime(t *testing.T) {
	pods, each := 2, 3
	if full() {
		pods, each = 25, 20
	}
	n := open(t)
	n.pull()
	var groups []string
	for range pods {
		p := n.newPod(runtimeapi.NamespaceMode_CONTAINER)
		p.config.PortMappings = nil
		p.run()
		groups = append(groups, p.cgroup)
		for i := range each {
			p.create("c"+string(rune('A'+i)), "exec sleep 100000").start()
		}
	}
	for range 3 {
		must(t, n.h.Kill())
		n.timedStart(fmt.Sprint(pods*each, " live containers"))
		if got := n.count(running); got != pods*each {
			t.Errorf("%d containers run", got)
		}
	}
	n.removeAll()
	n.clean(groups...)
}

// TestIntegrationRebootWithManyPods starts on the records of 500 pods (40 in the
// sample) with two containers each, one running, one ended, that a reboot has taken.
func TestIntegrationRebootWithManyPods(t *testing.T) {
	n := open(t)
	n.pull()
	p := n.newPod(runtimeapi.NamespaceMode_CONTAINER)
	p.config.PortMappings = nil
	p.run()
	a, b := p.create("a", "echo written > /kept; "+counting), p.create("b", "exit 3")
	a.start()
	b.start()
	b.ends(3, "Error")
	n.eventually("there is a log", func() bool { return len(a.log()) > 0 })
	must(t, n.h.Kill())
	pods := 40
	if full() {
		pods = 500
	}
	multiply(t, n.h.Dir("state"), pods)
	must(t, n.h.Reboot(t.Context()))
	n.timedStart(fmt.Sprint(pods, " pods of a former boot"))
	if got := n.count(exited); got != 2*pods || n.count(running) != 0 {
		t.Errorf("%d containers have ended, want %d", got, 2*pods)
	}
	n.must("lists", func(ctx context.Context) error {
		r, err := n.rt.ListPodSandbox(ctx, &runtimeapi.ListPodSandboxRequest{})
		if len(r.GetItems()) != pods {
			t.Errorf("%d sandboxes, want %d", len(r.GetItems()), pods)
		}
		for _, s := range r.GetItems() {
			if s.GetState() == ready {
				t.Errorf("sandbox %s of a former boot is ready", s.GetId())
			}
		}
		return err
	})
	b.ends(3, "Error")
	a.ends(255, "ContainerStatusUnknown")
	a.counted()
	if kept, err := os.ReadFile(n.h.Dir("state", "containers", a.id, "upper", "kept")); err != nil || string(kept) != "written\n" {
		t.Errorf("writable layer: %q, %v", kept, err)
	}
	n.removeAll()
}

// multiply copies the records of the only pod and its containers.
func multiply(t *testing.T, dir string, pods int) {
	t.Helper()
	db, err := store.Open(store.Config{Dir: dir})
	must(t, err)
	pod, all := db.Sandboxes()[0], db.Containers()
	var c store.Change
	for i := range pods - 1 {
		p := pod
		p.ID = fmt.Sprintf("%064x", i+1)
		p.Config = proto.Clone(pod.Config).(*runtimeapi.PodSandboxConfig)
		p.Config.Metadata.Uid = fmt.Sprint("copy-", i)
		c.PutSandboxes = append(c.PutSandboxes, p)
		for k, x := range all {
			x.ID, x.SandboxID = fmt.Sprintf("c%062x%x", i+1, k), p.ID
			c.PutContainers = append(c.PutContainers, x)
			must(t, os.MkdirAll(filepath.Join(dir, "containers", x.ID, "upper"), 0o711))
		}
	}
	must(t, db.Commit(t.Context(), c))
	must(t, db.Close())
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

package crash

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// shortage is something that a node can run out of.
type shortage struct {
	name  string
	begin func(n *node) (end func())
	says  string // what errors must tell; one of several, with "|" between
	code  codes.Code
	// disk: the daemon's state is on a small file system of its own, made with these options.
	disk string
}

// TestIntegrationShortages takes something from the daemon while a container
// runs. What needs it fails and says so, the container is not touched, and once
// there is enough again all works, and nothing is left.
func TestIntegrationShortages(t *testing.T) {
	all := []shortage{
		{name: "disk", disk: "-b 4096", begin: fillDisk, says: "no space left on device", code: codes.ResourceExhausted},
		{name: "inodes", disk: "-b 4096 -N 900", begin: fillInodes, says: "no space left on device", code: codes.ResourceExhausted},
		{name: "descriptors", begin: (*node).fewDescriptors, says: "too many open files", code: codes.ResourceExhausted},
		{name: "processes", begin: (*node).fewProcesses, says: "resource temporarily unavailable|no more processes may be made", code: codes.ResourceExhausted},
	}
	for _, s := range some(t, 1, all) {
		t.Run(s.name, func(t *testing.T) { open(t).endures(s) })
	}
}

func (n *node) endures(s shortage) {
	t := n.t
	if s.disk != "" {
		n.smallDisk(s.disk)
	}
	n.pull()
	p, q := n.newPod(runtimeapi.NamespaceMode_CONTAINER), n.newPod(runtimeapi.NamespaceMode_CONTAINER)
	q.config.PortMappings = nil
	p.run()
	a, b := p.create("a", counting), p.create("b", counting)
	a.start()
	b.start()
	n.eventually("both write", func() bool { return len(a.log()) > 0 && len(b.log()) > 0 })
	end := s.begin(n)
	failed := n.attempts(s, []*pod{p, q}, a, b)
	if len(failed) == 0 {
		t.Errorf("%s: nothing failed, so nothing was tested", s.name)
	}
	t.Logf("without %s these failed: %s", s.name, strings.Join(failed, ", "))
	if st := a.status(); st.GetState() != running {
		t.Errorf("the container is %v", st)
	}
	lines := len(a.log())
	n.eventually("the container goes on writing", func() bool { return len(a.log()) > lines })
	end()
	// The very same calls succeed now.
	q.run()
	c := p.create("c", counting)
	c.start()
	n.exec(a)
	n.update(a)
	b.stop(20)
	if st := b.status(); st.GetState() != exited || st.GetExitCode() != 7 && st.GetExitCode() != 137 {
		t.Errorf("the container that was stopped meanwhile: %v", st)
	}
	a.stop(20)
	a.ends(7, "Error")
	a.counted("bye")
	for _, x := range []*pod{p, q} {
		x.stop()
		x.remove()
	}
	n.clean(p.cgroup, q.cgroup)
}

// attempts makes calls that may fail, and returns which did. They must say why.
func (n *node) attempts(s shortage, pods []*pod, a, b *container) (failed []string) {
	n.t.Helper()
	p, q := pods[0], pods[1]
	for name, f := range map[string]func(ctx context.Context) error{
		"run sandbox": func(ctx context.Context) error {
			_, err := n.rt.RunPodSandbox(ctx, &runtimeapi.RunPodSandboxRequest{Config: q.config})
			return err
		},
		"create container": func(ctx context.Context) error {
			_, err := n.rt.CreateContainer(ctx, &runtimeapi.CreateContainerRequest{PodSandboxId: p.id, SandboxConfig: p.config, Config: p.containerConfig("c", counting)})
			return err
		},
		"exec": func(ctx context.Context) error {
			_, err := n.rt.ExecSync(ctx, &runtimeapi.ExecSyncRequest{ContainerId: a.id, Cmd: []string{"true"}, Timeout: 10})
			return err
		},
		"stop container": func(ctx context.Context) error {
			_, err := n.rt.StopContainer(ctx, &runtimeapi.StopContainerRequest{ContainerId: b.id, Timeout: 2})
			return err
		},
		"pull image": func(ctx context.Context) error {
			_, err := n.im.PullImage(ctx, &runtimeapi.PullImageRequest{Image: &runtimeapi.ImageSpec{Image: testImage}})
			return err
		},
		"lists": func(ctx context.Context) error {
			r, err := n.rt.ListContainers(ctx, &runtimeapi.ListContainersRequest{})
			if err == nil && len(r.GetContainers()) < 2 {
				n.t.Errorf("%s: containers: %v", s.name, r)
			}
			return err
		},
	} {
		ctx, cancel := context.WithTimeout(n.t.Context(), patience)
		err := f(ctx)
		cancel()
		if err == nil {
			continue
		}
		failed = append(failed, fmt.Sprintf("%s (%v)", name, status.Code(err)))
		if status.Code(err) == codes.Unavailable && n.h.Ended(settle) {
			n.lives++ // the daemon could not go on; what starts it again does so here
			n.restart()
			continue
		}
		says := slices.ContainsFunc(strings.Split(s.says, "|"), func(w string) bool { return strings.Contains(err.Error(), w) })
		if !says || status.Code(err) != s.code {
			n.t.Errorf("%s: %s: %v, want %v and %q", s.name, name, err, s.code, s.says)
		}
	}
	slices.Sort(failed)
	return failed
}

// sh runs a script in the node's namespaces, in its directory.
func (n *node) sh(script string, args ...string) {
	n.t.Helper()
	out, err := n.h.Space().Command(context.Background(), "sh", append([]string{"-c", "cd " + n.h.Dir() + " || exit; " + script, "sh"}, args...)...).CombinedOutput()
	if err != nil {
		n.t.Fatalf("%s: %v: %s", script, err, out)
	}
}

// smallDisk puts the state directory on a file system of 64 MiB.
func (n *node) smallDisk(options string) {
	n.t.Helper()
	must(n.t, n.h.Kill())
	n.sh("truncate -s 64M disk && mkfs.ext4 -q " + options + " disk && mount -o loop disk state")
	n.t.Cleanup(func() {
		_ = n.h.Kill()
		n.sh("umount -l state")
	})
	n.restart()
}

func fillDisk(n *node) func() {
	n.sh("dd if=/dev/zero of=state/filler bs=1M 2>/dev/null; dd if=/dev/zero of=state/filler2 bs=4k 2>/dev/null; sync; test -s state/filler")
	return func() { n.sh("rm state/filler state/filler2") }
}

func fillInodes(n *node) func() {
	n.sh("mkdir state/fill && cd state/fill && ! seq 1 2000 | xargs touch 2>/dev/null")
	return func() { n.sh("rm -r state/fill") }
}

func (n *node) fewDescriptors() func() {
	n.t.Helper()
	fds, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", n.h.PID()))
	must(n.t, err)
	pid := n.h.PID()
	var old unix.Rlimit
	must(n.t, unix.Prlimit(pid, unix.RLIMIT_NOFILE, nil, &old))
	few := unix.Rlimit{Cur: uint64(len(fds) + 2), Max: old.Max}
	must(n.t, unix.Prlimit(pid, unix.RLIMIT_NOFILE, &few, nil))
	return func() {
		if n.h.PID() == pid {
			must(n.t, unix.Prlimit(pid, unix.RLIMIT_NOFILE, &old, nil))
		}
	}
}

// fewProcesses moves the daemon into a cgroup that lets it make no process.
func (n *node) fewProcesses() func() {
	n.t.Helper()
	root := "/sys/fs/cgroup/pids"
	if _, err := os.Stat(root); err != nil {
		root = "/sys/fs/cgroup"
	}
	group := filepath.Join(root, filepath.Base(n.h.Dir()))
	must(n.t, os.Mkdir(group, 0o755))
	n.t.Cleanup(func() {
		for end := time.Now().Add(settle); os.Remove(group) != nil && time.Now().Before(end); {
			_ = n.h.Kill() // it is in there
			time.Sleep(20 * time.Millisecond)
		}
	})
	must(n.t, os.WriteFile(filepath.Join(group, "cgroup.procs"), []byte(strconv.Itoa(n.h.PID())), 0o644))
	now, err := os.ReadFile(filepath.Join(group, "pids.current"))
	must(n.t, err)
	must(n.t, os.WriteFile(filepath.Join(group, "pids.max"), now, 0o644))
	return func() { must(n.t, os.WriteFile(filepath.Join(group, "pids.max"), []byte("max"), 0o644)) }
}

// TestIntegrationReadOnlyState starts the daemon on a state directory that cannot
// be written: it says so and ends, and the containers go on.
func TestIntegrationReadOnlyState(t *testing.T) {
	n := open(t)
	n.smallDisk("-b 4096")
	n.pull()
	p := n.newPod(runtimeapi.NamespaceMode_CONTAINER)
	p.run()
	a := p.create("a", counting)
	a.start()
	n.eventually("it writes", func() bool { return len(a.log()) > 0 })
	must(t, n.h.Kill())
	n.sh("mount -o remount,bind,ro state")
	if err := n.h.Start(t.Context()); err == nil || !strings.Contains(err.Error(), "read-only file system") {
		t.Errorf("the daemon starts on a read-only disk: %v", err)
	}
	lines := len(a.log())
	n.eventually("the container goes on writing", func() bool { return len(a.log()) > lines })
	n.sh("mount -o remount,bind,rw state")
	n.restart()
	p.lists(map[string]runtimeapi.ContainerState{a.id: running})
	n.exec(a)
	a.stop(20)
	a.ends(7, "Error")
	a.counted("bye")
	p.stop()
	p.remove()
	n.clean(p.cgroup)
}

// TestIntegrationStateTurnsReadOnly: the disk of the state fails under the daemon,
// as ext4 does at an error of its journal. What has to be written is refused, what
// is known is still told, containers go on; after a repair and a reboot all works.
func TestIntegrationStateTurnsReadOnly(t *testing.T) {
	n := open(t)
	n.smallDisk("-b 4096")
	n.pull()
	p, q := n.newPod(runtimeapi.NamespaceMode_CONTAINER), n.newPod(runtimeapi.NamespaceMode_CONTAINER)
	q.config.PortMappings = nil
	p.run()
	a := p.create("a", counting)
	a.start()
	n.eventually("it writes", func() bool { return len(a.log()) > 0 })
	n.sh("mount -o remount,abort state")
	for range 3 {
		_, err := n.rt.RunPodSandbox(t.Context(), &runtimeapi.RunPodSandboxRequest{Config: q.config})
		if status.Code(err) != codes.FailedPrecondition || !strings.Contains(err.Error(), "read-only file system") {
			t.Errorf("a pod on a disk that failed: %v", err)
		}
	}
	p.lists(map[string]runtimeapi.ContainerState{a.id: running})
	lines := len(a.log())
	n.eventually("the container goes on writing", func() bool { return len(a.log()) > lines })
	must(t, n.h.Reboot(t.Context()))
	n.sh("e2fsck -fy disk >/dev/null 2>&1; test $? -lt 4 && mount -o loop disk state")
	n.restart()
	if st := a.status(); st.GetState() != exited {
		t.Errorf("the container of before is %v", st)
	}
	q.run()
	c := q.create("c", counting)
	c.start()
	n.exec(c)
	n.removeAll()
}

// TestIntegrationStartOnFullDisk starts the daemon where nothing can be written,
// not even that a record is damaged: what it has still works, and once there is
// room everything does.
func TestIntegrationStartOnFullDisk(t *testing.T) {
	n := open(t)
	n.smallDisk("-b 4096")
	n.pull()
	p := n.newPod(runtimeapi.NamespaceMode_CONTAINER)
	p.run()
	a, b := p.create("a", counting), p.create("b", counting)
	a.start()
	b.start()
	must(t, n.h.Kill())
	damage(t, filepath.Join(n.h.Space().Root(), n.h.Dir("state", "berth.db")), map[string]string{"containers": b.id})
	n.sh("truncate -s 9 state/containers/" + b.id + "/record")
	end := fillDisk(n)
	n.restart()
	p.lists(map[string]runtimeapi.ContainerState{a.id: running})
	n.exec(a)
	if out := n.tool(0, "quarantine", "ls"); !strings.Contains(out, "containers/"+b.id) {
		t.Errorf("berthctl quarantine ls:\n%s", out)
	}
	lines := len(a.log())
	n.eventually("the container goes on writing", func() bool { return len(a.log()) > lines })
	end()
	must(t, n.h.Kill())
	n.restart()
	p.lists(map[string]runtimeapi.ContainerState{a.id: running})
	n.tool(0, "quarantine", "drop", "containers/"+b.id)
	n.eventually("the shim of the damaged record is gone", func() bool { return n.h.Shims()[b.id] == 0 })
	a.stop(20)
	a.ends(7, "Error")
	a.counted("bye")
	p.stop()
	p.remove()
	n.clean(p.cgroup)
}

// TestIntegrationDaemonOutOfMemory lets the kernel kill the daemon, and it alone.
func TestIntegrationDaemonOutOfMemory(t *testing.T) {
	n := open(t)
	n.pull()
	p := n.newPod(runtimeapi.NamespaceMode_CONTAINER)
	p.run()
	a := p.create("a", counting)
	a.start()
	n.eventually("it writes", func() bool { return len(a.log()) > 0 })
	root, limit := "/sys/fs/cgroup/memory", "memory.limit_in_bytes"
	if _, err := os.Stat(root); err != nil {
		root, limit = "/sys/fs/cgroup", "memory.max"
	}
	group := filepath.Join(root, filepath.Base(n.h.Dir()))
	must(t, os.Mkdir(group, 0o755))
	defer os.Remove(group)
	must(t, os.WriteFile(filepath.Join(group, limit), []byte("1048576"), 0o644))
	must(t, os.WriteFile(filepath.Join(group, "cgroup.procs"), []byte(strconv.Itoa(n.h.PID())), 0o644))
	// Requests that are large: the memory they take is the daemon's own. Verbs
	// that make processes would let the kernel choose one of those instead.
	argument := strings.Repeat("x", 12<<20)
	n.eventually("the daemon is killed", func() bool {
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		var calls sync.WaitGroup
		for range 4 {
			calls.Go(func() {
				_, _ = n.rt.ExecSync(ctx, &runtimeapi.ExecSyncRequest{ContainerId: a.id, Cmd: []string{"true", argument}, Timeout: 1})
			})
		}
		calls.Wait()
		return n.h.Ended(0)
	})
	lines := len(a.log())
	n.eventually("the container goes on writing", func() bool { return len(a.log()) > lines })
	n.restart()
	if st := a.status(); st.GetState() != running {
		t.Errorf("the container is %v", st)
	}
	n.exec(a)
	n.removeAll()
}

// removeAll removes every sandbox, and checks that nothing is left.
func (n *node) removeAll() {
	n.t.Helper()
	var groups []string
	n.must("remove all", func(ctx context.Context) error {
		r, err := n.rt.ListPodSandbox(ctx, &runtimeapi.ListPodSandboxRequest{})
		for _, s := range r.GetItems() {
			if _, err := n.rt.RemovePodSandbox(ctx, &runtimeapi.RemovePodSandboxRequest{PodSandboxId: s.GetId()}); err != nil {
				return err
			}
			groups = append(groups, "berth-crash-"+s.GetMetadata().GetName())
		}
		return err
	})
	n.clean(groups...)
}

package sandbox

import (
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-dev/berth/cni/netns"
	"github.com/berth-dev/berth/store"
	"github.com/berth-dev/berth/store/op"
)

func TestIntegrationLifeWithNetwork(t *testing.T) {
	n := newNode(t)
	rec, err := n.Run(t.Context(), newRecord(func(c *runtimeapi.PodSandboxConfig) {
		c.PortMappings = []*runtimeapi.PortMapping{{HostPort: 18080, ContainerPort: 80}}
		c.Linux.Sysctls = map[string]string{"net.ipv4.conf.eth0.rp_filter": "2", "kernel.shm_rmid_forced": "1"}
		c.DnsConfig = &runtimeapi.DNSConfig{Servers: []string{"10.0.0.10"}, Searches: []string{"a.b"}, Options: []string{"ndots:5"}}
	}))
	if err != nil {
		t.Fatal(err)
	}
	ips := rec.Facts.Network.IPs
	if len(ips) != 2 || !strings.HasPrefix(ips[0], "10.199.") || !strings.HasPrefix(ips[1], "fd00:199::") {
		t.Errorf("IPs: %v", ips)
	}
	f := n.Files(rec)
	for path, want := range map[string]string{f.Hostname: "web-0\n", f.ResolvConf: "search a.b\nnameserver 10.0.0.10\noptions ndots:5\n"} {
		if b, err := os.ReadFile(path); err != nil || string(b) != want {
			t.Errorf("%s: %q, %v", path, b, err)
		}
	}
	if b, err := os.ReadFile(f.Hosts); err != nil || !strings.Contains(string(b), ips[0]+"\tweb-0\n") {
		t.Errorf("hosts: %q, %v", b, err)
	}
	if !isMountPoint(f.Shm) {
		t.Error("/dev/shm is not mounted")
	}
	serve(t, rec.Facts.Namespaces[netns.Net])
	for _, addr := range []string{ips[0] + ":80", net.JoinHostPort(ips[1], "80"), ips0(t) + ":18080"} {
		ask(t, addr)
	}
	conn, err := n.Dial(t.Context(), rec.ID, 80)
	if err != nil {
		t.Fatal(err)
	}
	hello(t, conn)
	n.stopAndRemove(t, rec.ID)
}

func TestIntegrationNamespaceModes(t *testing.T) {
	n := newNode(t)
	node, pod := runtimeapi.NamespaceMode_NODE, runtimeapi.NamespaceMode_POD
	for _, c := range []struct {
		name  string
		opts  *runtimeapi.NamespaceOption
		kinds []string
	}{
		{"host network", &runtimeapi.NamespaceOption{Network: node, Pid: runtimeapi.NamespaceMode_CONTAINER}, []string{netns.IPC}},
		{"host all", &runtimeapi.NamespaceOption{Network: node, Pid: node, Ipc: node}, nil},
		{"shared pid", &runtimeapi.NamespaceOption{Network: node, Ipc: node, Pid: pod}, []string{netns.PID}},
		{"shared pid and network", &runtimeapi.NamespaceOption{Pid: pod}, []string{netns.Net, netns.IPC, netns.UTS, netns.PID}},
	} {
		t.Run(c.name, func(t *testing.T) {
			rec, err := n.Run(t.Context(), newRecord(func(p *runtimeapi.PodSandboxConfig) {
				p.Linux.SecurityContext.NamespaceOptions = c.opts
			}))
			if err != nil {
				t.Fatal(err)
			}
			got, err := netns.Pinned(n.at.nsDir(rec.ID))
			if err != nil || !slices.Equal(got, c.kinds) || len(rec.Facts.Namespaces) != len(c.kinds) {
				t.Errorf("pinned %v, facts %v, %v", got, rec.Facts.Namespaces, err)
			}
			if (rec.Facts.HolderPID != 0) != (c.opts.Pid == pod) {
				t.Errorf("holder %d", rec.Facts.HolderPID)
			}
			for _, st := range n.runVerb().Steps {
				if st.Done == nil {
					continue // telling plugins leaves nothing on the node
				}
				if ok, err := st.Done(t.Context(), &state{Rec: rec}); !ok || err != nil {
					t.Errorf("step %s is done: %v, %v", st.Name, ok, err)
				}
			}
			n.stopAndRemove(t, rec.ID)
		})
	}
}

// TestIntegrationCrashAfterEachStep stops a run after each of its steps, as a
// crash does, forgets everything, and lets a new daemon recover.
func TestIntegrationCrashAfterEachStep(t *testing.T) {
	n := newNode(t)
	for k, last := range n.runVerb().Steps {
		t.Run(last.Name, func(t *testing.T) {
			rec := newRecord(func(p *runtimeapi.PodSandboxConfig) {
				p.Linux.SecurityContext.NamespaceOptions = &runtimeapi.NamespaceOption{}
			})
			rec.Facts = n.plannedFacts(rec)
			s := &state{Rec: rec}
			payload, err := s.MarshalJSON()
			if err != nil {
				t.Fatal(err)
			}
			if err := n.db.BeginOp(t.Context(), store.Op{ID: "op-" + rec.ID, Kind: kindRun, Subject: rec.ID, Payload: payload, StartedAt: time.Now()}); err != nil {
				t.Fatal(err)
			}
			for _, st := range n.runVerb().Steps[:k+1] {
				if err := st.Do(t.Context(), s); err != nil {
					t.Fatal(err)
				}
			}
			n.open(t)
			n.recover(t)
			n.assertNothing(t, rec.ID)
		})
	}
}

func TestIntegrationCrashInStopAndRemove(t *testing.T) {
	n := newNode(t)
	for _, verb := range []func() op.Verb[*state]{n.stopVerb, n.removeVerb} {
		for k := range verb().Steps {
			rec, err := n.Run(t.Context(), newRecord(nil))
			if err != nil {
				t.Fatal(err)
			}
			if verb().Kind == kindRemove {
				if err := n.Stop(t.Context(), rec.ID); err != nil {
					t.Fatal(err)
				}
			}
			s := &state{Rec: rec}
			payload, err := s.MarshalJSON()
			if err != nil {
				t.Fatal(err)
			}
			if err := n.db.BeginOp(t.Context(), store.Op{ID: "op-" + rec.ID, Kind: verb().Kind, Subject: rec.ID, Payload: payload, StartedAt: time.Now()}); err != nil {
				t.Fatal(err)
			}
			for _, st := range verb().Steps[:k+1] {
				if err := st.Do(t.Context(), s); err != nil {
					t.Fatal(err)
				}
			}
			n.open(t)
			n.recover(t)
			if err := n.Remove(t.Context(), rec.ID); err != nil {
				t.Fatal(err)
			}
			n.assertNothing(t, rec.ID)
		}
	}
}

func TestIntegrationFailedAttachLeavesNothingAndRetrySucceeds(t *testing.T) {
	n := newNode(t)
	if err := os.Remove(filepath.Join(n.conf, "10-test.conflist")); err != nil {
		t.Fatal(err)
	}
	rec := newRecord(nil)
	_, err := n.Run(t.Context(), rec)
	if !errdefs.IsUnavailable(err) || !strings.Contains(err.Error(), n.conf) {
		t.Fatalf("got %v", err)
	}
	n.assertNothing(t, rec.ID)
	n.writeConf(t)
	if rec, err = n.Run(t.Context(), rec); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(filepath.Join(n.conf, "10-test.conflist")); err != nil {
		t.Fatal(err)
	}
	n.stopAndRemove(t, rec.ID) // without the configuration, from the note
}

func TestIntegrationStopFailsWithThePlugin(t *testing.T) {
	n := newNode(t)
	rec, err := n.Run(t.Context(), newRecord(nil))
	if err != nil {
		t.Fatal(err)
	}
	good := n.bin
	n.bin = t.TempDir()
	n.open(t)
	if err := n.Stop(t.Context(), rec.ID); err == nil || !strings.Contains(err.Error(), "portmap") {
		t.Errorf("stop without plugins: %v", err)
	}
	if got, err := n.db.Sandbox(rec.ID); err != nil || !got.Facts.StoppedAt.IsZero() {
		t.Errorf("marked stopped: %+v, %v", got.Facts, err)
	}
	n.bin = good
	n.open(t)
	n.stopAndRemove(t, rec.ID)
}

func TestIntegrationReconcile(t *testing.T) {
	n := newNode(t)
	rec, err := n.Run(t.Context(), newRecord(nil))
	if err != nil {
		t.Fatal(err)
	}
	orphan := newRecord(nil)
	if _, err := netns.Create(netns.Spec{Dir: n.at.nsDir(orphan.ID), Kinds: []string{netns.Net}}); err != nil {
		t.Fatal(err)
	}
	if err := mountShm(n.at.shm(orphan.ID), shmOptions); err != nil {
		t.Fatal(err)
	}
	foreign := filepath.Join(n.at.filesRoot(), "not-ours")
	if err := os.Mkdir(foreign, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := netns.Unpin(n.at.nsDir(rec.ID), netns.IPC); err != nil {
		t.Fatal(err)
	}
	n.recover(t)
	n.assertNothing(t, orphan.ID)
	if _, err := os.Stat(foreign); err != nil {
		t.Errorf("a directory that is not ours: %v", err)
	}
	got, err := n.db.Sandbox(rec.ID)
	if err != nil || got.Facts.StoppedAt.IsZero() || !got.Facts.Network.Attached {
		t.Errorf("sandbox without its ipc namespace: %+v, %v", got.Facts, err)
	}
	n.stopAndRemove(t, rec.ID)
}

func TestIntegrationNoDescriptorLeak(t *testing.T) {
	n := newNode(t)
	once := func() {
		rec, err := n.Run(t.Context(), newRecord(func(c *runtimeapi.PodSandboxConfig) {
			c.Linux.SecurityContext.NamespaceOptions.Pid = runtimeapi.NamespaceMode_POD
		}))
		if err != nil {
			t.Fatal(err)
		}
		n.stopAndRemove(t, rec.ID)
	}
	once()
	before := descriptors(t)
	for range 3 {
		once()
	}
	for end := time.Now().Add(time.Minute); descriptors(t) > before; time.Sleep(50 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%d descriptors, %d before", descriptors(t), before)
		}
	}
}

func descriptors(t *testing.T) int {
	t.Helper()
	d, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(d)
}

func TestIntegrationHolderSurvivesAndIsNotConfused(t *testing.T) {
	n := newNode(t)
	rec, err := n.Run(t.Context(), newRecord(func(c *runtimeapi.PodSandboxConfig) {
		c.Linux.SecurityContext.NamespaceOptions = &runtimeapi.NamespaceOption{Network: runtimeapi.NamespaceMode_NODE}
	}))
	if err != nil {
		t.Fatal(err)
	}
	if isHolder(rec.Facts.HolderPID, strings.Repeat("0", 64)) || isHolder(os.Getpid(), rec.ID) {
		t.Error("a process passes for another sandbox's holder")
	}
	if err := killAndWait(t.Context(), os.Getpid()); err != nil { // no holder: must not be hit
		t.Fatal(err)
	}
	if err := unix.Kill(rec.Facts.HolderPID, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	n.loses(t, n.WatchHolders(), rec.ID)
	n.recover(t)
	if got, err := n.db.Sandbox(rec.ID); err != nil || got.Facts.StoppedAt.IsZero() {
		t.Errorf("sandbox whose holder died: %+v, %v", got.Facts, err)
	}
	n.stopAndRemove(t, rec.ID)
}

// loses waits until a sandbox is reported to have lost its holder, and only it.
func (n *node) loses(t *testing.T, lost <-chan string, id string) {
	t.Helper()
	select {
	case got := <-lost:
		if got != id {
			t.Fatalf("sandbox %s is reported, want %s", got, id)
		}
	case <-time.After(time.Minute):
		t.Fatalf("nobody heard that the holder of sandbox %s ended", id)
	}
}

// TestIntegrationLostHolders: the end of a holder is heard of at once, from the
// daemon that made it and from the next, and shows whatever others have in the
// journal about the sandbox; that of a stopped one is nobody's.
func TestIntegrationLostHolders(t *testing.T) {
	n := newNode(t)
	lost := n.WatchHolders()
	pods := make([]store.Sandbox, 5)
	for i := range pods {
		var err error
		if pods[i], err = n.Run(t.Context(), newRecord(func(c *runtimeapi.PodSandboxConfig) {
			c.Linux.SecurityContext.NamespaceOptions = &runtimeapi.NamespaceOption{Network: runtimeapi.NamespaceMode_NODE}
		})); err != nil {
			t.Fatal(err)
		}
	}
	kill := func(rec store.Sandbox) {
		if err := unix.Kill(rec.Facts.HolderPID, unix.SIGKILL); err != nil {
			t.Fatal(err)
		}
	}
	n.stopAndRemove(t, pods[0].ID)
	kill(pods[1])
	n.loses(t, lost, pods[1].ID)
	if err := n.Settle(t.Context(), pods[1].ID); err != nil {
		t.Fatal(err)
	}
	n.open(t)
	lost = n.WatchHolders()
	n.stopAndRemove(t, pods[2].ID)
	kill(pods[3])
	n.loses(t, lost, pods[3].ID)
	if err := n.Settle(t.Context(), pods[3].ID); err != nil {
		t.Fatal(err)
	}
	other := store.Op{ID: "o", Kind: "sandbox.checkpoint", Subject: pods[4].ID, Payload: []byte("{}")}
	if err := n.db.BeginOp(t.Context(), other); err != nil {
		t.Fatal(err)
	}
	n.open(t)
	lost = n.WatchHolders()
	kill(pods[4])
	n.loses(t, lost, pods[4].ID)
	if err := n.Settle(t.Context(), pods[4].ID); err != nil {
		t.Fatal(err)
	}
	if rec, err := n.db.Sandbox(pods[4].ID); err != nil || rec.Facts.StoppedAt.IsZero() {
		t.Errorf("sandbox whose holder died under a checkpoint: %+v, %v", rec.Facts, err)
	}
	if err := n.db.Commit(t.Context(), store.Change{EndOps: []string{other.ID}}); err != nil {
		t.Fatal(err)
	}
	for _, rec := range []store.Sandbox{pods[1], pods[3], pods[4]} {
		n.stopAndRemove(t, rec.ID)
	}
}

// TestIntegrationSharedCgroup: a cgroup that Berth has made because clients named it
// goes with the last of its pods, and no pod takes another's processes along.
func TestIntegrationSharedCgroup(t *testing.T) {
	n := newNode(t)
	group := "/berth-shared-" + newRecord(nil).ID[:12]
	shared := func(p *runtimeapi.PodSandboxConfig) {
		p.Linux.CgroupParent = group
		p.Linux.SecurityContext.NamespaceOptions = &runtimeapi.NamespaceOption{Network: runtimeapi.NamespaceMode_NODE}
	}
	undone := newRecord(shared) // late: what it was to make is there for others
	undone.Facts = n.plannedFacts(undone)
	payload, err := (&state{Rec: undone}).MarshalJSON()
	if err != nil {
		t.Fatal(err)
	}
	if err := n.db.BeginOp(t.Context(), store.Op{ID: "o", Kind: kindRun, Subject: undone.ID, Payload: payload}); err != nil {
		t.Fatal(err)
	}
	n.db.ReleaseOp("o")
	var pods [2]store.Sandbox
	for i := range pods {
		if pods[i], err = n.Run(t.Context(), newRecord(shared)); err != nil {
			t.Fatal(err)
		}
	}
	lives := func(after string) {
		t.Helper()
		if last := pods[1]; !isHolder(last.Facts.HolderPID, last.ID) || !n.cgroupExists(group) {
			t.Fatalf("the other pod does not outlive %s", after)
		}
	}
	if err := n.Resume(t.Context(), undone.ID); err != nil {
		t.Fatal(err)
	}
	lives("an undoing")
	n.stopAndRemove(t, pods[0].ID)
	lives("a removal")
	n.stopAndRemove(t, pods[1].ID)
	if n.cgroupExists(group) {
		t.Error("the cgroup is left")
	}
}

func BenchmarkRunStop(b *testing.B) {
	n := newNode(b)
	var run, stop []time.Duration
	for range b.N {
		rec := newRecord(func(c *runtimeapi.PodSandboxConfig) {
			c.PortMappings = []*runtimeapi.PortMapping{{HostPort: 18081, ContainerPort: 80}}
		})
		t0 := time.Now()
		if _, err := n.Run(b.Context(), rec); err != nil {
			b.Fatal(err)
		}
		t1 := time.Now()
		if err := n.Stop(b.Context(), rec.ID); err != nil {
			b.Fatal(err)
		}
		run, stop = append(run, t1.Sub(t0)), append(stop, time.Since(t1))
		if err := n.Remove(b.Context(), rec.ID); err != nil {
			b.Fatal(err)
		}
	}
	slices.Sort(run)
	slices.Sort(stop)
	b.ReportMetric(float64(run[len(run)/2].Microseconds())/1000, "run-p50-ms")
	b.ReportMetric(float64(stop[len(stop)/2].Microseconds())/1000, "stop-p50-ms")
}

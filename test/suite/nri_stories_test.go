package suite

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/nri/pkg/api"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-dev/berth/test/harness"
)

func nriStories() []story {
	return []story{
		{name: "nri/life of a pod", owned: true, tell: nriLife},
		{name: "nri/adjustments", owned: true, tell: nriAdjust},
		{name: "nri/adjustments that cannot be", owned: true, tell: nriLies},
		{name: "nri/refusals", owned: true, tell: nriRefuse},
		{name: "nri/plugins join and leave", owned: true, tell: nriJoin},
		{name: "nri/updates", owned: true, tell: nriUpdates},
		{name: "nri/evictions", owned: true, tell: nriEvict},
		{name: "nri/plugins that hang or die", owned: true, alone: true, tell: nriBad},
		{name: "nri/restart of the daemon", owned: true, tell: nriRestart},
		{name: "nri/installed plugin", owned: true, alone: true, tell: nriInstalled},
		{name: "cdi/devices", owned: true, alone: true, tell: cdiDevices},
	}
}

// nriLife hears each event of a pod and a container once, in order.
func nriLife(t *testing.T, n *node) {
	pl := (&plugin{name: "life", idx: "10"}).connect(t, n.nri())
	p := n.pod(t)
	c := p.run(t, probe("sleep"))
	_, err := n.rt.UpdateContainerResources(t.Context(), &runtimeapi.UpdateContainerResourcesRequest{
		ContainerId: c.id, Linux: &runtimeapi.LinuxContainerResources{CpuShares: 512}})
	must(t, err)
	ended := p.run(t, probe("exit", "3"))
	ended.wait(t)
	eventually(t, "plugin hears of an end that nobody asked for", func() bool {
		return strings.Contains(strings.Join(pl.events(ended.id), " "), "StopContainer")
	})
	_, err = n.rt.StopPodSandbox(t.Context(), &runtimeapi.StopPodSandboxRequest{PodSandboxId: p.id})
	must(t, err)
	_, err = n.rt.StopPodSandbox(t.Context(), &runtimeapi.StopPodSandboxRequest{PodSandboxId: p.id})
	must(t, err)
	_, err = n.rt.RemovePodSandbox(t.Context(), &runtimeapi.RemovePodSandboxRequest{PodSandboxId: p.id})
	must(t, err)

	equal(t, "events of the pod", strings.Join(pl.events(p.id), " "), "RunPodSandbox StopPodSandbox RemovePodSandbox")
	equal(t, "events of the container", strings.Join(pl.events(c.id), " "),
		"CreateContainer PostCreateContainer StartContainer PostStartContainer UpdateContainer PostUpdateContainer StopContainer RemoveContainer")
	// Its end may be told before the start is answered: then nothing more is told of that.
	all := strings.Replace(strings.Join(pl.events(ended.id), " "), " PostStartContainer", "", 1)
	equal(t, "events of one that ends by itself", all, "CreateContainer PostCreateContainer StartContainer StopContainer RemoveContainer")

	seen, pod := pl.seen(c.id), pl.pod(p.id)
	equal(t, "name", seen.GetName(), c.config.GetMetadata().GetName())
	equal(t, "pod", seen.GetPodSandboxId(), p.id)
	equal(t, "state at the end", seen.GetState(), api.ContainerState_CONTAINER_STOPPED)
	equal(t, "state when started", pl.state("PostStartContainer", c.id), api.ContainerState_CONTAINER_RUNNING)
	equal(t, "exit code", pl.seen(ended.id).GetExitCode(), 3)
	equal(t, "args", strings.Join(seen.GetArgs(), " "), "/probe sleep")
	equal(t, "pod's name", pod.GetName(), p.config.GetMetadata().GetName())
	equal(t, "pod's addresses", len(pod.GetIps()) > 0, true)
}

// nriAdjust looks at what plugins change from inside the container.
func nriAdjust(t *testing.T, n *node) {
	dir := t.TempDir()
	must(t, os.WriteFile(filepath.Join(dir, "greeting"), []byte("ahoy\n"), 0o644))
	pl := &plugin{name: "adjust", idx: "10"}
	pl.onCreate = func(*api.Container) (*api.ContainerAdjustment, []*api.ContainerUpdate) {
		a := &api.ContainerAdjustment{}
		a.AddAnnotation("story", "told")
		a.AddEnv("FROM_PLUGIN", "yes")
		a.AddEnv("CHANGED", "plugin")
		a.RemoveEnv("REMOVED")
		a.AddMount(&api.Mount{Destination: "/plugin", Type: "bind", Source: dir, Options: []string{"rbind", "ro", "rprivate"}})
		a.AddRlimit("RLIMIT_NOFILE", 777, 555)
		a.AddDevice(&api.LinuxDevice{Path: "/dev/plugged", Type: "c", Major: 1, Minor: 5, FileMode: api.FileMode(os.FileMode(0o666))})
		a.SetLinuxOomScoreAdj(ptr(321))
		a.SetLinuxCPUShares(333)
		a.SetLinuxMemoryLimit(64 << 20)
		a.SetLinuxPidLimits(99)
		a.SetLinuxSysctl("net.ipv4.ip_unprivileged_port_start", "81")
		a.AddHooks(&api.Hooks{CreateRuntime: []*api.Hook{{Path: "/bin/sh", Args: []string{"sh", "-c", "echo hooked > " + dir + "/hook"}}}})
		return a, nil
	}
	pl.connect(t, n.nri())
	p := n.pod(t)
	c := p.run(t, shell("ulimit -n; ulimit -Hn; sleep 1000"), func(c *runtimeapi.ContainerConfig) {
		c.Envs = []*runtimeapi.KeyValue{{Key: "CHANGED", Value: []byte("client")}, {Key: "REMOVED", Value: []byte("client")}}
	})
	equal(t, "environment", c.sh(t, "echo $FROM_PLUGIN $CHANGED ${REMOVED-gone}"), "yes plugin gone")
	equal(t, "mount", c.sh(t, "cat /plugin/greeting; touch /plugin/x 2>/dev/null || echo ro"), "ahoy\nro")
	c.waitLog(t, "777")
	equal(t, "limits", c.text(t), "555\n777\n")
	equal(t, "device", c.sh(t, "ls -l /dev/plugged | cut -c1; head -c1 /dev/plugged | wc -c"), "c\n1")
	equal(t, "oom score", c.sh(t, "cat /proc/1/oom_score_adj"), "321")
	equal(t, "sysctl", c.sh(t, "cat /proc/sys/net/ipv4/ip_unprivileged_port_start"), "81")
	equal(t, "hook", strings.TrimSpace(read(t, filepath.Join(dir, "hook"))), "hooked")
	equal(t, "shares in the status", c.status(t).GetResources().GetLinux().GetCpuShares(), 333)
	equal(t, "memory in the status", c.status(t).GetResources().GetLinux().GetMemoryLimitInBytes(), 64<<20)
	has(t, "annotations of the specification", read(t, n.own.Dir("run", "containers", c.id, "config.json")), `"story":"told"`, `"limit":99`)

	// The client changes one thing: what the plugin set stays.
	_, err := n.rt.UpdateContainerResources(t.Context(), &runtimeapi.UpdateContainerResourcesRequest{
		ContainerId: c.id, Linux: &runtimeapi.LinuxContainerResources{MemoryLimitInBytes: 96 << 20}})
	must(t, err)
	equal(t, "shares after an update", c.status(t).GetResources().GetLinux().GetCpuShares(), 333)
}

func read(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	must(t, err)
	return string(b)
}

// nriLies answers what cannot be done: the container is refused and says why,
// and nothing of it stays.
func nriLies(t *testing.T, n *node) {
	pl := &plugin{name: "lies", idx: "10"}
	var lie shared[func(*api.ContainerAdjustment)]
	pl.onCreate = func(*api.Container) (*api.ContainerAdjustment, []*api.ContainerUpdate) {
		a := &api.ContainerAdjustment{}
		lie.get()(a)
		return a, nil
	}
	pl.connect(t, n.nri())
	p := n.pod(t)
	for want, f := range map[string]func(*api.ContainerAdjustment){
		"destination": func(a *api.ContainerAdjustment) {
			a.AddMount(&api.Mount{Destination: "/", Type: "bind", Source: "/tmp"})
		},
		"rlimits":         func(a *api.ContainerAdjustment) { a.AddRlimit("nofile", 1, 2) },
		"devices":         func(a *api.ContainerAdjustment) { a.AddDevice(&api.LinuxDevice{Path: "nowhere", Type: "c"}) },
		"env":             func(a *api.ContainerAdjustment) { a.AddEnv("A=B", "c") },
		"user namespace":  func(a *api.ContainerAdjustment) { a.AddOrReplaceNamespace(&api.LinuxNamespace{Type: "user"}) },
		"memory.kernel":   func(a *api.ContainerAdjustment) { a.SetLinuxMemoryKernel(1 << 20) },
		"hugepage_limits": func(a *api.ContainerAdjustment) { a.AddLinuxHugepageLimit("3MB", 1) },
		"hooks":           func(a *api.ContainerAdjustment) { a.AddHooks(&api.Hooks{Poststop: []*api.Hook{{Path: "rm"}}}) },
		"rdt_class":       func(a *api.ContainerAdjustment) { a.SetLinuxRDTClass("gold") },
		"CDI_devices":     func(a *api.ContainerAdjustment) { a.AddCDIDevice(&api.CDIDevice{Name: "no.such/device=1"}) },
	} {
		lie.set(f)
		_, err := n.rt.CreateContainer(t.Context(), &runtimeapi.CreateContainerRequest{PodSandboxId: p.id, Config: p.containerConfig(t), SandboxConfig: p.config})
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", want, err)
		}
	}
	list, err := n.rt.ListContainers(t.Context(), &runtimeapi.ListContainersRequest{Filter: &runtimeapi.ContainerFilter{PodSandboxId: p.id}})
	must(t, err)
	equal(t, "containers", len(list.GetContainers()), 0)
	for _, h := range pl.all() {
		if h.event == "CreateContainer" {
			equal(t, "events of a refused container", strings.Join(pl.events(h.id), " "), "CreateContainer StopContainer RemoveContainer")
		}
	}
	lie.set(func(*api.ContainerAdjustment) {})
	p.run(t, probe("sleep")) // the plugin is still there, and so is the node
	equal(t, "plugin is connected", len(pl.closed), 0)
}

// nriRefuse lets plugins say no to a pod, a container, a start and an update.
func nriRefuse(t *testing.T, n *node) {
	var no shared[string]
	pl := &plugin{name: "refuses", idx: "10"}
	pl.onEvent = func(_ context.Context, event, _ string) error {
		if event == no.get() {
			return errors.New("not today")
		}
		return nil
	}
	pl.connect(t, n.nri())
	check := (&plugin{name: "checks", idx: "20"})
	check.onChecked = func(r *api.ValidateContainerAdjustmentRequest) error {
		if no.get() == "validate" {
			return errors.New("not allowed here")
		}
		return nil
	}
	check.connect(t, n.nri())

	no.set("RunPodSandbox")
	cfg := n.podConfig(t)
	_, err := n.rt.RunPodSandbox(t.Context(), &runtimeapi.RunPodSandboxRequest{Config: cfg})
	wantCode(t, "refused pod", err, codes.FailedPrecondition)
	has(t, "reason", err.Error(), "not today")
	all := pl.all()
	refused := all[len(all)-1].id
	equal(t, "events of a refused pod", strings.Join(pl.events(refused), " "), "RunPodSandbox StopPodSandbox RemovePodSandbox")
	pods, err := n.rt.ListPodSandbox(t.Context(), &runtimeapi.ListPodSandboxRequest{Filter: &runtimeapi.PodSandboxFilter{Id: refused}})
	must(t, err)
	equal(t, "refused pods that are listed", len(pods.GetItems()), 0)
	no.set("")
	p := n.podOf(t, cfg) // the same call again

	for _, event := range []string{"CreateContainer", "validate"} {
		no.set(event)
		_, err = n.rt.CreateContainer(t.Context(), &runtimeapi.CreateContainerRequest{PodSandboxId: p.id, Config: p.containerConfig(t), SandboxConfig: p.config})
		wantCode(t, event, err, codes.FailedPrecondition)
	}
	no.set("")
	c := p.create(t, probe("sleep"))
	no.set("StartContainer")
	_, err = n.rt.StartContainer(t.Context(), &runtimeapi.StartContainerRequest{ContainerId: c.id})
	wantCode(t, "refused start", err, codes.FailedPrecondition)
	equal(t, "reason of the end", c.status(t).GetReason(), "StartError")
	no.set("")
	c = p.run(t, probe("sleep"))
	no.set("UpdateContainer")
	_, err = n.rt.UpdateContainerResources(t.Context(), &runtimeapi.UpdateContainerResourcesRequest{
		ContainerId: c.id, Linux: &runtimeapi.LinuxContainerResources{CpuShares: 512}})
	wantCode(t, "refused update", err, codes.FailedPrecondition)
	equal(t, "shares", c.status(t).GetResources().GetLinux().GetCpuShares(), 0)
	no.set("") // removals are not asked about
}

// nriJoin makes containers while plugins come and go. Each plugin must be told
// once of each container that lived after it came.
func nriJoin(t *testing.T, n *node) {
	const count, writers = 50, 5
	p := n.pod(t)
	cfg := p.containerConfig(t, probe("sleep"))
	stayed := []*plugin{(&plugin{name: "first", idx: "00"}).connect(t, n.nri())}
	ids := make(chan string, count)
	var work sync.WaitGroup
	for w := range writers {
		work.Go(func() {
			for i := range count / writers {
				c := &container{p: p, config: proto.Clone(cfg).(*runtimeapi.ContainerConfig)}
				c.config.Metadata.Name = fmt.Sprintf("join-%d-%d", w, i)
				c.config.LogPath = c.config.Metadata.Name + ".log"
				r, err := n.rt.CreateContainer(t.Context(), &runtimeapi.CreateContainerRequest{PodSandboxId: p.id, Config: c.config, SandboxConfig: p.config})
				if err != nil {
					t.Errorf("create: %v", err)
					return
				}
				ids <- r.GetContainerId()
			}
		})
	}
	done := make(chan struct{})
	go func() { work.Wait(); close(done) }()
	for i := 0; ; i++ {
		select {
		case <-done:
		default:
			guest := (&plugin{name: fmt.Sprintf("guest%d", i), idx: "10"}).connect(t, n.nri())
			if i%2 == 0 {
				guest.stub.Stop()
			} else {
				stayed = append(stayed, guest)
			}
			continue
		}
		break
	}
	close(ids)
	t.Logf("%d plugins joined while %d containers were made", len(stayed)*2-2, count)
	made := 0
	for id := range ids {
		made++
		for _, pl := range stayed {
			if got := pl.learned(id); got != 1 {
				t.Errorf("plugin %s was told %d times of container %s: %v", pl.name, got, id, pl.events(id))
			}
		}
	}
	equal(t, "containers", made, count)
	for _, pl := range stayed {
		equal(t, pl.name+" was told of the pod", pl.learned(p.id), 1)
		pl.stub.Stop()
	}
}

// nriUpdates changes resources of containers by request, by answer and while
// the client changes them.
func nriUpdates(t *testing.T, n *node) {
	p := n.pod(t)
	first := p.run(t, probe("sleep"))
	pl := &plugin{name: "updates", idx: "10"}
	pl.onCreate = func(*api.Container) (*api.ContainerAdjustment, []*api.ContainerUpdate) {
		u := &api.ContainerUpdate{}
		u.SetContainerId(first.id)
		u.SetLinuxCPUShares(222)
		return nil, []*api.ContainerUpdate{u}
	}
	pl.onUpdate = func(c *api.Container, r *api.LinuxResources) []*api.ContainerUpdate {
		u := &api.ContainerUpdate{}
		u.SetContainerId(c.GetId())
		u.SetLinuxCPUShares(r.GetCpu().GetShares().GetValue() * 2)
		return []*api.ContainerUpdate{u}
	}
	pl.connect(t, n.nri())
	shares := func(c *container) int64 { return c.status(t).GetResources().GetLinux().GetCpuShares() }

	second := p.run(t, probe("sleep"))
	equal(t, "shares by an answer", shares(first), 222)
	_, err := n.rt.UpdateContainerResources(t.Context(), &runtimeapi.UpdateContainerResourcesRequest{
		ContainerId: second.id, Linux: &runtimeapi.LinuxContainerResources{CpuShares: 300, MemoryLimitInBytes: 128 << 20}})
	must(t, err)
	equal(t, "shares doubled by the plugin", shares(second), 600)
	equal(t, "memory as the client asked", second.status(t).GetResources().GetLinux().GetMemoryLimitInBytes(), 128<<20)

	update, bad := &api.ContainerUpdate{}, &api.ContainerUpdate{}
	update.SetContainerId(first.id)
	update.SetLinuxCPUShares(444)
	update.SetLinuxPidLimits(77)
	bad.SetContainerId(second.id)
	bad.SetLinuxMemorySwappiness(1)
	failed, err := pl.stub.UpdateContainers([]*api.ContainerUpdate{update, bad})
	must(t, err)
	equal(t, "failed updates", len(failed), 1)
	equal(t, "the one that failed", failed[0].GetContainerId(), second.id)
	equal(t, "shares by request", shares(first), 444)
	equal(t, "most processes", strings.TrimSpace(first.sh(t, "cat /sys/fs/cgroup/pids/pids.max 2>/dev/null || cat /sys/fs/cgroup/pids.max")), "77")
}

// nriEvict ends one container for the sake of another.
func nriEvict(t *testing.T, n *node) {
	p := n.pod(t)
	victim := p.run(t, probe("sleep"))
	var id shared[string]
	pl := (&plugin{name: "evicts", idx: "10"}).connect(t, n.nri(), evicting(id.get))
	id.set(victim.id)
	p.run(t, probe("sleep"))
	equal(t, "state of the evicted one", victim.status(t).GetState(), runtimeapi.ContainerState_CONTAINER_EXITED)
	equal(t, "exit code", victim.status(t).GetExitCode(), 137)
	has(t, "events", strings.Join(pl.events(victim.id), " "), "sync StopContainer")
}

// nriBad meets plugins that hang, that die, and that never say who they are.
func nriBad(t *testing.T, n *node) {
	n = n.spare(t, harness.Config{TOML: "[nri]\nplugin_request_timeout = \"2s\"\nplugin_registration_timeout = \"3s\"\n"}, nil, nil)
	p := n.pod(t)
	forever := make(chan struct{})
	defer close(forever)
	hang := func(string, string) error { <-forever; return nil }
	hanging := func(name string, at string) *plugin {
		pl := &plugin{name: name, idx: "10"}
		pl.onEvent = func(_ context.Context, event, id string) error {
			if event == at {
				return hang(event, id)
			}
			return nil
		}
		return pl
	}
	for _, at := range []string{"CreateContainer", "StartContainer", "StopContainer", "RemoveContainer"} {
		pl := hanging("hangs-"+strings.ToLower(at), at).connect(t, n.nri())
		c := p.run(t, probe("sleep"))
		c.stop(t, 30)
		c.remove(t)
		select {
		case <-pl.closed:
		case <-time.After(patience):
			t.Errorf("a plugin that hangs in %s is still connected", at)
		}
		has(t, "log", read(t, n.own.Dir("berthd.log")), "10-"+pl.name)
	}

	// One that never registers keeps nobody from making containers.
	silent, err := net.Dial("unix", n.nri())
	must(t, err)
	defer silent.Close()
	p.run(t, probe("sleep"))

	// One that hangs while it is synchronised is thrown out; the next one is let in.
	mute := &plugin{name: "mute", idx: "10", onSync: func(context.Context) { <-forever }}
	must(t, mute.dial(t, n.nri()))
	p.run(t, probe("sleep"))
	select {
	case <-mute.closed:
	case <-time.After(patience):
		t.Error("a plugin that hangs while it is synchronised is still connected")
	}

	// One that dies in the middle of a question is as if it had not been there.
	dying := &plugin{name: "dies", idx: "10"}
	dying.onEvent = func(_ context.Context, event, _ string) error {
		if event == "CreateContainer" {
			_ = dying.conn.Close()
		}
		return nil
	}
	dying.connect(t, n.nri())
	p.run(t, probe("sleep"))
	after := (&plugin{name: "after", idx: "10"}).connect(t, n.nri())
	c := p.run(t, probe("sleep"))
	equal(t, "a good plugin hears of a container", after.learned(c.id), 1)
}

// nriRestart lets a plugin come back after the daemon, and an installed one be
// started by it.
func nriRestart(t *testing.T, n *node) {
	p := n.pod(t)
	lives, ended := p.run(t, probe("sleep")), p.run(t, probe("exit"))
	ended.wait(t)
	created := p.create(t, probe("sleep"))
	before := (&plugin{name: "before", idx: "10"}).connect(t, n.nri())
	must(t, n.own.Kill())
	select {
	case <-before.closed:
	case <-time.After(patience):
		t.Error("the plugin does not notice that the daemon died")
	}
	must(t, n.own.Start(t.Context()))
	after := (&plugin{name: "before", idx: "10"}).connect(t, n.nri())
	for _, id := range []string{p.id, lives.id, created.id} {
		equal(t, "told of "+id, strings.Join(after.events(id), " "), "sync")
	}
	equal(t, "told of an ended one", len(after.events(ended.id)), 0)
	equal(t, "state", after.seen(lives.id).GetState(), api.ContainerState_CONTAINER_RUNNING)
	equal(t, "state of one not started", after.seen(created.id).GetState(), api.ContainerState_CONTAINER_CREATED)
	lives.stop(t, 30)
	lives.remove(t)
	equal(t, "events after the restart", strings.Join(after.events(lives.id), " "), "sync StopContainer RemoveContainer")
}

func ptr[T any](v T) *T { return &v }

// nriInstalled has the daemon start a plugin, hand it its configuration, and
// end it. The plugin is this test's program (see TestMain).
func nriInstalled(t *testing.T, n *node) {
	dir := t.TempDir()
	for _, d := range []string{"plugins", "conf"} {
		must(t, os.Mkdir(filepath.Join(dir, d), 0o755))
	}
	self, err := os.Executable()
	must(t, err)
	must(t, os.WriteFile(filepath.Join(dir, "plugins", "10-installed"), []byte("#!/bin/sh\n"+pluginEnv+"=1 exec "+self+"\n"), 0o755))
	must(t, os.WriteFile(filepath.Join(dir, "plugins", "20-broken"), []byte("#!/bin/sh\nexit 1\n"), 0o755))
	must(t, os.WriteFile(filepath.Join(dir, "conf", "10-installed.conf"), []byte("from the file"), 0o644))
	n = n.spare(t, harness.Config{TOML: fmt.Sprintf(patientTOML+"plugin_path = %q\nplugin_config_path = %q\ndisable_connections = true\n",
		filepath.Join(dir, "plugins"), filepath.Join(dir, "conf"))}, nil, nil)
	if _, err := os.Stat(n.nri()); err == nil {
		t.Error("there is a socket although connections are disabled")
	}
	p := n.pod(t)
	equal(t, "what the installed plugin added", p.output(t, shell("echo $INSTALLED")), "from the file\n")
	must(t, n.own.Kill())
	must(t, n.own.Start(t.Context()))
	equal(t, "after a restart", p.output(t, shell("echo $INSTALLED")), "from the file\n")
}

// cdiDevices asks for devices by field and by annotation, and lets a plugin add one.
func cdiDevices(t *testing.T, n *node) {
	dir := t.TempDir()
	must(t, os.WriteFile(filepath.Join(dir, "vendor.json"), []byte(`{"cdiVersion": "0.6.0", "kind": "vendor.com/thing", "devices": [
		{"name": "null", "containerEdits": {"env": ["NULL=yes"], "deviceNodes": [{"path": "/dev/thing-null", "hostPath": "/dev/null"}]}},
		{"name": "zero", "containerEdits": {"env": ["ZERO=yes"], "deviceNodes": [{"path": "/dev/thing-zero", "hostPath": "/dev/zero"}]}},
		{"name": "files", "containerEdits": {"mounts": [{"hostPath": "`+dir+`", "containerPath": "/thing", "options": ["ro", "bind"]}]}}]}`), 0o644))
	n = n.spare(t, harness.Config{TOML: fmt.Sprintf(patientTOML+"[container]\ncdi_spec_dirs = [%q]\n", dir)}, nil, nil)
	p := n.pod(t)
	c := p.run(t, probe("sleep"), func(c *runtimeapi.ContainerConfig) {
		c.CDIDevices = []*runtimeapi.CDIDevice{{Name: "vendor.com/thing=null"}}
		c.Annotations = map[string]string{"cdi.k8s.io/test": "vendor.com/thing=zero,vendor.com/thing=null"}
	})
	equal(t, "variables", c.sh(t, "echo $NULL $ZERO"), "yes yes")
	equal(t, "devices", c.sh(t, "echo x > /dev/thing-null; head -c2 /dev/thing-zero | wc -c"), "2")

	_, err := n.rt.CreateContainer(t.Context(), &runtimeapi.CreateContainerRequest{PodSandboxId: p.id, SandboxConfig: p.config,
		Config: p.containerConfig(t, func(c *runtimeapi.ContainerConfig) {
			c.CDIDevices = []*runtimeapi.CDIDevice{{Name: "vendor.com/thing=none"}}
		})})
	wantCode(t, "unknown device", err, codes.FailedPrecondition)
	_, err = n.rt.CreateContainer(t.Context(), &runtimeapi.CreateContainerRequest{PodSandboxId: p.id, SandboxConfig: p.config,
		Config: p.containerConfig(t, func(c *runtimeapi.ContainerConfig) { c.CDIDevices = []*runtimeapi.CDIDevice{{Name: "gpu"}} })})
	wantCode(t, "not a device's name", err, codes.InvalidArgument)

	pl := &plugin{name: "devices", idx: "10"}
	pl.onCreate = func(*api.Container) (*api.ContainerAdjustment, []*api.ContainerUpdate) {
		a := &api.ContainerAdjustment{}
		a.AddCDIDevice(&api.CDIDevice{Name: "vendor.com/thing=files"})
		return a, nil
	}
	pl.connect(t, n.nri())
	equal(t, "what a plugin's device mounts", p.run(t, probe("sleep")).sh(t, "ls /thing"), "vendor.json")
}

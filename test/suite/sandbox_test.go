package suite

import (
	"fmt"
	"os"
	"strings"
	"sync"
	"testing"

	"google.golang.org/grpc/codes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func sandboxStories() []story {
	return []story{
		{name: "pod/up and down", tell: podUpDown},
		{name: "pod/list filters", tell: podFilters},
		{name: "pod/host namespaces", tell: hostNamespaces},
		{name: "pod/shared pid", tell: sharedPID},
		{name: "pod/target pid", tell: targetPID},
		{name: "pod/files and sysctls", tell: podFiles},
		{name: "pod/default sysctls", berth: true, tell: defaultSysctls},
		{name: "pod/remove with running containers", tell: removeBusyPod},
		{name: "pod/unknown handler", tell: unknownHandler},
		{name: "pod/unknown id", tell: unknownPod},
		{name: "pod/repeat joins", berth: true, tell: repeatPod},
		{name: "pod/twenty at once", tell: twentyPods},
	}
}

func podUpDown(t *testing.T, n *node) {
	p := n.pod(t, func(c *runtimeapi.PodSandboxConfig) { c.Annotations = map[string]string{"a/b": "c"} })
	s := p.status(t)
	equal(t, "state", s.GetState(), runtimeapi.PodSandboxState_SANDBOX_READY)
	equal(t, "name", s.GetMetadata().GetName(), p.config.Metadata.Name)
	equal(t, "uid", s.GetMetadata().GetUid(), p.config.Metadata.Uid)
	equal(t, "label", s.GetLabels()["suite"], "yes")
	equal(t, "annotation", s.GetAnnotations()["a/b"], "c")
	if s.GetCreatedAt() == 0 || s.GetNetwork().GetIp() == "" {
		t.Errorf("status lacks a time or an address: %v", s)
	}
	for range 2 {
		_, err := n.rt.StopPodSandbox(t.Context(), &runtimeapi.StopPodSandboxRequest{PodSandboxId: p.id})
		must(t, err)
	}
	equal(t, "state after stop", p.status(t).GetState(), runtimeapi.PodSandboxState_SANDBOX_NOTREADY)
	for range 2 {
		_, err := n.rt.RemovePodSandbox(t.Context(), &runtimeapi.RemovePodSandboxRequest{PodSandboxId: p.id})
		must(t, err)
	}
	_, err := n.rt.PodSandboxStatus(t.Context(), &runtimeapi.PodSandboxStatusRequest{PodSandboxId: p.id})
	wantCode(t, "status of a removed pod", err, codes.NotFound)
}

func podFilters(t *testing.T, n *node) {
	label := func(v string) func(*runtimeapi.PodSandboxConfig) {
		return func(c *runtimeapi.PodSandboxConfig) { c.Labels["which"] = v }
	}
	a, b := n.pod(t, label("a")), n.pod(t, label("b"))
	_, err := n.rt.StopPodSandbox(t.Context(), &runtimeapi.StopPodSandboxRequest{PodSandboxId: b.id})
	must(t, err)
	state := func(s runtimeapi.PodSandboxState) *runtimeapi.PodSandboxStateValue {
		return &runtimeapi.PodSandboxStateValue{State: s}
	}
	for _, c := range []struct {
		name   string
		filter *runtimeapi.PodSandboxFilter
		a, b   bool
	}{
		{"none", nil, true, true},
		{"id", &runtimeapi.PodSandboxFilter{Id: a.id}, true, false},
		{"prefix of an id", &runtimeapi.PodSandboxFilter{Id: a.id[:13]}, true, false},
		{"label", &runtimeapi.PodSandboxFilter{LabelSelector: map[string]string{"which": "b"}}, false, true},
		{"ready", &runtimeapi.PodSandboxFilter{State: state(runtimeapi.PodSandboxState_SANDBOX_READY)}, true, false},
		{"not ready", &runtimeapi.PodSandboxFilter{State: state(runtimeapi.PodSandboxState_SANDBOX_NOTREADY)}, false, true},
		{"id and wrong label", &runtimeapi.PodSandboxFilter{Id: a.id, LabelSelector: map[string]string{"which": "b"}}, false, false},
		{"unknown id", &runtimeapi.PodSandboxFilter{Id: "nowhere"}, false, false},
	} {
		r, err := n.rt.ListPodSandbox(t.Context(), &runtimeapi.ListPodSandboxRequest{Filter: c.filter})
		must(t, err)
		got := map[string]bool{}
		for _, s := range r.GetItems() {
			got[s.GetId()] = true
		}
		if got[a.id] != c.a || got[b.id] != c.b {
			t.Errorf("%s: a listed %v, want %v; b listed %v, want %v", c.name, got[a.id], c.a, got[b.id], c.b)
		}
	}
}

func namespaces(o *runtimeapi.NamespaceOption) func(*runtimeapi.PodSandboxConfig) {
	return func(c *runtimeapi.PodSandboxConfig) { c.Linux.SecurityContext.NamespaceOptions = o }
}

func hostNamespaces(t *testing.T, n *node) {
	host := runtimeapi.NamespaceMode_NODE
	p := n.pod(t, namespaces(&runtimeapi.NamespaceOption{Network: host, Pid: host, Ipc: host}))
	c := p.run(t, probe("sleep"))
	equal(t, "pid namespace", c.sh(t, "readlink /proc/self/ns/pid"), link(t, "/proc/self/ns/pid"))
	equal(t, "ipc namespace", c.sh(t, "readlink /proc/self/ns/ipc"), link(t, "/proc/self/ns/ipc"))
	net := n.netns
	if net == "" {
		net = "/proc/self/ns/net"
	}
	equal(t, "network namespace", c.sh(t, "readlink /proc/self/ns/net"), link(t, net))
	shm, err := os.CreateTemp("/dev/shm", "berth-suite-")
	must(t, err)
	defer os.Remove(shm.Name())
	defer shm.Close()
	equal(t, "/dev/shm of the node", c.sh(t, "ls "+shm.Name()), shm.Name())
	equal(t, "namespaces in the status", p.status(t).GetLinux().GetNamespaces().GetOptions().GetNetwork(), host)
}

func link(t *testing.T, path string) string {
	t.Helper()
	s, err := os.Readlink(path)
	must(t, err)
	return s
}

func sharedPID(t *testing.T, n *node) {
	p := n.pod(t, namespaces(&runtimeapi.NamespaceOption{Pid: runtimeapi.NamespaceMode_POD}))
	a, b := p.run(t, probe("sleep")), p.run(t, probe("deaf"))
	eventually(t, "a sees both processes", func() bool { // runtimes return before the program has taken their place
		all := a.sh(t, "cat /proc/[0-9]*/cmdline | tr '\\0' ' '")
		return strings.Contains(all, "probe sleep") && strings.Contains(all, "probe deaf")
	})
	equal(t, "one pid namespace", a.sh(t, "readlink /proc/self/ns/pid"), b.sh(t, "readlink /proc/self/ns/pid"))
	b.stop(t, 0)
	equal(t, "code of the killed one", b.wait(t).GetExitCode(), 137)
	equal(t, "state of the other", a.status(t).GetState(), runtimeapi.ContainerState_CONTAINER_RUNNING)
}

func targetPID(t *testing.T, n *node) {
	p := n.pod(t)
	a := p.run(t, probe("sleep"))
	b := p.run(t, probe("sleep"), security(func(s *runtimeapi.LinuxContainerSecurityContext) {
		s.NamespaceOptions = &runtimeapi.NamespaceOption{Pid: runtimeapi.NamespaceMode_TARGET, TargetId: a.id}
	}))
	equal(t, "one pid namespace", b.sh(t, "readlink /proc/self/ns/pid"), a.sh(t, "readlink /proc/self/ns/pid"))
}

// defaultSysctls: any user may listen on every port and ping, in pods with a
// network of their own that do not say otherwise.
func defaultSysctls(t *testing.T, n *node) {
	const read = "cat /proc/sys/net/ipv4/ip_unprivileged_port_start /proc/sys/net/ipv4/ping_group_range | xargs"
	equal(t, "by default", n.pod(t).run(t, probe("sleep")).sh(t, read), "0 0 2147483647")
	own := n.pod(t, func(c *runtimeapi.PodSandboxConfig) {
		c.Linux.Sysctls = map[string]string{"net/ipv4/ip_unprivileged_port_start": "80"}
	})
	equal(t, "as the pod says", own.run(t, probe("sleep")).sh(t, read), "80 0 2147483647")
	host := n.pod(t, namespaces(&runtimeapi.NamespaceOption{Network: runtimeapi.NamespaceMode_NODE}))
	if got := host.run(t, probe("sleep")).sh(t, read); got == "0 0 2147483647" {
		t.Errorf("the node's network has a pod's sysctls: %s", got)
	}
}

func podFiles(t *testing.T, n *node) {
	p := n.pod(t, func(c *runtimeapi.PodSandboxConfig) {
		c.Hostname = "crows-nest"
		c.DnsConfig = &runtimeapi.DNSConfig{Servers: []string{"192.0.2.53"}, Searches: []string{"a.example", "b.example"}, Options: []string{"ndots:5"}}
		c.Linux.Sysctls = map[string]string{"net.ipv4.ip_local_port_range": "20000 30000", "kernel.shm_rmid_forced": "1"}
	})
	c := p.run(t, probe("sleep"))
	equal(t, "hostname", c.sh(t, "hostname"), "crows-nest")
	has(t, "/etc/hostname", c.sh(t, "cat /etc/hostname"), "crows-nest")
	has(t, "resolv.conf", c.sh(t, "cat /etc/resolv.conf"), "nameserver 192.0.2.53", "search a.example b.example", "options ndots:5")
	has(t, "sysctl", c.sh(t, "cat /proc/sys/net/ipv4/ip_local_port_range"), "20000", "30000")
	equal(t, "ipc sysctl", c.sh(t, "cat /proc/sys/kernel/shm_rmid_forced"), "1")
	d := p.run(t, probe("sleep"))
	c.sh(t, "echo ahoy > /dev/shm/x")
	equal(t, "shared /dev/shm", d.sh(t, "cat /dev/shm/x"), "ahoy")
	has(t, "mount of /dev/shm", c.sh(t, "grep ' /dev/shm ' /proc/mounts"), "tmpfs")
}

func removeBusyPod(t *testing.T, n *node) {
	p := n.pod(t)
	c := p.run(t, probe("deaf"))
	_, err := n.rt.StopPodSandbox(t.Context(), &runtimeapi.StopPodSandboxRequest{PodSandboxId: p.id})
	must(t, err)
	equal(t, "container of a stopped pod", c.status(t).GetState(), runtimeapi.ContainerState_CONTAINER_EXITED)
	_, err = n.rt.RemovePodSandbox(t.Context(), &runtimeapi.RemovePodSandboxRequest{PodSandboxId: p.id})
	must(t, err)
	_, err = n.rt.ContainerStatus(t.Context(), &runtimeapi.ContainerStatusRequest{ContainerId: c.id})
	wantCode(t, "container of a removed pod", err, codes.NotFound)
}

func unknownHandler(t *testing.T, n *node) {
	_, err := n.rt.RunPodSandbox(t.Context(), &runtimeapi.RunPodSandboxRequest{Config: n.podConfig(t), RuntimeHandler: "no-such-handler"})
	if err == nil {
		t.Fatal("a pod with an unknown handler runs")
	}
	has(t, "message", err.Error(), "no-such-handler")
}

func unknownPod(t *testing.T, n *node) {
	id := strings.Repeat("0", 64)
	_, err := n.rt.PodSandboxStatus(t.Context(), &runtimeapi.PodSandboxStatusRequest{PodSandboxId: id})
	wantCode(t, "status", err, codes.NotFound)
	_, err = n.rt.StopPodSandbox(t.Context(), &runtimeapi.StopPodSandboxRequest{PodSandboxId: id})
	wantCode(t, "stop", err, codes.OK)
	_, err = n.rt.RemovePodSandbox(t.Context(), &runtimeapi.RemovePodSandboxRequest{PodSandboxId: id})
	wantCode(t, "remove", err, codes.OK)
	_, err = n.rt.CreateContainer(t.Context(), &runtimeapi.CreateContainerRequest{PodSandboxId: id, Config: &runtimeapi.ContainerConfig{
		Metadata: &runtimeapi.ContainerMetadata{Name: "x"}, Image: &runtimeapi.ImageSpec{Image: n.ref("probe:1")}}, SandboxConfig: n.podConfig(t)})
	if err == nil {
		t.Error("a container was created in an unknown pod")
	}
}

// repeatPod sends the same request again, as a kubelet does after a time-out.
func repeatPod(t *testing.T, n *node) {
	p := n.pod(t)
	r, err := n.rt.RunPodSandbox(t.Context(), &runtimeapi.RunPodSandboxRequest{Config: p.config})
	must(t, err)
	equal(t, "pod of the same name and attempt", r.GetPodSandboxId(), p.id)
}

func twentyPods(t *testing.T, n *node) {
	n.pull(t, "probe:1")
	var wg sync.WaitGroup
	errs := make(chan error, 20)
	for i := range 20 {
		c := n.podConfig(t)
		wg.Go(func() { errs <- onePod(t, n, c, int32(i)) })
	}
	wg.Wait()
	close(errs)
	for err := range errs {
		if err != nil {
			t.Error(err)
		}
	}
}

// onePod takes a pod with a container through its life, without helpers that
// end the test from another goroutine.
func onePod(t *testing.T, n *node, c *runtimeapi.PodSandboxConfig, code int32) error {
	ctx := t.Context()
	r, err := n.rt.RunPodSandbox(ctx, &runtimeapi.RunPodSandboxRequest{Config: c})
	if err != nil {
		return err
	}
	defer n.rt.RemovePodSandbox(ctx, &runtimeapi.RemovePodSandboxRequest{PodSandboxId: r.GetPodSandboxId()})
	cc, err := n.rt.CreateContainer(ctx, &runtimeapi.CreateContainerRequest{PodSandboxId: r.GetPodSandboxId(), SandboxConfig: c, Config: &runtimeapi.ContainerConfig{
		Metadata: &runtimeapi.ContainerMetadata{Name: "c"}, Image: &runtimeapi.ImageSpec{Image: n.ref("probe:1")}, Args: []string{"exit", fmt.Sprint(code)},
	}})
	if err != nil {
		return err
	}
	if _, err := n.rt.StartContainer(ctx, &runtimeapi.StartContainerRequest{ContainerId: cc.GetContainerId()}); err != nil {
		return err
	}
	var got *runtimeapi.ContainerStatus
	eventually(t, "container ends", func() bool {
		s, err := n.rt.ContainerStatus(ctx, &runtimeapi.ContainerStatusRequest{ContainerId: cc.GetContainerId()})
		got = s.GetStatus()
		return err == nil && got.GetState() == runtimeapi.ContainerState_CONTAINER_EXITED
	})
	if got.GetExitCode() != code {
		return fmt.Errorf("exit code %d, want %d", got.GetExitCode(), code)
	}
	_, err = n.rt.StopPodSandbox(ctx, &runtimeapi.StopPodSandboxRequest{PodSandboxId: r.GetPodSandboxId()})
	return err
}

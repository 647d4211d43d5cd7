package suite

import (
	"context"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"testing"

	"google.golang.org/grpc/codes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-dev/berth/test/harness"
)

func networkStories() []story {
	return []story{
		{name: "network/pod address answers", tell: podAddress},
		{name: "network/host port", tell: hostPort},
		{name: "network/two pods", tell: twoPods},
		{name: "network/host port is taken", berth: true, tell: takenHostPort},
		{name: "network/plugin hangs at stop", berth: true, alone: true, tell: hangAtStop},
		{name: "network/plugin fails at stop", berth: true, alone: true, tell: failAtStop},
		{name: "network/pod CIDR fills a template", berth: true, alone: true, tell: podCIDRTemplate},
	}
}

// get asks an address inside a network namespace over HTTP.
func get(t *testing.T, netns, addr, path string) string {
	t.Helper()
	tr := &http.Transport{DisableKeepAlives: true, DialContext: func(context.Context, string, string) (net.Conn, error) {
		return harness.DialIn(netns, addr)
	}}
	r, err := (&http.Client{Transport: tr, Timeout: patience}).Get("http://" + addr + path)
	if err != nil {
		t.Error(err)
		return ""
	}
	defer r.Body.Close()
	b, err := io.ReadAll(r.Body)
	must(t, err)
	return string(b)
}

func podAddress(t *testing.T, n *node) {
	p := n.pod(t, func(c *runtimeapi.PodSandboxConfig) { c.Hostname = "web" })
	c := p.run(t, probe("serve"))
	c.waitLog(t, "listening")
	equal(t, "answer", get(t, n.netns, p.status(t).GetNetwork().GetIp()+":80", "/hostname"), "web\n")
	c.waitLog(t, "GET /hostname")
}

func hostPort(t *testing.T, n *node) {
	p := n.pod(t, func(c *runtimeapi.PodSandboxConfig) {
		c.PortMappings = []*runtimeapi.PortMapping{{Protocol: runtimeapi.Protocol_TCP, ContainerPort: 80, HostPort: 18080}}
	})
	p.run(t, probe("serve")).waitLog(t, "listening")
	other := n.pod(t, namespaces(&runtimeapi.NamespaceOption{Network: runtimeapi.NamespaceMode_NODE, Pid: runtimeapi.NamespaceMode_CONTAINER}))
	// From the node the port is reached by the bridge's own address.
	gateway := other.run(t, probe("sleep")).sh(t, "ip -4 -o addr show | awk '$2 != \"lo\" {split($4, a, \"/\"); print a[1]; exit}'")
	equal(t, "answer", get(t, n.netns, gateway+":18080", "/healthz"), "ok\n")
}

func twoPods(t *testing.T, n *node) {
	a, b := n.pod(t), n.pod(t)
	a.run(t, probe("serve")).waitLog(t, "listening")
	c := b.run(t, probe("sleep"))
	ip := a.status(t).GetNetwork().GetIp()
	equal(t, "answer", c.sh(t, "wget -q -O - http://"+ip+"/healthz"), "ok")
	if ip == b.status(t).GetNetwork().GetIp() {
		t.Error("two pods have one address")
	}
}

func withHostPort(port int32) func(*runtimeapi.PodSandboxConfig) {
	return func(c *runtimeapi.PodSandboxConfig) {
		c.PortMappings = []*runtimeapi.PortMapping{{Protocol: runtimeapi.Protocol_TCP, ContainerPort: 80, HostPort: port}}
	}
}

func takenHostPort(t *testing.T, n *node) {
	first := n.pod(t, withHostPort(18081))
	pc := n.podConfig(t)
	withHostPort(18081)(pc)
	_, err := n.tryPod(t, t.Context(), pc)
	wantCode(t, "a port that a pod has", err, codes.FailedPrecondition)
	if err != nil {
		has(t, "message", err.Error(), "18081/tcp", first.config.Metadata.Namespace+"/"+first.config.Metadata.Name, first.id)
	}
	first.remove(t)
	n.podOf(t, pc)

	host := n.pod(t, namespaces(&runtimeapi.NamespaceOption{Network: runtimeapi.NamespaceMode_NODE, Pid: runtimeapi.NamespaceMode_CONTAINER}))
	server := host.run(t, probe("serve", "18082"))
	server.waitLog(t, "listening")
	pc = n.podConfig(t)
	withHostPort(18082)(pc)
	_, err = n.tryPod(t, t.Context(), pc)
	wantCode(t, "a port that a process has", err, codes.FailedPrecondition)
	if err != nil {
		has(t, "message", err.Error(), "18082/tcp", `"probe"`)
	}
	server.remove(t)
	n.podOf(t, pc)
}

// hangAtStop has the network plugin of one pod hang in DEL, for as long as a
// file exists. Nobody else notices.
func hangAtStop(t *testing.T, n *node) {
	dir := t.TempDir()
	hang := filepath.Join(dir, "hang")
	s := n.withScripts(t, dir, "10m", ":", "touch "+dir+"/$CNI_CONTAINERID; while grep -qs $CNI_CONTAINERID "+hang+"; do sleep 0.1; done")
	a, b := s.pod(t), s.pod(t)
	must(t, os.WriteFile(hang, []byte(a.id), 0o644))
	stopped := make(chan error, 1)
	go func() {
		_, err := s.rt.StopPodSandbox(context.Background(), &runtimeapi.StopPodSandboxRequest{PodSandboxId: a.id})
		stopped <- err
	}()
	eventually(t, "the plugin hangs", func() bool { _, err := os.Stat(filepath.Join(dir, a.id)); return err == nil })
	equal(t, "network ready", s.networkReady(t), true)
	r, err := s.rt.ListPodSandbox(t.Context(), &runtimeapi.ListPodSandboxRequest{})
	must(t, err)
	equal(t, "pods", len(r.GetItems()), 2)
	a.status(t)
	b.remove(t)
	s.pod(t).remove(t)
	select {
	case err := <-stopped:
		t.Errorf("the stop did not wait for its plugin: %v", err)
	default:
	}
	must(t, os.Remove(hang))
	must(t, <-stopped)
}

// failAtStop has a plugin fail in DEL. The client hears it, and the daemon goes
// on trying by itself.
func failAtStop(t *testing.T, n *node) {
	dir := t.TempDir()
	broken := filepath.Join(dir, "broken")
	s := n.withScripts(t, dir, "30s", ":", "if [ -e "+broken+` ]; then echo '{"cniVersion":"1.0.0","code":100,"msg":"no luck today"}'; exit 1; fi`)
	p := s.pod(t)
	ip := p.status(t).GetNetwork().GetIp()
	held := func() bool { _, err := os.Stat(filepath.Join(s.own.Dir("ipam"), "berth-test", ip)); return err == nil }
	equal(t, "address in use", held(), true)
	must(t, os.WriteFile(broken, nil, 0o644))
	_, err := s.rt.StopPodSandbox(t.Context(), &runtimeapi.StopPodSandboxRequest{PodSandboxId: p.id})
	if err == nil {
		t.Fatal("a pod was stopped whose plugin failed")
	}
	has(t, "message", err.Error(), "no luck today")
	equal(t, "address in use", held(), true)
	must(t, os.Remove(broken))
	eventually(t, "the network is released without the client", func() bool {
		return !held() && p.status(t).GetState() == runtimeapi.PodSandboxState_SANDBOX_NOTREADY
	})
}

// podCIDRTemplate is a node without a network until the client tells the pod CIDR.
func podCIDRTemplate(t *testing.T, n *node) {
	template := filepath.Join(t.TempDir(), "template")
	s := n.spare(t, harness.Config{TOML: "[cni]\nconf_template = \"" + template + "\"\n"}, func(own *harness.Node) {
		must(t, os.RemoveAll(own.Dir("cni")))
		must(t, os.WriteFile(template, []byte(`{"cniVersion":"1.0.0","name":"of-template","plugins":[{"type":"bridge","bridge":"berth0","isGateway":true,"ipMasq":true,
"ipam":{"type":"host-local","dataDir":"`+own.Dir("ipam")+`","ranges":[{{range $i, $r := .PodCIDRRanges}}{{if $i}},{{end}}[{"subnet":"{{$r}}"}]{{end}}],
"routes":[{{range $i, $r := .Routes}}{{if $i}},{{end}}{"dst":"{{$r}}"}{{end}}]}}]}`), 0o644))
	}, nil)
	equal(t, "network ready", s.networkReady(t), false)
	update := func(cidr string) error {
		_, err := s.rt.UpdateRuntimeConfig(t.Context(), &runtimeapi.UpdateRuntimeConfigRequest{
			RuntimeConfig: &runtimeapi.RuntimeConfig{NetworkConfig: &runtimeapi.NetworkConfig{PodCidr: cidr}}})
		return err
	}
	wantCode(t, "a CIDR that is none", update("10.99.0.0"), codes.InvalidArgument)
	must(t, update("fd00:99::/64"))
	eventually(t, "the network is ready", func() bool { return s.networkReady(t) })
	// A node with one family only, and not the usual one.
	st := s.pod(t).status(t).GetNetwork()
	has(t, "address", st.GetIp(), "fd00:99::")
	equal(t, "more addresses", len(st.GetAdditionalIps()), 0)
}

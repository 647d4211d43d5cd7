package suite

import (
	"context"
	"io"
	"net"
	"net/http"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-dev/berth/test/harness"
)

func networkStories() []story {
	return []story{
		{name: "network/pod address answers", tell: podAddress},
		{name: "network/host port", tell: hostPort},
		{name: "network/two pods", tell: twoPods},
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

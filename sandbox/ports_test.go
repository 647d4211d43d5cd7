package sandbox

import (
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-dev/berth/store"
)

func TestSharedPort(t *testing.T) {
	port := func(p int32, ip string, proto runtimeapi.Protocol) []*runtimeapi.PortMapping {
		return []*runtimeapi.PortMapping{{ContainerPort: 80}, {ContainerPort: 80, HostPort: p, HostIp: ip, Protocol: proto}}
	}
	const tcp, udp = runtimeapi.Protocol_TCP, runtimeapi.Protocol_UDP
	for _, c := range []struct {
		name string
		a, b []*runtimeapi.PortMapping
		want bool
	}{
		{"same", port(80, "", tcp), port(80, "", tcp), true},
		{"no host port", port(0, "", tcp), port(0, "", tcp), false},
		{"another port", port(80, "", tcp), port(81, "", tcp), false},
		{"another protocol", port(80, "", tcp), port(80, "", udp), false},
		{"one address and all", port(80, "10.0.0.1", tcp), port(80, "", tcp), true},
		{"one address and all of its family", port(80, "10.0.0.1", tcp), port(80, "0.0.0.0", tcp), true},
		{"one address, written as IPv6", port(80, "10.0.0.1", tcp), port(80, "::ffff:10.0.0.1", tcp), true},
		{"two addresses", port(80, "10.0.0.1", tcp), port(80, "10.0.0.2", tcp), false},
		{"two families", port(80, "10.0.0.1", tcp), port(80, "::", tcp), false},
		{"all of two families", port(80, "0.0.0.0", tcp), port(80, "::", tcp), false},
	} {
		for _, got := range []*runtimeapi.PortMapping{sharedPort(c.a, c.b), sharedPort(c.b, c.a)} {
			if (got != nil) != c.want {
				t.Errorf("%s: %v", c.name, got)
			}
		}
	}
}

// A host port of another pod is refused with the pod's name, from the moment
// that pod is begun until its network is released.
func TestPortsArePodsByName(t *testing.T) {
	db, err := store.Open(store.Config{Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	m := &Manager{cfg: Config{BootID: "now"}, db: db}
	pod := func(name string) store.Sandbox {
		return newRecord(func(c *runtimeapi.PodSandboxConfig) {
			c.Metadata.Name = name
			c.PortMappings = []*runtimeapi.PortMapping{{HostPort: 8080, ContainerPort: 80}}
		})
	}
	first, second := pod("first"), pod("second")
	refused := func(when string) {
		t.Helper()
		_, err := m.claim(second)
		if !errdefs.IsFailedPrecondition(err) {
			t.Fatalf("%s: %v", when, err)
		}
		for _, w := range []string{"8080/tcp", "default/first", first.ID} {
			if !strings.Contains(err.Error(), w) {
				t.Errorf("%s: %v does not say %q", when, err, w)
			}
		}
	}
	done, err := m.claim(first)
	if err != nil {
		t.Fatal(err)
	}
	refused("while it is made")
	host := pod("host")
	host.Config.Linux.SecurityContext.NamespaceOptions.Network = runtimeapi.NamespaceMode_NODE
	if _, err := m.claim(host); err != nil {
		t.Errorf("a pod on the node's network maps no port: %v", err)
	}
	first.Facts.BootID, first.Facts.Network.Attached = "now", true
	commit := func() {
		t.Helper()
		if err := db.Commit(t.Context(), store.Change{PutSandboxes: []store.Sandbox{first}}); err != nil {
			t.Fatal(err)
		}
	}
	commit()
	done()
	refused("while it runs")
	for _, change := range []func(){
		func() { first.Facts.Network.Attached = false },
		func() { first.Facts.Network.Attached, first.Facts.BootID = true, "before" },
	} {
		change()
		commit()
		done, err := m.claim(second)
		if err != nil {
			t.Fatal(err)
		}
		done()
	}
	// Left half made, by this daemon or the one before, until that is undone.
	payload, err := (&state{Rec: first}).MarshalJSON()
	if err == nil {
		err = db.Commit(t.Context(), store.Change{DeleteSandboxes: []string{first.ID}})
	}
	if err == nil {
		err = db.BeginOp(t.Context(), store.Op{ID: "op", Kind: kindRun, Subject: first.ID, Payload: payload})
	}
	if err != nil {
		t.Fatal(err)
	}
	refused("while it is undone")
	db.ReleaseOp("op")
	refused("while its undoing is tried again")
	if _, err := m.claim(second); !strings.Contains(err.Error(), "not undone yet") {
		t.Errorf("%v does not say why", err)
	}
	if err := db.Commit(t.Context(), store.Change{EndOps: []string{"op"}}); err != nil {
		t.Fatal(err)
	}
	if done, err = m.claim(second); err != nil {
		t.Fatal(err)
	}
	done()
	if len(m.ports.making) != 0 {
		t.Errorf("claims are left: %v", m.ports.making)
	}
}

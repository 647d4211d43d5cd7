package suite

import (
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func nodeStories() []story {
	return []story{
		{name: "node/version", tell: version},
		{name: "node/status", tell: nodeStatus},
		{name: "node/runtime config", tell: runtimeConfig},
	}
}

func version(t *testing.T, n *node) {
	r, err := n.rt.Version(t.Context(), &runtimeapi.VersionRequest{})
	must(t, err)
	equal(t, "API version", r.GetRuntimeApiVersion(), "v1")
	if r.GetRuntimeName() == "" || r.GetRuntimeVersion() == "" {
		t.Errorf("name or version is empty: %v", r)
	}
	if n.own != nil {
		equal(t, "name", r.GetRuntimeName(), "berth")
	}
}

func nodeStatus(t *testing.T, n *node) {
	r, err := n.rt.Status(t.Context(), &runtimeapi.StatusRequest{Verbose: true})
	must(t, err)
	ready := map[string]bool{}
	for _, c := range r.GetStatus().GetConditions() {
		ready[c.GetType()] = c.GetStatus()
	}
	if !ready[runtimeapi.RuntimeReady] || !ready[runtimeapi.NetworkReady] {
		t.Errorf("not ready: %v", r.GetStatus().GetConditions())
	}
	if len(r.GetRuntimeHandlers()) == 0 {
		t.Error("no runtime handler is reported")
	}
	if len(r.GetInfo()) == 0 {
		t.Error("verbose status has no info")
	}
}

func runtimeConfig(t *testing.T, n *node) {
	r, err := n.rt.RuntimeConfig(t.Context(), &runtimeapi.RuntimeConfigRequest{})
	must(t, err)
	if r.GetLinux() == nil {
		t.Error("no cgroup driver is reported")
	}
}

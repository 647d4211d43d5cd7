package suite

import (
	"context"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-dev/berth/test/harness"
	"github.com/berth-dev/berth/test/images"
)

// spare is a node of a story's own, which it may damage. It ends with the
// story, and must then be as clean as the suite's. prepare, which may be nil,
// is called before the daemon starts.
func (n *node) spare(t *testing.T, cfg harness.Config, prepare func(*harness.Node), more map[string]any) *node {
	t.Helper()
	var err error
	cfg.Programs, err = harness.Find(*binDir)
	must(t, err)
	own, err := harness.New(cfg)
	must(t, err)
	s := &node{own: own, netns: own.Space().NetNS()}
	t.Cleanup(func() {
		s.clean(t)
		if t.Failed() {
			t.Logf("end of the daemon's log:\n%s", own.LogTail())
		}
		if err := own.Close(); err != nil {
			t.Error(err)
		}
	})
	if prepare != nil {
		prepare(own)
	}
	served := map[string]any{"probe:1": n.images["probe:1"], "scratch:1": n.images["scratch:1"]}
	for name, img := range more {
		served[name] = img
	}
	s.reg, err = images.Serve(served, harness.ListenIn(s.netns))
	must(t, err)
	t.Cleanup(func() { s.reg.Close() })
	must(t, s.reg.WriteHosts(own.HostsDir()))
	must(t, own.Start(t.Context()))
	s.connect(t)
	return s
}

func (n *node) connect(t *testing.T) {
	t.Helper()
	conn, err := n.own.Conn()
	must(t, err)
	n.rt, n.im = runtimeapi.NewRuntimeServiceClient(conn), runtimeapi.NewImageServiceClient(conn)
}

// clean checks that nothing of any pod is left on the suite's node.
func (n *node) clean(t *testing.T) {
	t.Helper()
	if left := n.own.WaitLeftovers(context.Background()); len(left) > 0 {
		t.Errorf("left behind: %q", left)
	}
}

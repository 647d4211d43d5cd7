package suite

import (
	"errors"
	"flag"
	"fmt"
	"slices"
	"strings"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-dev/berth/test/harness"
	"github.com/berth-dev/berth/test/images"
)

var (
	endpoint    = flag.String("endpoint", "", "CRI endpoint to test; empty: a berthd of the suite's own")
	imagePrefix = flag.String("image-prefix", images.HostPlain, "registry host of the test images")
	hostsDir    = flag.String("hosts-dir", "", "with -endpoint: directory where the runtime looks for hosts.toml")
	netns       = flag.String("netns", "", "with -endpoint: network namespace of the runtime, as a path")
	ociRuntime  = flag.String("runtime", "", "OCI runtime of the suite's own berthd, in PATH; empty: runc")
	unit        = flag.String("unit", "", "systemd unit that runs the suite's own berthd, with the systemd cgroup driver; empty: the suite runs it")
	binDir      = flag.String("bin", "", "directory of berthd and berth-shim; empty: bin of the module")
)

// node is the runtime under test.
type node struct {
	rt     runtimeapi.RuntimeServiceClient
	im     runtimeapi.ImageServiceClient
	netns  string
	reg    *images.Registry
	images map[string]any // what reg serves
	own    *harness.Node  // nil: somebody else's
}

// story is one tale; berth marks what only Berth promises, owned what needs a
// daemon that the suite may kill, and alone what brings a node of its own and
// so can be told along with others of that kind.
type story struct {
	name  string
	berth bool
	owned bool
	alone bool
	tell  func(t *testing.T, n *node)
}

func TestIntegrationStories(t *testing.T) {
	n := open(t)
	all := slices.Concat(nodeStories(), sandboxStories(), imageStories(), containerStories(),
		processStories(), logStories(), stopStories(), streamStories(), sessionStories(), forwardStories(), networkStories(), statsStories(),
		badImageStories(), badNodeStories(), restartStories(), eventStories(), usernsStories(), volumeStories(), stuckStories(),
		nriStories(), execsStories(), securityStories(), resourceStories(), handlerStories(), ctlStories(), clockStories(), checkpointStories(), checkpointPodStories(), restoreStories())
	for _, s := range all {
		t.Run(s.name, func(t *testing.T) {
			switch {
			case s.owned && n.own == nil:
				t.Skip("needs a daemon that the suite owns")
			case s.berth && n.own == nil:
				t.Skip("a promise of Berth's own")
			}
			if s.alone {
				t.Parallel()
			}
			s.tell(t, n)
		})
	}
	if n.own != nil {
		n.clean(t)
	}
}

func open(t *testing.T) *node {
	n := &node{netns: *netns}
	dir := *hostsDir
	if *endpoint == "" {
		n.own = openOwn(t)
		n.netns, dir = n.own.Space().NetNS(), n.own.HostsDir()
		n.connect(t)
	} else {
		conn, err := grpc.NewClient(*endpoint, grpc.WithTransportCredentials(insecure.NewCredentials()),
			grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(32<<20)))
		must(t, err)
		n.rt, n.im = runtimeapi.NewRuntimeServiceClient(conn), runtimeapi.NewImageServiceClient(conn)
	}
	if dir != "" {
		n.serve(t, dir)
	}
	return n
}

// patientTOML lets plugins answer that live in a test on a busy machine.
const patientTOML = "[nri]\nplugin_request_timeout = \"1m\"\nplugin_registration_timeout = \"1m\"\n"

// runtimeTOML makes another OCI runtime than runc serve all pods.
func runtimeTOML(name string) string {
	if name == "" {
		return ""
	}
	return fmt.Sprintf("[runtime]\ndefault = %q\n[runtime.handlers.runc]\n[runtime.handlers.%s]\n", name, name)
}

// driverTOML makes systemd keep the control groups of a daemon that it runs.
func driverTOML(unit string) string {
	if unit == "" {
		return ""
	}
	return "[cgroup]\ndriver = \"systemd\"\n"
}

func openOwn(t *testing.T) *harness.Node {
	programs, err := harness.Find(*binDir)
	if err != nil {
		t.Fatal(err)
	}
	if missing := programs.Missing(true); len(missing) > 0 {
		t.Skip("cannot run a node here:\n  " + strings.Join(missing, "\n  "))
	}
	own, err := harness.New(harness.Config{Programs: programs, Unit: *unit, TOML: patientTOML + driverTOML(*unit) + runtimeTOML(*ociRuntime)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("end of the daemon's log:\n%s", own.LogTail())
		}
		if err := own.Close(); err != nil {
			t.Error(err)
		}
	})
	if err := own.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	return own
}

// serve serves the images where the runtime looks for them.
func (n *node) serve(t *testing.T, dir string) {
	parts, err := images.LoadParts(t.Context())
	if errors.Is(err, images.ErrNoBusybox) {
		t.Skip(err)
	}
	must(t, err)
	n.images, err = images.Catalog(parts)
	must(t, err)
	n.reg, err = images.Serve(n.images, harness.ListenIn(n.netns))
	must(t, err)
	t.Cleanup(func() { n.reg.Close() })
	must(t, n.reg.WriteHosts(dir))
}

package node

import (
	"bytes"
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-dev/berth/cmd/berthctl/cli"
	"github.com/berth-dev/berth/cri/admin"
	"github.com/berth-dev/berth/test/golden"
)

func TestStatus(t *testing.T) {
	r := &runtimeapi.StatusResponse{Status: &runtimeapi.RuntimeStatus{Conditions: []*runtimeapi.RuntimeCondition{
		{Type: "RuntimeReady", Status: true}, {Type: "NetworkReady", Reason: "NetworkPluginNotReady", Message: "no file"}}}}
	rows, ready := conditionRows(r.GetStatus().GetConditions())
	if ready {
		t.Error("ready with a false condition")
	}
	golden.Outputs(t, "status", func(output string, out *bytes.Buffer) error {
		a := &cli.App{Output: output}
		return a.Show(out, r, cli.Table{Header: "CONDITION STATUS REASON MESSAGE", Rows: rows})
	})
}

func TestInfo(t *testing.T) {
	r := &admin.InfoResponse{Version: "v", Pid: 7, StartedAt: 1e18, ConfigSource: "f", Root: "/r", Run: "/run", CgroupDriver: "cgroupfs",
		Counts:         &admin.Counts{Sandboxes: 1},
		Storage:        &admin.Storage{Driver: "overlayfs", Filesystem: "ext4", SizeBytes: 2 << 30, FreeBytes: 1 << 30, ImageBytes: 5 << 20},
		Networks:       []*admin.Network{{Name: "pods", File: "/etc/cni/net.d/10-pods.conflist", Ready: true}, {Reason: "no file", Handlers: []string{"kata", "vm"}}},
		BuiltinPlugins: []string{"bridge", "host-local"}, NriPlugins: 2,
		Handlers: []*admin.Handler{{Name: "runc", Default: true, Path: "/r", Features: []string{"user_namespaces"}}}}
	golden.Outputs(t, "info", func(output string, out *bytes.Buffer) error {
		a := &cli.App{Output: output}
		return a.Show(out, r, cli.Table{Rows: infoRows(r)})
	})
}

func TestRepair(t *testing.T) {
	now := time.Unix(1_700_000_000, 0)
	r := &admin.RecoveryResponse{Objects: []*admin.Recovering{{Kind: "container", Id: "0123456789abcdef", Doing: "find its shim", Since: now.Add(-time.Minute).UnixNano(),
		Failures: 3, Next: now.Add(5 * time.Second).UnixNano(), Error: "no\nanswer"}}}
	golden.Outputs(t, "recovery", func(output string, out *bytes.Buffer) error {
		a := &cli.App{Output: output}
		return a.Show(out, r, cli.Table{Header: recoveryHeader, Rows: recoveryRows(a, r, now)})
	})
	done := &admin.ReconcileResponse{Actions: []*admin.ReconcileAction{{Kind: "layer", Id: "0123456789abcdef", Action: "remove directory", Reason: "no record", Error: "busy"}}}
	golden.Outputs(t, "reconcile", func(output string, out *bytes.Buffer) error {
		a := &cli.App{Output: output}
		rows, failed := reconcileRows(a, done)
		if !failed {
			t.Error("a failure is not noticed")
		}
		return a.Show(out, done, cli.Table{Header: reconcileHeader, Rows: rows})
	})
}

func TestEvents(t *testing.T) {
	stop := &admin.Event{Seq: 1795646760166123, At: 1_000_000_000, Kind: "container.stopped", Id: "c", PodId: "p", Name: "web", Namespace: "shop", ExitCode: 0, Reason: "Completed"}
	pull := &admin.Event{Seq: 2, At: 2_000_000_000, Kind: "image.pulled", Id: "sha256:0123456789abcdef", Name: "r/i:1"}
	golden.Outputs(t, "events", func(output string, out *bytes.Buffer) error {
		a := &cli.App{Output: output}
		for _, e := range []*admin.Event{stop, pull} {
			if err := printEvent(a, out, e); err != nil {
				return err
			}
		}
		return nil
	})
}

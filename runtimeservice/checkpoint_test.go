package runtimeservice

import (
	"context"
	"encoding/json"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-dev/berth/runtimeservice/checkpoint"
	"github.com/berth-dev/berth/shim"
	"github.com/berth-dev/berth/store"
)

type fakeDisk struct{ dir string }

func (fakeDisk) WritableUsage(context.Context, string) (uint64, uint64, error) { return 0, 0, nil }
func (d fakeDisk) WritableLayer(string, string) (string, []string, error)      { return d.dir, nil, nil }

func (d fakeDisk) Fill(_ context.Context, id string, _ store.Image, files io.Reader) error {
	b, err := io.ReadAll(files)
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(d.dir, "layer-"+id), b, 0o600)
}

func (d fakeDisk) Unpack(_ context.Context, _ string, files io.Reader) error {
	b, err := io.ReadAll(files)
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(d.dir, "shm"), b, 0o600)
}

// program writes a shell script that can be run.
func program(t *testing.T, path, script string) string {
	t.Helper()
	if err := os.WriteFile(path, []byte("#!/bin/sh\n"+script+"\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestCheckpointContainer(t *testing.T) {
	s, n := newTestService(t)
	dir := t.TempDir()
	t.Setenv("PATH", dir)
	runtime := func(annotations string) {
		path := program(t, filepath.Join(dir, "runc"), `echo '{"annotations":{`+annotations+`}}'`)
		s.containers.cfg.Handlers["runc"] = Handler{Runtime: shim.Runtime{Path: path}}
	}
	s.checkpoints.disk = fakeDisk{dir}
	runtime("")
	pod := mustPod(t, s, "p")
	created := mustContainer(t, s, pod, "created", false)
	running := mustContainer(t, s, pod, "running", true)
	out := filepath.Join(dir, "c.tar")
	try := func(id string, timeout int64) error {
		_, err := s.CheckpointContainer(t.Context(), &runtimeapi.CheckpointContainerRequest{ContainerId: id, Location: out, Timeout: timeout})
		return err
	}
	want := func(what string, err error, is func(error) bool, says string) {
		t.Helper()
		if !is(err) || !strings.Contains(err.Error(), says) {
			t.Errorf("%s: %v", what, err)
		}
	}
	status := func() string {
		t.Helper()
		return toJSON(t, s.info.checkpoints(t.Context()))
	}
	want("no CRIU", try(running, 0), errdefs.IsNotImplemented, "CRIU is not installed")
	if got := status(); !strings.Contains(got, `"available":false`) || !strings.Contains(got, "CRIU is not installed") {
		t.Error(got)
	}
	program(t, filepath.Join(dir, "criu"), "exit 0")
	if got := status(); got != `{"available":true}` {
		t.Error(got)
	}
	want("negative time", try(running, -1), errdefs.IsInvalidArgument, "negative")
	want("unknown", try("none", 0), errdefs.IsNotFound, "none")
	want("created", try(created, 0), errdefs.IsFailedPrecondition, "")
	want("shim without answer", try(running, 0), errdefs.IsUnavailable, running)
	if n.count("freeze") != 1 || n.count("thawed") != 1 || len(n.db.Ops()) != 0 {
		t.Errorf("%d freezes, %d looks whether it goes on, journal %v", n.count("freeze"), n.count("thawed"), n.db.Ops())
	}
	if _, err := os.Stat(out); err == nil {
		t.Error("an archive is left")
	}
	runtime(`"org.opencontainers.runc.checkpoint.enabled":"false", "more":"so that the file is another"`)
	want("runtime without", try(running, 0), errdefs.IsNotImplemented, "without checkpoints")
}

func TestCheckpointPod(t *testing.T) {
	s, n := newTestService(t)
	dir := t.TempDir()
	t.Setenv("PATH", dir)
	program(t, filepath.Join(dir, "criu"), "exit 0")
	s.containers.cfg.Handlers["runc"] = Handler{Runtime: shim.Runtime{Path: program(t, filepath.Join(dir, "runc"), "echo '{}'")}}
	s.checkpoints.disk = fakeDisk{dir}
	pod, other := mustPod(t, s, "p"), mustPod(t, s, "q")
	one, two := mustContainer(t, s, pod, "one", true), mustContainer(t, s, pod, "two", true)
	created, foreign := mustContainer(t, s, pod, "created", false), mustContainer(t, s, other, "foreign", true)
	out := filepath.Join(dir, "out")
	if err := os.Mkdir(out, 0o700); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		ids     []string
		options map[string]string
		is      func(error) bool
		says    string
	}{
		{nil, nil, errdefs.IsInvalidArgument, "container_ids is empty"},
		{[]string{one, one}, nil, errdefs.IsInvalidArgument, "twice"},
		{[]string{one, foreign}, nil, errdefs.IsInvalidArgument, "another sandbox"},
		{[]string{one, created}, nil, errdefs.IsFailedPrecondition, created},
		{[]string{one, "none"}, nil, errdefs.IsNotFound, "none"},
		{[]string{one}, map[string]string{"speed": "high"}, errdefs.IsInvalidArgument, "speed"},
		{[]string{one, two}, nil, errdefs.IsUnavailable, "capture"}, // by the fake shim
	} {
		_, err := s.CheckpointPod(t.Context(), &runtimeapi.CheckpointPodRequest{PodSandboxId: pod, OutputPath: out, ContainerIds: tc.ids, Options: tc.options})
		if !tc.is(err) || !strings.Contains(err.Error(), tc.says) {
			t.Errorf("%v: %v", tc.ids, err)
		}
	}
	if n.count("freeze") != 2 || n.count("thawed") != 2 || len(n.db.Ops()) != 0 {
		t.Errorf("%d freezes, %d looks whether they go on, journal %v", n.count("freeze"), n.count("thawed"), n.db.Ops())
	}
	stopped := mustPod(t, s, "r")
	if _, err := s.StopPodSandbox(t.Context(), &runtimeapi.StopPodSandboxRequest{PodSandboxId: stopped}); err != nil {
		t.Fatal(err)
	}
	if _, err := s.CheckpointPod(t.Context(), &runtimeapi.CheckpointPodRequest{PodSandboxId: stopped, OutputPath: out, ContainerIds: []string{one}}); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("a stopped pod: %v", err)
	}
}

// TestCheckpointRecovery: what a killed daemon had begun is undone before
// anything else is done to the container, whose end is learned all the same.
func TestCheckpointRecovery(t *testing.T) {
	s, n := newTestService(t)
	id := mustContainer(t, s, mustPod(t, s, "p"), "c", true)
	dir := filepath.Join(s.containers.cfg.StateDir, "checkpoints", id)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	pod := s.containers.db.Containers()[0].SandboxID
	for kind, subject := range map[string]string{checkpoint.Kind: id, checkpoint.PodKind: pod} {
		payload := []byte(`{"ID":"` + subject + `","Containers":["` + id + `"]}`)
		if err := n.db.BeginOp(t.Context(), store.Op{ID: kind, Kind: kind, Subject: subject, Payload: payload}); err != nil {
			t.Fatal(err)
		}
		n.db.ReleaseOp(kind)
	}
	gone := mustContainer(t, s, pod, "gone", true)
	if err := n.db.BeginOp(t.Context(), store.Op{ID: "gone", Kind: checkpoint.Kind, Subject: gone, Payload: []byte(`{"ID":"` + gone + `"}`)}); err != nil {
		t.Fatal(err)
	}
	n.db.ReleaseOp("gone")
	n.shims.Miss(shim.Exit{ID: gone, Code: 3, At: time.Unix(1e9, 0)})
	if err := s.Recover(t.Context()); err != nil {
		t.Fatal(err)
	}
	<-s.Settled()
	if st := statusFor(t, s, gone); st.State != runtimeapi.ContainerState_CONTAINER_EXITED || st.ExitCode != 3 {
		t.Errorf("a container that ended meanwhile: %v", st)
	}
	if _, err := s.ReopenContainerLog(t.Context(), &runtimeapi.ReopenContainerLogRequest{ContainerId: id}); err != nil {
		t.Error(err)
	}
	eventually(t, "the pod's is undone, too", func() bool { return len(n.db.Ops()) == 0 })
	if _, err := os.Stat(dir); err == nil || n.count("thawed") != 2 {
		t.Errorf("%v, %d looks", err, n.count("thawed"))
	}
}

func toJSON(t *testing.T, v any) string {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

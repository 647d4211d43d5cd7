package main

import (
	"bytes"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-dev/berth/config"
	"github.com/berth-dev/berth/cri/admin"
)

func TestTables(t *testing.T) {
	now := time.Unix(100_000, 0)
	id := strings.Repeat("0123456789abcdef", 4)
	conditions, ready := conditionRows([]*runtimeapi.RuntimeCondition{
		{Type: "RuntimeReady", Status: true}, {Type: "NetworkReady", Reason: "NetworkPluginNotReady", Message: "no file"}})
	if ready {
		t.Error("ready with a false condition")
	}
	tests := []struct {
		name, header string
		rows         [][]string
		want         string
	}{
		{"pods", "ID NAMESPACE NAME ATTEMPT STATE AGE", podRows([]*runtimeapi.PodSandbox{{Id: id,
			Metadata: &runtimeapi.PodSandboxMetadata{Name: "web", Namespace: "default"}, CreatedAt: now.Add(-time.Hour).UnixNano()}}, now),
			"ID             NAMESPACE  NAME  ATTEMPT  STATE  AGE\n0123456789abc  default    web   0        READY  60m\n"},
		{"containers", "ID POD NAME ATTEMPT STATE AGE IMAGE", containerRows([]*runtimeapi.Container{{Id: id, PodSandboxId: id,
			Metadata: &runtimeapi.ContainerMetadata{Name: "app", Attempt: 2}, State: runtimeapi.ContainerState_CONTAINER_EXITED,
			CreatedAt: now.Add(-72 * time.Hour).UnixNano(), Image: &runtimeapi.ImageSpec{Image: "busybox"}}}, now),
			"ID             POD            NAME  ATTEMPT  STATE   AGE  IMAGE\n0123456789abc  0123456789abc  app   2        EXITED  3d   busybox\n"},
		{"images", "ID SIZE PINNED REFERENCE", imageRows([]*runtimeapi.Image{{Id: "sha256:" + id, Size: 1536, RepoTags: []string{"docker.io/library/busybox:1"}}}),
			"ID             SIZE     PINNED  REFERENCE\n0123456789abc  1.5 KiB  false   docker.io/library/busybox:1\n"},
		{"conditions", "CONDITION STATUS REASON MESSAGE", conditions,
			"CONDITION     STATUS  REASON                 MESSAGE\nRuntimeReady  true                           \nNetworkReady  false   NetworkPluginNotReady  no file\n"},
		{"info", "", infoRows(&admin.InfoResponse{Version: "v", Pid: 7, ConfigSource: "f", Counts: &admin.Counts{Sandboxes: 1},
			Handlers: []*admin.Handler{{Name: "runc", Default: true, Path: "/r", Features: []string{"user_namespaces"}}}})[8:],
			"store                   1 sandboxes, 0 containers, 0 images, 0 layers, 0 unfinished operations, 0 B\nhandler runc (default)  /r user_namespaces\n"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var b bytes.Buffer
			if err := (&app{output: "table"}).show(&b, nil, tt.header, tt.rows); err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(tt.want, b.String()); d != "" {
				t.Error(d)
			}
		})
	}
}

func TestJSON(t *testing.T) {
	var b bytes.Buffer
	if err := (&app{output: "json"}).show(&b, &runtimeapi.VersionResponse{Version: "1", RuntimeName: "berth"}, "", nil); err != nil {
		t.Fatal(err)
	}
	want := "{\n  \"version\": \"1\",\n  \"runtime_name\": \"berth\",\n  \"runtime_version\": \"\",\n  \"runtime_api_version\": \"\"\n}\n"
	if d := cmp.Diff(want, b.String()); d != "" {
		t.Error(d)
	}
}

func TestRun(t *testing.T) {
	none := filepath.Join(t.TempDir(), "none.sock")
	tests := []struct {
		name, want string
		args       []string
		code       int
	}{
		{"default file", config.DefaultFile(), []string{"config", "default"}, 0},
		{"check", "../../deploy/config.toml: ok", []string{"config", "check", "../../deploy/config.toml"}, 0},
		{"check missing", "no such file", []string{"config", "check", none}, 1},
		{"diff", "", []string{"config", "diff", "../../deploy/config.toml"}, 0},
		{"no daemon", "Is berthd running", []string{"--address", none, "version"}, 3},
		{"no admin socket", "--admin-address", []string{"--admin-address", none, "ops"}, 3},
		{"bad output", "use table or json", []string{"-o", "xml", "version"}, 2},
		{"unknown command", "unknown command", []string{"frobnicate"}, 2},
		{"help has exit codes", "the object does not exist", []string{"--help"}, 0},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var b bytes.Buffer
			if code := run(t.Context(), tt.args, &b, &b); code != tt.code || !strings.Contains(b.String(), tt.want) {
				t.Errorf("code %d\n%s", code, b.String())
			}
		})
	}
}

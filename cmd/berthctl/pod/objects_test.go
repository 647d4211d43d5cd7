package pod

import (
	"bytes"
	"strings"
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-dev/berth/cmd/berthctl/cli"
	"github.com/berth-dev/berth/test/golden"
)

var (
	now = time.Unix(1_700_000_000, 0)
	id  = strings.Repeat("0123456789abcdef", 4)
	id2 = strings.Repeat("fedcba9876543210", 4)
)

func somePods() *runtimeapi.ListPodSandboxResponse {
	return &runtimeapi.ListPodSandboxResponse{Items: []*runtimeapi.PodSandbox{
		{Id: id, Metadata: &runtimeapi.PodSandboxMetadata{Name: "web", Namespace: "default", Uid: "u-1"}, CreatedAt: now.Add(-time.Hour).UnixNano(), RuntimeHandler: "runc"},
		{Id: id2, Metadata: &runtimeapi.PodSandboxMetadata{Name: "no: \x1b[31mdb", Namespace: "shop", Uid: "1e3", Attempt: 2}, State: runtimeapi.PodSandboxState_SANDBOX_NOTREADY},
	}}
}

func someContainers() *runtimeapi.ListContainersResponse {
	return &runtimeapi.ListContainersResponse{Containers: []*runtimeapi.Container{
		{Id: id2, PodSandboxId: id, Metadata: &runtimeapi.ContainerMetadata{Name: "app", Attempt: 2}, State: runtimeapi.ContainerState_CONTAINER_RUNNING,
			CreatedAt: now.Add(-72 * time.Hour).UnixNano(), Image: &runtimeapi.ImageSpec{Image: "busybox"}, ImageId: "sha256:" + id},
	}}
}

func TestPods(t *testing.T) {
	golden.Outputs(t, "pods", func(output string, out *bytes.Buffer) error {
		a := &cli.App{Output: output}
		return a.Show(out, somePods(), podTable(a, somePods().GetItems(), now))
	})
}

func TestContainers(t *testing.T) {
	golden.Outputs(t, "containers", func(output string, out *bytes.Buffer) error {
		a := &cli.App{Output: output}
		return a.Show(out, someContainers(), containerTable(a, someContainers().GetContainers(), map[string]string{id2: "cannot be stopped"}, now))
	})
}

package checkpoint

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-dev/berth/cmd/berthctl/cli"
	"github.com/berth-dev/berth/config"
	"github.com/berth-dev/berth/cri/admin"
)

// fake is a daemon that keeps what it was asked for.
type fake struct {
	runtimeapi.UnimplementedRuntimeServiceServer
	runtimeapi.UnimplementedImageServiceServer
	hosts string // directory of hosts.toml files
	auth  string // file with credentials

	pods       []*runtimeapi.PodSandbox
	containers []*runtimeapi.Container
	refuse     error
	stuck      string // container that does not start

	has    map[string]string // images, by name: their ID
	pulled []string

	container *runtimeapi.CheckpointContainerRequest
	pod       *runtimeapi.CheckpointPodRequest
	restored  *runtimeapi.RestorePodRequest
	started   []string
	removed   []string
}

func (a adminFake) Config(context.Context, *admin.ConfigRequest) (*admin.ConfigResponse, error) {
	c := config.Default()
	c.Image.RegistryDirs = []string{a.f.hosts}
	if a.f.auth != "" {
		c.Image.AuthFiles = []string{a.f.auth}
	}
	return &admin.ConfigResponse{Toml: config.Dump(c)}, nil
}

func (f *fake) ImageStatus(_ context.Context, r *runtimeapi.ImageStatusRequest) (*runtimeapi.ImageStatusResponse, error) {
	if id, ok := f.has[r.GetImage().GetImage()]; ok {
		return &runtimeapi.ImageStatusResponse{Image: &runtimeapi.Image{Id: id}}, nil
	}
	return &runtimeapi.ImageStatusResponse{}, nil
}

// adminFake is its admin API.
type adminFake struct {
	admin.UnimplementedAdminServer
	f *fake
}

func (a adminFake) PullImage(r *admin.PullImageRequest, out grpc.ServerStreamingServer[admin.PullImageEvent]) error {
	a.f.pulled = append(a.f.pulled, r.GetImage())
	a.f.has[r.GetImage()] = "id"
	return out.Send(&admin.PullImageEvent{ImageRef: r.GetImage()})
}

func (f *fake) ListPodSandbox(context.Context, *runtimeapi.ListPodSandboxRequest) (*runtimeapi.ListPodSandboxResponse, error) {
	return &runtimeapi.ListPodSandboxResponse{Items: f.pods}, nil
}

func (f *fake) ListContainers(_ context.Context, r *runtimeapi.ListContainersRequest) (*runtimeapi.ListContainersResponse, error) {
	out := &runtimeapi.ListContainersResponse{}
	for _, c := range f.containers {
		if want := r.GetFilter().GetState(); want == nil || want.GetState() == c.GetState() {
			out.Containers = append(out.Containers, c)
		}
	}
	return out, nil
}

func (f *fake) CheckpointContainer(_ context.Context, r *runtimeapi.CheckpointContainerRequest) (*runtimeapi.CheckpointContainerResponse, error) {
	f.container = r
	return &runtimeapi.CheckpointContainerResponse{}, f.refuse
}

func (f *fake) CheckpointPod(_ context.Context, r *runtimeapi.CheckpointPodRequest) (*runtimeapi.CheckpointPodResponse, error) {
	f.pod = r
	return &runtimeapi.CheckpointPodResponse{}, f.refuse
}

func (f *fake) RestorePod(ctx context.Context, r *runtimeapi.RestorePodRequest) (*runtimeapi.RestorePodResponse, error) {
	f.restored = r
	if _, ok := ctx.Deadline(); !ok {
		return nil, status.Error(codes.InvalidArgument, "no deadline")
	}
	out := &runtimeapi.RestorePodResponse{PodSandboxId: "pod-id"}
	for _, c := range r.GetContainerConfigs() {
		out.RestoredContainers = append(out.RestoredContainers, &runtimeapi.RestoredContainer{Name: c.GetMetadata().GetName(), ContainerId: "id-" + c.GetMetadata().GetName()})
	}
	return out, f.refuse
}

func (f *fake) StartContainer(_ context.Context, r *runtimeapi.StartContainerRequest) (*runtimeapi.StartContainerResponse, error) {
	if r.GetContainerId() == f.stuck {
		return nil, status.Error(codes.FailedPrecondition, "CRIU says no")
	}
	f.started = append(f.started, r.GetContainerId())
	return &runtimeapi.StartContainerResponse{}, nil
}

func (f *fake) StopPodSandbox(context.Context, *runtimeapi.StopPodSandboxRequest) (*runtimeapi.StopPodSandboxResponse, error) {
	return &runtimeapi.StopPodSandboxResponse{}, nil
}

func (f *fake) RemovePodSandbox(_ context.Context, r *runtimeapi.RemovePodSandboxRequest) (*runtimeapi.RemovePodSandboxResponse, error) {
	f.removed = append(f.removed, r.GetPodSandboxId())
	return &runtimeapi.RemovePodSandboxResponse{}, nil
}

// app returns what talks to the fake.
func (f *fake) app(t *testing.T) *cli.App {
	t.Helper()
	socket := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	s := grpc.NewServer()
	runtimeapi.RegisterRuntimeServiceServer(s, f)
	runtimeapi.RegisterImageServiceServer(s, f)
	admin.RegisterAdminServer(s, adminFake{f: f})
	go func() { _ = s.Serve(l) }()
	t.Cleanup(s.Stop)
	return &cli.App{Address: socket, Admin: socket, Output: "table"}
}

// run runs a command and returns what it printed.
func run(t *testing.T, a *cli.App, args ...string) (string, error) {
	t.Helper()
	var out bytes.Buffer
	c := Command(a)
	c.SilenceErrors, c.SilenceUsage = true, true
	c.SetArgs(args)
	c.SetOut(&out)
	err := c.ExecuteContext(t.Context())
	return out.String(), err
}

// serveFrom makes the reference r.test/... mean the server.
func (f *fake) serveFrom(t *testing.T, url, more string) {
	t.Helper()
	f.hosts = t.TempDir()
	dir := filepath.Join(f.hosts, "r.test")
	if err := errors.Join(os.Mkdir(dir, 0o755), os.WriteFile(filepath.Join(dir, "hosts.toml"), fmt.Appendf(nil, "server = %q\n%s", url, more), 0o600)); err != nil {
		t.Fatal(err)
	}
}

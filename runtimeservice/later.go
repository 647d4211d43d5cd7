package runtimeservice

import (
	"context"
	"fmt"

	"github.com/containerd/errdefs"
	"google.golang.org/grpc"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// later answers the RPCs that Berth does not serve yet, so that no client
// takes silence for an answer.
type later struct{ *core }

func notYet(what string) error {
	return fmt.Errorf("%s: this version of Berth does not do it yet: %w", what, errdefs.ErrNotImplemented)
}

// CheckpointContainer is not implemented.
func (*later) CheckpointContainer(context.Context, *runtimeapi.CheckpointContainerRequest) (*runtimeapi.CheckpointContainerResponse, error) {
	return nil, notYet("checkpoint container")
}

// CheckpointPod is not implemented.
func (*later) CheckpointPod(context.Context, *runtimeapi.CheckpointPodRequest) (*runtimeapi.CheckpointPodResponse, error) {
	return nil, notYet("checkpoint pod")
}

// RestorePod is not implemented.
func (*later) RestorePod(context.Context, *runtimeapi.RestorePodRequest) (*runtimeapi.RestorePodResponse, error) {
	return nil, notYet("restore pod")
}

// ContainerStats is not implemented.
func (*later) ContainerStats(context.Context, *runtimeapi.ContainerStatsRequest) (*runtimeapi.ContainerStatsResponse, error) {
	return nil, notYet("container stats")
}

// ListContainerStats is not implemented.
func (*later) ListContainerStats(context.Context, *runtimeapi.ListContainerStatsRequest) (*runtimeapi.ListContainerStatsResponse, error) {
	return nil, notYet("list container stats")
}

// StreamContainerStats is not implemented.
func (*later) StreamContainerStats(*runtimeapi.StreamContainerStatsRequest, grpc.ServerStreamingServer[runtimeapi.StreamContainerStatsResponse]) error {
	return notYet("stream container stats")
}

// PodSandboxStats is not implemented.
func (*later) PodSandboxStats(context.Context, *runtimeapi.PodSandboxStatsRequest) (*runtimeapi.PodSandboxStatsResponse, error) {
	return nil, notYet("sandbox stats")
}

// ListPodSandboxStats is not implemented.
func (*later) ListPodSandboxStats(context.Context, *runtimeapi.ListPodSandboxStatsRequest) (*runtimeapi.ListPodSandboxStatsResponse, error) {
	return nil, notYet("list sandbox stats")
}

// StreamPodSandboxStats is not implemented.
func (*later) StreamPodSandboxStats(*runtimeapi.StreamPodSandboxStatsRequest, grpc.ServerStreamingServer[runtimeapi.StreamPodSandboxStatsResponse]) error {
	return notYet("stream sandbox stats")
}

// ListMetricDescriptors is not implemented.
func (*later) ListMetricDescriptors(context.Context, *runtimeapi.ListMetricDescriptorsRequest) (*runtimeapi.ListMetricDescriptorsResponse, error) {
	return nil, notYet("list metric descriptors")
}

// ListPodSandboxMetrics is not implemented.
func (*later) ListPodSandboxMetrics(context.Context, *runtimeapi.ListPodSandboxMetricsRequest) (*runtimeapi.ListPodSandboxMetricsResponse, error) {
	return nil, notYet("list sandbox metrics")
}

// StreamPodSandboxMetrics is not implemented.
func (*later) StreamPodSandboxMetrics(*runtimeapi.StreamPodSandboxMetricsRequest, grpc.ServerStreamingServer[runtimeapi.StreamPodSandboxMetricsResponse]) error {
	return notYet("stream sandbox metrics")
}

package runtimeservice

import (
	"context"
	"fmt"

	"github.com/containerd/errdefs"
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

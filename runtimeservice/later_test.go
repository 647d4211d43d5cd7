package runtimeservice

import (
	"testing"

	"github.com/containerd/errdefs"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// TestLaterIsRefused holds what is not done yet to a clear answer.
func TestLaterIsRefused(t *testing.T) {
	s, _ := newTestService(t)
	_, one := s.CheckpointContainer(t.Context(), &runtimeapi.CheckpointContainerRequest{})
	_, two := s.CheckpointPod(t.Context(), &runtimeapi.CheckpointPodRequest{})
	_, three := s.RestorePod(t.Context(), &runtimeapi.RestorePodRequest{})
	for _, err := range []error{one, two, three} {
		if !errdefs.IsNotImplemented(err) {
			t.Errorf("got %v", err)
		}
	}
}

package runtimeservice

import (
	"testing"

	"github.com/containerd/errdefs"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// TestLaterIsRefused holds what is not done yet to a clear answer.
func TestLaterIsRefused(t *testing.T) {
	s, _ := newTestService(t)
	if _, err := s.RestorePod(t.Context(), &runtimeapi.RestorePodRequest{}); !errdefs.IsNotImplemented(err) {
		t.Errorf("got %v", err)
	}
}

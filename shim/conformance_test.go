package shim_test

import (
	"testing"

	"github.com/berth-dev/berth/shim"
	"github.com/berth-dev/berth/shim/shimtest"
)

func TestIntegrationConformance(t *testing.T) {
	shimtest.Run(t, func(t *testing.T) *shimtest.Subject {
		r := shim.NewConformanceRig(t)
		return &shimtest.Subject{Shims: r.Manager(), Request: r.Request, Ready: r.Ready,
			Again: func(t *testing.T, kill string) shimtest.Shims { return r.Again(t, kill) }}
	})
}

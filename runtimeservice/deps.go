// Package runtimeservice implements the CRI's verbs on pods and containers.
package runtimeservice

import (
	"context"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-dev/berth/store"
)

// Images finds the image a container configuration names.
type Images interface {
	// Resolve returns the image for an ID, tag or digest; NotFound when the
	// node does not have it.
	Resolve(ctx context.Context, spec *runtimeapi.ImageSpec) (store.Image, error)
}

// RootFS makes writable root file systems from an image's layers.
type RootFS interface {
	// Mount makes the writable layer of container id if missing and mounts
	// the overlay at target, which exists. Idempotent.
	Mount(ctx context.Context, id string, img store.Image, target string) error
	// Unmount takes the mount at target away. Idempotent.
	Unmount(ctx context.Context, id, target string) error
	// Remove deletes the writable layer. Idempotent.
	Remove(ctx context.Context, id string) error
}

// Streams hands out one-time URLs of the streaming server.
type Streams interface {
	GetExec(*runtimeapi.ExecRequest) (*runtimeapi.ExecResponse, error)
	GetAttach(*runtimeapi.AttachRequest) (*runtimeapi.AttachResponse, error)
	GetPortForward(*runtimeapi.PortForwardRequest) (*runtimeapi.PortForwardResponse, error)
}

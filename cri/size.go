package cri

import (
	"fmt"
	"path"

	"github.com/containerd/errdefs"
	"google.golang.org/protobuf/proto"
)

// streamOf names the call that sends a list in parts; "" when there is none.
func streamOf(call string) string {
	switch call {
	case "ListPodSandbox":
		return "StreamPodSandboxes"
	case "ListContainers":
		return "StreamContainers"
	case "ListContainerStats":
		return "StreamContainerStats"
	case "ListPodSandboxStats":
		return "StreamPodSandboxStats"
	case "ListPodSandboxMetrics":
		return "StreamPodSandboxMetrics"
	case "ListImages":
		return "StreamImages"
	}
	return ""
}

// tooLarge says that a list is larger than a message may be, and what to call
// instead. gRPC would refuse it too, but tell only the numbers, and the log
// would have the call as a good one.
func tooLarge(method string, resp any) error {
	call := path.Base(method)
	stream := streamOf(call)
	m, ok := resp.(proto.Message)
	if stream == "" || !ok {
		return nil
	}
	if n := proto.Size(m); n > MaxMessage {
		return fmt.Errorf("answer %s: the list has %d bytes and a message takes %d; call %s, which sends it in parts, or ask for less with a filter: %w",
			call, n, MaxMessage, stream, errdefs.ErrResourceExhausted)
	}
	return nil
}

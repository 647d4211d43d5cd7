package sandbox

import (
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-dev/berth/cni/netns"
	"github.com/berth-dev/berth/sandbox/spec"
)

func options(c *runtimeapi.PodSandboxConfig) *runtimeapi.NamespaceOption {
	return c.GetLinux().GetSecurityContext().GetNamespaceOptions()
}

func hostNetwork(c *runtimeapi.PodSandboxConfig) bool {
	return options(c).GetNetwork() == runtimeapi.NamespaceMode_NODE
}

func hostIPC(c *runtimeapi.PodSandboxConfig) bool {
	return options(c).GetIpc() == runtimeapi.NamespaceMode_NODE
}

func sharedPID(c *runtimeapi.PodSandboxConfig) bool {
	return options(c).GetPid() == runtimeapi.NamespaceMode_POD
}

// ownUser reports whether the pod has a user namespace of its own, which then
// owns its other namespaces.
func ownUser(c *runtimeapi.PodSandboxConfig) bool { return spec.UserNamespace(c) != nil }

// madeKinds are the namespaces made for the pod itself. A pod on the node's
// network also has the node's host name, so it shares the UTS namespace.
func madeKinds(c *runtimeapi.PodSandboxConfig) []string {
	var kinds []string
	if !hostNetwork(c) {
		kinds = append(kinds, netns.Net)
	}
	if !hostIPC(c) {
		kinds = append(kinds, netns.IPC)
	}
	if !hostNetwork(c) {
		kinds = append(kinds, netns.UTS)
	}
	return kinds
}

// plannedPins is where the pod's namespaces will be, the holder's included.
func (l layout) plannedPins(id string, c *runtimeapi.PodSandboxConfig) map[string]string {
	pins := map[string]string{}
	for _, kind := range madeKinds(c) {
		pins[kind] = l.pin(id, kind)
	}
	if sharedPID(c) {
		pins[netns.PID] = l.pin(id, netns.PID)
	}
	if ownUser(c) {
		pins[netns.User] = l.pin(id, netns.User)
	}
	return pins
}

package cni

import (
	"cmp"
	"fmt"
	"math"
	"net/netip"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/containernetworking/cni/libcni"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Annotations that limit a pod's bandwidth, in bits per second, as quantities.
const (
	annotationIngress = "kubernetes.io/ingress-bandwidth"
	annotationEgress  = "kubernetes.io/egress-bandwidth"
)

// Limits of a bandwidth, as Kubernetes validates them: 1k to 1P.
const (
	minBandwidth = 1_000
	maxBandwidth = 1_000_000_000_000_000
)

// Request describes one sandbox to the network plugins.
type Request struct {
	SandboxID  string
	Handler    string                       // runtime handler, which may have networks of its own
	NetNS      string                       // path; "" when the namespace is gone (detach only)
	Attached   bool                         // detach only: an attach is known to have succeeded
	Config     *runtimeapi.PodSandboxConfig // as the client sent it; not changed
	CgroupPath string                       // pod cgroup
}

// portMapping is the "portMappings" capability argument of the CNI conventions.
type portMapping struct {
	HostPort      int32  `json:"hostPort"`
	ContainerPort int32  `json:"containerPort"`
	Protocol      string `json:"protocol"`
	HostIP        string `json:"hostIP"`
}

// bandwidth is the "bandwidth" capability argument: bits per second and bits.
type bandwidth struct {
	IngressRate  uint64 `json:"ingressRate"`
	IngressBurst uint64 `json:"ingressBurst"`
	EgressRate   uint64 `json:"egressRate"`
	EgressBurst  uint64 `json:"egressBurst"`
}

// dns is the "dns" capability argument.
type dns struct {
	Servers  []string `json:"servers"`
	Searches []string `json:"searches"`
	Options  []string `json:"options"`
}

// runtimeConf is what the plugins get to know, in the form that containerd and
// CRI-O hand over, so that no plugin notices a difference. Beside an error for a
// capability that is asked for wrongly it is what is left without that one.
func (m *Manager) runtimeConf(r Request) (*libcni.RuntimeConf, error) {
	capability, err := capabilityArgs(r)
	if ranges := m.ipRanges(); len(ranges) > 0 {
		capability["ipRanges"] = ranges
	}
	md := r.Config.GetMetadata()
	return &libcni.RuntimeConf{
		ContainerID: r.SandboxID,
		NetNS:       r.NetNS,
		IfName:      IfName,
		Args: [][2]string{
			{"IgnoreUnknown", "1"},
			{"K8S_POD_NAMESPACE", md.GetNamespace()},
			{"K8S_POD_NAME", md.GetName()},
			{"K8S_POD_INFRA_CONTAINER_ID", r.SandboxID},
			{"K8S_POD_UID", md.GetUid()},
		},
		CapabilityArgs: capability,
	}, err
}

func capabilityArgs(r Request) (map[string]any, error) {
	args := map[string]any{}
	ports, badPorts := portMappings(r.Config.GetPortMappings())
	if len(ports) > 0 {
		args["portMappings"] = ports
	}
	bw, badRate := bandwidthOf(r.Config.GetAnnotations())
	if bw != nil {
		args["bandwidth"] = bw
	}
	if d := r.Config.GetDnsConfig(); d != nil {
		args["dns"] = dns{Servers: d.GetServers(), Searches: d.GetSearches(), Options: d.GetOptions()}
	}
	if r.CgroupPath != "" {
		args["cgroupPath"] = r.CgroupPath
	}
	if a := r.Config.GetAnnotations(); len(a) > 0 {
		args["io.kubernetes.cri.pod-annotations"] = a
	}
	if l := r.Config.GetLabels(); len(l) > 0 {
		args["labels"] = l
	}
	return args, cmp.Or(badPorts, badRate)
}

// portMappings keeps the mappings that ask for a port of the node.
func portMappings(in []*runtimeapi.PortMapping) ([]portMapping, error) {
	var out []portMapping
	for _, p := range in {
		if p.GetHostPort() <= 0 {
			continue
		}
		if p.GetHostIp() != "" {
			if _, err := netip.ParseAddr(p.GetHostIp()); err != nil {
				return nil, fmt.Errorf("port mapping of host port %d: host IP %q: %w", p.GetHostPort(), p.GetHostIp(), errdefs.ErrInvalidArgument)
			}
		}
		out = append(out, portMapping{
			HostPort:      p.GetHostPort(),
			ContainerPort: p.GetContainerPort(),
			Protocol:      strings.ToLower(p.GetProtocol().String()),
			HostIP:        p.GetHostIp(),
		})
	}
	return out, nil
}

func bandwidthOf(annotations map[string]string) (*bandwidth, error) {
	in, err := rate(annotations, annotationIngress)
	if err != nil {
		return nil, err
	}
	out, err := rate(annotations, annotationEgress)
	if err != nil || in == 0 && out == 0 {
		return nil, err
	}
	b := &bandwidth{IngressRate: in, EgressRate: out}
	if in > 0 {
		b.IngressBurst = math.MaxInt32
	}
	if out > 0 {
		b.EgressBurst = math.MaxInt32
	}
	return b, nil
}

func rate(annotations map[string]string, key string) (uint64, error) {
	text, ok := annotations[key]
	if !ok {
		return 0, nil
	}
	v, err := parseQuantity(text)
	if err != nil {
		return 0, fmt.Errorf("annotation %s: %w", key, err)
	}
	if v < minBandwidth || v > maxBandwidth {
		return 0, fmt.Errorf("annotation %s: %q is not between 1k and 1P bits per second: %w", key, text, errdefs.ErrInvalidArgument)
	}
	return uint64(v), nil
}

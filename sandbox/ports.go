package sandbox

import (
	"fmt"
	"net/netip"
	"strings"
	"sync"

	"github.com/containerd/errdefs"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-dev/berth/store"
)

// portClaims are the host ports of pods that are being made. Those of others
// are in their records.
type portClaims struct {
	mu     sync.Mutex
	making map[string]*runtimeapi.PodSandboxConfig // by sandbox
}

// claim takes the host ports of a pod, or names the pod that has one of them, as
// FailedPrecondition. Call what it returns when the record is committed, or
// nothing is left of the pod.
func (m *Manager) claim(rec store.Sandbox) (done func(), err error) {
	p := &m.ports
	if hostNetwork(rec.Config) || len(rec.Config.GetPortMappings()) == 0 {
		return func() {}, nil
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	taken := func(id string, c *runtimeapi.PodSandboxConfig) error {
		port := sharedPort(rec.Config.GetPortMappings(), c.GetPortMappings())
		if port == nil {
			return nil
		}
		return fmt.Errorf("host port %d/%s is taken by pod %s/%s (sandbox %s): %w", port.GetHostPort(),
			strings.ToLower(port.GetProtocol().String()), c.GetMetadata().GetNamespace(), c.GetMetadata().GetName(), id, errdefs.ErrFailedPrecondition)
	}
	// One whose record is committed meanwhile is in both lists for a moment.
	for id, c := range p.making {
		if err := taken(id, c); err != nil {
			return nil, err
		}
	}
	for _, other := range m.db.Sandboxes() {
		if !other.Facts.Network.Attached || other.Facts.BootID != m.cfg.BootID || other.ID == rec.ID {
			continue
		}
		if err := taken(other.ID, other.Config); err != nil {
			return nil, err
		}
	}
	for id, half := range m.halfMade() {
		if err := taken(id, half.Config); err != nil && id != rec.ID {
			return nil, fmt.Errorf("%w; that pod was not made, and what is left of it is not undone yet: see `berthctl recovery`", err)
		}
	}
	if p.making == nil {
		p.making = map[string]*runtimeapi.PodSandboxConfig{}
	}
	p.making[rec.ID] = rec.Config
	return func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		delete(p.making, rec.ID)
	}, nil
}

// halfMade are the pods that are being made, and those that a failure or a crash
// has left half made: their rules may be there until they have been undone.
func (m *Manager) halfMade() map[string]store.Sandbox {
	out := map[string]store.Sandbox{}
	for _, o := range m.db.Ops() {
		s := newState()
		if o.Kind == kindRun && s.UnmarshalJSON(o.Payload) == nil {
			out[o.Subject] = s.Rec
		}
	}
	return out
}

// sharedPort returns the first port that both want; nil when there is none.
func sharedPort(a, b []*runtimeapi.PortMapping) *runtimeapi.PortMapping {
	for _, p := range a {
		for _, q := range b {
			if p.GetHostPort() > 0 && p.GetHostPort() == q.GetHostPort() && p.GetProtocol() == q.GetProtocol() &&
				meet(p.GetHostIp(), q.GetHostIp()) {
				return p
			}
		}
	}
	return nil
}

// meet tells whether two host IPs have an address in common. None is all.
func meet(a, b string) bool {
	p, errP := netip.ParseAddr(a)
	q, errQ := netip.ParseAddr(b)
	if errP != nil || errQ != nil {
		return true
	}
	p, q = p.Unmap(), q.Unmap()
	return p == q || p.Is4() == q.Is4() && (p.IsUnspecified() || q.IsUnspecified())
}

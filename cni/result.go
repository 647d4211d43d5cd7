package cni

import (
	"encoding/json"
	"fmt"

	"github.com/containerd/errdefs"
	"github.com/containernetworking/cni/pkg/types"
	types100 "github.com/containernetworking/cni/pkg/types/100"
)

// Result is the outcome of an attach.
type Result struct {
	IPs  []string // of the pod's interface, in the plugin's order: primary first
	JSON []byte   // whole result, in the newest version libcni knows
}

// newResult converts a plugin's result. One without an address for the pod's
// interface is FailedPrecondition.
func newResult(raw types.Result) (Result, error) {
	if raw == nil {
		return Result{}, fmt.Errorf("the plugins returned no result: %w", errdefs.ErrFailedPrecondition)
	}
	r, err := types100.NewResultFromResult(raw)
	if err != nil {
		return Result{}, fmt.Errorf("convert network result: %w", err)
	}
	r.CNIVersion = types100.ImplementedSpecVersion
	b, err := json.Marshal(r)
	if err != nil {
		return Result{}, fmt.Errorf("encode network result: %w", err)
	}
	ips := podIPs(r)
	if len(ips) == 0 {
		return Result{}, fmt.Errorf("the plugins gave interface %s no address: %w", IfName, errdefs.ErrFailedPrecondition)
	}
	return Result{IPs: ips, JSON: b}, nil
}

// podIPs returns the addresses of the pod's interface. An address that names
// no interface belongs to it too, as results before 0.3.0 have no interfaces.
func podIPs(r *types100.Result) []string {
	var ips []string
	seen := map[string]bool{}
	for _, ip := range r.IPs {
		if ip == nil || ip.Address.IP == nil || !onPodInterface(r, ip.Interface) {
			continue
		}
		if s := ip.Address.IP.String(); !seen[s] {
			seen[s] = true
			ips = append(ips, s)
		}
	}
	return ips
}

func onPodInterface(r *types100.Result, index *int) bool {
	if index == nil || *index < 0 || *index >= len(r.Interfaces) || r.Interfaces[*index] == nil {
		return true
	}
	return r.Interfaces[*index].Name == IfName
}

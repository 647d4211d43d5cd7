package runtimeservice

import (
	"context"
	"encoding/json"
	"fmt"
	"iter"
	"slices"
	"strings"

	"google.golang.org/grpc"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-dev/berth/chunk"
	"github.com/berth-dev/berth/store"
)

// PodSandboxStatus reports one sandbox, with the status of its containers.
func (p *pods) PodSandboxStatus(_ context.Context, r *runtimeapi.PodSandboxStatusRequest) (*runtimeapi.PodSandboxStatusResponse, error) {
	rec, err := p.db.Sandbox(r.GetPodSandboxId())
	if err != nil {
		return nil, fmt.Errorf("status of sandbox %q: %w", r.GetPodSandboxId(), err)
	}
	out := &runtimeapi.PodSandboxStatusResponse{
		Status:    sandboxStatus(rec, p.cfg.BootID),
		Timestamp: p.clock.Now().UnixNano(),
	}
	for _, c := range p.db.ContainersOf(rec.ID) {
		out.ContainersStatuses = append(out.ContainersStatuses, p.containerStatus(c))
	}
	if r.GetVerbose() {
		if out.Info, err = p.sandboxInfo(rec); err != nil {
			return nil, fmt.Errorf("status of sandbox %s: %w", rec.ID, err)
		}
	}
	return out, nil
}

// sandboxStatus derives the CRI status from a record. Pure.
func sandboxStatus(s store.Sandbox, bootID string) *runtimeapi.PodSandboxStatus {
	opts := s.Config.GetLinux().GetSecurityContext().GetNamespaceOptions()
	st := &runtimeapi.PodSandboxStatus{
		Id:             s.ID,
		Metadata:       s.Config.GetMetadata(),
		State:          sandboxState(s, bootID),
		CreatedAt:      stamp(s.Facts.CreatedAt),
		Network:        &runtimeapi.PodSandboxNetworkStatus{},
		Labels:         s.Config.GetLabels(),
		Annotations:    s.Config.GetAnnotations(),
		RuntimeHandler: s.Handler,
		Linux: &runtimeapi.LinuxPodSandboxStatus{Namespaces: &runtimeapi.Namespace{Options: &runtimeapi.NamespaceOption{
			Network: opts.GetNetwork(), Pid: opts.GetPid(), Ipc: opts.GetIpc(),
			TargetId: opts.GetTargetId(), UsernsOptions: opts.GetUsernsOptions(),
		}}},
	}
	// An address that has been given back must not be shown: another pod may
	// carry it by now.
	if ips := s.Facts.Network.IPs; len(ips) > 0 && st.State == runtimeapi.PodSandboxState_SANDBOX_READY {
		st.Network.Ip = ips[0]
		for _, ip := range ips[1:] {
			st.Network.AdditionalIps = append(st.Network.AdditionalIps, &runtimeapi.PodIP{Ip: ip})
		}
	}
	return st
}

// sandboxInfo is the verbose part of a status: one JSON document.
func (p *pods) sandboxInfo(s store.Sandbox) (map[string]string, error) {
	handler := s.Handler
	if handler == "" {
		handler = p.cfg.DefaultHandler
	}
	doc := struct {
		RuntimeHandler string                              `json:"runtimeHandler"`
		PID            int                                 `json:"pid"` // of the holder; 0: no process
		BootID         string                              `json:"bootID"`
		CgroupParent   string                              `json:"cgroupParent"`
		OwnsCgroup     bool                                `json:"ownsCgroup"`
		Namespaces     map[string]string                   `json:"namespaces"`
		CNIResult      json.RawMessage                     `json:"cniResult,omitempty"`
		Overhead       *runtimeapi.LinuxContainerResources `json:"overhead,omitempty"`  // as last updated
		Resources      *runtimeapi.LinuxContainerResources `json:"resources,omitempty"` // as last updated
		Config         *runtimeapi.PodSandboxConfig        `json:"config"`
	}{handler, s.Facts.HolderPID, s.Facts.BootID, s.Facts.CgroupParent, s.Facts.OwnsCgroup,
		s.Facts.Namespaces, nil, s.Facts.Overhead, s.Facts.Resources, s.Config}
	if json.Valid(s.Facts.Network.Result) {
		doc.CNIResult = s.Facts.Network.Result
	}
	b, err := json.Marshal(doc)
	if err != nil {
		return nil, fmt.Errorf("encode verbose information: %w", err)
	}
	return map[string]string{"info": string(b)}, nil
}

// ListPodSandbox lists the sandboxes that pass the filter.
func (p *pods) ListPodSandbox(_ context.Context, r *runtimeapi.ListPodSandboxRequest) (*runtimeapi.ListPodSandboxResponse, error) {
	return &runtimeapi.ListPodSandboxResponse{Items: slices.Collect(p.list(r.GetFilter()))}, nil
}

// StreamPodSandboxes sends what ListPodSandbox returns, in parts.
func (p *pods) StreamPodSandboxes(r *runtimeapi.StreamPodSandboxesRequest, out grpc.ServerStreamingServer[runtimeapi.StreamPodSandboxesResponse]) error {
	if err := chunk.Send(p.list(r.GetFilter()), func(part []*runtimeapi.PodSandbox) error {
		return out.Send(&runtimeapi.StreamPodSandboxesResponse{PodSandboxes: part})
	}); err != nil {
		return fmt.Errorf("stream sandboxes: %w", err)
	}
	return nil
}

func (p *pods) list(f *runtimeapi.PodSandboxFilter) iter.Seq[*runtimeapi.PodSandbox] {
	return filterSandboxes(p.db.Sandboxes(), f, p.cfg.BootID)
}

// filterSandboxes yields the sandboxes that pass f, as the CRI lists them. An
// ID filter matches by prefix. Pure.
func filterSandboxes(all []store.Sandbox, f *runtimeapi.PodSandboxFilter, bootID string) iter.Seq[*runtimeapi.PodSandbox] {
	return func(yield func(*runtimeapi.PodSandbox) bool) {
		for _, s := range all {
			st := sandboxState(s, bootID)
			switch {
			case !strings.HasPrefix(s.ID, f.GetId()),
				f.GetState() != nil && f.GetState().GetState() != st,
				!hasLabels(s.Config.GetLabels(), f.GetLabelSelector()):
				continue
			}
			if !yield(&runtimeapi.PodSandbox{
				Id: s.ID, Metadata: s.Config.GetMetadata(), State: st, CreatedAt: stamp(s.Facts.CreatedAt),
				Labels: s.Config.GetLabels(), Annotations: s.Config.GetAnnotations(), RuntimeHandler: s.Handler,
			}) {
				return
			}
		}
	}
}

// hasLabels reports whether labels carry all that the selector asks for.
func hasLabels(labels, selector map[string]string) bool {
	for k, v := range selector {
		if got, ok := labels[k]; !ok || got != v {
			return false
		}
	}
	return true
}

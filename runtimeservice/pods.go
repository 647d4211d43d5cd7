package runtimeservice

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"iter"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-dev/berth/chunk"
	"github.com/berth-dev/berth/observe"
	"github.com/berth-dev/berth/sandbox"
	"github.com/berth-dev/berth/sandbox/spec"
	"github.com/berth-dev/berth/store"
)

// pods answers the RPCs on sandboxes.
type pods struct {
	*core
	containers *containers
}

// newID returns 64 random hex digits.
func newID() string {
	var b [32]byte
	_, _ = rand.Read(b[:]) // never fails, by its contract
	return hex.EncodeToString(b[:])
}

func podKey(id string) string { return "sandbox " + id }

// RunPodSandbox makes a sandbox and returns its ID. A call that repeats an
// earlier one, finished or not, returns the same ID. Once begun, the work goes
// on or is rolled back even if the client goes away.
func (p *pods) RunPodSandbox(ctx context.Context, r *runtimeapi.RunPodSandboxRequest) (*runtimeapi.RunPodSandboxResponse, error) {
	cfg := r.GetConfig()
	if err := sandbox.Validate(cfg); err != nil {
		return nil, fmt.Errorf("run sandbox: %w", err)
	}
	if err := p.checkHandler(ctx, r); err != nil {
		return nil, fmt.Errorf("run sandbox: %w", err)
	}
	rec := store.Sandbox{ID: newID(), Handler: r.GetRuntimeHandler(), Config: cfg}
	rec.Facts.BootID = p.cfg.BootID
	name := store.SandboxName(rec)
	// One of this name that a crash left half made may still hold its host ports.
	if err := p.locks.recovery.Wait(ctx, kindSandbox, name); err != nil {
		return nil, fmt.Errorf("run sandbox %s: %w", name, err)
	}
	id, err := p.joins.do(ctx, creation{
		name:     "sandbox " + name,
		id:       rec.ID,
		request:  r,
		existing: func() (string, error) { return p.existing(name, r) },
		run:      func() (string, error) { return rec.ID, p.run(ctx, rec) },
	}, p.background)
	if err != nil {
		return nil, fmt.Errorf("run sandbox %s: %w", name, err)
	}
	return &runtimeapi.RunPodSandboxResponse{PodSandboxId: id}, nil
}

// checkHandler refuses a handler that does not exist, or cannot do what the pod asks.
func (p *pods) checkHandler(ctx context.Context, r *runtimeapi.RunPodSandboxRequest) error {
	h, err := p.handler(r.GetRuntimeHandler())
	if err != nil {
		return err
	}
	if spec.UserNamespace(r.GetConfig()) != nil && !p.containers.probes.userNamespaces(ctx, p.cfg.Host, h) {
		return fmt.Errorf("userns_options: handler %q cannot do user namespaces on this node; RPC Status and the daemon's log say what is missing: %w",
			r.GetRuntimeHandler(), errdefs.ErrFailedPrecondition)
	}
	return nil
}

// label gives the sandbox an SELinux level of its own, and refuses options that
// make no label here.
func (p *pods) label(ctx context.Context, rec *store.Sandbox) error {
	n := p.containers.confine
	level, err := n.TakeLevel(rec.ID)
	if err != nil {
		return err
	}
	have := n.Security(ctx)
	have.SELinuxLevel = level
	labels, err := spec.SELinuxLabels(rec.Config.GetLinux().GetSecurityContext().GetSelinuxOptions(), have)
	if err == nil {
		err = n.CheckLabel(labels.Process)
	}
	if err != nil {
		n.DropLevel(rec.ID)
		return err
	}
	rec.Facts.SELinuxLevel, rec.Facts.SELinuxMount = level, labels.Mount
	return nil
}

// keepLevels notes the SELinux levels of the pods there are.
func (c *containers) keepLevels() {
	for _, pod := range c.db.Sandboxes() {
		c.confine.KeepLevel(pod.ID, pod.Facts.SELinuxLevel)
	}
}

// existing returns the ID of the sandbox that an equal call has made.
func (p *pods) existing(name string, r *runtimeapi.RunPodSandboxRequest) (string, error) {
	old, ok := p.db.SandboxByName(name)
	if !ok {
		return "", nil
	}
	ready := sandboxState(old, p.cfg.BootID) == runtimeapi.PodSandboxState_SANDBOX_READY
	if ready && old.Handler == r.GetRuntimeHandler() && proto.Equal(old.Config, r.GetConfig()) {
		return old.ID, nil
	}
	what := "with another configuration"
	if !ready {
		what = "which is stopped"
	}
	return "", fmt.Errorf("sandbox %s, %s, has this name; remove it, or use another attempt number: %w",
		old.ID, what, errdefs.ErrAlreadyExists)
}

// background runs f detached from the client, as work that Close waits for.
func (c *core) background(f func()) { c.tasks.spawn(func(context.Context) { f() }) }

// run is detached from the call, which only says who wants to hear of it.
func (p *pods) run(call context.Context, rec store.Sandbox) error {
	ctx, cancel := context.WithTimeout(observe.Detached(p.tasks.ctx, call), p.cfg.Limits.CreateTime)
	defer cancel()
	unlock, err := p.locks.lock(ctx, podKey(rec.ID))
	if err != nil {
		return err
	}
	defer unlock()
	if err := p.label(ctx, &rec); err != nil {
		return err
	}
	if _, err := p.pod.Run(ctx, rec); err != nil {
		p.containers.confine.DropLevel(rec.ID)
		return err
	}
	return nil
}

// StopPodSandbox kills the sandbox's containers and releases its network.
// An unknown or stopped sandbox is no error.
func (p *pods) StopPodSandbox(ctx context.Context, r *runtimeapi.StopPodSandboxRequest) (*runtimeapi.StopPodSandboxResponse, error) {
	rec, err := p.sandbox(ctx, r.GetPodSandboxId())
	if errdefs.IsNotFound(err) {
		return &runtimeapi.StopPodSandboxResponse{}, nil
	}
	if err != nil {
		return nil, fmt.Errorf("stop sandbox %s: %w", r.GetPodSandboxId(), err)
	}
	p.containers.creations.cancel(rec.ID)
	unlock, err := p.locks.lock(ctx, podKey(rec.ID))
	if err != nil {
		return nil, fmt.Errorf("stop sandbox %s: %w", rec.ID, err)
	}
	defer unlock()
	if err := p.stop(ctx, rec.ID); err != nil {
		return nil, fmt.Errorf("stop sandbox %s: %w", rec.ID, err)
	}
	return &runtimeapi.StopPodSandboxResponse{}, nil
}

// stop runs under the sandbox's lock, so no container is made meanwhile.
func (p *pods) stop(ctx context.Context, id string) error {
	rec, err := p.db.Sandbox(id)
	if errdefs.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return err
	}
	if err := p.eachContainer(ctx, id, func(ctx context.Context, c store.Container) error {
		return p.containers.stop(ctx, c, 0)
	}); err != nil {
		return err
	}
	p.containers.plugins.StopPod(ctx, rec)
	return p.pod.Stop(ctx, id)
}

// eachContainer calls f for all containers of a sandbox in parallel. All are
// tried; the first error is returned.
func (p *pods) eachContainer(ctx context.Context, id string, f func(context.Context, store.Container) error) error {
	var g errgroup.Group
	g.SetLimit(16)
	for _, c := range p.db.ContainersOf(id) {
		g.Go(func() error { return f(ctx, c) })
	}
	return g.Wait()
}

// RemovePodSandbox stops the sandbox by force and removes it with its
// containers. An unknown sandbox is no error.
func (p *pods) RemovePodSandbox(ctx context.Context, r *runtimeapi.RemovePodSandboxRequest) (*runtimeapi.RemovePodSandboxResponse, error) {
	rec, err := p.sandbox(ctx, r.GetPodSandboxId())
	if errdefs.IsNotFound(err) {
		return &runtimeapi.RemovePodSandboxResponse{}, nil
	}
	if err != nil {
		return nil, fmt.Errorf("remove sandbox %s: %w", r.GetPodSandboxId(), err)
	}
	p.containers.creations.cancel(rec.ID)
	unlock, err := p.locks.lock(ctx, podKey(rec.ID))
	if err != nil {
		return nil, fmt.Errorf("remove sandbox %s: %w", rec.ID, err)
	}
	defer unlock()
	if err := p.remove(ctx, rec.ID); err != nil {
		return nil, fmt.Errorf("remove sandbox %s: %w", rec.ID, err)
	}
	return &runtimeapi.RemovePodSandboxResponse{}, nil
}

func (p *pods) remove(ctx context.Context, id string) error {
	rec, err := p.db.Sandbox(id)
	if errdefs.IsNotFound(err) {
		return nil
	}
	if err := p.stop(ctx, id); err != nil {
		return err
	}
	if err := p.eachContainer(ctx, id, func(ctx context.Context, c store.Container) error {
		return p.containers.remove(ctx, c.ID)
	}); err != nil {
		return err
	}
	if stopped, err := p.db.Sandbox(id); err == nil {
		rec = stopped
	}
	p.containers.plugins.RemovePod(ctx, rec)
	if err := p.pod.Remove(ctx, id); err != nil {
		return err
	}
	p.containers.confine.DropLevel(id)
	return nil
}

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

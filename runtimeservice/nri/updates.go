package nri

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/nri/pkg/adaptation"
	"github.com/containerd/nri/pkg/api"
	"github.com/containerd/ttrpc"
	"google.golang.org/protobuf/proto"
)

// changeTime bounds one update or eviction that a plugin asked for.
const changeTime = 2 * time.Minute

// applyAll changes the resources of containers as plugins want, and returns
// the updates that failed although their plugin minds.
func (m *Manager) applyAll(updates []*adaptation.ContainerUpdate, why string) (failed []*adaptation.ContainerUpdate) {
	for _, u := range updates {
		if u == nil {
			continue
		}
		err := m.apply(u)
		if err == nil || u.GetIgnoreFailure() || errdefs.IsNotFound(err) {
			continue
		}
		m.cfg.Logger.Warn("cannot update a container as a plugin wants", "container", u.GetContainerId(), "asked at", why, "error", err)
		failed = append(failed, u)
	}
	return failed
}

func (m *Manager) apply(u *adaptation.ContainerUpdate) error {
	r, err := changedResources(nil, u.GetLinux().GetResources())
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(m.ctx, changeTime)
	defer cancel()
	return m.rt.UpdateResources(ctx, u.GetContainerId(), r)
}

// updateOthers applies updates in their turn and waits for them. What fails is
// logged: it must not keep the container at hand from being made.
func (m *Manager) updateOthers(ctx context.Context, updates []*adaptation.ContainerUpdate, why string) error {
	if len(updates) == 0 {
		return nil
	}
	select {
	case <-m.jobs.add(func() { m.applyAll(updates, why) }):
		return nil
	case <-ctx.Done():
		return fmt.Errorf("wait for the updates that plugins want of other containers: %w", ctx.Err())
	}
}

// unsolicited serves updates that a plugin asks for by itself.
func (m *Manager) unsolicited(ctx context.Context, updates []*adaptation.ContainerUpdate) ([]*adaptation.ContainerUpdate, error) {
	var failed []*adaptation.ContainerUpdate
	select {
	case <-m.jobs.add(func() { failed = m.applyAll(updates, "a plugin's own request") }):
		return failed, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (m *Manager) evictAll(ctx context.Context, list []*api.ContainerEviction) {
	for _, e := range list {
		m.evict(ctx, e)
	}
}

func (m *Manager) evict(ctx context.Context, e *api.ContainerEviction) {
	ctx, cancel := context.WithTimeout(ctx, changeTime)
	defer cancel()
	m.cfg.Logger.Info("a plugin evicts a container", "container", e.GetContainerId(), "reason", e.GetReason())
	if err := m.rt.Evict(ctx, e.GetContainerId()); err != nil && !errdefs.IsNotFound(err) {
		m.cfg.Logger.Warn("cannot evict a container as a plugin wants", "container", e.GetContainerId(), "error", err)
	}
}

// The library drops the evictions of a message, so that they are picked up
// where messages pass.

type evictionsKey struct{}

// evictions are those that plugins answered to one event.
type evictions struct {
	mu  sync.Mutex
	all []*api.ContainerEviction
}

func (e *evictions) list() []*api.ContainerEviction {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.all
}

// withEvictions returns a context by which an event finds its evictions.
func withEvictions(ctx context.Context) (context.Context, *evictions) {
	e := &evictions{}
	return context.WithValue(ctx, evictionsKey{}, e), e
}

// collectEvictions reads the evictions in plugins' answers.
func collectEvictions(ctx context.Context, req *ttrpc.Request, resp *ttrpc.Response, _ *ttrpc.UnaryClientInfo, next ttrpc.Invoker) error {
	err := next(ctx, req, resp)
	e, wanted := ctx.Value(evictionsKey{}).(*evictions)
	if err != nil || !wanted || len(resp.GetPayload()) == 0 {
		return err
	}
	var found []*api.ContainerEviction
	switch req.GetMethod() {
	case "CreateContainer":
		var out api.CreateContainerResponse
		if proto.Unmarshal(resp.GetPayload(), &out) == nil { // else the library says so
			found = out.GetEvict()
		}
	case "UpdateContainer":
		var out api.UpdateContainerResponse
		if proto.Unmarshal(resp.GetPayload(), &out) == nil {
			found = out.GetEvict()
		}
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.all = append(e.all, found...)
	return nil
}

// serveEvictions reads the evictions that plugins ask for by themselves. They
// happen after the updates and in the background: a plugin may ask from within
// an event, which the end of a container would have to wait for.
func (m *Manager) serveEvictions(ctx context.Context, unmarshal ttrpc.Unmarshaler, _ *ttrpc.UnaryServerInfo, next ttrpc.Method) (any, error) {
	var asked []*api.ContainerEviction
	out, err := next(ctx, func(v any) error {
		err := unmarshal(v)
		if r, ok := v.(*api.UpdateContainersRequest); ok && err == nil {
			asked = r.GetEvict()
		}
		return err
	})
	for _, e := range asked {
		m.jobs.wg.Go(func() { m.evict(m.ctx, e) })
	}
	return out, err
}

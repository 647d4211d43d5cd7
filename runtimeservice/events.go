package runtimeservice

import (
	"context"
	"fmt"
	"slices"

	"github.com/containerd/errdefs"
	"google.golang.org/grpc"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-dev/berth/store"
)

// GetContainerEvents streams events of containers and sandboxes from now on, in
// the order of their commits and without loss. It reads the store's journal at
// the client's pace, so no verb waits for a client; one that lags more than the
// journal remembers is ended with ResourceExhausted.
func (i *info) GetContainerEvents(_ *runtimeapi.GetEventsRequest, out grpc.ServerStreamingServer[runtimeapi.ContainerEventResponse]) error {
	const chunk = 64
	for after := i.db.LastEvent(); ; {
		events, more, err := i.db.Events(after, chunk)
		if errdefs.IsOutOfRange(err) {
			return fmt.Errorf("event stream: the client lags too far behind; list and subscribe again: %w: %w", err, errdefs.ErrResourceExhausted)
		}
		if err != nil {
			return fmt.Errorf("event stream: %w", err)
		}
		for _, e := range events {
			for _, r := range i.eventMessages(e) {
				if err := out.Send(r); err != nil {
					return fmt.Errorf("send event: %w", err)
				}
			}
			after = e.Seq
		}
		if len(events) > 0 {
			continue
		}
		select {
		case <-more:
		case <-out.Context().Done():
			return nil
		case <-i.tasks.ctx.Done():
			return fmt.Errorf("event stream: the daemon is shutting down: %w", errdefs.ErrUnavailable)
		}
	}
}

// eventMessages translates an event: a sandbox that was made has been started
// too. Events of sandboxes carry the sandbox's ID as the container's, as the
// kubelet expects. Images have none.
func (c *core) eventMessages(e store.Event) (out []*runtimeapi.ContainerEventResponse) {
	const (
		created = runtimeapi.ContainerEventType_CONTAINER_CREATED_EVENT
		started = runtimeapi.ContainerEventType_CONTAINER_STARTED_EVENT
		stopped = runtimeapi.ContainerEventType_CONTAINER_STOPPED_EVENT
		deleted = runtimeapi.ContainerEventType_CONTAINER_DELETED_EVENT
	)
	types := map[string][]runtimeapi.ContainerEventType{
		store.SandboxCreated: {created, started}, store.SandboxStopped: {stopped}, store.SandboxRemoved: {deleted},
		store.ContainerCreated: {created}, store.ContainerStarted: {started},
		store.ContainerStopped: {stopped}, store.ContainerRemoved: {deleted},
	}
	for _, t := range types[e.Kind] {
		r := &runtimeapi.ContainerEventResponse{ContainerId: e.ID, ContainerEventType: t, CreatedAt: e.At.UnixNano()}
		r.PodSandboxStatus, r.ContainersStatuses = c.statusesOf(e)
		out = append(out, r)
	}
	return out
}

// statusesOf returns pod and containers as they are now; of what is gone, as it
// last was: without the pod's status the kubelet drops an event.
func (c *core) statusesOf(e store.Event) (*runtimeapi.PodSandboxStatus, []*runtimeapi.ContainerStatus) {
	var pod *runtimeapi.PodSandboxStatus
	if s, err := c.db.Sandbox(e.PodID); err == nil {
		pod = sandboxStatus(s, c.cfg.BootID)
	} else if e.Sandbox != nil {
		pod = sandboxStatus(*e.Sandbox, c.cfg.BootID)
	}
	var all []*runtimeapi.ContainerStatus
	members := c.db.ContainersOf(e.PodID)
	for _, ct := range members {
		all = append(all, c.containerStatus(ct))
	}
	known := slices.ContainsFunc(members, func(ct store.Container) bool { return ct.ID == e.ID })
	if e.Container != nil && !known {
		all = append(all, c.containerStatus(*e.Container))
	}
	return pod, all
}

// commitFacts changes the facts of one container and commits them. change
// works on a copy whose nested values must be replaced, not written to; it
// returns false when there is nothing to do. NotFound after removal began.
func (c *core) commitFacts(ctx context.Context, id string, change func(*store.ContainerFacts) bool) (store.Container, error) {
	unlock, err := c.locks.lock(ctx, "facts of container "+id)
	if err != nil {
		return store.Container{}, err
	}
	defer unlock()
	rec, err := c.db.Container(id)
	if err != nil {
		return rec, err
	}
	if c.ends.isRemoving(rec.ID) {
		return rec, fmt.Errorf("container %s is being removed: %w", rec.ID, errdefs.ErrNotFound)
	}
	if !change(&rec.Facts) {
		return rec, nil
	}
	if err := c.db.Commit(ctx, store.Change{PutContainers: []store.Container{rec}}); err != nil {
		return rec, fmt.Errorf("commit facts of container %s: %w", rec.ID, err)
	}
	return rec, nil
}

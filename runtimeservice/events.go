package runtimeservice

import (
	"context"
	"fmt"
	"sync"

	"github.com/containerd/errdefs"
	"google.golang.org/grpc"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-dev/berth/store"
)

// eventBacklog is how many events a subscriber may lag behind before it is
// cut off: it must then list again, which it would have to do after a loss too.
const eventBacklog = 1024

// broadcaster hands every event to every subscriber and never blocks.
type broadcaster struct {
	mu     sync.Mutex
	subs   map[*subscriber]struct{}
	closed bool
}

type subscriber struct {
	ch      chan *runtimeapi.ContainerEventResponse
	cut     bool // fell behind; read after ch is closed
	dropped bool
}

func newBroadcaster() *broadcaster { return &broadcaster{subs: map[*subscriber]struct{}{}} }

func (b *broadcaster) subscribe() (*subscriber, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		return nil, fmt.Errorf("subscribe to events: the daemon is shutting down: %w", errdefs.ErrUnavailable)
	}
	s := &subscriber{ch: make(chan *runtimeapi.ContainerEventResponse, eventBacklog)}
	b.subs[s] = struct{}{}
	return s, nil
}

func (b *broadcaster) unsubscribe(s *subscriber) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.drop(s)
}

func (b *broadcaster) drop(s *subscriber) {
	if !s.dropped {
		s.dropped = true
		delete(b.subs, s)
		close(s.ch)
	}
}

func (b *broadcaster) active() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return len(b.subs) > 0
}

func (b *broadcaster) publish(e *runtimeapi.ContainerEventResponse) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for s := range b.subs {
		select {
		case s.ch <- e:
		default:
			s.cut = true
			b.drop(s)
		}
	}
}

func (b *broadcaster) close() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.closed = true
	for s := range b.subs {
		b.drop(s)
	}
}

// GetContainerEvents streams events of containers and sandboxes from now on. A
// client that lags too far behind is ended with ResourceExhausted.
func (i *info) GetContainerEvents(_ *runtimeapi.GetEventsRequest, out grpc.ServerStreamingServer[runtimeapi.ContainerEventResponse]) error {
	s, err := i.events.subscribe()
	if err != nil {
		return err
	}
	defer i.events.unsubscribe(s)
	for {
		select {
		case <-out.Context().Done():
			return nil
		case e, ok := <-s.ch:
			switch {
			case ok:
				if err := out.Send(e); err != nil {
					return fmt.Errorf("send event: %w", err)
				}
			case s.cut:
				return fmt.Errorf("event stream: the client lags more than %d events behind; list and subscribe again: %w",
					eventBacklog, errdefs.ErrResourceExhausted)
			default:
				return fmt.Errorf("event stream: the daemon is shutting down: %w", errdefs.ErrUnavailable)
			}
		}
	}
}

// publishContainer publishes an event about a container after its facts have
// been committed. rec serves when the record is gone.
func (c *core) publishContainer(rec store.Container, t runtimeapi.ContainerEventType) {
	c.publish(rec.ID, rec.SandboxID, t, rec)
}

// publishSandbox publishes an event about a sandbox; the event stream carries
// it with the sandbox's ID as the container's, as the kubelet expects.
func (c *core) publishSandbox(id string, t runtimeapi.ContainerEventType) {
	c.publish(id, id, t, store.Container{})
}

func (c *core) publish(id, sandboxID string, t runtimeapi.ContainerEventType, gone store.Container) {
	if !c.events.active() {
		return
	}
	e := &runtimeapi.ContainerEventResponse{ContainerId: id, ContainerEventType: t, CreatedAt: c.clock.Now().UnixNano()}
	if s, err := c.db.Sandbox(sandboxID); err == nil {
		e.PodSandboxStatus = sandboxStatus(s, c.cfg.BootID)
	}
	for _, ct := range c.db.ContainersOf(sandboxID) {
		e.ContainersStatuses = append(e.ContainersStatuses, c.containerStatus(ct))
	}
	if t == runtimeapi.ContainerEventType_CONTAINER_DELETED_EVENT && gone.ID != "" {
		e.ContainersStatuses = append(e.ContainersStatuses, c.containerStatus(gone))
	}
	c.events.publish(e)
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

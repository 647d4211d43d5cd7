package runtimeservice

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"google.golang.org/grpc"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-dev/berth/store"
)

// eventClient takes events, one for each value it is let have.
type eventClient struct {
	grpc.ServerStream
	ctx context.Context
	let chan struct{}
	got chan *runtimeapi.ContainerEventResponse
}

func (c *eventClient) Context() context.Context { return c.ctx }

func (c *eventClient) Send(r *runtimeapi.ContainerEventResponse) error {
	select {
	case <-c.let:
	case <-c.ctx.Done():
		return c.ctx.Err()
	}
	c.got <- r
	return nil
}

func follow(t *testing.T, s *Service) (*eventClient, <-chan error) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	t.Cleanup(cancel)
	c := &eventClient{ctx: ctx, let: make(chan struct{}), got: make(chan *runtimeapi.ContainerEventResponse, 4096)}
	ended := make(chan error, 1)
	before := s.info.db.LastEvent()
	go func() { ended <- s.GetContainerEvents(nil, c) }()
	// The stream begins at the journal's end: mark that with events until one arrives.
	for i := 0; ; i++ {
		id := fmt.Sprintf("mark-%d-%d", before, i)
		put(t, s, store.Change{PutSandboxes: []store.Sandbox{{ID: id}}})
		select {
		case c.let <- struct{}{}:
			<-c.got
			c.drain(t, 1) // a sandbox is created and started
			return c, ended
		case <-time.After(10 * time.Millisecond):
		}
	}
}

func (c *eventClient) drain(t *testing.T, n int) (out []*runtimeapi.ContainerEventResponse) {
	t.Helper()
	for range n {
		select {
		case c.let <- struct{}{}:
		case <-time.After(time.Minute):
			t.Fatalf("%d events, want %d", len(out), n)
		}
		out = append(out, <-c.got)
	}
	return out
}

func put(t *testing.T, s *Service, changes ...store.Change) {
	t.Helper()
	for _, c := range changes {
		if err := s.info.db.Commit(t.Context(), c); err != nil {
			t.Fatal(err)
		}
	}
}

func TestEventsOfALife(t *testing.T) {
	s, _ := newTestService(t)
	c, _ := follow(t, s)
	// Whatever marks are still on their way belong to no pod of ours.
	pod := store.Sandbox{ID: "pod", Config: &runtimeapi.PodSandboxConfig{Metadata: &runtimeapi.PodSandboxMetadata{Name: "p", Uid: "u"}}}
	made := store.Container{ID: "c", SandboxID: "pod", Config: &runtimeapi.ContainerConfig{Metadata: &runtimeapi.ContainerMetadata{Name: "c"}}}
	ended := made
	ended.Facts.StartedAt, ended.Facts.Exit = time.Now(), &store.Exit{Code: 7}
	// The client takes nothing until all is over.
	put(t, s, store.Change{PutSandboxes: []store.Sandbox{pod}}, store.Change{PutContainers: []store.Container{made}},
		store.Change{PutContainers: []store.Container{ended}},
		store.Change{PutImages: []store.Image{{ID: "sha256:i"}}},
		store.Change{DeleteContainers: []string{"c"}}, store.Change{DeleteSandboxes: []string{"pod"}})
	var got []string
	for len(got) < 7 {
		r := c.drain(t, 1)[0]
		if strings.HasPrefix(r.GetContainerId(), "mark") {
			continue
		}
		if r.GetPodSandboxStatus().GetMetadata().GetUid() != "u" {
			t.Errorf("%v without its pod's status", r)
		}
		got = append(got, r.GetContainerId()+" "+strings.TrimSuffix(strings.TrimPrefix(r.GetContainerEventType().String(), "CONTAINER_"), "_EVENT"))
		if r.GetContainerId() == "c" && len(r.GetContainersStatuses()) != 1 {
			t.Errorf("%v without its container's status", r)
		}
	}
	want := "pod CREATED, pod STARTED, c CREATED, c STARTED, c STOPPED, c DELETED, pod DELETED"
	if strings.Join(got, ", ") != want {
		t.Errorf("got  %s\nwant %s", strings.Join(got, ", "), want)
	}
}

// A client that takes nothing stops no commit; it is cut off with an error.
func TestSlowEventClientIsCut(t *testing.T) {
	s, _ := newTestService(t)
	c, ended := follow(t, s)
	for i := range 3 {
		var change store.Change
		for j := range 1000 {
			change.PutSandboxes = append(change.PutSandboxes, store.Sandbox{ID: fmt.Sprintf("x%d-%d", i, j)})
		}
		put(t, s, change)
	}
	for {
		select {
		case c.let <- struct{}{}:
			<-c.got
			continue
		case err := <-ended:
			if !errdefs.IsResourceExhausted(err) || !strings.Contains(err.Error(), "subscribe again") {
				t.Error(err)
			}
		}
		return
	}
}

func TestEventStreamEndsWithTheService(t *testing.T) {
	s, _ := newTestService(t)
	_, ended := follow(t, s)
	if err := s.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := <-ended; !errdefs.IsUnavailable(err) {
		t.Error(err)
	}
}

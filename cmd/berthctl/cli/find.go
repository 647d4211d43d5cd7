package cli

import (
	"context"
	"fmt"
	"strings"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// named is an object and what it may be called besides its ID.
type named struct {
	id    string
	names []string
	live  bool
}

// pick returns the ID of the object that a user means: by ID, by name, by the
// beginning of an ID. Of several with a name the only live one is meant.
func pick(kind, query string, all []named) (string, error) {
	var byName, live, byPrefix []string
	for _, o := range all {
		if o.id == query {
			return o.id, nil
		}
		for _, n := range o.names {
			if n != query {
				continue
			}
			byName = append(byName, o.id)
			if o.live {
				live = append(live, o.id)
			}
		}
		if query != "" && strings.HasPrefix(o.id, query) {
			byPrefix = append(byPrefix, o.id)
		}
	}
	hits := byName
	switch {
	case len(byName) > 1 && len(live) == 1:
		hits = live
	case len(byName) == 0:
		hits = byPrefix
	}
	switch len(hits) {
	case 0:
		return "", status.Errorf(codes.NotFound, "there is no %s %q", kind, query)
	case 1:
		return hits[0], nil
	}
	var ids []string
	for _, id := range hits {
		ids = append(ids, Short(id))
	}
	return "", status.Errorf(codes.InvalidArgument, "%s %q may be any of %s: give its ID", kind, query, strings.Join(ids, ", "))
}

// Pod returns the pod that a user means by an ID, the beginning of one, a name
// or NAMESPACE/NAME.
func (cl Clients) Pod(ctx context.Context, query string) (*runtimeapi.PodSandbox, error) {
	r, err := cl.ListPodSandbox(ctx, &runtimeapi.ListPodSandboxRequest{})
	if err != nil {
		return nil, err
	}
	var all []named
	byID := map[string]*runtimeapi.PodSandbox{}
	for _, p := range r.GetItems() {
		all = append(all, namedPod(p))
		byID[p.GetId()] = p
	}
	id, err := pick("pod", query, all)
	return byID[id], err
}

func namedPod(p *runtimeapi.PodSandbox) named {
	m := p.GetMetadata()
	return named{id: p.GetId(), names: []string{m.GetName(), m.GetNamespace() + "/" + m.GetName()},
		live: p.GetState() == runtimeapi.PodSandboxState_SANDBOX_READY}
}

// Container returns the container that a user means by an ID, the beginning of
// one, a name or POD/NAME, where POD is the pod's name.
func (cl Clients) Container(ctx context.Context, query string) (*runtimeapi.Container, error) {
	r, err := cl.ListContainers(ctx, &runtimeapi.ListContainersRequest{})
	if err != nil {
		return nil, err
	}
	pods, err := cl.ListPodSandbox(ctx, &runtimeapi.ListPodSandboxRequest{})
	if err != nil {
		return nil, err
	}
	all := namedContainers(r.GetContainers(), pods.GetItems())
	id, err := pick("container", query, all)
	if err != nil {
		return nil, err
	}
	for _, c := range r.GetContainers() {
		if c.GetId() == id {
			return c, nil
		}
	}
	return nil, fmt.Errorf("container %s is not in the list it was found in", id)
}

func namedContainers(containers []*runtimeapi.Container, pods []*runtimeapi.PodSandbox) (all []named) {
	podName := map[string]string{}
	for _, p := range pods {
		podName[p.GetId()] = p.GetMetadata().GetName()
	}
	for _, c := range containers {
		name := c.GetMetadata().GetName()
		all = append(all, named{id: c.GetId(), names: []string{name, podName[c.GetPodSandboxId()] + "/" + name},
			live: c.GetState() == runtimeapi.ContainerState_CONTAINER_RUNNING})
	}
	return all
}

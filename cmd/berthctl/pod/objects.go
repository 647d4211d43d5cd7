// Package pod is berthctl's commands on pods and containers: lists, trees,
// processes, figures, and what ends them.
package pod

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-dev/berth/cmd/berthctl/cli"
)

// Commands are the commands of this package.
func Commands(a *cli.App) []*cobra.Command {
	return []*cobra.Command{pods(a), containers(a), kill(a), ps(a), statsCommand(a), top(a), shims(a)}
}

func pods(a *cli.App) *cobra.Command {
	ls := a.Command("ls", "List pods", cobra.NoArgs, func(c *cobra.Command, cl cli.Clients, _ []string) error {
		r, err := cl.ListPodSandbox(c.Context(), &runtimeapi.ListPodSandboxRequest{})
		if err != nil {
			return err
		}
		return a.Show(c.OutOrStdout(), r, podTable(a, r.GetItems(), time.Now()))
	})
	inspect := a.Command("inspect POD", "Everything about a pod, as JSON or YAML", cobra.ExactArgs(1), func(c *cobra.Command, cl cli.Clients, args []string) error {
		r, err := podStatus(c.Context(), cl, args[0])
		if err != nil {
			return err
		}
		return a.ShowDocument(c.OutOrStdout(), r)
	})
	return cli.Group("pods", "Pod sandboxes", ls, cli.Completed(inspect, a.Pods(1)), podsTree(a), podsSpec(a), podsStop(a), podsRemove(a))
}

// podStatus is the verbose status of the pod of that name or beginning of an ID.
func podStatus(ctx context.Context, cl cli.Clients, name string) (*runtimeapi.PodSandboxStatusResponse, error) {
	p, err := cl.Pod(ctx, name)
	if err != nil {
		return nil, err
	}
	return cl.PodSandboxStatus(ctx, &runtimeapi.PodSandboxStatusRequest{PodSandboxId: p.GetId(), Verbose: true})
}

// containerStatus is the same of a container.
func containerStatus(ctx context.Context, cl cli.Clients, name string) (*runtimeapi.ContainerStatusResponse, error) {
	k, err := cl.Container(ctx, name)
	if err != nil {
		return nil, err
	}
	return cl.ContainerStatus(ctx, &runtimeapi.ContainerStatusRequest{ContainerId: k.GetId(), Verbose: true})
}

func podTable(a *cli.App, pods []*runtimeapi.PodSandbox, now time.Time) cli.Table {
	t := cli.Table{Header: "ID NAMESPACE NAME ATTEMPT STATE AGE HANDLER UID", Wide: 2}
	for _, p := range pods {
		m := p.GetMetadata()
		t.Rows = append(t.Rows, []string{a.ID(p.GetId()), m.GetNamespace(), m.GetName(), fmt.Sprint(m.GetAttempt()),
			strings.TrimPrefix(p.GetState().String(), "SANDBOX_"), cli.Age(p.GetCreatedAt(), now), p.GetRuntimeHandler(), m.GetUid()})
	}
	return t
}

func containers(a *cli.App) *cobra.Command {
	ls := a.Command("ls", "List containers", cobra.NoArgs, func(c *cobra.Command, cl cli.Clients, _ []string) error {
		r, err := cl.ListContainers(c.Context(), &runtimeapi.ListContainersRequest{})
		if err != nil {
			return err
		}
		return a.Show(c.OutOrStdout(), r, containerTable(a, r.GetContainers(), troubles(c, cl), time.Now()))
	})
	inspect := a.Command("inspect CONTAINER", "Everything about a container, as JSON or YAML", cobra.ExactArgs(1), func(c *cobra.Command, cl cli.Clients, args []string) error {
		r, err := containerStatus(c.Context(), cl, args[0])
		if err != nil {
			return err
		}
		return a.ShowDocument(c.OutOrStdout(), r)
	})
	return cli.Group("containers", "Containers", ls, cli.Completed(inspect, a.Containers(1)), containersTree(a), containersSpec(a),
		containersStop(a), containersRemove(a))
}

// troubles is what the daemon remembers of containers that do not do as they
// are told, by ID. A daemon that does not say leaves the list as it is.
func troubles(c *cobra.Command, cl cli.Clients) (out map[string]string) {
	r, err := cl.Status(c.Context(), &runtimeapi.StatusRequest{Verbose: true})
	if err == nil {
		_ = json.Unmarshal([]byte(r.GetInfo()["containers"]), &out)
	}
	return out
}

func containerTable(a *cli.App, containers []*runtimeapi.Container, troubles map[string]string, now time.Time) cli.Table {
	t := cli.Table{Header: "ID POD NAME ATTEMPT STATE AGE IMAGE IMAGE-ID", Wide: 1}
	for _, k := range containers {
		m := k.GetMetadata()
		state := strings.TrimPrefix(k.GetState().String(), "CONTAINER_")
		if what := troubles[k.GetId()]; what != "" {
			state += " (" + what + ")"
		}
		t.Rows = append(t.Rows, []string{a.ID(k.GetId()), a.ID(k.GetPodSandboxId()), m.GetName(), fmt.Sprint(m.GetAttempt()),
			state, cli.Age(k.GetCreatedAt(), now), k.GetImage().GetImage(), k.GetImageId()})
	}
	return t
}

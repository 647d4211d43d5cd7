package pod

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-dev/berth/cmd/berthctl/cli"
)

// treePod is a pod with what belongs to it.
type treePod struct {
	Pod        *runtimeapi.PodSandbox
	Containers []*runtimeapi.Container
}

// MarshalJSON gives the messages the form that they have elsewhere.
func (p treePod) MarshalJSON() ([]byte, error) {
	out := struct {
		Pod        cli.Message   `json:"pod"`
		Containers []cli.Message `json:"containers"`
	}{Pod: cli.Message{Message: p.Pod}, Containers: []cli.Message{}}
	for _, k := range p.Containers {
		out.Containers = append(out.Containers, cli.Message{Message: k})
	}
	return json.Marshal(out)
}

func podsTree(a *cli.App) *cobra.Command {
	cmd := a.Command("tree [POD...]", "Pods and their containers", cobra.ArbitraryArgs, func(c *cobra.Command, cl cli.Clients, args []string) error {
		tree, err := gatherTree(c, cl, args)
		if err != nil {
			return err
		}
		return a.Show(c.OutOrStdout(), tree, treeTable(a, tree, time.Now()))
	})
	return cli.Completed(cmd, a.Pods(0))
}

// containersTree shows the pods of some containers as podsTree does.
func containersTree(a *cli.App) *cobra.Command {
	cmd := a.Command("tree [CONTAINER...]", "Containers below their pods", cobra.ArbitraryArgs, func(c *cobra.Command, cl cli.Clients, args []string) error {
		tree, err := gatherTree(c, cl, nil)
		if err != nil {
			return err
		}
		if len(args) > 0 {
			var wanted []string
			for _, name := range args {
				k, err := cl.Container(c.Context(), name)
				if err != nil {
					return err
				}
				wanted = append(wanted, k.GetId())
			}
			for i := range tree {
				tree[i].Containers = slices.DeleteFunc(tree[i].Containers, func(k *runtimeapi.Container) bool { return !slices.Contains(wanted, k.GetId()) })
			}
			tree = slices.DeleteFunc(tree, func(p treePod) bool { return len(p.Containers) == 0 })
		}
		return a.Show(c.OutOrStdout(), tree, treeTable(a, tree, time.Now()))
	})
	return cli.Completed(cmd, a.Containers(0))
}

func gatherTree(c *cobra.Command, cl cli.Clients, names []string) ([]treePod, error) {
	r, err := cl.ListPodSandbox(c.Context(), &runtimeapi.ListPodSandboxRequest{})
	if err != nil {
		return nil, err
	}
	pods := r.GetItems()
	if len(names) > 0 {
		pods = nil
		for _, name := range names {
			p, err := cl.Pod(c.Context(), name)
			if err != nil {
				return nil, err
			}
			pods = append(pods, p)
		}
	}
	k, err := cl.ListContainers(c.Context(), &runtimeapi.ListContainersRequest{})
	if err != nil {
		return nil, err
	}
	tree := []treePod{}
	for _, p := range pods {
		t := treePod{Pod: p, Containers: []*runtimeapi.Container{}}
		for _, x := range k.GetContainers() {
			if x.GetPodSandboxId() == p.GetId() {
				t.Containers = append(t.Containers, x)
			}
		}
		tree = append(tree, t)
	}
	return tree, nil
}

func treeTable(a *cli.App, tree []treePod, now time.Time) cli.Table {
	t := cli.Table{Header: "NAME ID STATE AGE IMAGE"}
	for _, p := range tree {
		m := p.Pod.GetMetadata()
		t.Rows = append(t.Rows, []string{m.GetNamespace() + "/" + m.GetName(), a.ID(p.Pod.GetId()),
			strings.TrimPrefix(p.Pod.GetState().String(), "SANDBOX_"), cli.Age(p.Pod.GetCreatedAt(), now), ""})
		for i, k := range p.Containers {
			t.Rows = append(t.Rows, []string{cli.Branch(i, len(p.Containers)) + k.GetMetadata().GetName(), a.ID(k.GetId()),
				strings.TrimPrefix(k.GetState().String(), "CONTAINER_"), cli.Age(k.GetCreatedAt(), now), k.GetImage().GetImage()})
		}
	}
	return t
}

func podsSpec(a *cli.App) *cobra.Command {
	cmd := a.Command("spec POD", "The configuration a pod was made with, as JSON or YAML", cobra.ExactArgs(1),
		func(c *cobra.Command, cl cli.Clients, args []string) error {
			r, err := podStatus(c.Context(), cl, args[0])
			if err != nil {
				return err
			}
			return showPart(a, c, r.GetInfo()["info"], "config", "pod "+r.GetStatus().GetId())
		})
	return cli.Completed(cmd, a.Pods(1))
}

func containersSpec(a *cli.App) *cobra.Command {
	cmd := a.Command("spec CONTAINER", "The OCI specification a container runs with, as JSON or YAML", cobra.ExactArgs(1),
		func(c *cobra.Command, cl cli.Clients, args []string) error {
			r, err := containerStatus(c.Context(), cl, args[0])
			if err != nil {
				return err
			}
			return showPart(a, c, r.GetInfo()["info"], "runtimeSpec", "container "+r.GetStatus().GetId())
		})
	return cli.Completed(cmd, a.Containers(1))
}

// showPart prints a part of the verbose information of an object.
func showPart(a *cli.App, c *cobra.Command, info, part, of string) error {
	var doc map[string]json.RawMessage
	if err := json.Unmarshal([]byte(info), &doc); err != nil {
		return cli.Failed(fmt.Errorf("read the verbose status of %s: %w", of, err), "Compare `berthctl version`: is this daemon Berth?")
	}
	if len(doc[part]) == 0 {
		return cli.Failed(fmt.Errorf("%s has no %s any more: %s", of, part, doc["runtimeSpecError"]), "`berthctl containers inspect` shows what is known of it.")
	}
	return a.ShowDocument(c.OutOrStdout(), doc[part])
}

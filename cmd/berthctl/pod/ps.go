package pod

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-dev/berth/cmd/berthctl/cli"
)

func ps(a *cli.App) *cobra.Command {
	cmd := a.Command("ps [CONTAINER|POD...]", "Processes of containers", cobra.ArbitraryArgs, func(c *cobra.Command, cl cli.Clients, args []string) error {
		names, err := psObjects(c.Context(), cl, args)
		if err != nil {
			return err
		}
		var ids []string
		for id := range names {
			ids = append(ids, id)
		}
		all, err := processesOf(procRoot, ids)
		if err != nil {
			return cli.Failed(err, "Run it on the node itself.")
		}
		for i, p := range all {
			all[i].Name = names[p.Object]
		}
		return a.Show(c.OutOrStdout(), all, psTable(a, all))
	})
	cmd.Long = `Processes of containers, with their PID on the node and inside the container; without arguments, of all.
A name that no container has is taken for a pod's. It reads /proc of the node it runs on, and asks the daemon only who is who.`
	return cli.Completed(cmd, a.Containers(0))
}

// psObjects returns the names of what is asked for, by ID: containers, and
// pods for the process that holds their PID namespace.
func psObjects(ctx context.Context, cl cli.Clients, args []string) (map[string]string, error) {
	pods, err := cl.ListPodSandbox(ctx, &runtimeapi.ListPodSandboxRequest{})
	if err != nil {
		return nil, err
	}
	containers, err := cl.ListContainers(ctx, &runtimeapi.ListContainersRequest{})
	if err != nil {
		return nil, err
	}
	podNames, names := map[string]string{}, map[string]string{}
	for _, p := range pods.GetItems() {
		podNames[p.GetId()] = p.GetMetadata().GetName()
		names[p.GetId()] = p.GetMetadata().GetName()
	}
	for _, k := range containers.GetContainers() {
		names[k.GetId()] = podNames[k.GetPodSandboxId()] + "/" + k.GetMetadata().GetName()
	}
	if len(args) == 0 {
		return names, nil
	}
	wanted := map[string]string{}
	for _, name := range args {
		k, err := cl.Container(ctx, name)
		if err == nil {
			wanted[k.GetId()] = names[k.GetId()]
			continue
		}
		p, perr := cl.Pod(ctx, name)
		if perr != nil {
			if status.Code(err) == codes.NotFound && status.Code(perr) == codes.NotFound {
				err = status.Errorf(codes.NotFound, "there is neither a container nor a pod %q", name)
			}
			return nil, err
		}
		wanted[p.GetId()] = names[p.GetId()]
		for _, k := range containers.GetContainers() {
			if k.GetPodSandboxId() == p.GetId() {
				wanted[k.GetId()] = names[k.GetId()]
			}
		}
	}
	return wanted, nil
}

func psTable(a *cli.App, all []process) cli.Table {
	t := cli.Table{Header: "PID INSIDE CONTAINER USER S MEMORY COMMAND PARENT THREADS ID", Wide: 3}
	for _, p := range all {
		command := p.Command
		if !a.Wide() && len(command) > 60 {
			command = command[:57] + "..."
		}
		t.Rows = append(t.Rows, []string{fmt.Sprint(p.PID), fmt.Sprint(p.Inside), p.Name, fmt.Sprint(p.UID), p.State, cli.Bytes(p.RSS),
			command, fmt.Sprint(p.Parent), fmt.Sprint(p.Threads), p.Object})
	}
	return t
}

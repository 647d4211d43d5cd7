package pod

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"regexp"

	"github.com/spf13/cobra"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-dev/berth/cmd/berthctl/cli"
	"github.com/berth-dev/berth/cri/admin"
)

const (
	// RunLabel marks pods of berthctl run; its value is the pod's UID.
	RunLabel = "berthctl.run"
	// LogRoot holds the log directories of pods of berthctl run, by their UID.
	LogRoot = "/var/log/berthctl"
)

var uidForm = regexp.MustCompile(`^[A-Z0-9]{26}$`)

// Remove stops and removes a pod, and the logs that berthctl run made for it.
// Where these are is derived, not read from the pod: its labels are its
// maker's.
func Remove(ctx context.Context, cl cli.Clients, p *runtimeapi.PodSandbox) error {
	if _, err := cl.StopPodSandbox(ctx, &runtimeapi.StopPodSandboxRequest{PodSandboxId: p.GetId()}); err != nil {
		return err
	}
	if _, err := cl.RemovePodSandbox(ctx, &runtimeapi.RemovePodSandboxRequest{PodSandboxId: p.GetId()}); err != nil {
		return err
	}
	uid := p.GetMetadata().GetUid()
	if p.GetLabels()[RunLabel] == uid && uidForm.MatchString(uid) {
		return os.RemoveAll(filepath.Join(LogRoot, uid))
	}
	return nil
}

// object is a pod or a container.
type object interface{ GetId() string }

// each makes the run function of a command that does something to each of the
// objects that it is given the names of, and prints their IDs.
func each[T object](find func(cli.Clients, context.Context, string) (T, error), do func(context.Context, cli.Clients, T) error) func(*cobra.Command, cli.Clients, []string) error {
	return func(c *cobra.Command, cl cli.Clients, args []string) error {
		for _, name := range args {
			x, err := find(cl, c.Context(), name)
			if err != nil {
				return err
			}
			if err := do(c.Context(), cl, x); err != nil {
				return err
			}
			if _, err := fmt.Fprintln(c.OutOrStdout(), x.GetId()); err != nil {
				return err
			}
		}
		return nil
	}
}

// eachPod makes a command that does something to each of some pods.
func eachPod(a *cli.App, use, short string, do func(context.Context, cli.Clients, *runtimeapi.PodSandbox) error) *cobra.Command {
	return cli.Completed(a.Command(use, short, cobra.MinimumNArgs(1), each(cli.Clients.Pod, do)), a.Pods(0))
}

// eachContainer makes a command that does something to each of some containers.
func eachContainer(a *cli.App, use, short string, do func(context.Context, cli.Clients, *runtimeapi.Container) error) *cobra.Command {
	return cli.Completed(a.Command(use, short, cobra.MinimumNArgs(1), each(cli.Clients.Container, do)), a.Containers(0))
}

func podsStop(a *cli.App) *cobra.Command {
	return eachPod(a, "stop POD...", "Stop pods with all their containers", func(ctx context.Context, cl cli.Clients, p *runtimeapi.PodSandbox) error {
		_, err := cl.StopPodSandbox(ctx, &runtimeapi.StopPodSandboxRequest{PodSandboxId: p.GetId()})
		return err
	})
}

func podsRemove(a *cli.App) *cobra.Command {
	var force bool
	cmd := eachPod(a, "rm POD...", "Remove pods", func(ctx context.Context, cl cli.Clients, p *runtimeapi.PodSandbox) error {
		if err := refuse(ctx, cl, &runtimeapi.ContainerFilter{PodSandboxId: p.GetId()}, force); err != nil {
			return err
		}
		return Remove(ctx, cl, p)
	})
	cmd.Long = "Remove pods with their containers, and the logs of pods of `berthctl run`. A pod in which a container runs is removed\nonly with --force."
	cmd.Flags().BoolVarP(&force, "force", "f", false, "also when containers run: they are stopped")
	return cmd
}

// refuse is an error when any of the containers runs, unless force is set.
func refuse(ctx context.Context, cl cli.Clients, filter *runtimeapi.ContainerFilter, force bool) error {
	if force {
		return nil
	}
	filter.State = &runtimeapi.ContainerStateValue{State: runtimeapi.ContainerState_CONTAINER_RUNNING}
	r, err := cl.ListContainers(ctx, &runtimeapi.ListContainersRequest{Filter: filter})
	if err != nil {
		return err
	}
	for _, k := range r.GetContainers() {
		return cli.Failed(fmt.Errorf("container %s (%s) is running", cli.Short(k.GetId()), k.GetMetadata().GetName()), "Stop it first, or give --force.")
	}
	return nil
}

func containersStop(a *cli.App) *cobra.Command {
	var grace int64
	cmd := eachContainer(a, "stop CONTAINER...", "Stop containers: their stop signal, then SIGKILL", func(ctx context.Context, cl cli.Clients, k *runtimeapi.Container) error {
		_, err := cl.StopContainer(ctx, &runtimeapi.StopContainerRequest{ContainerId: k.GetId(), Timeout: grace})
		return err
	})
	cmd.Flags().Int64Var(&grace, "grace", 10, "`seconds` between the stop signal and SIGKILL")
	return cmd
}

func containersRemove(a *cli.App) *cobra.Command {
	var force bool
	cmd := eachContainer(a, "rm CONTAINER...", "Remove containers", func(ctx context.Context, cl cli.Clients, k *runtimeapi.Container) error {
		if err := refuse(ctx, cl, &runtimeapi.ContainerFilter{Id: k.GetId()}, force); err != nil {
			return err
		}
		_, err := cl.RemoveContainer(ctx, &runtimeapi.RemoveContainerRequest{ContainerId: k.GetId()})
		return err
	})
	cmd.Flags().BoolVarP(&force, "force", "f", false, "also when they run: they are killed")
	return cmd
}

func kill(a *cli.App) *cobra.Command {
	sig := "TERM"
	cmd := eachContainer(a, "kill CONTAINER...", "Send a signal to the first process of containers", func(ctx context.Context, _ cli.Clients, k *runtimeapi.Container) error {
		return a.AdminAPI(func(cl admin.AdminClient) error {
			_, err := cl.SignalContainer(ctx, &admin.SignalContainerRequest{ContainerId: k.GetId(), Signal: sig})
			return err
		})
	})
	cmd.Long = "Send a signal to the first process of containers, as kill(1) does. To end a container and to know that it has ended,\nuse `berthctl containers stop`."
	cmd.Flags().StringVarP(&sig, "signal", "s", sig, "`signal`, by name or number")
	return cmd
}

package checkpoint

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-dev/berth/cmd/berthctl/cli"
)

// creation is what `checkpoint create` is told.
type creation struct {
	pod   bool
	names []string // of containers
	limit time.Duration
}

func create(a *cli.App) *cobra.Command {
	var k creation
	cmd := a.Command("create CONTAINER FILE | --pod POD DIRECTORY", "Write a checkpoint of a running container or pod, which goes on", cobra.ExactArgs(2),
		func(c *cobra.Command, cl cli.Clients, args []string) error {
			to, err := k.check(args[1])
			if err != nil {
				return err
			}
			if k.pod {
				err = k.ofPod(c.Context(), cl, args[0], to)
			} else {
				err = k.ofContainer(c.Context(), cl, args[0], to)
			}
			if status.Code(err) == codes.Unimplemented {
				return cli.Failed(errors.New(status.Convert(err).Message()), nextCRIU)
			}
			if err != nil {
				return err
			}
			_, err = fmt.Fprintln(c.OutOrStdout(), to)
			return err
		})
	cmd.Long = "Write a checkpoint of a running container into a new file: its processes, by CRIU, and the files it has written. It stands\n" +
		"still meanwhile and goes on afterwards. With --pod: of all running containers of a pod, as they are at one moment, into a\n" +
		"directory that is new or empty. Files hold the memory of the processes, with all secrets that are in it."
	cmd.Example = "  berthctl checkpoint create web/nginx /var/tmp/nginx.tar\n" +
		"  berthctl checkpoint create --pod shop/web /var/tmp/web"
	f := cmd.Flags()
	f.BoolVar(&k.pod, "pod", false, "of a pod, into a directory")
	f.StringArrayVar(&k.names, "container", nil, "with --pod: only of the container of this `name`, and of others that are named so")
	f.DurationVar(&k.limit, "timeout", 0, "give up after `time`; 0: what the daemon allows")
	ofPods, ofContainers := a.Pods(1), a.Containers(1)
	return cli.Completed(cmd, func(c *cobra.Command, args []string, begun string) ([]string, cobra.ShellCompDirective) {
		if k.pod {
			return ofPods(c, args, begun)
		}
		return ofContainers(c, args, begun)
	})
}

const nextCRIU = "Give the node what it lacks for checkpoints; nothing has to be restarted. See docs/checkpoint.md."

// check returns the absolute path of where the checkpoint is to be.
func (k creation) check(to string) (string, error) {
	if k.limit < 0 || k.limit%time.Second != 0 {
		return "", cli.Failed(fmt.Errorf("the time-out %v is not a number of seconds", k.limit), "Give --timeout 2m, for example.")
	}
	if len(k.names) > 0 && !k.pod {
		return "", errors.New("--container needs --pod")
	}
	return filepath.Abs(to)
}

func (k creation) ofContainer(ctx context.Context, cl cli.Clients, query, file string) error {
	c, err := cl.Container(ctx, query)
	if err != nil {
		return err
	}
	_, err = cl.CheckpointContainer(ctx, &runtimeapi.CheckpointContainerRequest{ContainerId: c.GetId(), Location: file, Timeout: int64(k.limit / time.Second)})
	return err
}

func (k creation) ofPod(ctx context.Context, cl cli.Clients, query, dir string) error {
	p, err := cl.Pod(ctx, query)
	if err != nil {
		return err
	}
	ids, err := k.running(ctx, cl, p)
	if err != nil {
		return err
	}
	if k.limit > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, k.limit)
		defer cancel()
	}
	made := os.Mkdir(dir, 0o700)
	if made != nil && !errors.Is(made, fs.ErrExist) {
		return cli.Failed(made, "")
	}
	_, err = cl.CheckpointPod(ctx, &runtimeapi.CheckpointPodRequest{PodSandboxId: p.GetId(), OutputPath: dir, ContainerIds: ids})
	if err != nil && made == nil {
		_ = os.Remove(dir)
	}
	return err
}

// running lists the pod's running containers, or those of them that were named.
func (k creation) running(ctx context.Context, cl cli.Clients, p *runtimeapi.PodSandbox) (ids []string, err error) {
	r, err := cl.ListContainers(ctx, &runtimeapi.ListContainersRequest{Filter: &runtimeapi.ContainerFilter{
		PodSandboxId: p.GetId(), State: &runtimeapi.ContainerStateValue{State: runtimeapi.ContainerState_CONTAINER_RUNNING}}})
	if err != nil {
		return nil, err
	}
	var found []string
	for _, c := range r.GetContainers() {
		name := c.GetMetadata().GetName()
		if len(k.names) == 0 || slices.Contains(k.names, name) {
			ids, found = append(ids, c.GetId()), append(found, name)
		}
	}
	for _, name := range k.names {
		if !slices.Contains(found, name) {
			return nil, status.Errorf(codes.NotFound, "no container %q runs in pod %s", name, cli.Short(p.GetId()))
		}
	}
	if len(ids) == 0 {
		return nil, cli.Failed(fmt.Errorf("no container runs in pod %s", cli.Short(p.GetId())), "")
	}
	return ids, nil
}

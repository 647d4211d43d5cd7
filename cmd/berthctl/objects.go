package main

import (
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func group(use, short string, cmds ...*cobra.Command) *cobra.Command {
	c := &cobra.Command{Use: use, Short: short}
	c.AddCommand(cmds...)
	return c
}

// command makes a sub-command that gets CRI clients.
func (a *app) command(use, short string, args cobra.PositionalArgs, f func(*cobra.Command, clients, []string) error) *cobra.Command {
	return &cobra.Command{Use: use, Short: short, Args: args, RunE: func(c *cobra.Command, argv []string) error {
		return a.cri(func(cl clients) error { return f(c, cl, argv) })
	}}
}

func (a *app) pods() *cobra.Command {
	return group("pods", "Pod sandboxes",
		a.command("ls", "List pods", cobra.NoArgs, func(c *cobra.Command, cl clients, _ []string) error {
			r, err := cl.ListPodSandbox(c.Context(), &runtimeapi.ListPodSandboxRequest{})
			if err != nil {
				return err
			}
			return a.show(c.OutOrStdout(), r, "ID NAMESPACE NAME ATTEMPT STATE AGE", podRows(r.GetItems(), time.Now()))
		}),
		a.command("inspect ID", "Everything about a pod, as JSON", cobra.ExactArgs(1), func(c *cobra.Command, cl clients, args []string) error {
			r, err := cl.PodSandboxStatus(c.Context(), &runtimeapi.PodSandboxStatusRequest{PodSandboxId: args[0], Verbose: true})
			if err != nil {
				return err
			}
			return printJSON(c.OutOrStdout(), r)
		}))
}

func podRows(pods []*runtimeapi.PodSandbox, now time.Time) (rows [][]string) {
	for _, p := range pods {
		m := p.GetMetadata()
		rows = append(rows, []string{short(p.GetId()), m.GetNamespace(), m.GetName(), fmt.Sprint(m.GetAttempt()),
			strings.TrimPrefix(p.GetState().String(), "SANDBOX_"), age(p.GetCreatedAt(), now)})
	}
	return rows
}

func (a *app) containers() *cobra.Command {
	return group("containers", "Containers",
		a.command("ls", "List containers", cobra.NoArgs, func(c *cobra.Command, cl clients, _ []string) error {
			r, err := cl.ListContainers(c.Context(), &runtimeapi.ListContainersRequest{})
			if err != nil {
				return err
			}
			return a.show(c.OutOrStdout(), r, "ID POD NAME ATTEMPT STATE AGE IMAGE", containerRows(r.GetContainers(), time.Now()))
		}),
		a.command("inspect ID", "Everything about a container, as JSON", cobra.ExactArgs(1), func(c *cobra.Command, cl clients, args []string) error {
			r, err := cl.ContainerStatus(c.Context(), &runtimeapi.ContainerStatusRequest{ContainerId: args[0], Verbose: true})
			if err != nil {
				return err
			}
			return printJSON(c.OutOrStdout(), r)
		}))
}

func containerRows(containers []*runtimeapi.Container, now time.Time) (rows [][]string) {
	for _, k := range containers {
		m := k.GetMetadata()
		rows = append(rows, []string{short(k.GetId()), short(k.GetPodSandboxId()), m.GetName(), fmt.Sprint(m.GetAttempt()),
			strings.TrimPrefix(k.GetState().String(), "CONTAINER_"), age(k.GetCreatedAt(), now), k.GetImage().GetImage()})
	}
	return rows
}

func (a *app) images() *cobra.Command {
	return group("images", "Images",
		a.command("ls", "List images", cobra.NoArgs, func(c *cobra.Command, cl clients, _ []string) error {
			r, err := cl.images.ListImages(c.Context(), &runtimeapi.ListImagesRequest{})
			if err != nil {
				return err
			}
			return a.show(c.OutOrStdout(), r, "ID SIZE PINNED REFERENCE", imageRows(r.GetImages()))
		}),
		a.command("inspect IMAGE", "Everything about an image, as JSON", cobra.ExactArgs(1), func(c *cobra.Command, cl clients, args []string) error {
			r, err := cl.images.ImageStatus(c.Context(), &runtimeapi.ImageStatusRequest{Image: &runtimeapi.ImageSpec{Image: args[0]}, Verbose: true})
			if err != nil {
				return err
			}
			if r.GetImage() == nil {
				return &exitError{code: 4, err: fmt.Errorf("image %s is not on this node; pull it with `berthctl images pull`", args[0])}
			}
			return printJSON(c.OutOrStdout(), r)
		}),
		a.command("pull IMAGE", "Pull an image", cobra.ExactArgs(1), func(c *cobra.Command, cl clients, args []string) error {
			r, err := cl.images.PullImage(c.Context(), &runtimeapi.PullImageRequest{Image: &runtimeapi.ImageSpec{Image: args[0]}})
			if err != nil {
				return err
			}
			return a.show(c.OutOrStdout(), r, "", [][]string{{r.GetImageRef()}})
		}),
		a.command("rm IMAGE...", "Remove images", cobra.MinimumNArgs(1), func(c *cobra.Command, cl clients, args []string) error {
			for _, ref := range args {
				if _, err := cl.images.RemoveImage(c.Context(), &runtimeapi.RemoveImageRequest{Image: &runtimeapi.ImageSpec{Image: ref}}); err != nil {
					return err
				}
			}
			return nil
		}))
}

func imageRows(images []*runtimeapi.Image) (rows [][]string) {
	for _, im := range images {
		refs := im.GetRepoTags()
		if len(refs) == 0 {
			refs = im.GetRepoDigests()
		}
		if len(refs) == 0 {
			refs = []string{"-"}
		}
		for _, ref := range refs {
			rows = append(rows, []string{short(im.GetId()), bytesText(im.GetSize()), fmt.Sprint(im.GetPinned()), ref})
		}
	}
	return rows
}

func (a *app) logs() *cobra.Command {
	return a.command("logs CONTAINER", "Print a container's log file, in the CRI's format", cobra.ExactArgs(1), func(c *cobra.Command, cl clients, args []string) error {
		r, err := cl.ContainerStatus(c.Context(), &runtimeapi.ContainerStatusRequest{ContainerId: args[0]})
		if err != nil {
			return err
		}
		path := r.GetStatus().GetLogPath()
		if path == "" {
			return &exitError{code: 1, err: fmt.Errorf("container %s was made without a log file", args[0])}
		}
		f, err := os.Open(path)
		if err != nil {
			return &exitError{code: 1, err: fmt.Errorf("open log of container %s: %w", args[0], err)}
		}
		defer func() { _ = f.Close() }()
		_, err = io.Copy(c.OutOrStdout(), f)
		return err
	})
}

func (a *app) exec() *cobra.Command {
	var seconds int64
	cmd := a.command("exec CONTAINER -- COMMAND [ARG...]", "Run a command in a container without a terminal and wait for it", cobra.MinimumNArgs(2),
		func(c *cobra.Command, cl clients, args []string) error {
			r, err := cl.ExecSync(c.Context(), &runtimeapi.ExecSyncRequest{ContainerId: args[0], Cmd: args[1:], Timeout: seconds})
			if err != nil {
				return err
			}
			_, _ = c.OutOrStdout().Write(r.GetStdout())
			_, _ = c.ErrOrStderr().Write(r.GetStderr())
			if r.GetExitCode() != 0 {
				return &exitError{code: int(r.GetExitCode())}
			}
			return nil
		})
	cmd.Flags().Int64Var(&seconds, "timeout", 0, "seconds before the command is killed; 0: none")
	cmd.Flags().SetInterspersed(false)
	return cmd
}

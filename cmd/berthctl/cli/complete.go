package cli

import (
	"context"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// completeWait bounds what the user waits for after a press of the tab key.
const completeWait = 2 * time.Second

// Completer offers arguments to a shell.
type Completer = func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective)

// complete makes a completer of the first n arguments, 0 for all, out of a
// list. A daemon that does not answer offers nothing.
func (a *App) complete(n int, list func(context.Context, Clients) ([]string, error)) Completer {
	return func(c *cobra.Command, args []string, begun string) ([]string, cobra.ShellCompDirective) {
		if n > 0 && len(args) >= n {
			return nil, cobra.ShellCompDirectiveDefault
		}
		parent := c.Context()
		if parent == nil {
			parent = context.Background()
		}
		ctx, cancel := context.WithTimeout(parent, completeWait)
		defer cancel()
		var out []string
		err := a.CRI(func(cl Clients) error {
			all, err := list(ctx, cl)
			for _, s := range all {
				name, _, _ := strings.Cut(s, "\t")
				if strings.HasPrefix(s, begun) && !slices.Contains(args, name) {
					out = append(out, s)
				}
			}
			return err
		})
		if err != nil {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		slices.Sort(out)
		return slices.Compact(out), cobra.ShellCompDirectiveNoFileComp
	}
}

// Pods completes names and IDs of pods.
func (a *App) Pods(n int) Completer {
	return a.complete(n, func(ctx context.Context, cl Clients) ([]string, error) {
		r, err := cl.ListPodSandbox(ctx, &runtimeapi.ListPodSandboxRequest{})
		var out []string
		for _, p := range r.GetItems() {
			o := namedPod(p)
			out = append(out, o.names[1]+"\tpod", o.id[:min(13, len(o.id))]+"\t"+o.names[1])
		}
		return out, err
	})
}

// Containers completes names and IDs of containers.
func (a *App) Containers(n int) Completer {
	return a.complete(n, func(ctx context.Context, cl Clients) ([]string, error) {
		r, err := cl.ListContainers(ctx, &runtimeapi.ListContainersRequest{})
		if err != nil {
			return nil, err
		}
		pods, err := cl.ListPodSandbox(ctx, &runtimeapi.ListPodSandboxRequest{})
		var out []string
		for _, o := range namedContainers(r.GetContainers(), pods.GetItems()) {
			out = append(out, o.names[1]+"\tcontainer", o.id[:min(13, len(o.id))]+"\t"+o.names[1])
		}
		return out, err
	})
}

// ImageNames completes names of images.
func (a *App) ImageNames(n int) Completer {
	return a.complete(n, func(ctx context.Context, cl Clients) ([]string, error) {
		r, err := cl.Images.ListImages(ctx, &runtimeapi.ListImagesRequest{})
		var out []string
		for _, im := range r.GetImages() {
			for _, tag := range im.GetRepoTags() {
				out = append(out, tag+"\t"+Bytes(im.GetSize()))
			}
		}
		return out, err
	})
}

// Completed gives a command its completer.
func Completed(c *cobra.Command, f Completer) *cobra.Command {
	c.ValidArgsFunction = f
	return c
}

package session

import (
	"crypto/rand"
	"fmt"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"github.com/berth-dev/berth/cmd/berthctl/cli"
	"github.com/berth-dev/berth/cmd/berthctl/pod"
)

const runLong = `Run a pod with one container out of an image. The image is pulled when the node does not have it.

Without --detach berthctl shows what the container writes until it ends, and returns its exit
code; the pod is kept, for logs and inspect, unless --rm is given. When berthctl is interrupted,
or something fails, the pod is removed. With --detach the pod's and the container's ID are printed, and it
goes on. 'berthctl pods rm' removes pods, and their logs in ` + pod.LogRoot + `.

The container gets the default seccomp profile and the kernel's files masked as the kubelet masks them.
On a node of a cluster the kubelet removes what it did not make itself: use this on nodes without one, or for short runs.`

const runExample = `  berthctl run --rm docker.io/library/busybox:1 echo hello
  berthctl run --rm -it docker.io/library/busybox:1 sh
  berthctl run -d --name web -p 8080:80 -v /srv/www:/usr/share/nginx/html:ro docker.io/library/nginx:1`

// runFlags are how run behaves, beside what it makes.
type runFlags struct {
	spec       runSpec
	remove     bool
	detach     bool
	pull       string
	logs       string
	quiet      bool
	nameGiven  string
	adminCalls *cli.App
}

func runCommand(a *cli.App) *cobra.Command {
	f := &runFlags{adminCalls: a}
	cmd := a.Command("run IMAGE [COMMAND [ARG...]]", "Run a pod from an image", cobra.MinimumNArgs(1), func(c *cobra.Command, cl cli.Clients, args []string) error {
		if err := f.complete(args); err != nil {
			return err
		}
		r, err := newRunner(c, cl, f)
		if err != nil {
			return err
		}
		return r.run()
	})
	cmd.Long, cmd.Example = runLong, runExample
	fl := cmd.Flags()
	fl.SetInterspersed(false)
	fl.StringVar(&f.nameGiven, "name", "", "name of pod and container (default: one that is free)")
	fl.BoolVarP(&f.detach, "detach", "d", false, "do not wait for it")
	fl.BoolVar(&f.remove, "rm", false, "remove the pod when the container has ended")
	fl.StringVar(&f.pull, "pull", "missing", "when to pull the image: missing, always or never")
	fl.BoolVarP(&f.quiet, "quiet", "q", false, "no progress of the pull")
	fl.StringVar(&f.logs, "log-dir", "", "keep the log in this `directory`, also when the pod is removed")
	placeFlagsOf(cmd, &f.spec.place)
	p := &f.spec.process
	fl.BoolVarP(&p.stdin, "interactive", "i", false, "pass standard input on")
	fl.BoolVarP(&p.tty, "tty", "t", false, "give it a terminal; with -i, ctrl-p ctrl-q leaves it running")
	fl.StringVar(&p.entrypoint, "entrypoint", "", "program instead of the image's")
	fl.StringVarP(&p.workdir, "workdir", "w", "", "working directory")
	fl.StringVarP(&p.user, "user", "u", "", "`name` or UID[:GID] to run as")
	fl.StringArrayVarP(&p.env, "env", "e", nil, "`NAME=VALUE` for the environment, or NAME to pass berthctl's own on")
	fl.BoolVar(&p.privileged, "privileged", false, "all capabilities, all devices, nothing masked")
	fl.StringVarP(&f.spec.limits.memory, "memory", "m", "", "limit of memory, such as 64Mi")
	fl.Float64Var(&f.spec.limits.cpus, "cpus", 0, "limit of CPU time, in cores")
	cmd.MarkFlagsMutuallyExclusive("detach", "rm")
	cmd.MarkFlagsMutuallyExclusive("detach", "interactive")
	return cli.Completed(cmd, a.ImageNames(1))
}

func placeFlagsOf(cmd *cobra.Command, p *placeFlags) {
	fl := cmd.Flags()
	fl.StringVar(&p.namespace, "namespace", "default", "namespace of the pod")
	fl.StringVar(&p.network, "network", "pod", "pod: a network of its own; host: the node's")
	fl.StringVar(&p.handler, "handler", "", "runtime handler (default: the node's)")
	fl.StringArrayVarP(&p.ports, "publish", "p", nil, "`[IP:]HOST:CONTAINER[/PROTOCOL]`: a port of the node for one of the pod")
	fl.StringArrayVarP(&p.mounts, "volume", "v", nil, "`HOST:CONTAINER[:ro]`: a directory or file of the node in the container")
	fl.StringArrayVarP(&p.labels, "label", "l", nil, "`NAME=VALUE` for pod and container")
	_ = cmd.RegisterFlagCompletionFunc("network", cobra.FixedCompletions([]string{"pod", "host"}, cobra.ShellCompDirectiveNoFileComp))
}

// complete fills in what the command line leaves open.
func (f *runFlags) complete(args []string) error {
	f.spec.image, f.spec.command = args[0], args[1:]
	f.spec.uid = rand.Text()
	f.spec.name = f.nameGiven
	if f.spec.name == "" {
		f.spec.name = "run-" + strings.ToLower(f.spec.uid[:8])
	}
	f.spec.logs = filepath.Join(pod.LogRoot, f.spec.uid)
	if f.logs != "" {
		dir, err := filepath.Abs(f.logs)
		if err != nil {
			return err
		}
		f.spec.logs = dir
	}
	switch f.pull {
	case "missing", "always", "never":
		return nil
	}
	return fmt.Errorf("--pull %q is unknown; use missing, always or never", f.pull)
}

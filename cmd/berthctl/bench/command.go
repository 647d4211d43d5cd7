// Package bench is berthctl bench: it measures a CRI endpoint, whichever
// runtime serves it, against the OCI runtime alone.
package bench

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/berth-dev/berth/cmd/berthctl/cli"
	"github.com/berth-dev/berth/cri/admin"
)

// options are the flags.
type options struct {
	plan     Plan
	local    Local
	endpoint string
	command  string
	exec     string
	file     string
	html     string
	compare  bool
}

// Command is the command of this package.
func Command(a *cli.App) *cobra.Command {
	o := &options{}
	cmd := &cobra.Command{
		Use: "bench [--compare FILE...]", Short: "Measure this or another runtime: pods, calls, memory, CPU", Args: cobra.ArbitraryArgs,
		Long: `Measure a runtime through its CRI socket, whichever it is: pods up and down, commands, lists and
statistics at several concurrencies, memory and CPU time, and the same containers with the OCI runtime
alone, in turn. What a runtime adds is the ratio of the two in one run; compare no times of different
machines or days.

--json FILE keeps everything; -o json prints it. --html FILE is a page with plots. --compare FILE...
measures nothing: it puts kept results beside each other.

It makes pods in the namespace berthctl-bench and removes them, also when it is interrupted. It must
run as root on the node, in the daemon's mount namespace. The image needs a program that runs until it
is killed (--command) and one that ends at once (--exec). CPU time is that of the daemon, of the
processes that start containers, and of what they ran; memory is PSS of the same without the
containers' own, and for each pod without the pages of files that the daemon has mapped.`,
		Example: `  berthctl bench --image registry.example/busybox:1 --html report.html
  berthctl bench --endpoint unix:///run/containerd/containerd.sock --image registry.example/busybox:1 --json containerd.json
  berthctl bench --compare berth.json containerd.json --html both.html`,
		RunE: func(c *cobra.Command, args []string) error { return o.run(a, c, args) },
	}
	o.flags(cmd)
	return cmd
}

func (o *options) flags(cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringVar(&o.endpoint, "endpoint", "", "CRI `endpoint`, as unix:///path (default that of --address)")
	f.StringVar(&o.plan.Image, "image", "", "image of the pods; pulled if it is not there, and then removed at the end")
	f.StringVar(&o.command, "command", "sleep 1000000", "program of the containers, with arguments between blanks")
	f.StringVar(&o.exec, "exec", "true", "program that is run in the containers, likewise")
	f.IntVar(&o.plan.Pods, "pods", 40, "pods at each concurrency; they live at the same time")
	f.IntSliceVar(&o.plan.Concurrency, "concurrency", []int{1, 8, 32}, "pods, or calls, under way at the same time")
	f.IntVar(&o.plan.Execs, "execs", 3, "commands in each pod")
	f.IntVar(&o.plan.Lists, "lists", 50, "times each list and state is asked for at each concurrency")
	f.DurationVar(&o.plan.Idle, "idle", time.Minute, "how long to watch the CPU time of pods that do nothing")
	f.StringVar(&o.plan.Handler, "runtime-handler", "", "runtime handler of the pods")
	f.StringVar(&o.plan.CgroupParent, "cgroup-parent", "", "control group of the pods")
	f.StringVar(&o.plan.Pull, "pull", "", "`image` whose download and unpacking are measured; it must not be there, and is removed")
	f.IntVar(&o.plan.Pulls, "pulls", 3, "times it is pulled")
	f.StringVar(&o.local.OCI, "oci-runtime", "runc", "OCI runtime of the floor; '' leaves the floor out")
	f.StringVar(&o.local.StateDir, "state-dir", "/var/lib", "`directory` on the disk of the runtime's state")
	f.IntVar(&o.local.PID, "pid", 0, "the daemon's `process` (default the one that listens on the endpoint)")
	f.StringVar(&o.local.Restart, "restart", "", "shell `command` that restarts the daemon: measure its start with the pods")
	f.DurationVar(&o.local.Soak, "soak", 0, "in place of all else: waves of pods for so long, and how the daemon changes")
	f.StringVar(&o.file, "json", "", "`file` for the result")
	f.StringVar(&o.html, "html", "", "`file` for a page with plots")
	f.BoolVar(&o.compare, "compare", false, "measure nothing: show the results in the files given")
}

func (o *options) run(a *cli.App, c *cobra.Command, args []string) error {
	if !o.compare && len(args) > 0 {
		return fmt.Errorf("unknown argument %q; results to show are named with --compare", args[0])
	}
	results, err := o.results(a, c, args)
	if err != nil {
		return err
	}
	if o.file != "" {
		b, err := json.MarshalIndent(results[0], "", "  ")
		if err == nil {
			err = os.WriteFile(o.file, append(b, '\n'), 0o644)
		}
		if err != nil {
			return cli.Failed(fmt.Errorf("write the result: %w", err), "")
		}
	}
	if o.html != "" {
		page, err := report(results)
		if err == nil {
			err = os.WriteFile(o.html, page, 0o644)
		}
		if err != nil {
			return cli.Failed(fmt.Errorf("write the page: %w", err), "")
		}
	}
	if a.Structured() {
		if o.compare {
			return a.ShowDocument(c.OutOrStdout(), results)
		}
		return a.ShowDocument(c.OutOrStdout(), results[0])
	}
	_, err = fmt.Fprint(c.OutOrStdout(), text(results))
	return err
}

// results measures one, or reads those to compare.
func (o *options) results(a *cli.App, c *cobra.Command, files []string) ([]Result, error) {
	if o.compare {
		if len(files) == 0 || o.file != "" {
			return nil, errors.New("--compare needs files that --json wrote, and writes none itself")
		}
		return load(files)
	}
	o.plan.Command, o.plan.Exec = strings.Fields(o.command), strings.Fields(o.exec)
	if err := o.plan.check(o.local); err != nil {
		return nil, err
	}
	if o.plan.Pull == "" {
		o.plan.Pulls = 0
	}
	target := *a
	target.Address = cli.SocketPath(a.Address)
	if o.endpoint != "" {
		path, ok := strings.CutPrefix(o.endpoint, "unix://")
		if !ok || !strings.HasPrefix(path, "/") {
			return nil, fmt.Errorf("endpoint %q: it has the form unix:///path", o.endpoint)
		}
		target.Address = path
	}
	if os.Geteuid() != 0 {
		return nil, failed("the processes of a runtime can be measured by root only: run it as root")
	}
	res := Result{Schema: Schema, Started: time.Now().UTC().Truncate(time.Second), Command: os.Args, Plan: o.plan}
	err := target.CRI(func(cl cli.Clients) error {
		b := &bench{cl: cl, plan: o.plan, local: o.local, progress: c.ErrOrStderr()}
		if o.endpoint != "" { // the admin socket may be that of another daemon
			return b.measure(c.Context(), target.Address, &res)
		}
		return target.AdminAPI(func(ad admin.AdminClient) error {
			b.admin = ad
			return b.measure(c.Context(), target.Address, &res)
		})
	})
	return []Result{res}, err
}

// load reads results that were kept.
func load(files []string) (all []Result, err error) {
	for _, name := range files {
		raw, err := os.ReadFile(name)
		if err != nil {
			return nil, cli.Failed(err, "")
		}
		var r Result
		if err := json.Unmarshal(raw, &r); err != nil {
			return nil, cli.Failed(fmt.Errorf("%s: %w", name, err), "Give files that `berthctl bench --json` wrote.")
		}
		if r.Schema != Schema {
			return nil, cli.Failed(fmt.Errorf("%s: its schema is %d, and this program knows %d", name, r.Schema, Schema), "Measure again, or use the berthctl that wrote it.")
		}
		all = append(all, r)
	}
	return all, nil
}

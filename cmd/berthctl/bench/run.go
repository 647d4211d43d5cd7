package bench

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-dev/berth/cmd/berthctl/cli"
	"github.com/berth-dev/berth/cri/admin"
)

// procRoot is where the kernel tells of processes.
const procRoot = "/proc"

// cleanWait bounds how long an ended run takes to remove what it made.
const cleanWait = 5 * time.Minute

// bench is one run.
type bench struct {
	cl       cli.Clients
	admin    admin.AdminClient // nil: not Berth, or another one
	plan     Plan
	local    Local
	run      string // marks what it makes
	dir      string // of its own: logs, bundles
	progress io.Writer
	image    string // ID of the pods' image
	daemon   int    // PID
	before   map[int]bool
	last     atomic.Int64
}

func failed(format string, args ...any) error { return cli.Failed(fmt.Errorf(format, args...), "") }

func (b *bench) say(format string, args ...any) {
	_, _ = fmt.Fprintf(b.progress, "bench: "+format+"\n", args...)
}

// measure carries out the plan. Whatever it made is gone when it returns, also
// when ctx ends before it is through.
func (b *bench) measure(ctx context.Context, socket string, res *Result) (err error) {
	v, err := b.cl.Version(ctx, &runtimeapi.VersionRequest{})
	if err != nil {
		return err
	}
	if b.daemon = b.local.PID; b.daemon == 0 {
		if b.daemon, err = peer(ctx, socket); err != nil {
			return err
		}
	}
	res.Machine = machine(procRoot)
	res.Runtime = Runtime{Endpoint: "unix://" + socket, Name: v.GetRuntimeName(), Version: v.GetRuntimeVersion(), PID: b.daemon}
	if b.dir, err = os.MkdirTemp("", "berthctl-bench-"); err != nil {
		return cli.Failed(fmt.Errorf("make a directory for logs: %w", err), "")
	}
	b.run = filepath.Base(b.dir)
	fetched, err := b.fetch(ctx)
	if err != nil {
		return errors.Join(err, os.RemoveAll(b.dir))
	}
	defer func() {
		if ctx.Err() != nil {
			err = &cli.ExitError{Code: cli.CodeInterrupted, Err: errors.New("interrupted"), Next: "What it made is removed."}
		}
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanWait)
		defer cancel()
		cerr := b.removeAll(ctx)
		if fetched {
			cerr = errors.Join(cerr, b.removeImage(ctx, b.plan.Image))
		}
		if cerr = errors.Join(cerr, os.RemoveAll(b.dir)); cerr != nil {
			err = cli.Failed(errors.Join(err, fmt.Errorf("remove what was made: %w", cerr)),
				"Remove pods with the label "+label+"="+b.run+" and the directory "+b.dir+" by hand.")
		}
	}()
	return b.phases(ctx, socket, res)
}

func (b *bench) phases(ctx context.Context, socket string, res *Result) error {
	if b.local.Soak > 0 {
		var err error
		res.Soak, err = b.soak(ctx)
		return err
	}
	if err := b.ground(ctx, res); err != nil {
		return err
	}
	all, err := processes(procRoot)
	if err != nil {
		return cli.Failed(err, "")
	}
	b.before = map[int]bool{}
	for pid := range all {
		b.before[pid] = true
	}
	for i, workers := range b.plan.Concurrency {
		held := i == 0 // what pods hold does not depend on how they came
		r, h, err := b.round(ctx, workers, held, socket)
		if err != nil {
			return err
		}
		res.Rounds = append(res.Rounds, r)
		if held {
			res.Held = h
		}
	}
	if b.plan.Pull != "" {
		res.Pull, err = b.pulls(ctx)
	}
	return err
}

// ground measures what the machine does without any runtime.
func (b *bench) ground(ctx context.Context, res *Result) (err error) {
	b.say("%s %s, process %d; fork, exec and disk", res.Runtime.Name, res.Runtime.Version, b.daemon)
	n := max(20, b.plan.Lists)
	if res.Fork, err = forkExec(ctx, n); err != nil {
		return cli.Failed(fmt.Errorf("run true: %w", err), "")
	}
	if res.Disk, err = fsync(b.local.StateDir, n); err != nil {
		return cli.Failed(err, "")
	}
	if b.local.OCI == "" {
		return nil
	}
	if res.Runtime.OCIPath, err = exec.LookPath(b.local.OCI); err != nil {
		return cli.Failed(err, "")
	}
	out, err := exec.CommandContext(ctx, res.Runtime.OCIPath, "--version").Output()
	if err != nil {
		return cli.Failed(fmt.Errorf("%s --version: %w", res.Runtime.OCIPath, err), "")
	}
	res.Runtime.OCI, _, _ = strings.Cut(string(out), "\n")
	return nil
}

// round runs the plan's pods at one concurrency, after the floor's containers.
// With held it also finds what pods cost while they run.
func (b *bench) round(ctx context.Context, workers int, held bool, socket string) (r Round, h *Held, err error) {
	r = Round{Concurrency: workers, Pods: b.plan.Pods}
	if b.local.OCI != "" {
		b.say("%d containers of the OCI runtime alone, %d at a time", b.plan.Pods, workers)
		if r.Floor, r.FloorRates, err = b.floor(ctx, workers); err != nil {
			return r, nil, cli.Failed(err, "See what the OCI runtime says, or leave the floor out with --oci-runtime ''.")
		}
	}
	b.say("%d pods, %d at a time", b.plan.Pods, workers)
	w := wave{b: b, workers: workers, pods: make([]livePod, b.plan.Pods)}
	if err := w.up(ctx, &r.Rates); err != nil {
		return r, nil, err
	}
	if err := b.calls(ctx, &w.rec, workers, w.pods); err != nil {
		return r, nil, err
	}
	if held {
		if h, err = w.held(ctx, socket); err != nil {
			return r, nil, err
		}
	}
	if err := w.down(ctx, &r.Rates); err != nil {
		return r, nil, err
	}
	r.Calls = w.rec.stats()
	return r, h, nil
}

// floor measures the OCI runtime alone, in the namespaces of a pod that is
// made for it and goes with it.
func (b *bench) floor(ctx context.Context, workers int) (_ map[string]Stats, _ *Rates, err error) {
	p, err := b.up(ctx, &recorder{})
	if err != nil {
		return nil, nil, err
	}
	info, err := b.info(ctx, p.container)
	if err != nil {
		return nil, nil, err
	}
	root, err := rootOf(procRoot, info.PID)
	if err != nil {
		return nil, nil, err
	}
	f := &floor{oci: b.local.OCI, exec: b.plan.Exec, dir: filepath.Join(b.dir, "floor")}
	if f.bundle, err = newBundle(info, root); err != nil {
		return nil, nil, err
	}
	if err := os.MkdirAll(f.dir, 0o700); err != nil {
		return nil, nil, err
	}
	defer func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanWait)
		defer cancel()
		err = errors.Join(err, f.close(ctx), b.down(ctx, &recorder{}, p), os.RemoveAll(f.dir))
	}()
	return f.round(ctx, b.plan.Pods, workers, b.plan.Execs)
}

func (b *bench) info(ctx context.Context, container string) (containerInfo, error) {
	r, err := b.cl.ContainerStatus(ctx, &runtimeapi.ContainerStatusRequest{ContainerId: container, Verbose: true})
	if err != nil {
		return containerInfo{}, fmt.Errorf("look at container %s: %w", container, err)
	}
	return parseInfo(r)
}

// Command bench runs `berthctl bench` against throw-away nodes, each in
// namespaces of its own: Berth, and containerd and CRI-O where the directories
// of their programs are given. It writes docs/performance.md out of the
// results, and keeps these and a page with plots.
//
//	go run ./test/bench -bin bin -containerd DIR -out bin/bench -doc docs/performance.md
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/berth-dev/berth/test/harness"
	"github.com/berth-dev/berth/test/images"
	"github.com/berth-dev/berth/test/peers"
)

// cgroupParent is the control group of the pods, as a kubelet would name one.
const cgroupParent = "/berthctl-bench"

const image = images.HostPlain + "/busybox:1"

// options are the flags.
type options struct {
	bin, containerd, crio string
	out, doc              string
	args                  string // more for berthctl bench
}

func main() {
	var o options
	flag.StringVar(&o.bin, "bin", "bin", "directory of Berth's programs, runc and cni/")
	flag.StringVar(&o.containerd, "containerd", "", "directory of containerd and containerd-shim-runc-v2; empty: leave it out")
	flag.StringVar(&o.crio, "crio", "", "directory of crio, conmon and pinns; empty: leave it out")
	flag.StringVar(&o.out, "out", "bin/bench", "directory for results and the page with plots")
	flag.StringVar(&o.doc, "doc", "", "file for the report in words; empty: none")
	flag.StringVar(&o.args, "args", "", "more arguments of berthctl bench, between blanks")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := o.run(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func (o options) run(ctx context.Context) error {
	programs, err := harness.Find(o.bin)
	if err != nil {
		return err
	}
	if missing := programs.Missing(true); len(missing) > 0 {
		return fmt.Errorf("this machine lacks:\n  - %s", strings.Join(missing, "\n  - "))
	}
	if o.out, err = filepath.Abs(o.out); err != nil { // berthctl runs elsewhere
		return err
	}
	if err := os.MkdirAll(o.out, 0o755); err != nil {
		return err
	}
	parts, err := images.LoadParts(ctx)
	if err != nil {
		return err
	}
	catalog, err := images.Catalog(parts)
	if err != nil {
		return err
	}
	served := map[string]any{}
	for _, name := range []string{"busybox:1", "probe:1", "pause:1"} {
		served[name] = catalog[name]
	}
	var results []string
	for _, p := range []struct {
		name, dir string
		start     starter
	}{{"berth", programs.Bin, peers.Berth}, {"containerd", o.containerd, peers.Containerd}, {"cri-o", o.crio, peers.CRIO}} {
		if p.dir == "" {
			fmt.Printf("%s is left out: the directory of its programs is not given\n", p.name)
			continue
		}
		dir, err := filepath.Abs(p.dir)
		if err != nil {
			return err
		}
		file := filepath.Join(o.out, p.name+".json")
		if err := o.one(ctx, peers.Config{Programs: programs, Dir: dir}, served, p.start, file); err != nil {
			return fmt.Errorf("%s: %w", p.name, err)
		}
		results = append(results, file)
	}
	return o.report(ctx, programs, results)
}

type starter func(context.Context, peers.Config) (*peers.Peer, error)

// one measures one runtime into a file.
func (o options) one(ctx context.Context, c peers.Config, served map[string]any, start starter, file string) (err error) {
	if c.Place, err = peers.NewPlace(ctx, ""); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, c.Place.Close()) }()
	if c.Space, err = harness.NewSpace(); err != nil {
		return err
	}
	defer c.Space.Close()
	reg, err := images.Serve(served, harness.ListenIn(c.Space.NetNS()))
	if err != nil {
		return err
	}
	defer reg.Close()
	c.Registry = peers.Registry{Name: images.HostPlain, Addr: reg.Addr(images.HostPlain), WriteHosts: reg.WriteHosts}
	defer func() { err = errors.Join(err, removeGroups()) }() // the daemon has ended then, and makes no more
	p, err := start(ctx, c)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, p.Close()) }()
	again, err := p.Restarter(ctx)
	if err != nil {
		return err
	}
	args := []string{"bench", "--endpoint", "unix://" + p.Socket, "--image", image, "--oci-runtime", c.Programs.Runc, "--cgroup-parent", cgroupParent, "--state-dir", p.StateDir,
		"--restart", again, "--pull", images.HostPlain + "/probe:1", "--json", file}
	cmd := c.Space.Command(ctx, filepath.Join(c.Programs.Bin, "berthctl"), append(args, strings.Fields(o.args)...)...)
	cmd.Env = append(os.Environ(), "TMPDIR="+c.Place.Run)                    // where the OCI runtime alone has its files
	cmd.Stderr = os.Stderr                                                   // the comparison at the end shows all
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) } // it removes what it made
	return cmd.Run()
}

// removeGroups removes the control group of the pods, and below it those that a
// runtime has left empty because it was interrupted.
func removeGroups() (err error) {
	for _, below := range []string{"/*", ""} {
		for _, root := range []string{"/sys/fs/cgroup", "/sys/fs/cgroup/*"} { // cgroup v2 and v1
			files, _ := filepath.Glob(root + cgroupParent + below + "/cgroup.procs")
			for _, f := range files {
				err = errors.Join(err, os.Remove(filepath.Dir(f)))
			}
		}
	}
	return err
}

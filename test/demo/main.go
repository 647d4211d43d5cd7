// Command demo shows what Berth does: it starts a throw-away node in
// namespaces of its own, runs two pods over the CRI, kills the daemon under
// them, and leaves nothing behind.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-dev/berth/test/harness"
	"github.com/berth-dev/berth/test/images"
)

func main() {
	bin := flag.String("bin", "bin", "directory of berthd, berth-shim, runc and cni/")
	flag.Parse()
	ctx, cancel := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, *bin)
	if ctx.Err() != nil {
		err = errors.New("interrupted; everything was cleaned up")
	}
	cancel()
	if err != nil {
		fmt.Fprintln(os.Stderr, "\ndemo:", err)
		os.Exit(1)
	}
}

// demo is one run; its methods are the steps.
type demo struct {
	out   *printer
	space *harness.Space
	node  *harness.Node
	reg   *images.Registry
	rt    runtimeapi.RuntimeServiceClient
	im    runtimeapi.ImageServiceClient
	logs  string
	web   thing
	shell thing
}

// thing is a pod with its container.
type thing struct {
	pod, container, ip string
	config             *runtimeapi.PodSandboxConfig
}

func run(ctx context.Context, bin string) (err error) {
	programs, err := harness.Find(bin)
	if err != nil {
		return err
	}
	if missing := programs.Missing(true); len(missing) > 0 {
		return fmt.Errorf("this machine lacks:\n  - %s", strings.Join(missing, "\n  - "))
	}
	d := &demo{out: newPrinter()}
	defer func() {
		if cerr := d.close(); err == nil {
			err = cerr
		}
	}()
	d.out.title("Berth: two pods on a throw-away node")
	for _, s := range []struct {
		name string
		do   func(context.Context) ([]string, error)
	}{
		{"build an image and serve it from a local registry", d.serve},
		{"start berthd in a network of its own", func(ctx context.Context) ([]string, error) { return d.start(ctx, programs) }},
		{"pull the image", d.pull},
		{"run a pod with a web server", d.runWeb},
		{"run a pod with a shell command", d.runShell},
		{"ask the web server at the pod's address", d.ask},
		{"run a command in the web server's container", d.exec},
		{"read its log", d.log},
		{"weigh what Berth itself needs for a container", d.weigh},
		{"kill -9 the daemon: the web server answers all the same", d.kill},
		{"start it again: it knows everything", d.restart},
		{"stop and remove the pods", d.remove},
		{"look for anything left behind", d.leftovers},
	} {
		if err := d.out.step(ctx, s.name, s.do); err != nil {
			return fmt.Errorf("%s: %w", s.name, err)
		}
	}
	d.out.end()
	return nil
}

// close takes everything away, also half way through a failed run.
func (d *demo) close() error {
	if d.reg != nil {
		d.reg.Close()
	}
	if d.logs != "" {
		defer os.RemoveAll(d.logs)
	}
	if d.space != nil {
		defer d.space.Close()
	}
	if d.node == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	if d.rt != nil && (d.web.pod != "" || d.shell.pod != "") {
		if d.node.PID() == 0 {
			d.node.Start(ctx)
		}
		d.remove(ctx)
	}
	return d.node.Close()
}

package crash

import (
	"context"
	"fmt"
	"os"
	"strings"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-dev/berth/test/harness"
)

// shimPoints are the fault points of the shim: around each command of the OCI
// runtime and the start that needs none, and around the record of the end.
func shimPoints() []string {
	points := []string{"exit/before", "exit/after"}
	for _, command := range []string{"create", "start", "exec", "gate", "update", "delete"} {
		points = append(points, command+"/before", command+"/running", command+"/after")
	}
	return points
}

// TestIntegrationShimFaults lets the shim die at each of its fault points: the
// call that was under way fails or is done, the container is told as it is, the
// client can remove it and make it anew, and nothing is left.
func TestIntegrationShimFaults(t *testing.T) {
	programs, err := harness.Find("")
	must(t, err)
	// The default runtime is a script in front of runc, which is called for a start.
	n := openWith(t, fmt.Sprintf("[runtime]\ndefault = \"runc\"\n[runtime.handlers.runc]\n[runtime.handlers.own]\npath = %q\n", programs.Runc))
	n.pull()
	for _, point := range some(t, 3, shimPoints()) {
		t.Run(point, func(t *testing.T) {
			n.t = t
			file := n.h.Dir("run", "shim.fault")
			must(t, os.WriteFile(file, []byte(point), 0o600))
			n.shimDies(point)
			if _, err := os.Stat(file); err == nil {
				t.Error("no shim came to this point")
				must(t, os.Remove(file))
			}
		})
	}
	n.t = t
}

// shimDies uses a container whose shim dies at the point, and then another.
func (n *node) shimDies(point string) {
	command, where, _ := strings.Cut(point, "/")
	p := n.newPod(runtimeapi.NamespaceMode_CONTAINER)
	if command == "gate" {
		p.handler, command = "own", "start"
	}
	p.run()
	if command == "create" {
		n.fails(point, func(ctx context.Context) error {
			_, err := n.rt.CreateContainer(ctx, &runtimeapi.CreateContainerRequest{PodSandboxId: p.id, SandboxConfig: p.config, Config: p.containerConfig("a", counting)})
			return err
		})
	} else {
		p.doomed(command, where)
	}
	a := p.create("b", counting)
	a.start()
	n.exec(a)
	n.eventually("the container writes", func() bool { return len(a.log()) > 0 })
	a.stop(20)
	a.ends(7, "Error")
	p.stop()
	p.remove()
	n.clean(p.cgroup)
}

// doomed runs a container until its shim has died at the command, and removes it.
func (p *pod) doomed(command, where string) {
	n := p.n
	c := p.create("a", counting)
	start := func(ctx context.Context) error {
		_, err := n.rt.StartContainer(ctx, &runtimeapi.StartContainerRequest{ContainerId: c.id})
		return err
	}
	if command == "start" {
		n.fails(command, start)
	} else {
		n.must("start", start)
		n.eventually("the container writes", func() bool { return len(c.log()) > 0 })
	}
	switch command {
	case "exec":
		n.fails(command, func(ctx context.Context) error {
			_, err := n.rt.ExecSync(ctx, &runtimeapi.ExecSyncRequest{ContainerId: c.id, Cmd: []string{"true"}, Timeout: 30})
			return err
		})
	case "update":
		n.fails(command, func(ctx context.Context) error {
			_, err := n.rt.UpdateContainerResources(ctx, &runtimeapi.UpdateContainerResourcesRequest{
				ContainerId: c.id, Linux: &runtimeapi.LinuxContainerResources{MemoryLimitInBytes: 48 << 20}})
			return err
		})
	case "exit", "delete":
		c.stop(20)
	}
	switch {
	case command == "start":
		c.ends(128, "StartError")
	case command == "delete", command == "exit" && where == "after":
		c.ends(7, "Error") // the end was recorded
	default:
		c.ends(255, "ContainerStatusUnknown")
	}
	c.counted(last(c.log())...)
	c.remove()
}

// fails checks that a call comes back, with an error.
func (n *node) fails(what string, f func(ctx context.Context) error) {
	n.t.Helper()
	ctx, cancel := context.WithTimeout(n.t.Context(), patience)
	defer cancel()
	if err := f(ctx); err == nil || ctx.Err() != nil {
		n.t.Errorf("%s without its shim: %v", what, err)
	}
}

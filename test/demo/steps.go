package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-dev/berth/test/harness"
	"github.com/berth-dev/berth/test/images"
)

const image = images.HostPlain + "/probe:1"

func (d *demo) serve(ctx context.Context) ([]string, error) {
	parts, err := images.LoadParts(ctx)
	if err != nil {
		return nil, err
	}
	all, err := images.Catalog(parts)
	if err != nil {
		return nil, err
	}
	// The registry must listen where the node will look, so the node's
	// namespaces come first.
	space, err := harness.NewSpace()
	if err != nil {
		return nil, err
	}
	d.reg, err = images.Serve(map[string]any{"probe:1": all["probe:1"]}, harness.ListenIn(space.NetNS()))
	if err != nil {
		space.Close()
		return nil, err
	}
	d.space = space
	return []string{"image " + image + " (busybox and a small web server)"}, nil
}

func (d *demo) start(ctx context.Context, p harness.Programs) (_ []string, err error) {
	if d.logs, err = os.MkdirTemp("", "berth-demo-logs-"); err != nil {
		return nil, err
	}
	if d.node, err = harness.New(harness.Config{Programs: p, Space: d.space}); err != nil {
		return nil, err
	}
	if err := d.reg.WriteHosts(d.node.HostsDir()); err != nil {
		return nil, err
	}
	if err := d.node.Start(ctx); err != nil {
		return nil, err
	}
	conn, err := d.node.Conn()
	if err != nil {
		return nil, err
	}
	d.rt, d.im = runtimeapi.NewRuntimeServiceClient(conn), runtimeapi.NewImageServiceClient(conn)
	v, err := d.rt.Version(ctx, &runtimeapi.VersionRequest{})
	if err != nil {
		return nil, err
	}
	s, err := d.rt.Status(ctx, &runtimeapi.StatusRequest{})
	if err != nil {
		return nil, err
	}
	out := []string{fmt.Sprintf("%s %s, CRI %s, pid %d", v.GetRuntimeName(), v.GetRuntimeVersion(), v.GetRuntimeApiVersion(), d.node.PID())}
	for _, c := range s.GetStatus().GetConditions() {
		out = append(out, fmt.Sprintf("%s: %v", c.GetType(), c.GetStatus()))
	}
	return out, nil
}

func (d *demo) pull(ctx context.Context) ([]string, error) {
	spec := &runtimeapi.ImageSpec{Image: image}
	if _, err := d.im.PullImage(ctx, &runtimeapi.PullImageRequest{Image: spec}); err != nil {
		return nil, err
	}
	r, err := d.im.ImageStatus(ctx, &runtimeapi.ImageStatusRequest{Image: spec})
	if err != nil {
		return nil, err
	}
	return []string{fmt.Sprintf("%s, %.1f MB", short(r.GetImage().GetId()), float64(r.GetImage().GetSize())/1e6)}, nil
}

// launch runs a pod with one container.
func (d *demo) launch(ctx context.Context, t *thing, name string, command, args []string) error {
	t.config = &runtimeapi.PodSandboxConfig{
		Metadata:     &runtimeapi.PodSandboxMetadata{Name: name, Namespace: "demo", Uid: "demo-" + name},
		Hostname:     name,
		LogDirectory: d.logs,
		Linux: &runtimeapi.LinuxPodSandboxConfig{SecurityContext: &runtimeapi.LinuxSandboxSecurityContext{
			NamespaceOptions: &runtimeapi.NamespaceOption{Pid: runtimeapi.NamespaceMode_CONTAINER},
		}},
	}
	p, err := d.rt.RunPodSandbox(ctx, &runtimeapi.RunPodSandboxRequest{Config: t.config})
	if err != nil {
		return err
	}
	t.pod = p.GetPodSandboxId()
	c, err := d.rt.CreateContainer(ctx, &runtimeapi.CreateContainerRequest{PodSandboxId: t.pod, SandboxConfig: t.config, Config: &runtimeapi.ContainerConfig{
		Metadata: &runtimeapi.ContainerMetadata{Name: name}, Image: &runtimeapi.ImageSpec{Image: image},
		Command: command, Args: args, LogPath: name + ".log",
	}})
	if err != nil {
		return err
	}
	t.container = c.GetContainerId()
	if _, err := d.rt.StartContainer(ctx, &runtimeapi.StartContainerRequest{ContainerId: t.container}); err != nil {
		return err
	}
	s, err := d.rt.PodSandboxStatus(ctx, &runtimeapi.PodSandboxStatusRequest{PodSandboxId: t.pod})
	t.ip = s.GetStatus().GetNetwork().GetIp()
	return err
}

func (d *demo) runWeb(ctx context.Context) ([]string, error) {
	if err := d.launch(ctx, &d.web, "web", nil, nil); err != nil {
		return nil, err
	}
	return []string{fmt.Sprintf("pod %s at %s, container %s", short(d.web.pod), d.web.ip, short(d.web.container))}, nil
}

func (d *demo) runShell(ctx context.Context) ([]string, error) {
	script := []string{"/bin/sh", "-c", "echo ahoy from $(hostname); exit 3"}
	if err := d.launch(ctx, &d.shell, "shell", script, nil); err != nil {
		return nil, err
	}
	s, err := d.ended(ctx, d.shell.container)
	if err != nil {
		return nil, err
	}
	if s.GetExitCode() != 3 {
		return nil, fmt.Errorf("exit code %d, want 3", s.GetExitCode())
	}
	lines, err := d.logLines("shell.log")
	return append([]string{fmt.Sprintf("state %s, exit code %d (as asked), reason %s", short(s.GetState().String()), s.GetExitCode(), s.GetReason())}, lines...), err
}

func (d *demo) ended(ctx context.Context, id string) (*runtimeapi.ContainerStatus, error) {
	for range 500 {
		r, err := d.rt.ContainerStatus(ctx, &runtimeapi.ContainerStatusRequest{ContainerId: id})
		if err != nil {
			return nil, err
		}
		if r.GetStatus().GetState() == runtimeapi.ContainerState_CONTAINER_EXITED {
			return r.GetStatus(), nil
		}
		time.Sleep(20 * time.Millisecond)
	}
	return nil, errors.New("the container does not end")
}

// get asks the web server from inside the node's network.
func (d *demo) get(ctx context.Context) (string, error) {
	addr := net.JoinHostPort(d.web.ip, "80")
	tr := &http.Transport{DisableKeepAlives: true, DialContext: func(context.Context, string, string) (net.Conn, error) {
		return harness.DialIn(d.space.NetNS(), addr)
	}}
	var err error
	for range 100 {
		var q *http.Request
		if q, err = http.NewRequestWithContext(ctx, http.MethodGet, "http://"+addr+"/", nil); err != nil {
			return "", err
		}
		var r *http.Response
		if r, err = (&http.Client{Transport: tr}).Do(q); err == nil {
			defer r.Body.Close()
			b, err := io.ReadAll(r.Body)
			return fmt.Sprintf("GET http://%s/ -> %s", addr, strings.TrimSpace(string(b))), err
		}
		time.Sleep(20 * time.Millisecond)
	}
	return "", err
}

func (d *demo) ask(ctx context.Context) ([]string, error) {
	s, err := d.get(ctx)
	return []string{s}, err
}

func (d *demo) exec(ctx context.Context) ([]string, error) {
	r, err := d.rt.ExecSync(ctx, &runtimeapi.ExecSyncRequest{ContainerId: d.web.container, Cmd: []string{"/bin/sh", "-c", "ps | head -n 3"}, Timeout: 10})
	if err != nil {
		return nil, err
	}
	return strings.Split(strings.TrimSpace(string(r.GetStdout())), "\n"), nil
}

func (d *demo) log(context.Context) ([]string, error) { return d.logLines("web.log") }

func (d *demo) logLines(name string) ([]string, error) {
	b, err := os.ReadFile(filepath.Join(d.logs, name))
	return strings.Split(strings.TrimSpace(string(b)), "\n"), err
}

func (d *demo) kill(ctx context.Context) ([]string, error) {
	pid := d.node.PID()
	if err := d.node.Kill(); err != nil {
		return nil, err
	}
	s, err := d.get(ctx)
	return []string{fmt.Sprintf("pid %d is dead", pid), s}, err
}

func (d *demo) restart(ctx context.Context) ([]string, error) {
	if err := d.node.Start(ctx); err != nil {
		return nil, err
	}
	r, err := d.rt.ListContainers(ctx, &runtimeapi.ListContainersRequest{})
	if err != nil {
		return nil, err
	}
	var out []string
	want := map[string]runtimeapi.ContainerState{
		d.web.container:   runtimeapi.ContainerState_CONTAINER_RUNNING,
		d.shell.container: runtimeapi.ContainerState_CONTAINER_EXITED,
	}
	if len(r.GetContainers()) != len(want) {
		return nil, fmt.Errorf("%d containers are listed, want %d", len(r.GetContainers()), len(want))
	}
	for _, c := range r.GetContainers() {
		if c.GetState() != want[c.GetId()] {
			return nil, fmt.Errorf("container %s is %s, want %s", short(c.GetId()), c.GetState(), want[c.GetId()])
		}
		out = append(out, fmt.Sprintf("%-6s %s", c.GetMetadata().GetName(), c.GetState()))
	}
	return out, nil
}

func (d *demo) remove(ctx context.Context) ([]string, error) {
	var errs []error
	for _, t := range []*thing{&d.web, &d.shell} {
		if t.pod == "" {
			continue
		}
		_, err := d.rt.StopPodSandbox(ctx, &runtimeapi.StopPodSandboxRequest{PodSandboxId: t.pod})
		if err == nil {
			_, err = d.rt.RemovePodSandbox(ctx, &runtimeapi.RemovePodSandboxRequest{PodSandboxId: t.pod})
		}
		if err == nil {
			t.pod = ""
		}
		errs = append(errs, err)
	}
	return nil, errors.Join(errs...)
}

func (d *demo) leftovers(ctx context.Context) ([]string, error) {
	left := d.node.WaitLeftovers(ctx)
	if len(left) == 0 {
		return []string{"no mount, namespace, cgroup, process, interface, rule, lease or file"}, nil
	}
	return nil, fmt.Errorf("found:\n  %s", strings.Join(left, "\n  "))
}

// short cuts an ID to what a person compares.
func short(s string) string {
	s = strings.TrimPrefix(strings.TrimPrefix(s, "sha256:"), "CONTAINER_")
	return s[:min(12, len(s))]
}

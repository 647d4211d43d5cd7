package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-dev/berth/test/harness"
	"github.com/berth-dev/berth/test/images"
)

func (b *bench) url(object string) string {
	return "http://" + b.addr + "/v2/bench/image/blobs/" + object
}

func (b *bench) ref() string { return b.addr + "/bench/image:v1" }

// floor is `curl | gzip -dc | tar x` for each layer, two at a time, without
// any digest, whiteout or sync.
func (b *bench) floor(ctx context.Context) (figure, error) {
	dir, err := os.MkdirTemp(b.dir, "floor-")
	if err != nil {
		return figure{}, err
	}
	defer os.RemoveAll(dir)
	var script strings.Builder
	for i, l := range b.img.Layers {
		to := filepath.Join(dir, fmt.Sprint(i))
		if err := os.Mkdir(to, 0o755); err != nil {
			return figure{}, err
		}
		fmt.Fprintf(&script, "curl -sf %s | gzip -dc | tar x -C %s\n", b.url(l.Digest.String()), to)
	}
	cmd := b.space.Command(ctx, "xargs", "-P2", "-d", "\\n", "-I{}", "bash", "-c", "set -o pipefail; {}")
	cmd.Stdin = strings.NewReader(script.String())
	cmd.Stderr = os.Stderr
	start := time.Now()
	if err := cmd.Run(); err != nil {
		return figure{}, err
	}
	f := figure{Who: "floor", Wall: time.Since(start), CPU: cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()}
	start = time.Now()
	if err := exec.CommandContext(ctx, "sync", "-f", dir).Run(); err != nil {
		return figure{}, err
	}
	f.Note = fmt.Sprintf("not synced; a sync then takes %.1f s", time.Since(start).Seconds())
	return f, nil
}

func (b *bench) node(ctx context.Context) (*harness.Node, error) {
	var toml []byte
	if b.toml != "" {
		var err error
		if toml, err = os.ReadFile(b.toml); err != nil {
			return nil, err
		}
	}
	n, err := harness.New(harness.Config{Programs: b.programs, Space: b.space, TOML: string(toml)})
	if err != nil {
		return nil, err
	}
	if err := errors.Join(b.writeHosts(n.HostsDir()), n.Start(ctx)); err != nil {
		n.Close()
		return nil, err
	}
	return n, nil
}

// berth pulls with a fresh berthd over the CRI.
func (b *bench) berth(ctx context.Context) (figure, error) {
	n, err := b.node(ctx)
	if err != nil {
		return figure{}, err
	}
	defer n.Close()
	conn, err := n.Conn()
	if err != nil {
		return figure{}, err
	}
	images := runtimeapi.NewImageServiceClient(conn)
	return watch("berth", n.PID(), func() error { return b.pull(ctx, images) })
}

// creates is berth with containers made in a loop meanwhile.
func (b *bench) creates(ctx context.Context) (figure, error) {
	n, err := b.node(ctx)
	if err != nil {
		return figure{}, err
	}
	defer n.Close()
	conn, err := n.Conn()
	if err != nil {
		return figure{}, err
	}
	m, err := newMaker(ctx, n, runtimeapi.NewRuntimeServiceClient(conn), runtimeapi.NewImageServiceClient(conn))
	if err != nil {
		return figure{}, err
	}
	defer m.close()
	idle, err := m.loop(ctx, func(n int) bool { return n >= 50 })
	if err != nil {
		return figure{}, err
	}
	type result struct {
		took []time.Duration
		err  error
	}
	stop, done := make(chan struct{}), make(chan result)
	go func() {
		took, err := m.loop(ctx, func(int) bool {
			select {
			case <-stop:
				return true
			default:
				return false
			}
		})
		done <- result{took, err}
	}()
	f, err := watch("berth, with creates", n.PID(), func() error { return b.pull(ctx, m.images) })
	close(stop)
	r := <-done
	f.Note = fmt.Sprintf("CreateContainer idle %s, during the pull %s", spread(idle), spread(r.took))
	return f, errors.Join(err, r.err)
}

func spread(d []time.Duration) string {
	if len(d) == 0 {
		return "none"
	}
	slices.Sort(d)
	at := func(p int) float64 { return float64(d[min(len(d)-1, len(d)*p/100)].Microseconds()) / 1000 }
	return fmt.Sprintf("n=%d p50 %.0f p99 %.0f max %.0f ms", len(d), at(50), at(99), at(100))
}

// maker makes and removes containers of a small image in one pod.
type maker struct {
	rt     runtimeapi.RuntimeServiceClient
	images runtimeapi.ImageServiceClient
	reg    *images.Registry
	pod    string
	config *runtimeapi.PodSandboxConfig
	image  string
}

func newMaker(ctx context.Context, n *harness.Node, rt runtimeapi.RuntimeServiceClient, im runtimeapi.ImageServiceClient) (*maker, error) {
	parts, err := images.LoadParts(ctx)
	if err != nil {
		return nil, err
	}
	catalog, err := images.Catalog(parts)
	if err != nil {
		return nil, err
	}
	m := &maker{rt: rt, images: im}
	const name = "busybox:1"
	if m.reg, err = images.Serve(map[string]any{name: catalog[name]}, harness.ListenIn(n.Space().NetNS())); err != nil {
		return nil, err
	}
	m.image = m.reg.Addr(images.HostPlain) + "/" + name
	dir := filepath.Join(n.HostsDir(), strings.ReplaceAll(m.reg.Addr(images.HostPlain), ":", "_")+"_")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	if _, err := im.PullImage(ctx, &runtimeapi.PullImageRequest{Image: &runtimeapi.ImageSpec{Image: m.image}}); err != nil {
		return nil, err
	}
	m.config = &runtimeapi.PodSandboxConfig{Metadata: &runtimeapi.PodSandboxMetadata{Name: "bench", Uid: "bench", Namespace: "bench"}, Linux: &runtimeapi.LinuxPodSandboxConfig{}}
	r, err := rt.RunPodSandbox(ctx, &runtimeapi.RunPodSandboxRequest{Config: m.config})
	m.pod = r.GetPodSandboxId()
	return m, err
}

// loop returns how long each CreateContainer took, until enough says so.
func (m *maker) loop(ctx context.Context, enough func(int) bool) (took []time.Duration, err error) {
	for i := 0; !enough(i); i++ {
		c := &runtimeapi.ContainerConfig{
			Metadata: &runtimeapi.ContainerMetadata{Name: "c", Attempt: uint32(i)}, Image: &runtimeapi.ImageSpec{Image: m.image},
			Command: []string{"/bin/sh"}, Linux: &runtimeapi.LinuxContainerConfig{},
		}
		start := time.Now()
		r, err := m.rt.CreateContainer(ctx, &runtimeapi.CreateContainerRequest{PodSandboxId: m.pod, Config: c, SandboxConfig: m.config})
		if err != nil {
			return took, err
		}
		took = append(took, time.Since(start))
		if _, err := m.rt.RemoveContainer(ctx, &runtimeapi.RemoveContainerRequest{ContainerId: r.GetContainerId()}); err != nil {
			return took, err
		}
	}
	return took, nil
}

func (m *maker) close() {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	m.rt.StopPodSandbox(ctx, &runtimeapi.StopPodSandboxRequest{PodSandboxId: m.pod})
	m.rt.RemovePodSandbox(ctx, &runtimeapi.RemovePodSandboxRequest{PodSandboxId: m.pod})
	m.reg.Close()
}

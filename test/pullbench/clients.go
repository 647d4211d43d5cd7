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

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-dev/berth/test/harness"
	"github.com/berth-dev/berth/test/images"
	"github.com/berth-dev/berth/test/peers"
)

func (b *bench) url(object string) string {
	return "http://" + b.addr + "/v2/bench/image/blobs/" + object
}

func (b *bench) ref() string { return b.addr + "/bench/image:v1" }

// floor is `curl | gzip -dc | tar x` for each layer, two at a time, without
// any digest, whiteout or sync.
func (b *bench) floor(ctx context.Context) (figure, error) {
	dir, err := os.MkdirTemp(b.place.Disk, "floor-")
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

// over starts a fresh runtime, and measures its pull over the CRI.
func (b *bench) over(who, programs string, start func(context.Context, peers.Config) (*peers.Peer, error)) func(context.Context) (figure, error) {
	return func(ctx context.Context) (f figure, err error) {
		p, conn, err := b.open(ctx, programs, start)
		if err != nil {
			return f, err
		}
		defer func() { err = errors.Join(err, conn.Close(), p.Close()) }()
		images := runtimeapi.NewImageServiceClient(conn)
		return watch(who, p.PID(), func() error { return b.pull(ctx, images) })
	}
}

func (b *bench) open(ctx context.Context, programs string, start func(context.Context, peers.Config) (*peers.Peer, error)) (*peers.Peer, *grpc.ClientConn, error) {
	c := peers.Config{Programs: b.programs, Dir: programs, Place: b.place, Space: b.space,
		Registry: peers.Registry{Name: b.addr, Addr: b.addr, WriteHosts: b.writeHosts}}
	if b.toml != "" {
		toml, err := os.ReadFile(b.toml)
		if err != nil {
			return nil, nil, err
		}
		c.TOML = string(toml)
	}
	p, err := start(ctx, c)
	if err != nil {
		return nil, nil, err
	}
	conn, err := grpc.NewClient("unix://"+p.Socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return nil, nil, errors.Join(err, p.Close())
	}
	return p, conn, nil
}

func (b *bench) pull(ctx context.Context, images runtimeapi.ImageServiceClient) error {
	_, err := images.PullImage(ctx, &runtimeapi.PullImageRequest{Image: &runtimeapi.ImageSpec{Image: b.ref()}})
	return err
}

// writeHosts says where the registry of the image is.
func (b *bench) writeHosts(dir string) error {
	hosts := filepath.Join(dir, strings.ReplaceAll(b.addr, ":", "_")+"_")
	return errors.Join(os.MkdirAll(hosts, 0o755), os.WriteFile(filepath.Join(hosts, "hosts.toml"), []byte("[host.\"http://"+b.addr+"\"]\n"), 0o644))
}

// creates is berth with containers made in a loop meanwhile.
func (b *bench) creates(ctx context.Context) (f figure, err error) {
	p, conn, err := b.open(ctx, b.bin, peers.Berth)
	if err != nil {
		return figure{}, err
	}
	defer func() { err = errors.Join(err, conn.Close(), p.Close()) }()
	m, err := newMaker(ctx, b.space, runtimeapi.NewRuntimeServiceClient(conn), runtimeapi.NewImageServiceClient(conn))
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
	f, err = watch("berth, with creates", p.PID(), func() error { return b.pull(ctx, m.images) })
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

func newMaker(ctx context.Context, space *harness.Space, rt runtimeapi.RuntimeServiceClient, im runtimeapi.ImageServiceClient) (*maker, error) {
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
	if m.reg, err = images.Serve(map[string]any{name: catalog[name]}, harness.ListenIn(space.NetNS())); err != nil {
		return nil, err
	}
	m.image = m.reg.Addr(images.HostPlain) + "/" + name
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

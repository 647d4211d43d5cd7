package bench

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// label marks the pods of a run, so that they are found again when the reply
// that named one was lost.
const label = "berthctl.bench"

// Names of what a round measures besides single calls.
const (
	podUp   = "pod up"   // RunPodSandbox, CreateContainer, StartContainer
	podDown = "pod down" // StopContainer, StopPodSandbox, RemovePodSandbox
)

// livePod is a pod of a round with its container.
type livePod struct{ pod, container string }

// spread calls f for 0 to n-1 with so many workers, and returns what all took.
func spread(ctx context.Context, n, workers int, f func(context.Context, int) error) (time.Duration, error) {
	begun := time.Now()
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(workers)
	for i := range n {
		g.Go(func() error {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			return f(ctx, i)
		})
	}
	err := g.Wait()
	return time.Since(begun), err
}

func perSecond(n int, took time.Duration) float64 {
	if took <= 0 {
		return 0
	}
	return round3(float64(n) / took.Seconds())
}

// podConfig is as the kubelet would ask for it, with a name of its own.
func (b *bench) podConfig(n int) *runtimeapi.PodSandboxConfig {
	name := b.run + "-" + strconv.Itoa(n)
	return &runtimeapi.PodSandboxConfig{
		Metadata:     &runtimeapi.PodSandboxMetadata{Name: name, Namespace: "berthctl-bench", Uid: name},
		Hostname:     name,
		LogDirectory: b.dir,
		Labels:       map[string]string{label: b.run},
		Linux: &runtimeapi.LinuxPodSandboxConfig{
			CgroupParent: b.plan.CgroupParent,
			SecurityContext: &runtimeapi.LinuxSandboxSecurityContext{
				NamespaceOptions: &runtimeapi.NamespaceOption{Pid: runtimeapi.NamespaceMode_CONTAINER}, Seccomp: defaultSeccomp(),
			},
		},
	}
}

func defaultSeccomp() *runtimeapi.SecurityProfile {
	return &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_RuntimeDefault}
}

func (b *bench) containerConfig(pod *runtimeapi.PodSandboxConfig) *runtimeapi.ContainerConfig {
	return &runtimeapi.ContainerConfig{
		Metadata: &runtimeapi.ContainerMetadata{Name: "bench"},
		Image:    &runtimeapi.ImageSpec{Image: b.image, UserSpecifiedImage: b.plan.Image},
		Command:  b.plan.Command,
		LogPath:  pod.GetMetadata().GetName() + ".log",
		Labels:   pod.GetLabels(),
		Linux: &runtimeapi.LinuxContainerConfig{
			Resources: &runtimeapi.LinuxContainerResources{CpuShares: 2, OomScoreAdj: 1000},
			SecurityContext: &runtimeapi.LinuxContainerSecurityContext{
				NamespaceOptions: pod.GetLinux().GetSecurityContext().GetNamespaceOptions(), Seccomp: defaultSeccomp(),
				MaskedPaths:   []string{"/proc/acpi", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/timer_list", "/proc/timer_stats", "/proc/sched_debug", "/proc/scsi", "/sys/firmware"},
				ReadonlyPaths: []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"},
			},
		},
	}
}

// up runs a pod with its container.
func (b *bench) up(ctx context.Context, r *recorder) (livePod, error) {
	config := b.podConfig(int(b.last.Add(1)))
	name := config.GetMetadata().GetName()
	var p livePod
	begun := time.Now()
	err := r.time("RunPodSandbox", func() error {
		a, err := b.cl.RunPodSandbox(ctx, &runtimeapi.RunPodSandboxRequest{Config: config, RuntimeHandler: b.plan.Handler})
		p.pod = a.GetPodSandboxId()
		return err
	})
	if err != nil {
		return p, fmt.Errorf("run pod %s: %w", name, err)
	}
	err = r.time("CreateContainer", func() error {
		a, err := b.cl.CreateContainer(ctx, &runtimeapi.CreateContainerRequest{PodSandboxId: p.pod, Config: b.containerConfig(config), SandboxConfig: config})
		p.container = a.GetContainerId()
		return err
	})
	if err != nil {
		return p, fmt.Errorf("create the container of pod %s: %w", name, err)
	}
	err = r.time("StartContainer", func() error {
		_, err := b.cl.StartContainer(ctx, &runtimeapi.StartContainerRequest{ContainerId: p.container})
		return err
	})
	if err != nil {
		return p, fmt.Errorf("start the container of pod %s: %w", name, err)
	}
	r.add(podUp, time.Since(begun))
	return p, nil
}

func (b *bench) exec(ctx context.Context, r *recorder, p livePod) error {
	return r.time("ExecSync", func() error {
		a, err := b.cl.ExecSync(ctx, &runtimeapi.ExecSyncRequest{ContainerId: p.container, Cmd: b.plan.Exec, Timeout: 60})
		if err != nil {
			return fmt.Errorf("run %q in container %s: %w", b.plan.Exec, p.container, err)
		}
		if a.GetExitCode() != 0 {
			return failed("%q in container %s ended with code %d: name a program of the image that ends well with --exec", b.plan.Exec, p.container, a.GetExitCode())
		}
		return nil
	})
}

// down kills the container of a pod, and stops and removes the pod, as a
// kubelet does whose time of grace is over. The pod's container may be unknown.
func (b *bench) down(ctx context.Context, r *recorder, p livePod) error {
	begun := time.Now()
	for _, step := range []struct {
		name string
		call func() error
	}{
		{"StopContainer", func() error {
			if p.container == "" {
				return nil
			}
			_, err := b.cl.StopContainer(ctx, &runtimeapi.StopContainerRequest{ContainerId: p.container})
			return err
		}},
		{"StopPodSandbox", func() error {
			_, err := b.cl.StopPodSandbox(ctx, &runtimeapi.StopPodSandboxRequest{PodSandboxId: p.pod})
			return err
		}},
		{"RemovePodSandbox", func() error {
			_, err := b.cl.RemovePodSandbox(ctx, &runtimeapi.RemovePodSandboxRequest{PodSandboxId: p.pod})
			return err
		}},
	} {
		if err := r.time(step.name, step.call); err != nil {
			return fmt.Errorf("%s of pod %s: %w", step.name, p.pod, err)
		}
	}
	r.add(podDown, time.Since(begun))
	return nil
}

// removeAll removes every pod of this run, also those whose names never came.
func (b *bench) removeAll(ctx context.Context) error {
	mine := map[string]string{label: b.run}
	cs, err := b.cl.ListContainers(ctx, &runtimeapi.ListContainersRequest{Filter: &runtimeapi.ContainerFilter{LabelSelector: mine}})
	if err != nil {
		return fmt.Errorf("look for containers of this run: %w", err)
	}
	containers := map[string]string{}
	for _, c := range cs.GetContainers() {
		containers[c.GetPodSandboxId()] = c.GetId()
	}
	r, err := b.cl.ListPodSandbox(ctx, &runtimeapi.ListPodSandboxRequest{Filter: &runtimeapi.PodSandboxFilter{LabelSelector: mine}})
	if err != nil {
		return fmt.Errorf("look for pods of this run: %w", err)
	}
	var all []error
	for _, p := range r.GetItems() {
		all = append(all, b.down(ctx, &recorder{}, livePod{pod: p.GetId(), container: containers[p.GetId()]}))
	}
	return errors.Join(all...)
}

// calls asks for lists and states while the pods of a round run.
func (b *bench) calls(ctx context.Context, r *recorder, workers int, pods []livePod) error {
	mine := map[string]string{label: b.run}
	all := []struct {
		name string
		call func(context.Context, livePod) error
	}{
		{"Version", func(ctx context.Context, _ livePod) error {
			_, err := b.cl.Version(ctx, &runtimeapi.VersionRequest{})
			return err
		}},
		{"Status", func(ctx context.Context, _ livePod) error {
			_, err := b.cl.Status(ctx, &runtimeapi.StatusRequest{})
			return err
		}},
		{"ListPodSandbox", func(ctx context.Context, _ livePod) error {
			_, err := b.cl.ListPodSandbox(ctx, &runtimeapi.ListPodSandboxRequest{})
			return err
		}},
		{"ListContainers", func(ctx context.Context, _ livePod) error {
			_, err := b.cl.ListContainers(ctx, &runtimeapi.ListContainersRequest{})
			return err
		}},
		{"ListContainerStats", func(ctx context.Context, _ livePod) error {
			a, err := b.cl.ListContainerStats(ctx, &runtimeapi.ListContainerStatsRequest{Filter: &runtimeapi.ContainerStatsFilter{LabelSelector: mine}})
			if err == nil && len(a.GetStats()) != len(pods) {
				return failed("statistics of %d containers while %d run: what was measured is not what was asked for", len(a.GetStats()), len(pods))
			}
			return err
		}},
		{"ListPodSandboxStats", func(ctx context.Context, _ livePod) error {
			_, err := b.cl.ListPodSandboxStats(ctx, &runtimeapi.ListPodSandboxStatsRequest{Filter: &runtimeapi.PodSandboxStatsFilter{LabelSelector: mine}})
			return err
		}},
		{"PodSandboxStatus", func(ctx context.Context, p livePod) error {
			_, err := b.cl.PodSandboxStatus(ctx, &runtimeapi.PodSandboxStatusRequest{PodSandboxId: p.pod})
			return err
		}},
		{"ContainerStatus", func(ctx context.Context, p livePod) error {
			_, err := b.cl.ContainerStatus(ctx, &runtimeapi.ContainerStatusRequest{ContainerId: p.container})
			return err
		}},
	}
	for _, c := range all {
		_, err := spread(ctx, b.plan.Lists, workers, func(ctx context.Context, i int) error {
			return r.time(c.name, func() error { return c.call(ctx, pods[i%len(pods)]) })
		})
		if status.Code(err) == codes.Unimplemented {
			continue // not every runtime has every call
		}
		if err != nil {
			return fmt.Errorf("%s: %w", c.name, err)
		}
	}
	return nil
}

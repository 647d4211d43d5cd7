package runtimeservice

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/protobuf/encoding/protojson"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-dev/berth/runtimeservice/checkpoint"
	"github.com/berth-dev/berth/sandbox"
	"github.com/berth-dev/berth/sandbox/spec"
	"github.com/berth-dev/berth/shim"
	"github.com/berth-dev/berth/store"
)

// checkpointTime bounds a checkpoint for which the client names no time-out. It
// is what the kubelet allows its calls.
const checkpointTime = 2 * time.Minute

// checkpoints answers the RPCs on checkpoints.
type checkpoints struct {
	*containers
	criu     *checkpoint.CRIU
	disk     Disk
	restorer *checkpoint.Restorer
	vet      func(images string, doc *specs.Spec, root string) error // CRIU's images
}

// freezer is what package checkpoint needs of the shims.
type freezer struct{ shimFreeze }

// Freeze implements checkpoint.Shims.
func (f freezer) Freeze(ctx context.Context, id string) (checkpoint.Still, error) {
	still, err := f.shimFreeze.Freeze(ctx, id)
	if err != nil {
		return nil, err
	}
	return still, nil
}

// CheckpointContainer writes a checkpoint of a running container, which goes on.
func (c *checkpoints) CheckpointContainer(ctx context.Context, r *runtimeapi.CheckpointContainerRequest) (*runtimeapi.CheckpointContainerResponse, error) {
	limit := checkpointTime
	switch t := r.GetTimeout(); {
	case t < 0:
		return nil, fmt.Errorf("checkpoint container %q: timeout of %d s is negative: %w", r.GetContainerId(), t, errdefs.ErrInvalidArgument)
	case t > 0:
		limit = graceOf(t)
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	rec, err := c.container(ctx, r.GetContainerId())
	if err != nil {
		return nil, fmt.Errorf("checkpoint container %q: %w", r.GetContainerId(), err)
	}
	if err := c.checkpoint(ctx, rec, r.GetLocation()); err != nil {
		return nil, fmt.Errorf("checkpoint container %s: %w", rec.ID, err)
	}
	return &runtimeapi.CheckpointContainerResponse{}, nil
}

func (c *checkpoints) checkpoint(ctx context.Context, rec store.Container, location string) error {
	if err := canCheckpoint(ctx, c.criu, c.probes, c.runtimeOf(rec)); err != nil {
		return err
	}
	unlock, err := c.locks.lock(ctx, containerKey(rec.ID))
	if err != nil {
		return err
	}
	defer unlock()
	_, part, err := c.part(rec.ID)
	if err != nil {
		return err
	}
	return c.maker.Container(ctx, part, location)
}

// canCheckpoint says why containers under an OCI runtime cannot be checkpointed.
func canCheckpoint(ctx context.Context, criu *checkpoint.CRIU, p *probes, r shim.Runtime) error {
	f, err := p.features(ctx, r.Path)
	if err != nil {
		return err
	}
	if able, says := f.Annotations["org.opencontainers.runc.checkpoint.enabled"]; says && able != "true" {
		return fmt.Errorf("the OCI runtime %s was built without checkpoints: %w", r.Path, errdefs.ErrNotImplemented)
	}
	return criu.Check(ctx)
}

// part gathers what a checkpoint of a running container consists of, beside its record.
func (c *checkpoints) part(id string) (rec store.Container, out checkpoint.Container, err error) {
	ended := c.ends.wait(id)
	if rec, err = c.db.Container(id); err != nil {
		return rec, out, err
	}
	if err := mustRun(rec, c.cfg.BootID); err != nil {
		return rec, out, err
	}
	pod, err := c.db.Sandbox(rec.SandboxID)
	if err != nil {
		return rec, out, err
	}
	f := rec.Facts
	out = checkpoint.Container{
		ID: id, LogPath: f.LogPath, Network: pod.Facts.Network.Result, Ended: ended,
		Config: checkpoint.Config{
			ID: id, Name: rec.Config.GetMetadata().GetName(), CreatedTime: f.CreatedAt, OCIRuntime: cmp.Or(pod.Handler, c.cfg.DefaultHandler),
			RootfsImage: rec.Config.GetImage().GetImage(), RootfsImageRef: f.Image.Ref, RootfsImageName: c.containerStatus(rec).GetImage().GetImage(),
		},
		Status: checkpoint.Status{CreatedAt: stamp(f.CreatedAt), StartedAt: stamp(f.StartedAt), Pid: uint32(f.PID)},
	}
	if out.Upper, out.Lower, err = c.disk.WritableLayer(id, f.Image.TopLayer); err != nil {
		return rec, out, err
	}
	if out.Spec, err = os.ReadFile(c.specPath(id)); err != nil {
		return rec, out, fmt.Errorf("read runtime specification: %w", err)
	}
	return rec, out, nil
}

// CheckpointPod writes a checkpoint of running containers of a pod, of one moment
// for all of them. They go on, before the call returns.
func (c *checkpoints) CheckpointPod(ctx context.Context, r *runtimeapi.CheckpointPodRequest) (*runtimeapi.CheckpointPodResponse, error) {
	ctx, cancel := bounded(ctx)
	defer cancel()
	rec, err := c.sandbox(ctx, r.GetPodSandboxId())
	if err == nil && len(r.GetOptions()) > 0 {
		err = fmt.Errorf("options: %q is unknown, there are none: %w", slices.Sorted(maps.Keys(r.GetOptions()))[0], errdefs.ErrInvalidArgument)
	}
	if err == nil {
		err = c.checkpointPod(ctx, rec.ID, r)
	}
	if err != nil {
		return nil, fmt.Errorf("checkpoint sandbox %q: %w", r.GetPodSandboxId(), err)
	}
	return &runtimeapi.CheckpointPodResponse{}, nil
}

// bounded is for calls whose client should have set a deadline.
func bounded(ctx context.Context) (context.Context, context.CancelFunc) {
	if _, ok := ctx.Deadline(); ok {
		return ctx, func() {}
	}
	return context.WithTimeout(ctx, checkpointTime)
}

func (c *checkpoints) checkpointPod(ctx context.Context, id string, r *runtimeapi.CheckpointPodRequest) error {
	unlock, err := c.locks.lock(ctx, podKey(id))
	if err != nil {
		return err
	}
	defer unlock()
	rec, err := c.db.Sandbox(id)
	if err != nil {
		return err
	}
	if err := canCreate(rec, c.cfg.BootID); err != nil {
		return err
	}
	h, err := c.handler(rec.Handler)
	if err != nil {
		return err
	}
	if err := canCheckpoint(ctx, c.criu, c.probes, h.Runtime); err != nil {
		return err
	}
	ids, err := c.chosen(rec.ID, r.GetContainerIds())
	if err != nil {
		return err
	}
	pod := checkpoint.Pod{ID: rec.ID}
	var configs []json.RawMessage
	for _, id := range ids {
		unlock, err := c.locks.lock(ctx, containerKey(id))
		if err != nil {
			return err
		}
		defer unlock()
		rec, part, err := c.part(id)
		if err != nil {
			return fmt.Errorf("container %s: %w", id, err)
		}
		pod.Containers = append(pod.Containers, &part)
		b, err := protojson.MarshalOptions{UseProtoNames: true}.Marshal(rec.Config)
		if err != nil {
			return fmt.Errorf("encode configuration: %w", err)
		}
		configs = append(configs, b)
	}
	if _, own := rec.Facts.Namespaces["ipc"]; own {
		pod.Shm = c.pod.Files(rec).Shm
	}
	if pod.Config, err = (protojson.MarshalOptions{Multiline: true, UseProtoNames: true}).Marshal(rec.Config); err != nil {
		return fmt.Errorf("encode configuration: %w", err)
	}
	if pod.Configs, err = json.MarshalIndent(configs, "", "  "); err != nil {
		return fmt.Errorf("encode configuration: %w", err)
	}
	return c.maker.Pod(ctx, pod, r.GetOutputPath())
}

// chosen returns the containers that a client names, in the order of their IDs.
func (c *checkpoints) chosen(pod string, named []string) ([]string, error) {
	if len(named) == 0 {
		return nil, fmt.Errorf("container_ids is empty: %w", errdefs.ErrInvalidArgument)
	}
	var ids []string
	for _, name := range named {
		rec, err := c.db.Container(name)
		if err != nil {
			return nil, fmt.Errorf("container_ids: %w", err)
		}
		if rec.SandboxID != pod {
			return nil, fmt.Errorf("container_ids: %s is of another sandbox: %w", name, errdefs.ErrInvalidArgument)
		}
		if slices.Contains(ids, rec.ID) {
			return nil, fmt.Errorf("container_ids: %s is named twice: %w", name, errdefs.ErrInvalidArgument)
		}
		ids = append(ids, rec.ID)
	}
	slices.Sort(ids)
	return ids, nil
}

// RestorePod makes a pod of a checkpoint. Its containers are created; their start
// restores their processes.
func (c *checkpoints) RestorePod(ctx context.Context, r *runtimeapi.RestorePodRequest) (*runtimeapi.RestorePodResponse, error) {
	ctx, cancel := bounded(ctx)
	defer cancel()
	out, err := c.restorePod(ctx, r)
	if err != nil {
		return nil, fmt.Errorf("restore pod %s from %q: %w", r.GetConfig().GetMetadata().GetName(), r.GetCheckpointPath(), err)
	}
	return out, nil
}

func (c *checkpoints) restorePod(ctx context.Context, r *runtimeapi.RestorePodRequest) (*runtimeapi.RestorePodResponse, error) {
	if err := c.canRestore(ctx, r); err != nil {
		return nil, err
	}
	from, err := checkpoint.Open(r.GetCheckpointPath())
	if err != nil {
		return nil, err
	}
	defer from.Close()
	pod := store.Sandbox{ID: newID(), Handler: r.GetRuntimeHandler(), Config: r.GetConfig()}
	pod.Facts.BootID = c.cfg.BootID
	out := &runtimeapi.RestorePodResponse{PodSandboxId: pod.ID}
	var parts []store.Container
	var names []string
	for _, cfg := range r.GetContainerConfigs() {
		rec, name := store.Container{ID: newID(), SandboxID: pod.ID, Config: cfg}, cfg.GetMetadata().GetName()
		parts, names = append(parts, rec), append(names, name)
		out.RestoredContainers = append(out.RestoredContainers, &runtimeapi.RestoredContainer{Name: name, ContainerId: rec.ID})
	}
	slices.Sort(names)
	if have := from.Names(); !slices.Equal(names, have) {
		return nil, fmt.Errorf("container_configs are of %q, the checkpoint is of %q: %w", names, have, errdefs.ErrInvalidArgument)
	}
	// One of this name that a crash left half made may still hold its host ports.
	if err := errors.Join(c.locks.recovery.Wait(ctx, kindSandbox, store.SandboxName(pod)), c.locks.recovery.Wait(ctx, kindImages, "")); err != nil {
		return nil, err
	}
	return out, c.restorer.Restore(ctx, from, pod, parts)
}

// canRestore refuses what no checkpoint can be restored with.
func (c *checkpoints) canRestore(ctx context.Context, r *runtimeapi.RestorePodRequest) error {
	if len(r.GetOptions()) > 0 {
		return fmt.Errorf("options: %q is unknown, there are none: %w", slices.Sorted(maps.Keys(r.GetOptions()))[0], errdefs.ErrInvalidArgument)
	}
	if err := sandbox.Validate(r.GetConfig()); err != nil {
		return err
	}
	h, err := c.handler(r.GetRuntimeHandler())
	if err != nil {
		return err
	}
	if spec.UserNamespace(r.GetConfig()) != nil {
		return fmt.Errorf("userns_options: CRIU restores no pod with a user namespace: %w", errdefs.ErrNotImplemented)
	}
	return canCheckpoint(ctx, c.criu, c.probes, h.Runtime)
}

// podRestore are the verbs that the restoring of a pod consists of.
type podRestore struct {
	pods *pods
	of   *checkpoints
}

// Run makes the sandbox, with the shared memory that its containers had.
func (r podRestore) Run(ctx context.Context, rec store.Sandbox, from *checkpoint.Source) error {
	if err := r.pods.run(ctx, rec); err != nil {
		return err
	}
	shm, err := from.Shm()
	if err != nil || shm == nil {
		return err
	}
	defer shm.Close()
	// Who stops the pod takes the shared memory away.
	ctx, done := r.pods.containers.creations.begin(ctx, rec.ID)
	defer done()
	unlock, err := r.pods.locks.rlock(ctx, podKey(rec.ID))
	if err != nil {
		return err
	}
	defer unlock()
	if rec, err = r.pods.db.Sandbox(rec.ID); err == nil {
		err = canCreate(rec, r.pods.cfg.BootID)
	}
	if err != nil {
		return err
	}
	if _, own := rec.Facts.Namespaces["ipc"]; !own {
		return fmt.Errorf("the checkpoint has shared memory of its own, the pod uses the node's: %w", errdefs.ErrFailedPrecondition)
	}
	return r.of.disk.Unpack(ctx, r.pods.pod.Files(rec).Shm, shm)
}

// Create makes a container that waits for its processes.
func (r podRestore) Create(ctx context.Context, rec store.Container, from *checkpoint.Source) error {
	return r.pods.containers.create(ctx, rec, nil, &checkpoint.Parcel{From: from, Files: r.of.disk, Vet: r.of.vet})
}

// Remove removes the pod with its containers, and what is half made of them.
func (r podRestore) Remove(ctx context.Context, id string, containers []string) error {
	r.pods.containers.creations.cancel(id)
	for _, id := range containers {
		if err := r.pods.containers.resume(ctx, id); err != nil {
			return err
		}
	}
	if err := r.pods.resume(ctx, id); err != nil {
		return err
	}
	unlock, err := r.pods.locks.lock(ctx, podKey(id))
	if err != nil {
		return err
	}
	defer unlock()
	return r.pods.remove(ctx, id)
}

// target is the container of a plan, as what is restored into.
func (c *containers) target(p *plan) checkpoint.Target {
	t := checkpoint.Target{ID: p.rec.ID, Name: p.rec.Config.GetMetadata().GetName(), Handler: cmp.Or(p.pod.Handler, c.cfg.DefaultHandler),
		Hostname: p.pod.Config.GetHostname(), Image: p.image, Dir: c.restoreDir(p.rec.ID)}
	if t.Hostname == "" {
		t.Hostname, _ = os.Hostname() // as the pod has it
	}
	return t
}

// restored says what the shim restores, if it does.
func (p *plan) restored() shim.Restore {
	if p.restore == nil {
		return shim.Restore{}
	}
	return shim.Restore{Images: p.restore.Part.Images(), Work: p.restore.Part.Logs(), Cgroup: p.rec.Facts.CgroupPath}
}

// restoreDir holds what a container is to be restored from until it is started.
func (c *core) restoreDir(id string) string { return filepath.Join(c.stateDir(id), "restore") }

// whyNotRestored adds what CRIU says to a start that failed.
func (c *core) whyNotRestored(id string, err error) error {
	if _, e := os.Lstat(c.restoreDir(id)); err == nil || e != nil {
		return err
	}
	return checkpoint.Explain(err, checkpoint.RestoreLog(c.restoreDir(id)))
}

// dropRestored removes what a container was restored from: the memory of its
// processes, as it once was.
func (c *core) dropRestored(id string) {
	if err := os.RemoveAll(c.restoreDir(id)); err != nil {
		c.cfg.Logger.Warn("cannot remove what a container was restored from; it goes with the container", "container", id, "error", err)
	}
}

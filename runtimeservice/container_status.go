package runtimeservice

import (
	"context"
	"encoding/json"
	"fmt"
	"iter"
	"slices"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-dev/berth/chunk"
	"github.com/berth-dev/berth/store"
)

// ContainerStatus reports one container.
func (c *containers) ContainerStatus(ctx context.Context, r *runtimeapi.ContainerStatusRequest) (*runtimeapi.ContainerStatusResponse, error) {
	rec, err := c.db.Container(r.GetContainerId())
	if err != nil {
		return nil, fmt.Errorf("status of container %q: %w", r.GetContainerId(), err)
	}
	out := &runtimeapi.ContainerStatusResponse{Status: c.containerStatus(rec)}
	if r.GetVerbose() {
		if out.Info, err = c.containerInfo(ctx, rec); err != nil {
			return nil, fmt.Errorf("status of container %s: %w", rec.ID, err)
		}
	}
	return out, nil
}

// containerStatus derives the CRI status from a record.
func (c *core) containerStatus(rec store.Container) *runtimeapi.ContainerStatus {
	var tags []string
	if img, err := c.db.Image(rec.Facts.Image.ID); err == nil {
		tags, _ = img.Names()
	}
	return statusOf(rec, c.cfg.BootID, tags)
}

// statusOf is the pure part of containerStatus. tags are the names that the
// image bears today.
func statusOf(rec store.Container, bootID string, tags []string) *runtimeapi.ContainerStatus {
	f, cfg := rec.Facts, rec.Config
	st := &runtimeapi.ContainerStatus{
		Id:          rec.ID,
		Metadata:    cfg.GetMetadata(),
		State:       containerState(rec, bootID),
		CreatedAt:   stamp(f.CreatedAt),
		StartedAt:   stamp(f.StartedAt),
		Image:       statusImage(cfg.GetImage(), f.Image, tags),
		ImageRef:    f.Image.Ref,
		ImageId:     f.Image.ID,
		Labels:      cfg.GetLabels(),
		Annotations: cfg.GetAnnotations(),
		Mounts:      statusMounts(cfg.GetMounts(), f.Volumes),
		LogPath:     f.LogPath,
		User:        &runtimeapi.ContainerUser{Linux: &runtimeapi.LinuxContainerUser{Uid: int64(f.User.UID), Gid: int64(f.User.GID)}},
		StopSignal:  criSignal(f.StopSignal),
	}
	for _, g := range f.User.Groups {
		st.User.Linux.SupplementalGroups = append(st.User.Linux.SupplementalGroups, int64(g))
	}
	if f.Resources != nil {
		st.Resources = &runtimeapi.ContainerResources{Linux: f.Resources}
	}
	exit := f.Exit
	if exit == nil && st.State == runtimeapi.ContainerState_CONTAINER_EXITED {
		// An earlier boot's container that recovery has not reached yet.
		exit = rebootExit(f.CreatedAt)
	}
	if exit != nil {
		st.ExitCode, st.Reason, st.Message = exit.Code, exit.Reason, exit.Message
		st.FinishedAt = stamp(exit.FinishedAt)
	}
	return st
}

// statusImage is the image as the client named it. A client that named an ID
// is told the image's first tag, if it has one.
func statusImage(asked *runtimeapi.ImageSpec, use store.ImageUse, tags []string) *runtimeapi.ImageSpec {
	out := &runtimeapi.ImageSpec{
		Image:              asked.GetImage(),
		Annotations:        asked.GetAnnotations(),
		UserSpecifiedImage: asked.GetUserSpecifiedImage(),
		RuntimeHandler:     asked.GetRuntimeHandler(),
	}
	if len(tags) > 0 && strings.TrimPrefix(out.Image, "sha256:") == strings.TrimPrefix(use.ID, "sha256:") {
		out.Image = tags[0]
	}
	return out
}

// statusMounts are the mounts as asked for; those of images say which image
// it is, by the ID that PullImage had answered.
func statusMounts(mounts []*runtimeapi.Mount, volumes []store.ImageUse) []*runtimeapi.Mount {
	if len(volumes) == 0 {
		return mounts
	}
	out := slices.Clone(mounts)
	for i, m := range out {
		if m.GetImage() == nil || len(volumes) == 0 {
			continue
		}
		own := proto.CloneOf(m) // the record's message must not change
		own.Image.ImageRef, volumes = volumes[0].ID, volumes[1:]
		out[i] = own
	}
	return out
}

// containerInfo is the verbose part of a status: one JSON document.
func (c *containers) containerInfo(ctx context.Context, rec store.Container) (map[string]string, error) {
	h := c.runtimeOf(rec)
	doc := struct {
		SandboxID  string                      `json:"sandboxID"`
		PID        int                         `json:"pid"`
		BootID     string                      `json:"bootID"`
		Bundle     string                      `json:"bundle"`
		StateDir   string                      `json:"stateDir"`
		CgroupPath string                      `json:"cgroupPath"`
		Runtime    string                      `json:"runtime"`
		Signal     int                         `json:"exitSignal,omitempty"`
		TopLayer   string                      `json:"topLayer,omitempty"`
		Spec       any                         `json:"runtimeSpec,omitempty"`
		SpecError  string                      `json:"runtimeSpecError,omitempty"`
		Log        *logInfo                    `json:"log,omitempty"`
		Recovering string                      `json:"recovering,omitempty"` // what is still to be found out or done after a start
		Shim       *shimInfo                   `json:"shim,omitempty"`
		Stop       *stopInfo                   `json:"stop,omitempty"`
		Config     *runtimeapi.ContainerConfig `json:"config"`
	}{
		SandboxID: rec.SandboxID, BootID: rec.Facts.BootID, Bundle: c.bundle(rec.ID), StateDir: c.stateDir(rec.ID),
		CgroupPath: rec.Facts.CgroupPath, Runtime: h.Path, TopLayer: rec.Facts.Image.TopLayer, Config: rec.Config,
		Recovering: c.locks.recovery.Of(kindContainer, rec.ID),
	}
	if containerState(rec, c.cfg.BootID) != runtimeapi.ContainerState_CONTAINER_EXITED {
		doc.PID = rec.Facts.PID
		doc.Shim, doc.Log = c.shimInfo(ctx, rec.ID)
		if doc.Stop = c.stops.look(rec.ID); doc.Stop != nil {
			doc.Stop.Processes = c.held(rec)
		}
	}
	if rec.Facts.Exit != nil {
		doc.Signal = rec.Facts.Exit.Signal
	}
	// After a reboot the run-time directory, and the document in it, is gone.
	if s, err := c.storedSpec(rec.ID); err != nil {
		doc.SpecError = err.Error()
	} else {
		doc.Spec = s
	}
	b, err := json.Marshal(doc)
	if err != nil {
		return nil, fmt.Errorf("encode verbose information: %w", err)
	}
	return map[string]string{"info": string(b)}, nil
}

// logInfo is how the log of a running container fares.
type logInfo struct {
	DroppedBytes int64  `json:"droppedBytes"`    // lost to write errors, such as a full disk
	CappedBytes  int64  `json:"cappedBytes"`     // dropped by container.log_rate and container.log_file_size
	Paused       bool   `json:"paused"`          // the container waits for these limits
	Error        string `json:"error,omitempty"` // of the last write, if it failed
}

// shimInfo is how the shim of a running container fares.
type shimInfo struct {
	Protocol int64  `json:"protocol,omitempty"`     // version spoken with it
	Waits    string `json:"waitsFor,omitempty"`     // runtime command that has not ended
	Since    string `json:"waitingSince,omitempty"` // when that began
	Error    string `json:"error,omitempty"`        // why it gave no answer
}

// shimInfoWait bounds the question to the shim: status must not hang on it.
const shimInfoWait = time.Second

// shimInfo asks the shim. The log is nil when it did not answer.
func (c *core) shimInfo(ctx context.Context, id string) (*shimInfo, *logInfo) {
	ctx, cancel := context.WithTimeoutCause(ctx, shimInfoWait, fmt.Errorf("the shim gave no answer within %s: %w", shimInfoWait, context.DeadlineExceeded))
	defer cancel()
	st, err := c.shim.State(ctx, id)
	if err != nil {
		return &shimInfo{Error: causeOf(ctx, err).Error()}, nil
	}
	info := &shimInfo{Protocol: st.Version}
	if st.Busy.Command != "" {
		info.Waits, info.Since = st.Busy.Command, st.Busy.Since.UTC().Format(time.RFC3339Nano)
	}
	log := &logInfo{DroppedBytes: st.Log.Dropped, CappedBytes: st.Log.Capped, Paused: st.Log.Paused}
	if st.Log.Error != 0 {
		log.Error = st.Log.Error.Error()
	}
	return info, log
}

// ListContainers lists the containers that pass the filter.
func (c *containers) ListContainers(_ context.Context, r *runtimeapi.ListContainersRequest) (*runtimeapi.ListContainersResponse, error) {
	return &runtimeapi.ListContainersResponse{Containers: slices.Collect(c.list(r.GetFilter()))}, nil
}

// StreamContainers sends what ListContainers returns, in parts.
func (c *containers) StreamContainers(r *runtimeapi.StreamContainersRequest, out grpc.ServerStreamingServer[runtimeapi.StreamContainersResponse]) error {
	if err := chunk.Send(c.list(r.GetFilter()), func(part []*runtimeapi.Container) error {
		return out.Send(&runtimeapi.StreamContainersResponse{Containers: part})
	}); err != nil {
		return fmt.Errorf("stream containers: %w", err)
	}
	return nil
}

func (c *containers) list(f *runtimeapi.ContainerFilter) iter.Seq[*runtimeapi.Container] {
	return filterContainers(c.db.Containers(), f, c.cfg.BootID)
}

// filterContainers yields the containers that pass f, as the CRI lists them.
// ID filters match by prefix. Pure.
func filterContainers(all []store.Container, f *runtimeapi.ContainerFilter, bootID string) iter.Seq[*runtimeapi.Container] {
	return func(yield func(*runtimeapi.Container) bool) {
		for _, rec := range all {
			st := containerState(rec, bootID)
			switch {
			case !strings.HasPrefix(rec.ID, f.GetId()),
				!strings.HasPrefix(rec.SandboxID, f.GetPodSandboxId()),
				f.GetState() != nil && f.GetState().GetState() != st,
				!hasLabels(rec.Config.GetLabels(), f.GetLabelSelector()):
				continue
			}
			if !yield(&runtimeapi.Container{
				Id: rec.ID, PodSandboxId: rec.SandboxID, Metadata: rec.Config.GetMetadata(),
				Image: rec.Config.GetImage(), ImageRef: rec.Facts.Image.Ref, ImageId: rec.Facts.Image.ID,
				State: st, CreatedAt: stamp(rec.Facts.CreatedAt),
				Labels: rec.Config.GetLabels(), Annotations: rec.Config.GetAnnotations(),
			}) {
				return
			}
		}
	}
}

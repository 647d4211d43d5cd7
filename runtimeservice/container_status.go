package runtimeservice

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"google.golang.org/grpc"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

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
		tags = img.RepoTags
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
		Mounts:      cfg.GetMounts(),
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
		Config     *runtimeapi.ContainerConfig `json:"config"`
	}{
		SandboxID: rec.SandboxID, BootID: rec.Facts.BootID, Bundle: c.bundle(rec.ID), StateDir: c.stateDir(rec.ID),
		CgroupPath: rec.Facts.CgroupPath, Runtime: h.Path, TopLayer: rec.Facts.Image.TopLayer, Config: rec.Config,
	}
	if containerState(rec, c.cfg.BootID) != runtimeapi.ContainerState_CONTAINER_EXITED {
		doc.PID = rec.Facts.PID
		doc.Log = c.logInfo(ctx, rec.ID)
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
	Error        string `json:"error,omitempty"` // of the last write, if it failed
}

// logInfoWait bounds the question to the shim: status must not hang on it.
const logInfoWait = time.Second

// logInfo asks the shim. nil: it did not answer.
func (c *core) logInfo(ctx context.Context, id string) *logInfo {
	ctx, cancel := context.WithTimeout(ctx, logInfoWait)
	defer cancel()
	st, err := c.shim.State(ctx, id)
	if err != nil {
		return nil
	}
	out := &logInfo{DroppedBytes: st.LogDropped}
	if st.LogError != 0 {
		out.Error = st.LogError.Error()
	}
	return out
}

// ListContainers lists the containers that pass the filter.
func (c *containers) ListContainers(_ context.Context, r *runtimeapi.ListContainersRequest) (*runtimeapi.ListContainersResponse, error) {
	return &runtimeapi.ListContainersResponse{Containers: c.list(r.GetFilter())}, nil
}

// StreamContainers sends what ListContainers returns, in parts.
func (c *containers) StreamContainers(r *runtimeapi.StreamContainersRequest, out grpc.ServerStreamingServer[runtimeapi.StreamContainersResponse]) error {
	return inChunks(c.list(r.GetFilter()), func(part []*runtimeapi.Container) error {
		return out.Send(&runtimeapi.StreamContainersResponse{Containers: part})
	})
}

func (c *containers) list(f *runtimeapi.ContainerFilter) []*runtimeapi.Container {
	return filterContainers(c.db.Containers(), f, c.cfg.BootID)
}

// filterContainers returns the containers that pass f, as the CRI lists them.
// ID filters match by prefix. Pure.
func filterContainers(all []store.Container, f *runtimeapi.ContainerFilter, bootID string) []*runtimeapi.Container {
	out := make([]*runtimeapi.Container, 0, len(all))
	for _, rec := range all {
		st := containerState(rec, bootID)
		switch {
		case !strings.HasPrefix(rec.ID, f.GetId()),
			!strings.HasPrefix(rec.SandboxID, f.GetPodSandboxId()),
			f.GetState() != nil && f.GetState().GetState() != st,
			!hasLabels(rec.Config.GetLabels(), f.GetLabelSelector()):
			continue
		}
		out = append(out, &runtimeapi.Container{
			Id: rec.ID, PodSandboxId: rec.SandboxID, Metadata: rec.Config.GetMetadata(),
			Image: rec.Config.GetImage(), ImageRef: rec.Facts.Image.Ref, ImageId: rec.Facts.Image.ID,
			State: st, CreatedAt: stamp(rec.Facts.CreatedAt),
			Labels: rec.Config.GetLabels(), Annotations: rec.Config.GetAnnotations(),
		})
	}
	return out
}

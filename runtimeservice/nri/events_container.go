package nri

import (
	"context"
	"strings"

	"github.com/containerd/nri/pkg/adaptation"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-dev/berth/store"
)

// podOf returns the pod of a container as plugins see it.
func (m *Manager) podOf(id string) *adaptation.PodSandbox {
	rec, err := m.db.Sandbox(id)
	if err != nil {
		return &adaptation.PodSandbox{Id: id}
	}
	return podMessage(rec)
}

func (m *Manager) container(rec store.Container) *adaptation.Container {
	return containerMessage(rec, m.storedSpec(rec.ID), m.cfg.BootID)
}

// CreateContainer asks plugins what to change in the specification of a
// container that is about to be made, and does at once what they want of
// others. It returns nil when nobody was asked. An error refuses the container;
// UndoContainer must follow. doc must not be written to afterwards.
func (m *Manager) CreateContainer(ctx context.Context, rec store.Container, doc *specs.Spec) (*adaptation.ContainerAdjustment, error) {
	if m == nil {
		return nil, nil
	}
	ctx, evictions := withEvictions(ctx)
	out, err := m.askCreate(ctx, rec, doc)
	if err != nil || out == nil {
		return nil, refused("the container be made", err)
	}
	m.evictAll(ctx, evictions.list())
	return out.GetAdjust(), m.updateOthers(ctx, out.GetUpdate(), "creation of "+rec.ID)
}

func (m *Manager) askCreate(ctx context.Context, rec store.Container, doc *specs.Spec) (*adaptation.CreateContainerResponse, error) {
	defer m.block().Unblock()
	m.view.addContainer(rec, doc)
	if m.none() {
		return nil, nil
	}
	msg := containerMessage(rec, doc, m.cfg.BootID)
	out, err := m.a.CreateContainer(ctx, &adaptation.CreateContainerRequest{Pod: m.podOf(rec.SandboxID), Container: msg})
	if err == nil {
		addRemovals(out.GetAdjust(), doc, msg)
	}
	return out, err
}

// addRemovals adds the removals of variables and devices to an adjustment. The
// library leaves them out, but takes what was removed from the message that
// one plugin after another got.
func addRemovals(a *adaptation.ContainerAdjustment, before *specs.Spec, after *adaptation.Container) {
	have := map[string]bool{}
	for _, e := range after.GetEnv() {
		name, _, _ := strings.Cut(e, "=")
		have[name] = true
	}
	if before.Process != nil {
		for _, e := range before.Process.Env {
			if name, _, _ := strings.Cut(e, "="); !have[name] {
				a.Env = append(a.Env, &adaptation.KeyValue{Key: adaptation.MarkForRemoval(name)})
			}
		}
	}
	clear(have)
	for _, d := range after.GetLinux().GetDevices() {
		have[d.GetPath()] = true
	}
	if before.Linux != nil {
		for _, d := range before.Linux.Devices {
			if !have[d.Path] {
				a.Linux.Devices = append(a.Linux.Devices, &adaptation.LinuxDevice{Path: adaptation.MarkForRemoval(d.Path)})
			}
		}
	}
}

// Adjusted says with which specification the container will be made. It must
// not be written to afterwards.
func (m *Manager) Adjusted(id string, doc *specs.Spec) {
	if m != nil {
		m.view.adjusted(id, doc)
	}
}

// ContainerCreated tells plugins of a container whose record is committed.
func (m *Manager) ContainerCreated(ctx context.Context, rec store.Container) {
	if m == nil {
		return
	}
	defer m.block().Unblock()
	m.view.committed(rec.ID)
	if m.none() {
		return
	}
	m.ignored("PostCreateContainer", rec.ID, m.a.PostCreateContainer(ctx, &adaptation.PostCreateContainerRequest{
		Pod: m.podOf(rec.SandboxID), Container: m.container(rec),
	}))
}

// UndoContainer takes CreateContainer back. A container that plugins do not
// know is left alone.
func (m *Manager) UndoContainer(ctx context.Context, id string) {
	if m == nil {
		return
	}
	defer m.block().Unblock()
	stop := m.view.stopContainer(id)
	p, known := m.view.removeContainer(id)
	if !known || p == nil || m.none() {
		return
	}
	pod, msg := m.podOf(p.rec.SandboxID), containerMessage(p.rec, p.spec, m.cfg.BootID)
	msg.State = adaptation.ContainerState_CONTAINER_STOPPED
	if stop {
		m.tellStop(ctx, pod, msg)
	}
	m.ignored("RemoveContainer", id, m.a.RemoveContainer(ctx, &adaptation.RemoveContainerRequest{Pod: pod, Container: msg}))
}

// StartContainer tells plugins that a container is about to start. An error of
// theirs refuses that.
func (m *Manager) StartContainer(ctx context.Context, rec store.Container) error {
	if m == nil {
		return nil
	}
	defer m.block().Unblock()
	if m.none() {
		return nil
	}
	return refused("the container start", m.a.StartContainer(ctx, &adaptation.StartContainerRequest{
		Pod: m.podOf(rec.SandboxID), Container: m.container(rec),
	}))
}

// ContainerStarted tells plugins that it has, unless it has ended already.
func (m *Manager) ContainerStarted(ctx context.Context, rec store.Container) {
	if m == nil {
		return
	}
	defer m.block().Unblock()
	if m.none() || !m.view.running(rec.ID) {
		return
	}
	m.ignored("PostStartContainer", rec.ID, m.a.PostStartContainer(ctx, &adaptation.PostStartContainerRequest{
		Pod: m.podOf(rec.SandboxID), Container: m.container(rec),
	}))
}

// UpdateContainer asks plugins about a change of resources and does at once
// what they want of other containers. It returns the change to make: the
// client's when nobody was asked. An error refuses the change.
func (m *Manager) UpdateContainer(ctx context.Context, rec store.Container, asked *runtimeapi.LinuxContainerResources) (Resources, error) {
	if m == nil {
		return Resources{CRI: asked}, nil
	}
	ctx, evictions := withEvictions(ctx)
	out, err := m.askUpdate(ctx, rec, asked)
	if err != nil || out == nil {
		return Resources{CRI: asked}, refused("the container's resources change", err)
	}
	m.evictAll(ctx, evictions.list())
	// The library puts the container itself last, nil when no plugin changed it.
	own, others := splitUpdates(rec.ID, out.GetUpdate())
	if err := m.updateOthers(ctx, others, "update of "+rec.ID); err != nil || own == nil {
		return Resources{CRI: asked}, err
	}
	return changedResources(asked, own.GetLinux().GetResources())
}

func (m *Manager) askUpdate(ctx context.Context, rec store.Container, asked *runtimeapi.LinuxContainerResources) (*adaptation.UpdateContainerResponse, error) {
	defer m.block().Unblock()
	if m.none() {
		return nil, nil
	}
	return m.a.UpdateContainer(ctx, &adaptation.UpdateContainerRequest{
		Pod: m.podOf(rec.SandboxID), Container: m.container(rec), LinuxResources: fromCRI(asked),
	})
}

func splitUpdates(id string, all []*adaptation.ContainerUpdate) (own *adaptation.ContainerUpdate, others []*adaptation.ContainerUpdate) {
	for _, u := range all {
		switch {
		case u == nil:
		case u.GetContainerId() == id:
			own = u
		default:
			others = append(others, u)
		}
	}
	return own, others
}

// ContainerUpdated tells plugins that the container has its new resources.
func (m *Manager) ContainerUpdated(ctx context.Context, rec store.Container) {
	if m == nil {
		return
	}
	defer m.block().Unblock()
	if m.none() {
		return
	}
	m.ignored("PostUpdateContainer", rec.ID, m.a.PostUpdateContainer(ctx, &adaptation.PostUpdateContainerRequest{
		Pod: m.podOf(rec.SandboxID), Container: m.container(rec),
	}))
}

// ContainerStopped tells plugins, once, that a container has ended, however
// that came. What they want of others is done in the background.
func (m *Manager) ContainerStopped(ctx context.Context, rec store.Container) {
	if m == nil {
		return
	}
	defer m.block().Unblock()
	if !m.view.stopContainer(rec.ID) || m.none() {
		return
	}
	m.tellStop(ctx, m.podOf(rec.SandboxID), m.container(rec))
}

func (m *Manager) tellStop(ctx context.Context, pod *adaptation.PodSandbox, msg *adaptation.Container) {
	out, err := m.a.StopContainer(ctx, &adaptation.StopContainerRequest{Pod: pod, Container: msg})
	if err != nil {
		m.ignored("StopContainer", msg.GetId(), err)
		return
	}
	if updates := out.GetUpdate(); len(updates) > 0 {
		m.jobs.add(func() { m.applyAll(updates, "end of "+msg.GetId()) })
	}
}

// RemoveContainer tells plugins that a container goes.
func (m *Manager) RemoveContainer(ctx context.Context, rec store.Container) {
	if m == nil {
		return
	}
	defer m.block().Unblock()
	stop := m.view.stopContainer(rec.ID)
	if _, known := m.view.removeContainer(rec.ID); !known || m.none() {
		return
	}
	pod, msg := m.podOf(rec.SandboxID), m.container(rec)
	if stop {
		m.tellStop(ctx, pod, msg)
	}
	m.ignored("RemoveContainer", rec.ID, m.a.RemoveContainer(ctx, &adaptation.RemoveContainerRequest{Pod: pod, Container: msg}))
}

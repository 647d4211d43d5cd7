package nri

import (
	"context"
	"errors"
	"fmt"

	"github.com/containerd/errdefs"
	"github.com/containerd/nri/pkg/adaptation"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-dev/berth/store"
)

// block keeps plugins from joining until it is lifted. It must not be held
// while waiting for anything but plugins.
func (m *Manager) block() *adaptation.PluginSyncBlock {
	<-m.ready
	return m.a.BlockPluginSync()
}

// Connected is the number of plugins.
func (m *Manager) Connected() int {
	if m == nil {
		return 0
	}
	return int(m.count.Load())
}

// none reports that nobody has to be told. Only under a sync block does that
// stay true.
func (m *Manager) none() bool { return m.count.Load() == 0 }

// refused is the error of a plugin that does not let the node go on. What the
// plugin answered is text: its code is not the node's.
func refused(what string, err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return fmt.Errorf("ask plugins to let %s: %w", what, err)
	}
	return fmt.Errorf("a plugin does not let %s: %v: %w", what, err, errdefs.ErrFailedPrecondition)
}

// ignored logs an error that a plugin answered to news it cannot change.
func (m *Manager) ignored(event, id string, err error) {
	if err != nil {
		m.cfg.Logger.Warn("a plugin could not handle an event; the node goes on", "event", event, "id", id, "error", err)
	}
}

// RunPod tells plugins of a pod that is complete, before anybody else can see
// it. An error of theirs refuses the pod; UndoPod must follow.
func (m *Manager) RunPod(ctx context.Context, pod store.Sandbox) error {
	if m == nil {
		return nil
	}
	defer m.block().Unblock()
	m.view.addPod(pod)
	if m.none() {
		return nil
	}
	return refused("the pod run", m.a.RunPodSandbox(ctx, &adaptation.RunPodSandboxRequest{Pod: podMessage(pod)}))
}

// UndoPod takes RunPod back. A pod that plugins do not know is left alone.
func (m *Manager) UndoPod(ctx context.Context, id string) {
	if m == nil {
		return
	}
	defer m.block().Unblock()
	stop := m.view.stopPod(id)
	rec, known := m.view.removePod(id)
	if !known || rec == nil || m.none() {
		return
	}
	msg := podMessage(*rec)
	if stop {
		m.ignored("StopPodSandbox", id, m.a.StopPodSandbox(ctx, &adaptation.StopPodSandboxRequest{Pod: msg}))
	}
	m.ignored("RemovePodSandbox", id, m.a.RemovePodSandbox(ctx, &adaptation.RemovePodSandboxRequest{Pod: msg}))
}

// StopPod tells plugins, once, that a pod is being stopped; its containers have
// ended, its network is still there.
func (m *Manager) StopPod(ctx context.Context, pod store.Sandbox) {
	if m == nil {
		return
	}
	defer m.block().Unblock()
	if !m.view.stopPod(pod.ID) || m.none() {
		return
	}
	m.ignored("StopPodSandbox", pod.ID, m.a.StopPodSandbox(ctx, &adaptation.StopPodSandboxRequest{Pod: podMessage(pod)}))
}

// RemovePod tells plugins that a pod goes.
func (m *Manager) RemovePod(ctx context.Context, pod store.Sandbox) {
	if m == nil {
		return
	}
	defer m.block().Unblock()
	if _, known := m.view.removePod(pod.ID); !known || m.none() {
		return
	}
	m.ignored("RemovePodSandbox", pod.ID, m.a.RemovePodSandbox(ctx, &adaptation.RemovePodSandboxRequest{Pod: podMessage(pod)}))
}

// UpdatePod tells plugins that a pod is to get other resources. An error of
// theirs refuses the change.
func (m *Manager) UpdatePod(ctx context.Context, pod store.Sandbox, overhead, resources *runtimeapi.LinuxContainerResources) error {
	if m == nil {
		return nil
	}
	defer m.block().Unblock()
	if m.none() {
		return nil
	}
	_, err := m.a.UpdatePodSandbox(ctx, &adaptation.UpdatePodSandboxRequest{
		Pod: podMessage(pod), OverheadLinuxResources: fromCRI(overhead), LinuxResources: fromCRI(resources),
	})
	return refused("the pod's resources change", err)
}

// PodUpdated tells plugins that the pod has them.
func (m *Manager) PodUpdated(ctx context.Context, pod store.Sandbox) {
	if m == nil {
		return
	}
	defer m.block().Unblock()
	if m.none() {
		return
	}
	m.ignored("PostUpdatePodSandbox", pod.ID, m.a.PostUpdatePodSandbox(ctx, &adaptation.PostUpdatePodSandboxRequest{Pod: podMessage(pod)}))
}

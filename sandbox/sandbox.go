// Package sandbox makes, stops and removes pod sandboxes as journaled steps.
package sandbox

import (
	"context"

	"github.com/containerd/errdefs"

	"github.com/berth-dev/berth/store"
)

// Manager runs the verbs on sandboxes. The caller serialises verbs per sandbox.
type Manager struct{}

// Run builds the sandbox (rec has ID, Handler and Config set; Facts are filled
// in), commits and returns the record. On an error nothing is left.
func (m *Manager) Run(ctx context.Context, rec store.Sandbox) (store.Sandbox, error) {
	return store.Sandbox{}, errdefs.ErrNotImplemented
}

// Stop releases network, holder and namespaces and marks the record stopped.
// Idempotent. The caller has stopped the containers.
func (m *Manager) Stop(ctx context.Context, id string) error { return errdefs.ErrNotImplemented }

// Remove deletes files, cgroup and record of a stopped sandbox. Idempotent.
func (m *Manager) Remove(ctx context.Context, id string) error { return errdefs.ErrNotImplemented }

// Recover finishes or undoes what an earlier daemon left half done, then
// reconciles the sandboxes with what the kernel has.
func (m *Manager) Recover(ctx context.Context) error { return errdefs.ErrNotImplemented }

// NetworkReady reports whether pods can be attached, and why not.
func (m *Manager) NetworkReady(ctx context.Context) error { return errdefs.ErrNotImplemented }

// Files are the paths that a sandbox offers its containers for mounting.
type Files struct {
	Hostname   string // /etc/hostname
	Hosts      string // /etc/hosts, for clients that mount none
	ResolvConf string // /etc/resolv.conf
	Shm        string // /dev/shm; the node's for host IPC
}

// Files returns the paths for a sandbox. Pure: it does not look at the disk.
func (m *Manager) Files(s store.Sandbox) Files { return Files{} }

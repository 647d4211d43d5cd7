package cni

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/version"
)

// pluginStatus is the outcome of the last STATUS poll of a network.
type pluginStatus struct {
	stamp   string // configuration it is about
	at      time.Time
	err     error
	polling chan struct{} // closed when the poll under way ends; nil: none
}

// Status reports whether pods can be attached: nil, or an Unavailable error
// that names the file and the remedy. It looks at the disk but does not wait for
// a plugin longer than ctx allows, except for the very first poll of a network,
// which may take Config.StatusTimeout; later polls run in the background.
func (m *Manager) Status(ctx context.Context) error {
	snap := m.current()
	list, err := snap.usable(m.cfg.ConfDir)
	if err != nil {
		return err
	}
	for _, p := range list.Plugins {
		if _, err := m.exec.FindInPath(p.Network.Type, m.cfg.BinDirs); err != nil {
			return fmt.Errorf("network %q of %s: %w: %w", list.Name, snap.file, errdefs.ErrUnavailable, err)
		}
	}
	if ok, err := version.GreaterThanOrEqualTo(list.CNIVersion, "1.1.0"); err != nil || !ok {
		return nil // STATUS came with 1.1.0
	}
	if err := m.polled(ctx, snap.stamp, list); err != nil {
		return fmt.Errorf("network %q of %s is not ready: %w: %w", list.Name, snap.file, errdefs.ErrUnavailable, err)
	}
	return nil
}

// polled returns what the plugins last said about themselves, and starts a new
// poll when that is old.
func (m *Manager) polled(ctx context.Context, stamp string, list *libcni.NetworkConfigList) error {
	m.mu.Lock()
	s := &m.status
	known := s.stamp == stamp && !s.at.IsZero()
	if s.polling == nil && (!known || time.Since(s.at) > statusMaxAge) {
		s.polling = make(chan struct{})
		go m.poll(stamp, list, s.polling)
	}
	done, err := s.polling, s.err
	m.mu.Unlock()
	if known {
		return err
	}
	select {
	case <-done:
	case <-ctx.Done():
		return fmt.Errorf("waiting for the plugins' status: %w", ctx.Err())
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.status.err
}

func (m *Manager) poll(stamp string, list *libcni.NetworkConfigList, done chan struct{}) {
	ctx, cancel := context.WithTimeout(context.Background(), m.cfg.StatusTimeout)
	defer cancel()
	err := m.lib.GetStatusNetworkList(ctx, list)
	if errors.Is(err, context.DeadlineExceeded) {
		err = fmt.Errorf("plugins gave no status within %v: %w", m.cfg.StatusTimeout, err)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.status = pluginStatus{stamp: stamp, at: time.Now(), err: err}
	close(done)
}

package cni

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/version"
)

const (
	// settle is how long a directory may go on changing before it is looked at.
	settle = 50 * time.Millisecond
	// firstWait bounds how long somebody waits for the very first look.
	firstWait = time.Second
)

// directory is one configuration directory: the network it gives pods, and
// whether that network can be used, as last found out.
type directory struct {
	path     string
	fallback *libcni.NetworkConfigList // while no file gives a network; nil: none
	m        *Manager
	open     func() (*watcher, error)
	first    chan struct{} // closed when state is known

	mu       sync.Mutex
	loaded   snapshot
	state    NetworkState
	err      error
	checking bool
	again    bool // something happened during the check under way
}

func newDirectory(m *Manager, path string, fallback *libcni.NetworkConfigList) *directory {
	return &directory{path: path, fallback: fallback, m: m, open: newWatcher, first: make(chan struct{})}
}

// empty tells that nobody has configured a network. A file that cannot be read
// is somebody's wish for another one than the built-in; it does not take the
// built-in from pods that have it, but does not give it to any either.
func (s snapshot) empty() bool {
	return s.network == nil && len(s.problems) == 0 && (s.dirErr == nil || errors.Is(s.dirErr, fs.ErrNotExist))
}

// current returns the configuration, read anew when the directory changed.
// Looking costs one directory listing.
func (d *directory) current() snapshot {
	stamp := dirStamp(d.path)
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.loaded.stamp == stamp {
		return d.loaded
	}
	next := load(d.path)
	next.stamp = stamp
	next.keep(d.loaded)
	if d.fallback != nil && (next.empty() || next.network == nil && d.loaded.file == builtinFile) {
		next.network, next.file = d.fallback, builtinFile
	}
	d.loaded = next
	for _, p := range next.problems {
		d.m.cfg.Logger.Warn("network configuration ignored", "error", p)
	}
	if next.network != nil {
		d.m.cfg.Logger.Info("network configuration loaded", "network", next.network.Name, "file", next.file)
	} else {
		d.m.cfg.Logger.Warn("no network for pods", "directory", d.path)
	}
	return next
}

// follow looks at the directory whenever something happens to it, and once in
// relist in any case: that is what helps where no event is seen.
func (d *directory) follow(ctx context.Context, relist time.Duration) {
	tick := time.NewTicker(relist)
	defer tick.Stop()
	events := make(chan error, 1)
	var w *watcher
	var running sync.WaitGroup
	defer running.Wait()
	defer func() {
		if w != nil {
			_ = w.Close()
		}
	}()
	for {
		if w == nil {
			if w = d.watch(); w != nil {
				running.Go(func() { report(ctx, w, events) })
			}
		}
		if w != nil {
			if err := w.aim(d.path); err != nil {
				d.m.cfg.Logger.Warn("network configuration is not watched, it is looked at now and then", "error", err)
			}
		}
		d.look()
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		case err := <-events:
			if err != nil {
				_ = w.Close()
				w = nil
			}
			sleep(ctx, settle)
		}
	}
}

func (d *directory) watch() *watcher {
	w, err := d.open()
	if err != nil {
		d.m.cfg.Logger.Warn("network configuration is not watched, it is looked at now and then", "error", err)
		return nil
	}
	return w
}

// report passes events on until the watcher ends, with the reason as the last one.
func report(ctx context.Context, w *watcher, events chan<- error) {
	for {
		err := w.wait()
		select {
		case events <- err:
		case <-ctx.Done():
			return
		}
		if err != nil {
			return
		}
	}
}

func sleep(ctx context.Context, d time.Duration) {
	select {
	case <-time.After(d):
	case <-ctx.Done():
	}
}

// look starts a check, or has the one under way repeated.
func (d *directory) look() {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.checking {
		d.again = true
		return
	}
	d.checking = true
	go d.check()
}

func (d *directory) check() {
	for {
		snap := d.current()
		list, err := snap.usable(d.path)
		if err == nil {
			err = d.m.usable(snap, list)
		}
		d.mu.Lock()
		d.settled(snap, err, time.Now())
		if !d.again {
			d.checking = false
			d.mu.Unlock()
			return
		}
		d.again = false
		d.mu.Unlock()
	}
}

// settled notes the outcome of a check. The caller holds the lock.
func (d *directory) settled(snap snapshot, err error, now time.Time) {
	first := d.state.Checked.IsZero()
	if first || (d.err == nil) != (err == nil) {
		d.state.Since = now
		if !first || err != nil {
			d.m.cfg.Logger.Info("network readiness changed", "directory", d.path, "ready", err == nil, "reason", err)
		}
	}
	d.err = err
	d.state = NetworkState{Dir: d.path, File: filepath.Base(snap.file), Ready: err == nil, Since: d.state.Since, Checked: now}
	if snap.network != nil {
		d.state.Network = snap.network.Name
	}
	if err != nil {
		d.state.Reason = err.Error()
	}
	for _, p := range snap.problems {
		d.state.Problems = append(d.state.Problems, p.Error())
	}
	if first {
		close(d.first)
	}
}

// status returns what is known, from memory. What is old is found out anew in
// the background.
func (d *directory) status(ctx context.Context) (NetworkState, error) {
	d.mu.Lock()
	old := time.Since(d.state.Checked) > d.m.cfg.Pace.Poll
	d.mu.Unlock()
	if old {
		d.look()
	}
	select {
	case <-d.first:
	case <-time.After(firstWait):
		return NetworkState{Dir: d.path}, fmt.Errorf("the network plugins have not said yet whether they are ready: %w", errdefs.ErrUnavailable)
	case <-ctx.Done():
		return NetworkState{Dir: d.path}, fmt.Errorf("wait for the network plugins' status: %w: %w", errdefs.ErrUnavailable, ctx.Err())
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.state, d.err
}

// usable asks the plugins of a network whether pods can be attached: nil, or an
// Unavailable error that names the file, the plugin and the remedy.
func (m *Manager) usable(snap snapshot, list *libcni.NetworkConfigList) error {
	for _, p := range list.Plugins {
		if _, err := m.exec.FindInPath(p.Network.Type, m.cfg.BinDirs); err != nil {
			return fmt.Errorf("network %q of %s: %w: %w", list.Name, snap.file, errdefs.ErrUnavailable, err)
		}
	}
	if ok, err := version.GreaterThanOrEqualTo(list.CNIVersion, "1.1.0"); err != nil || !ok {
		return nil // STATUS came with 1.1.0
	}
	ctx, cancel := context.WithTimeout(m.ctx, m.cfg.Pace.Status)
	defer cancel()
	err := m.lib.GetStatusNetworkList(ctx, list)
	if err == nil {
		return nil
	}
	if errors.Is(err, context.DeadlineExceeded) {
		err = fmt.Errorf("plugins gave no status within %v: %w", m.cfg.Pace.Status, err)
	}
	return fmt.Errorf("network %q of %s is not ready: %w: %w", list.Name, snap.file, errdefs.ErrUnavailable, err)
}

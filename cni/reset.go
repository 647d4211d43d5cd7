package cni

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/berth-dev/berth/cni/builtin"
)

// The built-in network is the only one that Berth itself has brought to a node,
// so it can also take it away. Before its first pod of each boot it is noted what
// the node was like. A lock on a file keeps a reset, which is another process's,
// apart from the daemon.
const (
	footprintPrefix = "built-in-"
	footprintLock   = "built-in.lock"
)

// footprint is the note of one built-in network.
type footprint struct {
	builtin.Footprint
	Network string `json:"network"`
	BootID  string `json:"bootID"`
	DataDir string `json:"dataDir"` // for addresses in use
}

func (d Default) name() string { return "berth-" + d.Bridge }

// marked runs note, the noting of an attachment to the built-in network, once
// it is known how to take that network away again.
func (m *Manager) marked(ctx context.Context, note func() error) error {
	lock, err := lockFootprint(ctx, m.cfg.CacheDir, unix.LOCK_SH)
	if err != nil {
		return err
	}
	defer lock.Close()
	m.survey.Lock()
	err = m.noteFootprint()
	m.survey.Unlock()
	if err != nil {
		return err
	}
	return note()
}

func (m *Manager) noteFootprint() error {
	d := m.cfg.Default
	path := filepath.Join(m.cfg.CacheDir, footprintPrefix+d.Bridge+".json")
	boot, err := bootID()
	if err != nil {
		return err
	}
	if old, err := readFootprint(path); err == nil && old.BootID == boot {
		return nil
	}
	seen, err := builtin.Survey(d.Bridge)
	if err != nil {
		return fmt.Errorf("note what the node is like without the built-in network: %w", err)
	}
	b, err := json.Marshal(footprint{seen, d.name(), boot, d.DataDir})
	if err == nil {
		err = replace(path, b, 0o600)
	}
	if err != nil {
		return fmt.Errorf("note what the node is like without the built-in network: %w", err)
	}
	return nil
}

func bootID() (string, error) {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "", fmt.Errorf("read boot ID: %w", err)
	}
	return strings.TrimSpace(string(b)), nil
}

func readFootprint(path string) (f footprint, err error) {
	b, err := os.ReadFile(path)
	if err == nil {
		err = json.Unmarshal(b, &f)
	}
	return f, err
}

func lockFootprint(ctx context.Context, dir string, how int) (*os.File, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("lock the built-in network: %w", err)
	}
	f, err := os.OpenFile(filepath.Join(dir, footprintLock), os.O_CREATE|os.O_RDONLY, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock the built-in network: %w", err)
	}
	for {
		err := unix.Flock(int(f.Fd()), how|unix.LOCK_NB)
		if err == nil {
			return f, nil
		}
		if !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR) {
			return nil, errors.Join(fmt.Errorf("lock the built-in network: %w", err), f.Close())
		}
		select {
		case <-time.After(5 * time.Millisecond):
		case <-ctx.Done():
			return nil, errors.Join(fmt.Errorf("lock the built-in network: %w: %w", errdefs.ErrUnavailable, context.Cause(ctx)), f.Close())
		}
	}
}

// ResetBuiltin removes the built-in networks that a daemon with this cache
// directory has set up: bridges, packet filter rules, addresses, and forwarding
// where it was off before. It returns what it has done, one line each. While pods
// are attached it fails with FailedPrecondition and changes nothing. The next pod
// brings the network back.
func ResetBuiltin(ctx context.Context, cacheDir string) (done []string, err error) {
	if _, err := os.Stat(cacheDir); errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	lock, err := lockFootprint(ctx, cacheDir, unix.LOCK_EX)
	if err != nil {
		return nil, err
	}
	defer lock.Close()
	notes, err := filepath.Glob(filepath.Join(cacheDir, footprintPrefix+"*.json"))
	if err != nil {
		return nil, err
	}
	boot, err := bootID()
	if err != nil {
		return nil, err
	}
	all := make([]footprint, len(notes))
	for i, path := range notes {
		if all[i], err = readFootprint(path); err != nil {
			return nil, fmt.Errorf("read what the node was like before %s: %w", path, err)
		}
		if err := unattached(cacheDir, all[i].Network); err != nil {
			return nil, err
		}
	}
	for i, f := range all {
		if f.BootID == boot { // else the reboot has done it
			did, err := f.Erase(f.Network)
			done = append(done, did...)
			if err != nil {
				return done, fmt.Errorf("remove network %q: %w", f.Network, err)
			}
		}
		if err := os.RemoveAll(filepath.Join(f.DataDir, f.Network)); err != nil {
			return done, fmt.Errorf("remove addresses of network %q: %w", f.Network, err)
		}
		if err := os.Remove(notes[i]); err != nil {
			return done, fmt.Errorf("remove network %q: %w", f.Network, err)
		}
	}
	return done, nil
}

// unattached reports the pods of a network. A note that cannot be read may be
// about it.
func unattached(cacheDir, network string) error {
	m := &Manager{cfg: Config{CacheDir: cacheDir}}
	ids, err := m.Owed()
	if err != nil {
		return err
	}
	ids = slices.DeleteFunc(ids, func(id string) bool {
		list, _, err := m.readIntent(id)
		return err == nil && (list == nil || list.Name != network)
	})
	if len(ids) > 0 {
		return fmt.Errorf("%d pods are attached to network %q, among them sandbox %s: remove them first: %w",
			len(ids), network, ids[0], errdefs.ErrFailedPrecondition)
	}
	return nil
}

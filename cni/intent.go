package cni

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/containernetworking/cni/libcni"
)

// intent is written before the first plugin of an attach runs and removed when
// a detach has succeeded: while it exists, a detach is owed, to exactly this
// network with exactly these arguments. It has to outlive the daemon, not the
// power: pods do not either, and where a note is lost with it, the cached result
// or the current network serves (see owed), and garbage collection.
type intent struct {
	Network    json.RawMessage   // the network configuration list
	Plugins    []json.RawMessage // its plugins, those from separate files included
	Args       [][2]string
	Capability map[string]any
}

func (m *Manager) intentPath(sandboxID string) string {
	return filepath.Join(m.cfg.CacheDir, "intents", sandboxID)
}

func (m *Manager) writeIntent(list *libcni.NetworkConfigList, rt *libcni.RuntimeConf) error {
	in := intent{Network: list.Bytes, Args: rt.Args, Capability: rt.CapabilityArgs}
	for _, p := range list.Plugins {
		in.Plugins = append(in.Plugins, p.Bytes)
	}
	b, err := json.Marshal(in)
	if err != nil {
		return fmt.Errorf("note network attachment: %w", err)
	}
	path := m.intentPath(rt.ContainerID)
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return fmt.Errorf("note network attachment: %w", err)
	}
	if err := replace(path, b, 0o600); err != nil {
		return fmt.Errorf("note network attachment: %w", err)
	}
	return nil
}

// halfWritten begins the names of files that are being written.
const halfWritten = ".berth-new-"

// replace writes a file so that whoever reads it after a crash of the daemon
// finds it whole or not at all.
func replace(path string, b []byte, mode fs.FileMode) error {
	f, err := os.CreateTemp(filepath.Dir(path), halfWritten)
	if err != nil {
		return err
	}
	defer func() { _ = os.Remove(f.Name()) }() // gone once renamed
	_, err = f.Write(b)
	if err := errors.Join(err, f.Chmod(mode), f.Close()); err != nil {
		return err
	}
	return os.Rename(f.Name(), path)
}

// readIntent returns the network a detach is owed to and the capability
// arguments of the attach; nil when none is owed.
func (m *Manager) readIntent(sandboxID string) (*libcni.NetworkConfigList, *intent, error) {
	b, err := os.ReadFile(m.intentPath(sandboxID))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil, nil
	}
	if err != nil {
		return nil, nil, fmt.Errorf("read noted network attachment: %w", err)
	}
	var in intent
	if err := json.Unmarshal(b, &in); err != nil {
		return nil, nil, fmt.Errorf("read noted network attachment %s: %w", m.intentPath(sandboxID), err)
	}
	list, err := libcni.NetworkConfFromBytes(in.Network)
	if err != nil {
		return nil, nil, fmt.Errorf("read noted network attachment %s: %w", m.intentPath(sandboxID), err)
	}
	list.Plugins = nil
	for _, p := range in.Plugins {
		conf, err := libcni.NetworkPluginConfFromBytes(p)
		if err != nil {
			return nil, nil, fmt.Errorf("read noted network attachment %s: %w", m.intentPath(sandboxID), err)
		}
		list.Plugins = append(list.Plugins, conf)
	}
	return list, &in, nil
}

func (m *Manager) dropIntent(sandboxID string) error {
	if err := os.Remove(m.intentPath(sandboxID)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("forget network attachment: %w", err)
	}
	return nil
}

// sweepHalves deletes what a daemon was writing when it died: notes, whose
// plugins never ran, and a network configuration made of the template. It must
// not run beside an attach.
func (m *Manager) sweepHalves() error {
	var errs []error
	for _, dir := range []string{m.cfg.CacheDir, m.intentPath(""), m.cfg.ConfDir} {
		entries, err := os.ReadDir(dir)
		if !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
		for _, e := range entries {
			if strings.HasPrefix(e.Name(), halfWritten) {
				errs = append(errs, os.Remove(filepath.Join(dir, e.Name())))
			}
		}
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("delete half written files of networks: %w", err)
	}
	return nil
}

// Owed returns the sandboxes that a detach is owed for.
func (m *Manager) Owed() ([]string, error) {
	entries, err := os.ReadDir(filepath.Join(m.cfg.CacheDir, "intents"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("list noted network attachments: %w", err)
	}
	var ids []string
	for _, e := range entries {
		if !strings.HasPrefix(e.Name(), ".") { // half written by a daemon that died
			ids = append(ids, e.Name())
		}
	}
	return ids, nil
}

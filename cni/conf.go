package cni

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/containernetworking/cni/libcni"
)

// snapshot is what the configuration directory held when it was read.
type snapshot struct {
	stamp    string // changes when the directory does
	network  *libcni.NetworkConfigList
	file     string  // that network comes from
	problems []error // bad files, by name
	dirErr   error   // the directory could not be read
}

// current returns the configuration, read anew when the directory changed.
// Looking costs one directory listing, so that a directory that was replaced,
// re-created or is a symbolic link needs no special care.
func (m *Manager) current() snapshot {
	stamp := dirStamp(m.cfg.ConfDir)
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.loaded.stamp == stamp && stamp != "" {
		return m.loaded
	}
	m.loaded = load(m.cfg.ConfDir)
	m.loaded.stamp = stamp
	if m.fallback != nil && m.loaded.empty() {
		m.loaded.network, m.loaded.file = m.fallback, builtinFile
	}
	for _, p := range m.loaded.problems {
		m.cfg.Logger.Warn("network configuration ignored", "error", p)
	}
	if m.loaded.network != nil {
		m.cfg.Logger.Info("network configuration loaded", "network", m.loaded.network.Name, "file", m.loaded.file)
	}
	return m.loaded
}

// empty tells that nobody has configured a network. A file that cannot be read
// is somebody's wish for another one than the built-in.
func (s snapshot) empty() bool {
	return s.network == nil && len(s.problems) == 0 && (s.dirErr == nil || errors.Is(s.dirErr, fs.ErrNotExist))
}

// dirStamp describes the files of a directory; it never is "".
func dirStamp(dir string) string {
	var b strings.Builder
	entries, err := os.ReadDir(dir)
	if err != nil {
		return "error: " + err.Error()
	}
	fmt.Fprintf(&b, "%d\n", len(entries))
	for _, e := range entries {
		st, err := os.Stat(filepath.Join(dir, e.Name()))
		if err != nil {
			fmt.Fprintf(&b, "%s %v\n", e.Name(), err)
			continue
		}
		fmt.Fprintf(&b, "%s %d %d\n", e.Name(), st.Size(), st.ModTime().UnixNano())
	}
	return b.String()
}

// load picks the first network, by file name, that can be read. Files that
// cannot are reported and do not stand in the way of others.
func load(dir string) snapshot {
	files, err := libcni.ConfFiles(dir, []string{".conf", ".conflist", ".json"})
	if err == nil && len(files) == 0 {
		_, err = os.Stat(dir)
	}
	s := snapshot{dirErr: err}
	slices.Sort(files)
	for _, file := range files {
		list, err := loadFile(file)
		if err != nil {
			s.problems = append(s.problems, fmt.Errorf("network configuration %s: %w", file, err))
			continue
		}
		if s.network == nil {
			s.network, s.file = list, file
		}
	}
	return s
}

// loadFile reads a list, or a single plugin's configuration as a list of one.
func loadFile(file string) (*libcni.NetworkConfigList, error) {
	if strings.HasSuffix(file, ".conflist") {
		list, err := libcni.NetworkConfFromFile(file)
		return checked(list, err)
	}
	conf, err := libcni.ConfFromFile(file)
	if err != nil {
		return nil, err
	}
	if conf.Network.Type == "" {
		return nil, errors.New("no plugin type; a list of plugins belongs in a file named .conflist")
	}
	return checked(libcni.ConfListFromConf(conf))
}

func checked(list *libcni.NetworkConfigList, err error) (*libcni.NetworkConfigList, error) {
	if err != nil {
		return nil, err
	}
	if list.Name == "" {
		return nil, errors.New("the network has no name")
	}
	for i, p := range list.Plugins {
		if p.Network.Type == "" {
			return nil, fmt.Errorf("plugin %d has no type", i)
		}
	}
	return list, nil
}

// usable returns the network, or an Unavailable error that names what is
// missing and the remedy.
func (s snapshot) usable(dir string) (*libcni.NetworkConfigList, error) {
	switch {
	case s.network != nil:
		return s.network, nil
	case errors.Is(s.dirErr, fs.ErrNotExist):
		return nil, fmt.Errorf("network configuration directory %s does not exist: "+
			"create it and put a CNI network configuration (a .conflist file) in it: %w", dir, errdefs.ErrUnavailable)
	case s.dirErr != nil:
		return nil, fmt.Errorf("network configuration directory: %w: %w", errdefs.ErrUnavailable, s.dirErr)
	case len(s.problems) > 0:
		return nil, fmt.Errorf("no usable network configuration in %s, correct the file: %w: %w",
			dir, errdefs.ErrUnavailable, errors.Join(s.problems...))
	}
	return nil, fmt.Errorf("no network configuration in %s: put one there, "+
		"usually by installing the cluster's CNI network; it is picked up without a restart: %w", dir, errdefs.ErrUnavailable)
}

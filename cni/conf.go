package cni

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/containerd/errdefs"
	"github.com/containernetworking/cni/libcni"
)

// snapshot is what the configuration directory held when it was read.
type snapshot struct {
	stamp    string // changes when the directory does
	network  *libcni.NetworkConfigList
	file     string   // that network comes from
	problems []error  // files that are not used although somebody may think so
	bad      []string // files that cannot be read
	dirErr   error    // the directory could not be read
}

// keep goes on with the network of before when its file is still there but
// cannot be read now: a file that is being written, or was spoilt, must not take
// a working network from the pods, nor give them another one by accident.
func (s *snapshot) keep(before snapshot) {
	if before.network == nil || before.file == s.file || !slices.Contains(s.bad, before.file) {
		return
	}
	s.network, s.file = before.network, before.file
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
		fmt.Fprintf(&b, "%s %d %d", e.Name(), st.Size(), st.ModTime().UnixNano())
		if sys, ok := st.Sys().(*syscall.Stat_t); ok { // copies that keep times and size
			fmt.Fprintf(&b, " %d %d", sys.Ino, sys.Ctim.Nano())
		}
		b.WriteByte('\n')
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
	names := map[string]string{}
	for _, file := range files {
		list, err := loadFile(file)
		if err != nil {
			s.problems = append(s.problems, fmt.Errorf("network configuration %s: %w", file, err))
			s.bad = append(s.bad, file)
			continue
		}
		if first, twice := names[list.Name]; twice {
			s.problems = append(s.problems, fmt.Errorf("network configuration %s: network %q is that of %s already", file, list.Name, first))
			continue
		}
		names[list.Name] = file
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

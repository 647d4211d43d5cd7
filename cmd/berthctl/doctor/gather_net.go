package doctor

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go/features"

	"github.com/berth-dev/berth/config"
)

// conf is what doctor reads of a CNI configuration, list or single plugin.
type conf struct {
	Name    string       `json:"name"`
	Type    string       `json:"type"`
	Plugins []pluginConf `json:"plugins"`
	pluginConf
}

type pluginConf struct {
	Type   string `json:"type"`
	Bridge string `json:"bridge"`
	IPAM   struct {
		Type    string `json:"type"`
		DataDir string `json:"dataDir"`
	} `json:"ipam"`
}

func (c conf) plugins() []pluginConf {
	if len(c.Plugins) > 0 {
		return c.Plugins
	}
	p := c.pluginConf
	p.Type = c.Type
	return []pluginConf{p}
}

// confFiles lists the files that libcni would consider, by name.
func confFiles(dir string) (out []string) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil
	}
	for _, e := range entries {
		if slices.Contains([]string{".conflist", ".conf", ".json"}, filepath.Ext(e.Name())) {
			out = append(out, e.Name())
		}
	}
	return out
}

func readConf(path string) (c conf, err error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return c, err
	}
	return c, json.Unmarshal(b, &c)
}

func networkFacts(c config.Config) Network {
	n := Network{ConfDir: c.CNI.ConfDir, Files: confFiles(c.CNI.ConfDir), Default: c.Network.Default, BinDirs: c.CNI.BinDirs}
	if len(n.Files) == 0 {
		return n
	}
	n.Used = n.Files[0]
	list, err := readConf(filepath.Join(n.ConfDir, n.Used))
	switch {
	case err != nil:
		n.Error = filepath.Join(n.ConfDir, n.Used) + ": " + err.Error()
	case list.Name == "" || list.plugins()[0].Type == "":
		n.Error = filepath.Join(n.ConfDir, n.Used) + ": a network needs a name and plugins with types"
	}
	if n.Error != "" {
		return n
	}
	add := func(kind string) {
		if kind == "" || slices.ContainsFunc(n.Plugins, func(p Plugin) bool { return p.Type == kind }) {
			return
		}
		p := Plugin{Type: kind, Builtin: slices.Contains(c.Network.Builtin, kind)}
		for _, dir := range c.CNI.BinDirs {
			if path, err := exec.LookPath(filepath.Join(dir, kind)); err == nil {
				p.Path = path
				break
			}
		}
		n.Plugins = append(n.Plugins, p)
	}
	for _, p := range list.plugins() {
		add(p.Type)
		add(p.IPAM.Type)
	}
	return n
}

// featureNames lists the parts of `features` that checks look at.
func featureNames(out []byte) []string {
	var f features.Features
	if json.Unmarshal(out, &f) != nil {
		return nil
	}
	names := []string{"features"}
	if l := f.Linux; l != nil {
		for name, on := range map[string]bool{
			"seccomp":  l.Seccomp != nil && l.Seccomp.Enabled != nil && *l.Seccomp.Enabled,
			"apparmor": l.Apparmor != nil && l.Apparmor.Enabled != nil && *l.Apparmor.Enabled,
			"selinux":  l.Selinux != nil && l.Selinux.Enabled != nil && *l.Selinux.Enabled,
			"idmap": l.MountExtensions != nil && l.MountExtensions.IDMap != nil &&
				l.MountExtensions.IDMap.Enabled != nil && *l.MountExtensions.IDMap.Enabled,
		} {
			if on {
				names = append(names, name)
			}
		}
	}
	if slices.Contains(f.MountOptions, "rro") {
		names = append(names, "rro")
	}
	slices.Sort(names)
	return slices.DeleteFunc(names, func(n string) bool { return strings.TrimSpace(n) == "" })
}

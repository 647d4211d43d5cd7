package doctor

import (
	"context"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
)

// observe lists what carries Berth's mark. What can't be looked at is left out:
// without it nothing is called leaked.
func (n *Node) observe(ctx context.Context) []Thing {
	var out []Thing
	for _, look := range []func() []Thing{
		n.directories, n.mounts, func() []Thing { return cgroups("/sys/fs/cgroup") }, n.processes,
		n.leases, n.links, func() []Thing { return nftRules() }, func() []Thing { return iptablesRules(ctx) },
	} {
		out = append(out, look()...)
	}
	return out
}

// directories lists the entries that are named by an object.
func (n *Node) directories() []Thing {
	places := []struct {
		dir   string
		class Class
	}{
		{n.run("ns"), OfSandbox}, {n.run("sandboxes"), OfSandbox}, {n.root("sandboxes"), OfSandbox},
		{n.root("cni", "intents"), OfSandbox}, {n.root("cni", "results"), OfSandbox},
		{n.run("containers"), OfContainer}, {n.root("containers"), OfContainer},
	}
	for name := range n.Config.Runtime.Handlers {
		places = append(places, struct {
			dir   string
			class Class
		}{n.Config.RuntimeRoot(name), OfContainer})
	}
	var out []Thing
	for _, p := range places {
		entries, err := os.ReadDir(p.dir)
		if err != nil {
			continue
		}
		for _, e := range entries {
			if id := idInName(e.Name()); id != "" {
				path := filepath.Join(p.dir, e.Name())
				out = append(out, Thing{Kind: "directory", Name: path, Owner: id, Class: p.class, Remedy: "rm -r " + path})
			}
		}
	}
	return out
}

// idInName finds an ID in a file's name; libcni's results are named
// NETWORK-ID-INTERFACE.
func idInName(name string) string {
	for part := range strings.SplitSeq(name, "-") {
		if isID(part) {
			return part
		}
	}
	return ""
}

// mounts lists the mount points below Berth's directories that belong to an
// object.
func (n *Node) mounts() []Thing {
	var out []Thing
	for line := range strings.Lines(read("/proc/self/mountinfo")) {
		f := strings.Fields(line)
		if len(f) < 5 {
			continue
		}
		if t, ours := n.mount(f[4]); ours {
			out = append(out, t)
		}
	}
	return out
}

// mount judges a mount point by its place.
func (n *Node) mount(at string) (Thing, bool) {
	id := idIn(at)
	t := Thing{Kind: "mount", Name: at, Owner: id, Class: OfEither, Remedy: "umount " + at}
	switch {
	case id == "" || !strings.HasPrefix(at, n.run()+"/") && !strings.HasPrefix(at, n.root()+"/"):
		return t, false
	case strings.HasPrefix(at, n.run("ns")+"/"):
		t.Kind, t.Class = "namespace", OfSandbox
	case strings.HasPrefix(at, n.run("sandboxes")+"/"):
		t.Class = OfSandbox
	case strings.HasPrefix(at, n.run("containers", id, "rootfs")):
		t.Class = OfLive
	}
	return t, true
}

// cgroups lists the groups that are named by an object.
func cgroups(root string) []Thing {
	var out []Thing
	_ = filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.IsDir() {
			return nil
		}
		name := d.Name()
		scope, isScope := strings.CutPrefix(strings.TrimSuffix(name, ".scope"), "cri-berth-")
		switch {
		case isScope && isID(scope):
			out = append(out, Thing{Kind: "cgroup", Name: path, Owner: scope, Class: OfContainer, Shared: true, Remedy: "rmdir " + path})
		case isID(name):
			out = append(out, Thing{Kind: "cgroup", Name: path, Owner: name, Class: OfEither, Shared: true, Remedy: "rmdir " + path})
		case name == "init.scope" || strings.HasSuffix(name, ".service"):
			return fs.SkipDir
		}
		return nil
	})
	return out
}

// processes lists the shims and holders.
func (n *Node) processes() []Thing {
	var out []Thing
	procs, _ := filepath.Glob("/proc/[0-9]*")
	for _, p := range procs {
		pid := filepath.Base(p)
		cwd, _ := os.Readlink(p + "/cwd")
		args := strings.Split(strings.TrimSuffix(read(p+"/cmdline"), "\x00"), "\x00")
		t := Thing{Kind: "process", Name: fmt.Sprintf("%s (%s)", pid, read(p+"/comm")), Remedy: "kill -9 " + pid}
		if id, ours := strings.CutPrefix(cwd, n.run("containers")+"/"); ours && isID(id) {
			t.Owner, t.Class = id, OfLive
			out = append(out, t)
		} else if len(args) == 3 && args[1] == "holder" && isID(args[2]) {
			t.Owner, t.Class, t.Shared = args[2], OfSandbox, true
			out = append(out, t)
		}
	}
	return out
}

// confs reads the network configurations that pods may have been attached with:
// those of the directory, and those noted for pods that exist.
func (n *Node) confs() (out []conf) {
	for _, name := range confFiles(n.Config.CNI.ConfDir) {
		if c, err := readConf(filepath.Join(n.Config.CNI.ConfDir, name)); err == nil {
			out = append(out, c)
		}
	}
	if n.Config.Network.Default == "builtin" {
		p := pluginConf{Type: "bridge", Bridge: n.Config.Network.Bridge}
		p.IPAM.Type, p.IPAM.DataDir = "host-local", n.root("cni", "networks")
		out = append(out, conf{Name: "berth-" + p.Bridge, Plugins: []pluginConf{p}})
	}
	return out
}

// defaultLeases is where host-local keeps addresses unless told.
const defaultLeases = "/var/lib/cni/networks"

// leases lists the addresses that host-local holds for pods.
func (n *Node) leases() []Thing {
	var out []Thing
	for _, c := range n.confs() {
		for _, p := range c.plugins() {
			if p.IPAM.Type != "host-local" {
				continue
			}
			dir, shared := p.IPAM.DataDir, p.IPAM.DataDir != n.root("cni", "networks")
			if dir == "" {
				dir = defaultLeases
			}
			files, _ := filepath.Glob(filepath.Join(dir, c.Name, "*"))
			for _, f := range files {
				id, _, _ := strings.Cut(read(f), "\r\n")
				if isID(id) {
					out = append(out, Thing{Kind: "address", Name: f, Owner: id, Class: OfSandbox, Shared: shared, Remedy: "rm " + f})
				}
			}
		}
	}
	return out
}

// ruleOwner finds the ID in the comment of a packet filter rule: the whole
// comment, or after "id:"; long ones are cut off.
func ruleOwner(comment string) string {
	if isID(comment) {
		return comment
	}
	if m := regexp.MustCompile(`id: \\?"?([0-9a-f]{32,64})`).FindStringSubmatch(comment); m != nil {
		return m[1]
	}
	return ""
}

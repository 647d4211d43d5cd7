package image

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// Check reports what the images would have that the specification of the container
// does not allow. Destinations of mounts must be as Resolve makes them.
func Check(img *Image, spec *specs.Spec) error {
	return checkOn(img, spec, func(p string) bool {
		_, err := os.Lstat(p)
		return !errors.Is(err, fs.ErrNotExist)
	})
}

// checkOn is told which paths in /proc and /sys a node has.
func checkOn(img *Image, spec *specs.Spec, exists func(string) bool) error {
	c := &check{img: img, spec: spec, exists: exists}
	if err := c.all(); err != nil {
		return fmt.Errorf("the checkpoint is not restored: %w: %w", err, errdefs.ErrFailedPrecondition)
	}
	return nil
}

type check struct {
	img     *Image
	spec    *specs.Spec
	exists  func(path string) bool // on this node, in /proc or /sys
	caps    uint64                 // the specification's bounding set
	mounts  []Mount                // of the container
	points  map[string]*Mount      // the same by their paths
	filters *filters               // if there is a profile
}

func (c *check) all() error {
	p := c.spec.Process
	if p == nil || c.spec.Linux == nil || c.spec.Root == nil {
		return errors.New("the specification is not one of a Linux container")
	}
	if p.Capabilities != nil {
		set, err := capabilities(p.Capabilities.Bounding)
		if err != nil {
			return err
		}
		c.caps = set
	}
	for _, f := range []func() error{c.namespaces, c.tasks, c.allMounts, c.files, c.cgroups} {
		if err := f(); err != nil {
			return err
		}
	}
	return nil
}

// namespaces checks that all processes are in the same namespaces, which are the
// node's only where the specification says so.
func (c *check) namespaces() error {
	if len(c.img.Tasks) == 0 {
		return errors.New("there is no process")
	}
	first := c.img.Tasks[0]
	if first.Parent != 0 || first.Dead || first.Namespaces == nil {
		return fmt.Errorf("process %d is not the container's first", first.PID)
	}
	of := *first.Namespaces
	for _, t := range c.img.Tasks[1:] {
		if t.Parent == 0 {
			return fmt.Errorf("process %d has no parent", t.PID)
		}
		if t.Namespaces == nil && t.Dead {
			continue
		}
		if t.Namespaces == nil || *t.Namespaces != of {
			return fmt.Errorf("process %d is in namespaces of its own", t.PID)
		}
	}
	if len(c.img.Mounts) != 1 || c.img.Mounts[of.Mount] == nil {
		return errors.New("there are mounts of other namespaces than that of the processes")
	}
	node := c.img.Node
	for _, k := range []struct {
		kind     specs.LinuxNamespaceType
		own, his uint32
		must     bool
	}{
		{specs.MountNamespace, of.Mount, node.Mount, true},
		{specs.PIDNamespace, of.PID, node.PID, true},
		{specs.IPCNamespace, of.IPC, node.IPC, true},
		{specs.NetworkNamespace, of.Net, node.Net, false},
		{specs.UTSNamespace, of.UTS, node.UTS, false},
		{specs.UserNamespace, of.User, node.User, false},
	} {
		path, has := c.namespace(k.kind)
		if k.must && !has {
			return fmt.Errorf("a container in the node's %s namespace cannot be restored", k.kind)
		}
		if own := k.own != k.his; own != has || k.own == 0 || k.his == 0 {
			return fmt.Errorf("the %s namespace of the processes is %d, that of CRIU was %d", k.kind, k.own, k.his)
		}
		if err := c.external(k.kind, k.own, path, has); err != nil {
			return err
		}
	}
	if path, _ := c.namespace(specs.PIDNamespace); path == "" && first.PID != 1 {
		return fmt.Errorf("the first process of the PID namespace is %d", first.PID)
	}
	return c.userNamespace(of.User)
}

func (c *check) namespace(kind specs.LinuxNamespaceType) (path string, ok bool) {
	for _, n := range c.spec.Linux.Namespaces {
		if n.Type == kind {
			return n.Path, true
		}
	}
	return "", false
}

// external checks that a namespace which the runtime hands over is taken by the
// key that the runtime has for it, and not made from images.
func (c *check) external(kind specs.LinuxNamespaceType, id uint32, path string, has bool) error {
	var name, want string
	switch kind {
	case specs.NetworkNamespace:
		name, want = "net", "extRootNetNS"
		if has && path == "" {
			return errors.New("the network namespace of the container has no path")
		}
	case specs.PIDNamespace:
		name, want = "pid", "extRootPidNS"
	default:
		return nil
	}
	if path == "" {
		want = ""
	}
	for n, key := range c.img.External {
		if strings.HasPrefix(n, name) && n != fmt.Sprint(name, id) {
			return fmt.Errorf("there is an image of another %s namespace, %s", kind, n)
		} else if n == fmt.Sprint(name, id) && key != want {
			return fmt.Errorf("the key of the %s namespace is %q, not %q", kind, key, want)
		}
	}
	if got := c.img.External[fmt.Sprint(name, id)]; got != want {
		return fmt.Errorf("the key of the %s namespace is %q, not %q", kind, got, want)
	}
	return nil
}

func (c *check) userNamespace(id uint32) error {
	if _, has := c.namespace(specs.UserNamespace); !has {
		if len(c.img.Maps) > 0 {
			return errors.New("there are images of user namespaces")
		}
		return nil
	}
	maps, ok := c.img.Maps[id]
	if !ok || len(c.img.Maps) != 1 {
		return errors.New("there is no image of the user namespace, or of others too")
	}
	if !sameMap(maps.UIDs, c.spec.Linux.UIDMappings) || !sameMap(maps.GIDs, c.spec.Linux.GIDMappings) {
		return fmt.Errorf("the user namespace maps %v", maps)
	}
	return nil
}

func sameMap(got []IDMap, want []specs.LinuxIDMapping) bool {
	return slices.EqualFunc(got, want, func(g IDMap, w specs.LinuxIDMapping) bool {
		return g == IDMap{w.ContainerID, w.HostID, w.Size}
	})
}

// Types of terminals.
const (
	ttyPTY      = 1
	ttyControl  = 4
	ttyExternal = 5
)

// unixExternal is the other end of a socket outside of the container.
const unixExternal = 1

const socketRaw = 3

// files checks what the processes have open.
func (c *check) files() error {
	for _, t := range c.img.Terminals {
		if t != ttyPTY && t != ttyControl && t != ttyExternal {
			return fmt.Errorf("a process has a terminal of type %d", t)
		}
	}
	for id, mode := range c.img.Lost.Ghosts {
		switch mode & 0o170000 {
		case 0o100000, 0o040000, 0o010000, 0o120000:
		default:
			return fmt.Errorf("file %d without a name has mode %#o", id, mode)
		}
	}
	for _, f := range c.img.Files {
		if err := c.file(f); err != nil {
			return fmt.Errorf("open file %d: %w", f.ID, err)
		}
	}
	return c.remaps()
}

func (c *check) file(f File) error {
	for _, p := range append([]string{f.Path, f.Dir}, f.Watched...) {
		if err := c.name(p); err != nil {
			return err
		}
	}
	if f.Elsewhere {
		return fmt.Errorf("%q is to be the runtime's", f.Path)
	}
	if f.Type == fileReg && !strings.HasPrefix(f.Path, "/") {
		return fmt.Errorf("path %q", f.Path)
	}
	for _, dev := range f.Handles {
		if !c.ownDevice(dev) {
			return fmt.Errorf("it watches a file on a volume that it does not name by its path")
		}
	}
	s := f.Socket
	switch {
	case f.Type == fileInet && s.Type == socketRaw && !c.may(capNetRaw):
		return errors.New("a raw socket")
	case s.Mark != 0 && !c.may(capNetAdmin):
		return errors.New("a socket with a mark")
	case s.Device != "" && !c.may(capNetRaw):
		return errors.New("a socket bound to a device")
	case f.Type == fileNetlink && s.Groups && s.Protocol != 0 && !c.may(capNetAdmin):
		return fmt.Errorf("a netlink socket with groups of protocol %d", s.Protocol)
	case f.Type == fileUnix && s.Flags&^unixExternal != 0:
		return fmt.Errorf("a Unix socket with flags %#x", s.Flags)
	case f.Type == fileUnix && s.Flags != 0 && c.spec.Process.User.UID != 0:
		return errors.New("a Unix socket whose other end is outside of the container: root would open it")
	}
	return nil
}

// name refuses paths that lead out of the container while CRIU opens them: up,
// over what processes themselves have open, and over links to that.
func (c *check) name(p string) error {
	parts := strings.Split(p, "/")
	if slices.Contains(parts, "..") {
		return fmt.Errorf("path %q", p)
	}
	if in := c.above("/" + p); in.Type == fsTmp && in.Key == "" && in.Point != "/" {
		for at := inside(in, "/"+p); at != "."; at = path.Dir(at) {
			if c.img.Trees[in.Dev][at].Type == '2' {
				return fmt.Errorf("path %q goes over a link", p)
			}
		}
	}
	for _, m := range c.mounts {
		if m.Type != fsProc || !under(path.Clean("/"+p), m.Point) {
			continue
		}
		for _, part := range parts {
			switch part {
			case "fd", "cwd", "root", "exe", "map_files", "ns":
				return fmt.Errorf("path %q", p)
			}
		}
	}
	return nil
}

// remaps checks where files are that have lost their names: CRIU makes them while
// it sees the node's files.
func (c *check) remaps() error {
	files := map[uint32]File{}
	for _, f := range c.img.Files {
		if f.Type == fileReg {
			files[f.ID] = f
		}
	}
	for _, m := range c.img.Lost.Files {
		f, ok := files[m.File]
		if !ok {
			return fmt.Errorf("file %d without a name is not open", m.File)
		}
		switch m.Type {
		case remapGhost:
			if _, ok := c.img.Lost.Ghosts[m.Is]; !ok {
				return fmt.Errorf("there is no image %d of the file %q that has lost its name", m.Is, f.Path)
			}
			in := c.above(f.Path)
			if in.Key != "" {
				return fmt.Errorf("%q has lost its name, and is in a volume: such files are not restored", f.Path)
			}
			if uint32(f.Mount) != in.ID {
				return fmt.Errorf("%q has lost its name, and is on mount %d, not %d", f.Path, f.Mount, in.ID)
			}
			dir := inside(in, path.Dir(f.Path))
			if tree := c.img.Trees[in.Dev]; in.Type == fsTmp && in.Point != "/" && tree[dir].Type != '5' {
				return fmt.Errorf("%q has lost its name, and its directory is not there", f.Path)
			}
		case remapProcess:
		default: // CRIU removes the file that it takes for another name

			return fmt.Errorf("file %q without a name is of type %d", f.Path, m.Type)
		}
	}
	return nil
}

// What a file without a name is restored from.
const (
	remapGhost   = 1
	remapProcess = 2
)

// under reports whether a path is a directory's or in it.
func under(p, dir string) bool {
	return dir == "/" || p == dir || strings.HasPrefix(p, dir+"/")
}

// inside returns a path as it is in the mount that it is in.
func inside(m *Mount, p string) string {
	return path.Clean(strings.TrimPrefix(strings.TrimPrefix(path.Clean(p), m.Point), "/"))
}

// above returns the mount in which a path is.
func (c *check) above(p string) *Mount {
	for p = path.Clean(p); ; p = path.Dir(p) {
		if m := c.points[p]; m != nil {
			return m
		}
		if p == "/" {
			return nil
		}
	}
}

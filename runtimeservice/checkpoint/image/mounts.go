package image

import (
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// Types of file systems that CRIU mounts anew. The root, and what the runtime
// hands over, may be of any type.
const (
	fsProc   = 1
	fsSys    = 2
	fsTmp    = 5
	fsPTS    = 6
	fsQueue  = 14
	fsCgroup = 23 // version 2
)

// Flags of mounts. CRIU hands them to mount(2) as they are, which binds another
// path, or moves one, if they say so.
const (
	readOnly = 1
	noSUID   = 2
	noDev    = 4
	noExec   = 8

	mountFlags = readOnly | noSUID | noDev | noExec | 0x100 | 0x400 | 0x800 | 0x200000 | 0x1000000 // no links, and times
	shareFlags = 0x1e0000                                                                          // shared, slave, private, not to be bound
	superFlags = readOnly | 0x10 | 0x40 | 0x80 | 0x2000000                                         // synchronous, locks, lazy times
)

// allMounts checks that the mounts are those of the specification, with nothing
// left out that hides or forbids something.
func (c *check) allMounts() error {
	c.mounts = c.img.Mounts[c.img.Tasks[0].Namespaces.Mount]
	c.points = map[string]*Mount{}
	ids := map[uint32]*Mount{}
	for i := range c.mounts {
		m := &c.mounts[i]
		if !strings.HasPrefix(m.Point, "/") || path.Clean(m.Point) != m.Point {
			return fmt.Errorf("mount at %q", m.Point)
		}
		if c.points[m.Point] != nil || ids[m.ID] != nil {
			return fmt.Errorf("there are two mounts at %s, or with the number %d", m.Point, m.ID)
		}
		c.points[m.Point], ids[m.ID] = m, m
	}
	root := c.points["/"]
	if root == nil || ids[root.Parent] != nil {
		return errors.New("there is no root")
	}
	for i := range c.mounts {
		m := &c.mounts[i]
		if m != root {
			if over := c.above(path.Dir(m.Point)); over != ids[m.Parent] {
				return fmt.Errorf("mount at %s: it is not below %s", m.Point, over.Point)
			}
		}
		if err := c.mount(m); err != nil {
			return fmt.Errorf("mount at %s: %w", m.Point, err)
		}
	}
	if err := c.devices(); err != nil {
		return err
	}
	return c.complete()
}

// mount checks a mount by itself.
func (c *check) mount(m *Mount) error {
	switch {
	case m.Odd:
		return errors.New("it is of a kind that is not restored")
	case m.Flags&^(mountFlags|shareFlags) != 0 || m.SuperFlags&^superFlags != 0:
		return fmt.Errorf("flags %#x, %#x", m.Flags, m.SuperFlags)
	case m.Point == "/":
		return c.rootMount(m)
	case slices.Contains(c.spec.Linux.MaskedPaths, m.Point):
		return c.mask(m)
	case slices.Contains(c.spec.Linux.ReadonlyPaths, m.Point):
		return c.fixed(m)
	}
	want, ok := c.wanted(m.Point)
	if !ok {
		if m.Point == "/dev/console" && c.spec.Process.Terminal {
			return c.console(m)
		}
		return errors.New("the container has none there")
	}
	if err := shared(m, want.Options); err != nil {
		return err
	}
	if err := restricted(m, want.Options); err != nil {
		return err
	}
	// CRIU finds the place by its path while it sees the node's files. In a volume
	// anybody may put a link there.
	if over := c.above(path.Dir(m.Point)); over.Key != "" {
		return fmt.Errorf("it lies in the volume at %s", over.Point)
	}
	if bound(want) {
		if m.Key != m.Point {
			return fmt.Errorf("the container has a bind mount there, and here its key is %q", m.Key)
		}
		return nil
	}
	types := map[string]uint32{"proc": fsProc, "sysfs": fsSys, "tmpfs": fsTmp, "devpts": fsPTS, "mqueue": fsQueue, "cgroup": fsCgroup, "cgroup2": fsCgroup}
	if kind, ok := types[want.Type]; !ok || kind != m.Type {
		return fmt.Errorf("the container has a mount of type %s there, and here it is type %d", want.Type, m.Type)
	}
	return anew(m)
}

// anew checks a mount that CRIU makes anew.
func anew(m *Mount) error {
	if m.Key != "" || m.Root != "/" {
		return fmt.Errorf("it is of %q and %q", m.Key, m.Root)
	}
	if strings.HasPrefix(m.Source, "/") {
		return fmt.Errorf("its source is %q", m.Source)
	}
	return nil
}

func (c *check) wanted(point string) (specs.Mount, bool) {
	for _, m := range c.spec.Mounts {
		if path.Clean(m.Destination) == point {
			return m, true
		}
	}
	return specs.Mount{}, false
}

func bound(m specs.Mount) bool {
	return m.Type == "bind" || slices.Contains(m.Options, "bind") || slices.Contains(m.Options, "rbind")
}

// shared checks that mounts do not go from the container to the node or back
// unless they do.
func shared(m *Mount, options []string) error {
	if (m.Peers.Shared != 0 || m.Flags&0x100000 != 0) && !slices.Contains(options, "rshared") && !slices.Contains(options, "shared") {
		return errors.New("it is shared")
	}
	if m.Peers.Master != 0 && !slices.ContainsFunc(options, func(o string) bool {
		return o == "rslave" || o == "slave" || o == "rshared" || o == "shared"
	}) {
		return errors.New("it is a slave of another")
	}
	return nil
}

// restricted checks that what the container may not do in a mount is forbidden.
func restricted(m *Mount, options []string) error {
	for option, f := range map[string]uint32{"ro": readOnly, "rro": readOnly, "nosuid": noSUID, "nodev": noDev, "noexec": noExec} {
		if slices.Contains(options, option) && m.Flags&f == 0 {
			return fmt.Errorf("it is not %s", option)
		}
	}
	return nil
}

func (c *check) rootMount(m *Mount) error {
	if m.Key != "" {
		return fmt.Errorf("its key is %q", m.Key)
	}
	var options []string
	if p := c.spec.Linux.RootfsPropagation; p != "" {
		options = []string{p}
	}
	if c.spec.Root.Readonly {
		options = append(options, "ro")
	}
	if err := shared(m, options); err != nil {
		return err
	}
	return restricted(m, options)
}

// mask checks what hides a path: nothing, by the runtime, or an empty directory.
func (c *check) mask(m *Mount) error {
	if err := shared(m, nil); err != nil {
		return err
	}
	if m.Key == "/dev/null" {
		if m.Root != "/null" { // else others could be taken for it
			return fmt.Errorf("it is of %q", m.Root)
		}
		return nil
	}
	if m.Type != fsTmp || m.Flags&readOnly == 0 {
		return fmt.Errorf("type %d with flags %#x hides nothing", m.Type, m.Flags)
	}
	if tree := c.img.Trees[m.Dev]; len(tree) > 1 {
		return errors.New("what is to hide it has files")
	}
	return anew(m)
}

// fixed checks a path that is made read-only: it is itself, bound.
func (c *check) fixed(m *Mount) error {
	if err := shared(m, nil); err != nil {
		return err
	}
	over := c.above(path.Dir(m.Point))
	if over.Type != fsProc && over.Type != fsSys || m.Type != over.Type || m.Dev != over.Dev || m.Key != "" {
		return fmt.Errorf("it is not of what is at %s", over.Point)
	}
	if path.Join(over.Point, m.Root) != m.Point || path.Clean(m.Root) != m.Root {
		return fmt.Errorf("it is of %q", m.Root)
	}
	if m.Flags&readOnly == 0 {
		return errors.New("it is not read-only")
	}
	return nil
}

// console checks the terminal of the container.
func (c *check) console(m *Mount) error {
	if err := shared(m, nil); err != nil {
		return err
	}
	number := strings.TrimPrefix(m.Root, "/")
	if m.Type != fsPTS || m.Key != "" || number == "" || strings.Trim(number, "0123456789") != "" {
		return fmt.Errorf("it is %q", m.Root)
	}
	return nil
}

// devices checks that mounts which CRIU makes are not taken for others of the
// same file system, and what the temporary ones hold.
func (c *check) devices() error {
	given := map[uint32]string{}
	types := map[uint32]uint32{}
	for _, m := range c.mounts {
		if m.Point == "/" || m.Key != "" && m.Key != "/dev/null" {
			given[m.Dev] = m.Point
		}
	}
	for _, m := range c.mounts {
		if m.Point == "/" || m.Key != "" {
			continue
		}
		if p, ok := given[m.Dev]; ok {
			return fmt.Errorf("mount at %s: it is of the same file system as %s", m.Point, p)
		}
		if t, ok := types[m.Dev]; ok && t != m.Type {
			return fmt.Errorf("mount at %s: its file system has two types", m.Point)
		}
		types[m.Dev] = m.Type
		if m.Type != fsTmp {
			continue
		}
		if err := c.tree(&m); err != nil {
			return fmt.Errorf("mount at %s: %w", m.Point, err)
		}
	}
	return nil
}

// ownDevice reports whether a file system is none of the node's.
func (c *check) ownDevice(dev uint32) bool {
	own := false
	for _, m := range c.mounts {
		if m.Dev == dev {
			if m.Key != "" && m.Key != "/dev/null" || m.Point == "/" && m.Type != fsOverlay {
				return false
			}
			own = true
		}
	}
	return own
}

const fsOverlay = 17

// tree checks the files of a temporary file system: only devices that the
// container has, and no links where others are mounted.
func (c *check) tree(m *Mount) error {
	tree, ok := c.img.Trees[m.Dev]
	if !ok {
		return errors.New("there is no archive of its files")
	}
	for name, n := range tree {
		if (n.Type == '3' || n.Type == '4') && !c.device(n) {
			return fmt.Errorf("%q is the device %c %d:%d, which the container has not", name, "cb"[n.Type-'3'], n.Major, n.Minor)
		}
	}
	for _, o := range c.mounts {
		if o.Point == m.Point || c.above(path.Dir(o.Point)).Point != m.Point {
			continue
		}
		at := inside(m, o.Point)
		if n, ok := tree[at]; !ok || n.Type == '2' {
			return fmt.Errorf("%q, where another is mounted, is a link, or not there", at)
		}
	}
	return nil
}

// device reports whether a container has a device.
func (c *check) device(n Node) bool {
	usual := [][2]uint32{{1, 3}, {1, 5}, {1, 7}, {1, 8}, {1, 9}, {5, 0}, {5, 2}}
	if n.Type == '3' && slices.Contains(usual, [2]uint32{n.Major, n.Minor}) {
		return true
	}
	return slices.ContainsFunc(c.spec.Linux.Devices, func(d specs.LinuxDevice) bool {
		kind := byte('3')
		if d.Type == "b" {
			kind = '4'
		}
		return kind == n.Type && d.Major == int64(n.Major) && d.Minor == int64(n.Minor)
	})
}

// complete checks that nothing is left out. The runtime hides and protects what
// there was on the node of the checkpoint; this one may have more.
func (c *check) complete() error {
	for _, m := range c.spec.Mounts {
		if c.points[path.Clean(m.Destination)] == nil {
			return fmt.Errorf("nothing is mounted at %s", m.Destination)
		}
	}
	for _, p := range slices.Concat(c.spec.Linux.MaskedPaths, c.spec.Linux.ReadonlyPaths) {
		node := under(p, "/proc") || under(p, "/sys")
		if c.points[p] == nil && (!node || c.exists(p)) {
			return fmt.Errorf("%s is neither hidden nor protected, as the container has it", p)
		}
	}
	return nil
}

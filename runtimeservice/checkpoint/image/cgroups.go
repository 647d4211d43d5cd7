package image

import (
	"errors"
	"fmt"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/protobuf/encoding/protowire"
)

var (
	cgroupFields     = message{1: blob | many, 2: blob | many}
	setFields        = message{1: u32, 2: blob | many}
	memberFields     = message{1: text, 2: text, 3: u32}
	controllerFields = message{1: text | many, 2: blob | many, 3: flag}
	groupFields      = message{1: text, 2: blob | many, 3: blob | many, 4: blob}
	permFields       = message{1: u32, 2: u32, 3: u32}
)

// Cgroups are the control groups of the processes.
type Cgroups struct {
	Sets     map[uint32][]Member
	Groups   []string // all of them
	Unusual  bool     // they belong to others than root, or are not of version 2
	NodeSet  uint32   // CRIU's own
	Assigned []uint32 // the sets of all threads
}

// Member is a control group of a set. What lies outside of the container's
// namespace is the beginning of its path.
type Member struct {
	Path    string
	Outside uint32
}

// cgroups checks that the processes are all in one control group, which is the
// container's own. Then CRIU has nothing to make, and all that it takes from the
// images is replaced by the path that the runtime gives it.
func (c *check) cgroups() error {
	all := c.img.Cgroups
	if len(all.Groups) != 1 || all.Unusual || all.Groups[0] == "" {
		return fmt.Errorf("there is not one control group, as the runtime makes it, but %q", all.Groups)
	}
	path := "/" + all.Groups[0]
	want := Member{Path: path}
	if _, has := c.namespace(specs.CgroupNamespace); has {
		want.Outside = uint32(len(path))
	}
	for id, members := range all.Sets {
		if len(members) != 1 || members[0] != want {
			return fmt.Errorf("set %d of control groups is %v, not %v", id, members, want)
		}
	}
	for _, id := range all.Assigned {
		if _, ok := all.Sets[id]; !ok || id == all.NodeSet {
			return fmt.Errorf("there is no set %d of control groups", id)
		}
	}
	if len(all.Assigned) == 0 {
		return errors.New("no process is in a control group")
	}
	return nil
}

const magicCgroup = 0x59383330

func (r *reader) cgroups(_ uint32, b []byte) error {
	c := &r.img.Cgroups
	c.Sets = map[uint32][]Member{}
	return one(b, magicCgroup, func(b []byte) error {
		return cgroupFields.read(b, func(n protowire.Number, v value) error {
			if len(c.Sets)+len(c.Groups) > maxTasks {
				return fmt.Errorf("more than %d control groups", maxTasks)
			}
			if n == 1 {
				return c.set(v.b)
			}
			return c.controller(v.b)
		})
	})
}

func (c *Cgroups) set(b []byte) error {
	var id uint32
	var members []Member
	err := setFields.read(b, func(n protowire.Number, v value) error {
		if n == 1 {
			id = v.u32()
			return nil
		}
		var m Member
		err := memberFields.read(v.b, func(n protowire.Number, v value) error {
			switch n {
			case 1:
				c.Unusual = c.Unusual || v.text() != ""
			case 2:
				m.Path = v.text()
			case 3:
				m.Outside = v.u32()
			}
			return nil
		})
		members = append(members, m)
		return err
	})
	if _, ok := c.Sets[id]; ok {
		return fmt.Errorf("set %d is there twice", id)
	}
	c.Sets[id] = members
	return err
}

func (c *Cgroups) controller(b []byte) error {
	names := 0
	err := controllerFields.read(b, func(n protowire.Number, v value) error {
		switch n {
		case 1:
			names++
			c.Unusual = c.Unusual || v.text() != ""
		case 2:
			return c.group(v.b)
		case 3:
			c.Unusual = c.Unusual || v.bool()
		}
		return nil
	})
	c.Unusual = c.Unusual || names != 1
	return err
}

func (c *Cgroups) group(b []byte) error {
	name := ""
	err := groupFields.read(b, func(n protowire.Number, v value) error {
		switch n {
		case 1:
			name = v.text()
		case 2:
			c.Groups = append(c.Groups, "") // a group below
		case 4:
			return permFields.read(v.b, func(n protowire.Number, v value) error {
				c.Unusual = c.Unusual || n == 1 && v.num&0o7777 != 0o755 || n != 1 && v.num != 0
				return nil
			})
		}
		return nil
	})
	c.Groups = append(c.Groups, name)
	return err
}

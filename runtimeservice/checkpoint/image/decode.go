package image

import (
	"bytes"
	"encoding/json"
	"fmt"
	"regexp"
	"strconv"

	"google.golang.org/protobuf/encoding/protowire"
)

// The messages, as CRIU 4.2 has them.
var (
	inventoryFields = message{1: u32, 2: flag, 3: blob, 4: flag, 5: u32, 6: i32, 8: u64, 9: u32, 10: flag, 11: u32, 12: blob, 13: text, 14: flag}
	pluginFields    = message{12: text | many}
	idsFields       = message{1: u32, 2: u32, 3: u32, 4: u32, 5: u32, 6: u32, 7: u32, 8: u32, 9: u32, 10: u32, 11: u32, 12: u32}
	mountFields     = message{1: i32, 2: u32, 3: u32, 4: u32, 5: u32, 6: text, 7: text, 8: text, 9: text, 10: u32, 11: u32, 12: flag, 13: flag,
		14: text, 15: flag, 16: flag, 17: u32, 18: text}
	filtersFields = message{1: blob | many}
	filterFields  = message{1: blob, 2: u32, 3: u32}
	remapFields   = message{1: u32, 2: u32, 3: i32}
	ghostFields   = message{1: u32, 2: u32, 3: u32, 4: u32, 5: u64, 6: u32, 7: blob, 8: blob, 9: flag, 10: u64, 11: text}
	ttyFields     = message{1: u32, 2: i32, 3: flag, 4: flag, 5: flag, 6: u32, 7: u32, 8: u32, 9: blob, 10: blob, 11: blob, 12: blob, 13: u32,
		14: u32, 15: u32}
	netnsFields = message{1: i32 | many, 2: i32 | many, 3: blob | many, 4: blob | many, 5: blob | many, 6: blob | many, 7: blob | many, 8: text,
		9: blob | many, 10: blob | many}
	pidnsFields  = message{1: text}
	usernsFields = message{1: blob | many, 2: blob | many}
	extentFields = message{1: u32, 2: u32, 3: u32}
)

var runID = regexp.MustCompile(`^[0-9a-fA-F-]{0,64}$`)

func (r *reader) inventory(_ uint32, b []byte) error {
	return one(b, magicInventory, func(b []byte) error {
		var version uint32
		var fds, ns bool
		err := inventoryFields.read(b, func(n protowire.Number, v value) (err error) {
			switch n {
			case 1:
				version = v.u32()
			case 2:
				fds = v.bool()
			case 3:
				r.img.Node, err = namespaces(v.b)
			case 4:
				ns = v.bool()
			case 5:
				r.img.Cgroups.NodeSet = v.u32()
			case 6:
				r.img.LSM = v.u32()
			case 11:
				if v.u32() > 3 {
					err = fmt.Errorf("way %d to lock the network is unknown", v.u32())
				}
			case 12:
				err = pluginFields.read(v.b, func(_ protowire.Number, v value) error {
					return fmt.Errorf("it wants CRIU's plugin %q", v.text())
				})
			case 13: // becomes part of commands for nft
				if !runID.MatchString(v.text()) {
					err = fmt.Errorf("run ID %q", v.text())
				}
			}
			return err
		})
		if err == nil && (version != 2 || !fds || !ns) {
			err = fmt.Errorf("images of version %d are not read", version)
		}
		return err
	})
}

func namespaces(b []byte) (ns Namespaces, err error) {
	to := map[protowire.Number]*uint32{5: &ns.PID, 6: &ns.Net, 7: &ns.IPC, 8: &ns.UTS, 9: &ns.Mount, 10: &ns.User, 11: &ns.Cgroup, 12: &ns.Time}
	err = idsFields.read(b, func(n protowire.Number, v value) error {
		if p := to[n]; p != nil {
			*p = v.u32()
		}
		return nil
	})
	return ns, err
}

func (r *reader) mounts(id uint32, b []byte) error {
	var all []Mount
	err := records(b, magicMounts, func(b []byte) error {
		if len(all) >= maxMounts {
			return fmt.Errorf("more than %d mounts", maxMounts)
		}
		m, err := mount(b)
		all = append(all, m)
		return err
	})
	r.img.Mounts[id] = all
	return err
}

func mount(b []byte) (m Mount, err error) {
	nums := map[protowire.Number]*uint32{1: &m.Type, 2: &m.ID, 3: &m.Dev, 4: &m.Parent, 5: &m.Flags, 10: &m.Peers.Shared, 11: &m.Peers.Master, 17: &m.SuperFlags}
	texts := map[protowire.Number]*string{6: &m.Root, 7: &m.Point, 8: &m.Source, 18: &m.Key}
	super := false
	err = mountFields.read(b, func(n protowire.Number, v value) error {
		if p := nums[n]; p != nil {
			*p = v.u32()
		}
		if p := texts[n]; p != nil {
			*p = v.text()
		}
		switch n {
		case 12, 13, 16:
			m.Odd = m.Odd || v.bool()
		case 14:
			m.Odd = true
		case 17:
			super = true
		}
		return nil
	})
	m.Odd = m.Odd || !super // all flags were one number then
	return m, err
}

func (r *reader) seccomp(_ uint32, b []byte) error {
	return one(b, magicSeccomp, func(b []byte) error {
		return filtersFields.read(b, func(_ protowire.Number, v value) error {
			var f Filter
			err := filterFields.read(v.b, func(n protowire.Number, v value) error {
				switch n {
				case 1:
					f.Program = bytes.Clone(v.b)
				case 2:
					before := v.u32()
					f.Before = &before
				case 3:
					f.Flags = v.u32()
				}
				return nil
			})
			if len(r.img.Filters) >= maxTasks {
				return fmt.Errorf("more than %d filters", maxTasks)
			}
			r.img.Filters = append(r.img.Filters, f)
			return err
		})
	})
}

func (r *reader) remaps(_ uint32, b []byte) error {
	return records(b, magicRemap, func(b []byte) error {
		var m Remap
		err := remapFields.read(b, func(n protowire.Number, v value) error {
			*[]*uint32{&m.File, &m.Is, &m.Type}[n-1] = v.u32()
			return nil
		})
		if len(r.img.Lost.Files) >= maxFiles {
			return fmt.Errorf("more than %d files without a name", maxFiles)
		}
		r.img.Lost.Files = append(r.img.Lost.Files, m)
		return err
	})
}

func (r *reader) ghost(id uint32, b []byte) error {
	return records(b, magicGhost, func(b []byte) error {
		err := ghostFields.read(b, func(n protowire.Number, v value) error {
			if n == 3 {
				r.img.Lost.Ghosts[id] = v.u32()
			}
			return nil
		})
		if err != nil {
			return err
		}
		return errEnough // the file's data follow
	})
}

func (r *reader) terminals(_ uint32, b []byte) error {
	return records(b, magicTTY, func(b []byte) error {
		return ttyFields.read(b, func(n protowire.Number, v value) error {
			if n != 2 {
				return nil
			}
			if len(r.img.Terminals) >= maxFiles {
				return fmt.Errorf("more than %d terminals", maxFiles)
			}
			r.img.Terminals = append(r.img.Terminals, v.u32())
			return nil
		})
	})
}

func (r *reader) netns(id uint32, b []byte) error {
	return r.external("net", id, b, magicNetns, netnsFields)
}

func (r *reader) pidns(id uint32, b []byte) error {
	return r.external("pid", id, b, magicPidns, pidnsFields)
}

// external notes by which key the runtime names a namespace.
func (r *reader) external(kind string, id uint32, b []byte, magic uint32, fields message) error {
	return one(b, magic, func(b []byte) error {
		return fields.read(b, func(n protowire.Number, v value) error {
			if fields[n] == text {
				r.img.External[kind+strconv.FormatUint(uint64(id), 10)] = v.text()
			}
			return nil
		})
	})
}

func (r *reader) userns(id uint32, b []byte) error {
	return one(b, magicUserns, func(b []byte) error {
		var maps IDMaps
		err := usernsFields.read(b, func(n protowire.Number, v value) error {
			var m IDMap
			err := extentFields.read(v.b, func(n protowire.Number, v value) error {
				*[]*uint32{&m.Inside, &m.Outside, &m.Count}[n-1] = v.u32()
				return nil
			})
			if n == 1 {
				maps.UIDs = append(maps.UIDs, m)
			} else {
				maps.GIDs = append(maps.GIDs, m)
			}
			if len(maps.UIDs)+len(maps.GIDs) > maxMounts {
				return fmt.Errorf("more than %d lines", maxMounts)
			}
			return err
		})
		r.img.Maps[id] = maps
		return err
	})
}

var stdio = regexp.MustCompile(`^(pipe:\[[0-9]{1,20}\]|/dev/null|/dev/pts/[0-9]{1,10}|/dev/console|socket:\[[0-9]{1,20}\])?$`)

// descriptors is the runtime's own file: a pipe in it is given the descriptor of
// the runtime that has the same place in the list.
func (r *reader) descriptors(_ uint32, b []byte) error {
	var fds []string
	if err := json.Unmarshal(b, &fds); err != nil {
		return err
	}
	if len(fds) > 3 {
		return fmt.Errorf("%d descriptors, of three for input and output", len(fds))
	}
	for _, fd := range fds {
		if !stdio.MatchString(fd) {
			return fmt.Errorf("descriptor %q", fd)
		}
	}
	return nil
}

package cgroup

import (
	"strings"
	"syscall"
)

// Freeze has the kernel stop everything in the group and below it, soon; Frozen
// says when it is so.
func (m Mode) Freeze(path string) error { return m.setFrozen(path, "1", "FROZEN") }

// Thaw lets the group go on. A group that is gone needs nothing.
func (m Mode) Thaw(path string) error {
	err := m.setFrozen(path, "0", "THAWED")
	if dir := m.Dir("freezer", path); err != nil && dir != "" && !exists(dir) {
		return nil
	}
	return err
}

func (m Mode) setFrozen(path, v2, v1 string) error {
	dir := m.Dir("freezer", path)
	if dir == "" || !valid(path) {
		return wrap("freeze cgroup", path, syscall.ENODEV)
	}
	file, value := dir+"/freezer.state", v1
	if m.v2 {
		file, value = dir+"/cgroup.freeze", v2
	}
	return wrap("write "+value+" to", file, writeFile(file, value))
}

// Frozen reports whether all of the group stands still. On v1 a group that does
// not get there by itself has to be asked by Freeze again.
func (m Mode) Frozen(path string) (bool, error) {
	dir := m.Dir("freezer", path)
	if dir == "" || !valid(path) {
		return false, wrap("look at cgroup", path, syscall.ENODEV)
	}
	if !m.v2 {
		text, err := readFile(dir + "/freezer.state")
		return strings.TrimSpace(text) == "FROZEN", wrap("read", dir+"/freezer.state", err)
	}
	text, err := readFile(dir + "/cgroup.events")
	n, _ := number(text, "frozen")
	return n == 1, wrap("read", dir+"/cgroup.events", err)
}

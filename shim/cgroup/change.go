package cgroup

import (
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// Create makes the group and its parents: on v1 in every hierarchy, with
// cpuset's cpus and mems taken from the parent; on v2 with every controller
// that the ancestors offer enabled down to the group. Existing groups are kept
// as they are. Controllers that can't be enabled are left out.
func (m Mode) Create(path string) error {
	if !valid(path) {
		return wrap("create cgroup", path, syscall.EINVAL)
	}
	if m.v2 {
		return m.mkdirs(m.root, path, enableControllers)
	}
	for _, h := range m.hierarchies {
		fill := func(string, string) error { return nil }
		if strings.Contains(h, "cpuset") {
			fill = inheritCpuset
		}
		if err := m.mkdirs(h, path, fill); err != nil {
			return err
		}
	}
	if m.hybrid == "" {
		return nil
	}
	return m.mkdirs(m.hybrid, path, func(string, string) error { return nil })
}

// mkdirs makes path below root and calls each for every level.
func (m Mode) mkdirs(root, path string, each func(parent, dir string) error) error {
	dir := root
	for _, part := range strings.Split(strings.Trim(path, "/"), "/") {
		if part == "" {
			continue
		}
		parent := dir
		dir = parent + "/" + part
		if err := unix.Mkdir(dir, 0o755); err != nil && err != unix.EEXIST {
			return wrap("create cgroup", dir, err)
		}
		if err := each(parent, dir); err != nil {
			return err
		}
	}
	return nil
}

func enableControllers(parent, _ string) error {
	have, err := readFile(parent + "/cgroup.controllers")
	if err != nil {
		return wrap("read", parent+"/cgroup.controllers", err)
	}
	on, _ := readFile(parent + "/cgroup.subtree_control")
	for _, c := range strings.Fields(have) {
		if hasController(strings.Join(strings.Fields(on), ","), c) {
			continue
		}
		// One at a time: a busy controller must not keep the others off.
		_ = writeFile(parent+"/cgroup.subtree_control", "+"+c)
	}
	return nil
}

func inheritCpuset(parent, dir string) error {
	for _, f := range []string{"/cpuset.cpus", "/cpuset.mems"} {
		own, err := readFile(dir + f)
		if err != nil {
			return wrap("read", dir+f, err)
		}
		if strings.TrimSpace(own) != "" {
			continue
		}
		up, err := readFile(parent + f)
		if err != nil {
			return wrap("read", parent+f, err)
		}
		if err := writeFile(dir+f, up); err != nil {
			return wrap("write", dir+f, err)
		}
	}
	return nil
}

// Remove removes the group and the groups below it in every hierarchy. A
// group that is not there is no error; one with live processes is EBUSY.
func (m Mode) Remove(path string) error {
	if !valid(path) {
		return wrap("remove cgroup", path, syscall.EINVAL)
	}
	var first error
	for _, d := range m.dirs(path) {
		if err := removeTree(d); err != nil && first == nil {
			first = err
		}
	}
	return first
}

func removeTree(dir string) error {
	err := rmdir(dir)
	if err != unix.EBUSY && err != unix.ENOTEMPTY {
		return wrap("remove cgroup", dir, err)
	}
	for _, s := range subdirs(dir) {
		if err := removeTree(s); err != nil {
			return err
		}
	}
	return wrap("remove cgroup", dir, rmdir(dir))
}

// deserted reports whether the group lists no processes.
func deserted(dir string) bool {
	text, err := readFile(dir + "/cgroup.procs")
	return err == nil && text == ""
}

func rmdir(dir string) error {
	for try := 0; ; try++ {
		err := unix.Rmdir(dir)
		switch {
		case err == nil || gone(err):
			return nil
		case err == unix.EINTR:
		case err == unix.EBUSY && (try < 5 || try < 40 && deserted(dir)) && len(subdirs(dir)) == 0:
			// The last process is still on its way out: dead, unlisted, and on a
			// busy machine not yet switched away from for a long while.
			pause(int64(1+try) * 2e6)
		default:
			return err
		}
	}
}

func pause(ns int64) {
	ts := unix.NsecToTimespec(ns)
	_ = unix.Nanosleep(&ts, nil)
}

// Package cgroup reads and changes control groups by path, on v1 (with or
// without a hybrid v2 tree beside it) and on v2. It serves the sandbox layer
// and the shim, so it uses neither fmt nor os.
//
// A path names a group below the root of every hierarchy, such as
// "/berth/<sandbox>/<container>". Errors are syscall.Errno wrapped in *Error.
package cgroup

import (
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// DefaultRoot is where the host mounts its control groups.
const DefaultRoot = "/sys/fs/cgroup"

// Error says which operation failed on which file.
type Error struct {
	Op, Path string
	Err      error
}

// Error implements error.
func (e *Error) Error() string { return e.Op + " " + e.Path + ": " + e.Err.Error() }

// Unwrap returns the cause, mostly a syscall.Errno.
func (e *Error) Unwrap() error { return e.Err }

func wrap(op, path string, err error) error {
	if err == nil {
		return nil
	}
	return &Error{Op: op, Path: path, Err: err}
}

// Mode is the layout of a host's control groups. Its zero value is useless;
// it comes from Detect.
type Mode struct {
	root        string   // v2: the only hierarchy
	hierarchies []string // v1: absolute mount points
	hybrid      string   // v1: mount point of the v2 tree beside it, if any
	v2          bool
}

// Detect looks at DefaultRoot.
func Detect() (Mode, error) { return detect(DefaultRoot) }

func detect(root string) (Mode, error) {
	t, err := fsType(root)
	if err != nil {
		return Mode{}, wrap("detect cgroups", root, err)
	}
	if t == unix.CGROUP2_SUPER_MAGIC {
		return Mode{root: root, v2: true}, nil
	}
	names, err := readDir(root)
	if err != nil {
		return Mode{}, wrap("list", root, err)
	}
	m := Mode{root: root}
	for _, n := range names {
		p := root + "/" + n
		if isLink(p) {
			continue
		}
		switch t, _ := fsType(p); t {
		case unix.CGROUP_SUPER_MAGIC:
			m.hierarchies = append(m.hierarchies, p)
		case unix.CGROUP2_SUPER_MAGIC:
			m.hybrid = p
		}
	}
	if len(m.hierarchies) == 0 {
		return Mode{}, wrap("detect cgroups", root, syscall.ENODEV)
	}
	return m, nil
}

// V2 reports whether the host has the unified hierarchy only.
func (m Mode) V2() bool { return m.v2 }

// Dir returns the directory of a group in the hierarchy of a controller
// ("memory", "pids"...), or "" when no such hierarchy is mounted. On v2 the
// controller does not matter.
func (m Mode) Dir(controller, path string) string {
	if m.v2 {
		return join(m.root, path)
	}
	for _, h := range m.hierarchies {
		for _, c := range strings.Split(h[strings.LastIndexByte(h, '/')+1:], ",") {
			if c == controller {
				return join(h, path)
			}
		}
	}
	return ""
}

// dirs returns a group's directory in every hierarchy.
func (m Mode) dirs(path string) []string {
	if m.v2 {
		return []string{join(m.root, path)}
	}
	var out []string
	for _, h := range m.hierarchies {
		out = append(out, join(h, path))
	}
	if m.hybrid != "" {
		out = append(out, join(m.hybrid, path))
	}
	return out
}

// valid refuses the root itself and paths that climb.
func valid(path string) bool {
	if strings.Trim(path, "/") == "" {
		return false
	}
	for _, p := range strings.Split(path, "/") {
		if p == ".." || p == "." {
			return false
		}
	}
	return true
}

func join(root, path string) string { return root + "/" + strings.Trim(path, "/") }

// Path returns the path of a process's group from the text of its
// /proc/PID/cgroup: that of the v2 line on a v2 host, else that of the pids or
// memory controller or, failing both, of any. "" when there is none.
func (m Mode) Path(text string) string {
	best, rank := "", 0
	for _, line := range strings.Split(text, "\n") {
		f := strings.SplitN(line, ":", 3)
		if len(f) != 3 || !strings.HasPrefix(f[2], "/") {
			continue
		}
		r := 1
		switch {
		case f[1] == "":
			if m.v2 {
				r = 9
			}
		case hasController(f[1], "pids"):
			r = 4
		case hasController(f[1], "memory"):
			r = 3
		default:
			r = 2
		}
		if r > rank {
			best, rank = f[2], r
		}
	}
	return best
}

func hasController(list, name string) bool {
	for _, c := range strings.Split(list, ",") {
		if c == name {
			return true
		}
	}
	return false
}

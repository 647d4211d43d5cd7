package cgroup

import (
	"syscall"

	"golang.org/x/sys/unix"
)

// killWait bounds Kill, in milliseconds.
const killWait = 5000

// Pids returns the processes in the group and below it. A missing group has
// none.
func (m Mode) Pids(path string) ([]int, error) {
	if !valid(path) {
		return nil, wrap("list cgroup", path, syscall.EINVAL)
	}
	for _, d := range m.procDirs(path) {
		if exists(d) {
			return treePids(d, nil)
		}
	}
	return nil, nil
}

// procDirs returns where to look for processes, best first. In every v1
// hierarchy they are the same, unless someone moved them.
func (m Mode) procDirs(path string) []string {
	if m.v2 {
		return []string{join(m.root, path)}
	}
	out := make([]string, 0, len(m.hierarchies)+1)
	for _, c := range []string{"pids", "memory", "freezer"} {
		if d := m.Dir(c, path); d != "" {
			out = append(out, d)
		}
	}
	return append(out, m.dirs(path)...)
}

func treePids(dir string, out []int) ([]int, error) {
	text, err := readFile(dir + "/cgroup.procs")
	if err == syscall.EOPNOTSUPP {
		// A threaded group lists its processes in its domain only.
		text, err = "", nil
	}
	if err != nil {
		if gone(err) {
			return out, nil
		}
		return out, wrap("read", dir+"/cgroup.procs", err)
	}
	out = parsePids(text, out)
	for _, s := range subdirs(dir) {
		if out, err = treePids(s, out); err != nil {
			return out, err
		}
	}
	return out, nil
}

// KillOnce sends SIGKILL to everything in the group and below it, and returns
// how many processes it still saw. 0 means the group is empty or not there.
func (m Mode) KillOnce(path string) (int, error) {
	if !valid(path) {
		return 0, wrap("kill cgroup", path, syscall.EINVAL)
	}
	if m.v2 {
		// Atomic against forks; ENOENT on kernels before 5.14.
		_ = writeFile(join(m.root, path)+"/cgroup.kill", "1")
	} else if m.hybrid != "" {
		_ = writeFile(join(m.hybrid, path)+"/cgroup.kill", "1")
	}
	return m.Signal(path, unix.SIGKILL)
}

// Signal sends a signal to every process in the group and below it, and
// returns how many there were.
func (m Mode) Signal(path string, sig syscall.Signal) (int, error) {
	pids, err := m.Pids(path)
	if err != nil {
		return 0, err
	}
	for _, p := range pids {
		_ = unix.Kill(p, sig)
	}
	return len(pids), nil
}

// Kill kills everything in the group and below it and waits, five seconds at
// the most, until it is empty. Processes stuck in the kernel are EBUSY.
func (m Mode) Kill(path string) error {
	for waited := int64(0); ; {
		n, err := m.KillOnce(path)
		if err != nil || n == 0 {
			return err
		}
		if waited > killWait {
			return wrap("kill cgroup", path, syscall.EBUSY)
		}
		step := 1 + waited/8
		pause(step * 1e6)
		waited += step
	}
}

// OOMKills returns how many processes of the group the kernel killed for want
// of memory. ok is false when that can't be read.
func (m Mode) OOMKills(path string) (n uint64, ok bool) {
	dir := m.Dir("memory", path)
	if dir == "" || !valid(path) {
		return 0, false
	}
	file := "/memory.oom_control"
	if m.v2 {
		file = "/memory.events"
	}
	text, err := readFile(dir + file)
	if err != nil {
		return 0, false
	}
	return number(text, "oom_kill")
}

// MakeLeaf makes a group below path that holds nothing but processes, and
// returns the argument by which `runc exec --cgroup` puts one there.
func (m Mode) MakeLeaf(path, name string) (arg string, err error) {
	dir := m.leafDir(path, name)
	if dir == "" || !valid(path) {
		return "", wrap("create cgroup", path, syscall.ENODEV)
	}
	if err := unix.Mkdir(dir, 0o755); err != nil {
		return "", wrap("create cgroup", dir, err)
	}
	if m.v2 {
		return name, nil
	}
	return "pids:" + name, nil
}

// leafDir: on v1 the pids hierarchy alone tracks the leaf; the others keep
// accounting to the container's own group.
func (m Mode) leafDir(path, name string) string {
	dir := m.Dir("pids", path)
	if dir == "" {
		return ""
	}
	return dir + "/" + name
}

// KillLeaf kills what is in the leaf and returns how many it still saw.
func (m Mode) KillLeaf(path, name string) int {
	dir := m.leafDir(path, name)
	if dir == "" {
		return 0
	}
	if m.v2 {
		_ = writeFile(dir+"/cgroup.kill", "1")
	}
	pids, _ := treePids(dir, nil)
	for _, p := range pids {
		_ = unix.Kill(p, unix.SIGKILL)
	}
	return len(pids)
}

// RemoveLeaf removes an empty leaf. It does not wait.
func (m Mode) RemoveLeaf(path, name string) error {
	dir := m.leafDir(path, name)
	if dir == "" {
		return nil
	}
	err := unix.Rmdir(dir)
	if gone(err) {
		return nil
	}
	if err == unix.EBUSY {
		for _, s := range subdirs(dir) {
			_ = removeTree(s)
		}
		err = unix.Rmdir(dir)
	}
	return wrap("remove cgroup", dir, err)
}

package cgroup

import (
	"slices"
	"strconv"
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
	n, err := m.Signal(path, unix.SIGKILL)
	if d := m.Dir("freezer", path); d != "" && !m.v2 && n > 0 {
		// On v1 what is frozen dies only when it thaws.
		_ = writeFile(d+"/freezer.state", "THAWED")
	}
	return n, err
}

// Signal sends a signal to every process in the group and below it, and
// returns how many there were.
func (m Mode) Signal(path string, sig syscall.Signal) (int, error) {
	return signalListed(func() ([]int, error) { return m.Pids(path) }, sig)
}

// batch is how many processes are held by descriptors at a time. The group is
// listed once more for each.
const batch = 512

// signalListed signals the processes that list returns, and returns how many
// they were. A process is held by a descriptor and looked for again
// before it is signalled: its pid may have been another's meanwhile.
func signalListed(list func() ([]int, error), sig syscall.Signal) (int, error) {
	pids, err := list()
	if err != nil {
		return 0, err
	}
	for rest := pids; len(rest) > 0; {
		got, seen, err := holdProcesses(rest[:min(batch, len(rest))])
		if err != nil {
			return len(pids), wrap("hold process", strconv.Itoa(rest[seen]), err)
		}
		rest = rest[seen:]
		if len(got) == 0 {
			continue
		}
		still, err := list()
		slices.Sort(still)
		for _, p := range got {
			if _, member := slices.BinarySearch(still, p.pid); member && err == nil {
				_ = unix.PidfdSendSignal(p.fd, sig, nil, 0)
			}
			_ = unix.Close(p.fd)
		}
		if err != nil {
			return len(pids), err
		}
	}
	return len(pids), nil
}

// held is a process and a descriptor of it.
type held struct{ pid, fd int }

// holdProcesses opens those of the processes that have not gone, as far as
// descriptors go: seen is how many it came to. That not even one could be held
// is an error.
func holdProcesses(pids []int) (all []held, seen int, err error) {
	all = make([]held, 0, len(pids))
	for i, pid := range pids {
		fd, err := unix.PidfdOpen(pid, 0)
		switch {
		case err == nil:
			all = append(all, held{pid, fd})
		case err != unix.EMFILE && err != unix.ENFILE && err != unix.ENOMEM:
		case len(all) == 0:
			return nil, i, err
		default:
			// The last one makes room for what lists the group.
			last := all[len(all)-1]
			if len(all) == 1 {
				return all, i, nil
			}
			_ = unix.Close(last.fd)
			return all[:len(all)-1], i - 1, nil
		}
	}
	return all, len(pids), nil
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
	return ParseOOMKills(text)
}

// ParseOOMKills finds the same number in what such a file holds.
func ParseOOMKills(text string) (n uint64, ok bool) { return number(text, "oom_kill") }

// OOMEvents is the file that reports a change of that number by POLLPRI to who
// has read it; "" on v1.
func (m Mode) OOMEvents(path string) string {
	dir := m.Dir("memory", path)
	if dir == "" || !m.v2 || !valid(path) {
		return ""
	}
	return dir + "/memory.events"
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
	n, _ := signalListed(func() ([]int, error) { return treePids(dir, nil) }, unix.SIGKILL)
	return n
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

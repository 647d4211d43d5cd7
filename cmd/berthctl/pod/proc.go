package pod

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// procRoot is where the kernel tells of processes.
const procRoot = "/proc"

// process is a process of the node, as /proc tells of it.
type process struct {
	PID     int    `json:"pid"`
	Inside  int    `json:"pidInside"` // in the innermost PID namespace it is in
	Parent  int    `json:"parent"`
	UID     int    `json:"uid"` // on the node
	State   string `json:"state"`
	RSS     uint64 `json:"rssBytes"`
	Threads int    `json:"threads"`
	Command string `json:"command"`
	Object  string `json:"container"` // ID of the container, or of the pod whose namespaces it holds
	Name    string `json:"name"`      // POD/CONTAINER
}

// processesOf returns the processes whose control groups are those of the
// objects with these IDs, by PID. One that ends meanwhile is left out.
func processesOf(root string, ids []string) ([]process, error) {
	entries, err := os.ReadDir(root)
	if err != nil {
		return nil, err
	}
	out := []process{}
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		groups, err := os.ReadFile(filepath.Join(root, e.Name(), "cgroup"))
		if err != nil {
			continue
		}
		id := ownerOf(string(groups), ids)
		if id == "" {
			continue
		}
		p, err := readProcess(root, pid)
		if err != nil {
			continue
		}
		p.Object = id
		out = append(out, p)
	}
	slices.SortFunc(out, func(a, b process) int { return a.PID - b.PID })
	return out, nil
}

// ownerOf returns which of the IDs names the innermost control group of a
// process, out of its /proc/PID/cgroup.
func ownerOf(groups string, ids []string) string {
	best, depth := "", -1
	for line := range strings.Lines(groups) {
		f := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if len(f) != 3 {
			continue
		}
		for i, name := range strings.Split(f[2], "/") {
			name = strings.TrimSuffix(strings.TrimPrefix(name, "cri-berth-"), ".scope")
			if i > depth && slices.Contains(ids, name) {
				best, depth = name, i
			}
		}
	}
	return best
}

// readProcess reads what /proc/PID says.
func readProcess(root string, pid int) (process, error) {
	p := process{PID: pid}
	dir := filepath.Join(root, strconv.Itoa(pid))
	status, err := os.ReadFile(filepath.Join(dir, "status"))
	if err != nil {
		return p, err
	}
	name := ""
	for line := range strings.Lines(string(status)) {
		key, value, _ := strings.Cut(line, ":")
		f := strings.Fields(value)
		if len(f) == 0 {
			continue
		}
		switch key {
		case "Name":
			name = strings.TrimSpace(value)
		case "State":
			p.State = f[0]
		case "PPid":
			p.Parent, _ = strconv.Atoi(f[0])
		case "Uid":
			p.UID, _ = strconv.Atoi(f[0])
		case "NSpid":
			p.Inside, _ = strconv.Atoi(f[len(f)-1])
		case "Threads":
			p.Threads, _ = strconv.Atoi(f[0])
		case "VmRSS":
			kib, _ := strconv.ParseUint(f[0], 10, 64)
			p.RSS = kib << 10
		}
	}
	cmdline, err := os.ReadFile(filepath.Join(dir, "cmdline"))
	if err != nil {
		return p, err
	}
	p.Command = string(bytes.TrimSpace(bytes.ReplaceAll(cmdline, []byte{0}, []byte(" "))))
	if p.Command == "" {
		p.Command = "[" + name + "]" // a zombie has no command line
	}
	return p, nil
}

// memoryOf returns the proportional and the private memory of a process in
// bytes.
func memoryOf(root string, pid int) (pss, private uint64, err error) {
	b, err := os.ReadFile(filepath.Join(root, strconv.Itoa(pid), "smaps_rollup"))
	if err != nil {
		return 0, 0, err
	}
	for line := range strings.Lines(string(b)) {
		key, value, _ := strings.Cut(line, ":")
		f := strings.Fields(value)
		if len(f) == 0 {
			continue
		}
		kib, err := strconv.ParseUint(f[0], 10, 64)
		switch {
		case err != nil:
		case key == "Pss":
			pss = kib << 10
		case key == "Private_Clean" || key == "Private_Dirty":
			private += kib << 10
		}
	}
	if pss == 0 {
		return 0, 0, fmt.Errorf("memory of process %d: the kernel says nothing", pid)
	}
	return pss, private, nil
}

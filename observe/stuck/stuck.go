// Package stuck finds the processes that a pod may be waiting for, and says
// where in the kernel they sleep.
package stuck

import (
	"bytes"
	"cmp"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// Process is a process of the node as it is at the moment.
type Process struct {
	PID   int
	Name  string   // of the program, at most 15 bytes
	State string   // as in proc(5): "D" is a sleep that no signal ends
	Role  string   // "container", "network plugin", "shim or runtime"
	Stack []string // functions of the kernel it sleeps in, innermost first; empty when not permitted
}

// Pod says how its processes are known.
type Pod struct {
	ID         string
	Containers []string // their IDs, which shims and runtimes have on their command lines
	Members    []int    // processes in the containers' control groups
}

const (
	longest  = 64 // processes
	maxStack = 24 // functions of each
)

// Find returns processes of a pod that sleep uninterruptibly, and what runs for
// it outside its containers: network plugins that were started for it, and
// runtimes. Shims that idle are left out. proc is "/proc".
func Find(proc string, p Pod) []Process {
	var out []Process
	member := map[int]bool{}
	for _, pid := range p.Members {
		member[pid] = true
	}
	entries, err := os.ReadDir(proc)
	if err != nil {
		return nil
	}
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		dir := filepath.Join(proc, e.Name())
		role := roleOf(dir, p)
		if member[pid] {
			role = "container"
		}
		if role == "" {
			continue
		}
		s, ok := look(dir)
		idle := s.State != "D" && (role == "container" || s.Name == "berth-shim")
		if !ok || idle {
			continue
		}
		s.PID, s.Role, s.Stack = pid, role, stackOf(dir)
		out = append(out, s)
	}
	slices.SortFunc(out, func(a, b Process) int {
		return cmp.Or(-cmp.Compare(b2i(a.State == "D"), b2i(b.State == "D")), cmp.Compare(a.PID, b.PID))
	})
	return out[:min(len(out), longest)]
}

func b2i(b bool) int {
	if b {
		return 1
	}
	return 0
}

// roleOf says what a process outside containers does for the pod; "": nothing.
func roleOf(dir string, p Pod) string {
	args, err := os.ReadFile(filepath.Join(dir, "cmdline"))
	if err != nil || len(args) == 0 {
		return ""
	}
	for _, id := range p.Containers {
		if bytes.Contains(args, []byte(id)) {
			return "shim or runtime"
		}
	}
	env, err := os.ReadFile(filepath.Join(dir, "environ"))
	if err == nil && slices.ContainsFunc(bytes.Split(env, []byte{0}), func(v []byte) bool { return string(v) == "CNI_CONTAINERID="+p.ID }) {
		return "network plugin"
	}
	return ""
}

// look reads name and state; the name may hold anything and ends at the last
// parenthesis.
func look(dir string) (Process, bool) {
	b, err := os.ReadFile(filepath.Join(dir, "stat"))
	text := string(b)
	open, end := strings.IndexByte(text, '('), strings.LastIndexByte(text, ')')
	if err != nil || open < 0 || end < open || len(text) < end+3 {
		return Process{}, false
	}
	return Process{Name: text[open+1 : end], State: text[end+2 : end+3]}, true
}

// stackOf reads lines like "[<0>] fuse_wait+0x1/0x2 [fuse]".
func stackOf(dir string) (out []string) {
	b, err := os.ReadFile(filepath.Join(dir, "stack"))
	if err != nil {
		return nil
	}
	for line := range strings.Lines(string(b)) {
		_, f, ok := strings.Cut(strings.TrimSpace(line), "] ")
		if !ok || len(out) == maxStack {
			break
		}
		name, _, _ := strings.Cut(f, "+")
		out = append(out, name)
	}
	return out
}

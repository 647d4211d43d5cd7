package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// weigh shows the memory of the shim and of the daemon. PSS counts shared
// pages in proportion, so it adds up over processes: the first shim pays for
// the program's code, each further one little more than what it has written.
func (d *demo) weigh(context.Context) ([]string, error) {
	var out []string
	procs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return nil, err
	}
	for _, p := range procs {
		b, _ := os.ReadFile(p + "/cmdline")
		argv := strings.Split(string(b), "\x00")
		if filepath.Base(argv[0]) == "berth-shim" && strings.Contains(string(b), d.web.container) {
			if m, err := memory(p); err == nil {
				out = append(out, fmt.Sprintf("%5d KiB  berth-shim of the web server; %d KiB of it its own, the rest code that all shims share", m["Pss"], m["Private_Dirty"]))
			}
		}
	}
	m, err := memory(fmt.Sprintf("/proc/%d", d.node.PID()))
	return append(out, fmt.Sprintf("%5d KiB  berthd, for the whole node", m["Pss"]), "    no pause process"), err
}

// memory reads the sums over a process's mappings, in KiB, by the kernel's names.
func memory(proc string) (map[string]int, error) {
	b, err := os.ReadFile(proc + "/smaps_rollup")
	if err != nil {
		return nil, err
	}
	out := map[string]int{}
	for line := range strings.Lines(string(b)) {
		name, value, _ := strings.Cut(line, ":")
		var kib int
		if _, err := fmt.Sscanf(value, "%d kB", &kib); err == nil {
			out[name] = kib
		}
	}
	return out, nil
}

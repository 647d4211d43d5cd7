package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// weigh shows the memory of the shim and of the daemon. PSS counts shared
// pages in proportion, so it adds up over processes.
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
			if kib, err := pss(p); err == nil {
				out = append(out, fmt.Sprintf("%5d KiB  berth-shim of the web server", kib))
			}
		}
	}
	kib, err := pss(fmt.Sprintf("/proc/%d", d.node.PID()))
	return append(out, fmt.Sprintf("%5d KiB  berthd, for the whole node", kib), "   no pause process"), err
}

// pss is a process's proportional set size in KiB.
func pss(proc string) (kib int, err error) {
	b, err := os.ReadFile(proc + "/smaps_rollup")
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(b)) {
		if _, err := fmt.Sscanf(line, "Pss: %d kB", &kib); err == nil {
			return kib, nil
		}
	}
	return 0, fmt.Errorf("%s/smaps_rollup has no Pss", proc)
}

package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"strconv"
	"time"

	"github.com/berth-dev/berth/observe/metrics"
)

// figures are the metrics that are read when they are asked for.
func (p *parts) figures(root string) []metrics.Figure {
	type set = func(float64, ...string)
	return append(p.pullFigures(), []metrics.Figure{
		{Name: "berth_objects", Help: "Records in the store, by kind.", Labels: []string{"kind"}, Read: func(set set) {
			set(float64(len(p.db.Sandboxes())), "sandbox")
			set(float64(len(p.db.Containers())), "container")
			set(float64(len(p.db.Images())), "image")
			set(float64(len(p.db.Layers())), "layer")
		}},
		{Name: "berth_containers_running", Help: "Containers that have been started and have not ended.", Read: func(set set) {
			n := 0
			for _, c := range p.db.Containers() {
				if !c.Facts.StartedAt.IsZero() && c.Facts.Exit == nil {
					n++
				}
			}
			set(float64(n))
		}},
		{Name: "berth_journal_entries", Help: "Verbs that have begun and not ended.", Read: func(set set) { set(float64(len(p.db.Ops()))) }},
		{Name: "berth_journal_oldest_seconds", Help: "Age of the oldest verb that has not ended; 0 when there is none.", Read: func(set set) {
			age := 0.0
			if ops := p.db.Ops(); len(ops) > 0 {
				age = max(0, time.Since(ops[0].StartedAt).Seconds())
			}
			set(age)
		}},
		{Name: "berth_database_bytes", Help: "Size of the database file.", Read: func(set set) { set(float64(databaseSize(root))) }},
		{Name: "berth_quarantined_records", Help: "Records that were set aside because they could not be read.", Read: func(set set) { set(float64(len(p.db.Quarantined()))) }},
		{Name: "berth_network_ready", Help: "1 when pods can be attached to the network.", Read: func(set set) {
			_, err := p.pods.NetworkReady(context.Background())
			set(map[bool]float64{true: 1}[err == nil])
		}},
		{Name: "berth_container_log_lost_bytes_total", Help: "Output that is missing from container logs: error for writes that failed, limit for what the configuration caps.",
			Labels: []string{"reason"}, Counter: true, Read: func(set set) {
				l := p.shims.LogLosses(context.Background())
				set(float64(l.Dropped), "error")
				set(float64(l.Capped), "limit")
			}},
		{Name: "berth_container_logs_failing", Help: "Containers whose last write to their log failed, for want of space for example.", Read: func(set set) {
			set(float64(len(p.shims.LogTrouble(context.Background()))))
		}},
		{Name: "berth_shims", Help: "Shims of running containers.", Read: func(set set) { set(float64(len(p.shimPIDs()))) }},
		{Name: "berth_shims_memory_bytes", Help: "Memory of all shims: each page counts as a share among the processes that map it (PSS).",
			Read: func(set set) {
				var sum uint64
				for _, pid := range p.shimPIDs() {
					kib, _ := procNumber(pid, "smaps_rollup", "Pss:") // one that has just ended counts for nothing
					sum += kib << 10
				}
				set(float64(sum))
			}},
	}...)
}

// shimPIDs are the parents of the containers' first processes.
func (p *parts) shimPIDs() (all []int) {
	for _, c := range p.db.Containers() {
		if c.Facts.Exit != nil || c.Facts.PID == 0 || c.Facts.BootID != p.bootID {
			continue
		}
		if pid, ok := procNumber(c.Facts.PID, "status", "PPid:"); ok && pid > 1 {
			all = append(all, int(pid))
		}
	}
	return all
}

// procNumber reads the number behind a word that begins a line of /proc/PID/file.
func procNumber(pid int, file, word string) (uint64, bool) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/%s", pid, file))
	if err != nil {
		return 0, false
	}
	for line := range bytes.Lines(b) {
		if rest, ok := bytes.CutPrefix(line, []byte(word)); ok {
			n, err := strconv.ParseUint(string(bytes.Fields(rest)[0]), 10, 64)
			return n, err == nil
		}
	}
	return 0, false
}

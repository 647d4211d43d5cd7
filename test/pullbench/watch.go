package main

import (
	"bytes"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"
)

// clockTicks is the unit of times in /proc/PID/stat, per second.
const clockTicks = 100

// watch measures do in the daemon with the pid: wall time, the daemon's CPU
// time and its children's, and its most memory.
func watch(who string, pid int, do func() error) (figure, error) {
	_ = os.WriteFile(fmt.Sprintf("/proc/%d/clear_refs", pid), []byte("5"), 0)
	before, err := cpuTime(pid)
	if err != nil {
		return figure{}, err
	}
	stop, anon := make(chan struct{}), make(chan float64)
	go func() {
		var most float64
		tick := time.NewTicker(20 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-stop:
				anon <- most
				return
			case <-tick.C:
				most = max(most, status(pid, "RssAnon:"))
			}
		}
	}()
	start := time.Now()
	err = do()
	f := figure{Who: who, Wall: time.Since(start)}
	close(stop)
	f.AnonMiB, f.PeakMiB = <-anon, status(pid, "VmHWM:")
	if err != nil {
		return f, err
	}
	after, err := cpuTime(pid)
	f.CPU = after - before
	return f, err
}

// cpuTime is what a process and its ended children used.
func cpuTime(pid int) (time.Duration, error) {
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, err
	}
	fields := strings.Fields(string(raw[bytes.LastIndexByte(raw, ')')+1:]))
	var ticks int64
	for _, f := range fields[11:15] { // utime, stime, cutime, cstime
		n, err := strconv.ParseInt(f, 10, 64)
		if err != nil {
			return 0, err
		}
		ticks += n
	}
	return time.Duration(ticks) * time.Second / clockTicks, nil
}

// status reads a line of /proc/PID/status in MiB; 0 when there is none.
func status(pid int, name string) float64 {
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(raw)) {
		if rest, ok := strings.CutPrefix(line, name); ok {
			n, _ := strconv.ParseFloat(strings.Fields(rest)[0], 64)
			return n / 1024
		}
	}
	return 0
}

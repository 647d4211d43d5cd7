package shim

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// rollup adds up fields of a process's smaps_rollup, in KiB.
func rollup(tb testing.TB, pid int) map[string]int {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
	if err != nil {
		tb.Fatal(err)
	}
	out := map[string]int{}
	for _, l := range strings.Split(string(b), "\n") {
		if f := strings.Fields(l); len(f) == 3 {
			out[strings.TrimSuffix(f[0], ":")], _ = strconv.Atoi(f[1])
		}
	}
	return out
}

// BenchmarkMemory reports the memory of a quiet shim among 40, and the CPU
// time that all of them take in two seconds of rest.
func BenchmarkMemory(b *testing.B) {
	r := newRig(b)
	const count = 40
	var pids []int
	for i := range count {
		id := "m" + strconv.Itoa(i)
		c := r.create(b, id, "echo hello; exec sleep 1000", nil)
		r.start(b, id)
		pids = append(pids, c.ShimPID)
	}
	time.Sleep(3 * time.Second) // the buffers go back after one
	ticks := func() (n int) {
		for _, p := range pids {
			t, _ := os.ReadFile(fmt.Sprintf("/proc/%d/schedstat", p))
			v, _ := strconv.Atoi(strings.Fields(string(t))[0])
			n += v
		}
		return n
	}
	before := ticks()
	time.Sleep(2 * time.Second)
	idle := ticks() - before
	pss, private, threads := 0, 0, 0
	for _, p := range pids {
		m := rollup(b, p)
		pss += m["Pss"]
		private += m["Private_Dirty"] + m["Private_Clean"]
		t, _ := os.ReadDir(fmt.Sprintf("/proc/%d/task", p))
		threads += len(t)
	}
	for b.Loop() {
	}
	b.ReportMetric(float64(pss)/count, "KiB-PSS/shim")
	b.ReportMetric(float64(private)/count, "KiB-private/shim")
	b.ReportMetric(float64(threads)/count, "threads/shim")
	b.ReportMetric(float64(idle)/1e3/2, "µs-idle-cpu/s")
}

// BenchmarkCreateStart compares with the bare runtime.
func BenchmarkCreateStart(b *testing.B) {
	b.Run("shim", func(b *testing.B) {
		r := newRig(b)
		i := 0
		for b.Loop() {
			b.StopTimer()
			id := "c" + strconv.Itoa(i)
			i++
			r.bundle(b, id, "exec sleep 1000")
			b.StartTimer()
			if _, err := r.m.Create(r.ctx, CreateRequest{ID: id, Runtime: r.rt, LogPath: r.logPath(id)}); err != nil {
				b.Fatal(err)
			}
			r.start(b, id)
			b.StopTimer()
			if err := r.m.Delete(r.ctx, id, r.rt); err != nil {
				b.Fatal(err)
			}
			b.StartTimer()
		}
	})
	b.Run("runc", func(b *testing.B) {
		r := newRig(b)
		i := 0
		for b.Loop() {
			b.StopTimer()
			id := "c" + strconv.Itoa(i)
			i++
			r.bundle(b, id, "exec sleep 1000")
			b.StartTimer()
			r.runc(b, id, "create", "--bundle", ".", id)
			r.runc(b, id, "start", id)
			b.StopTimer()
			r.runc(b, id, "delete", "--force", id)
			b.StartTimer()
		}
	})
}

func (r *rig) runc(b *testing.B, id string, args ...string) {
	cmd := exec.Command(r.rt.Path, append([]string{"--root", r.rt.Root}, args...)...)
	cmd.Dir = filepath.Join(r.cfg.RunDir, id)
	if err := cmd.Run(); err != nil {
		b.Fatal(args, err)
	}
}

// BenchmarkExec compares with the bare runtime, in turns, so that what else the
// machine does hits both. It reports medians.
func BenchmarkExec(b *testing.B) {
	r := newRig(b)
	r.create(b, "e", "exec sleep 1000", nil)
	r.start(b, "e")
	var ours, bare []time.Duration
	timed := func(to *[]time.Duration, f func()) {
		begun := time.Now()
		f()
		*to = append(*to, time.Since(begun))
	}
	for b.Loop() {
		timed(&ours, func() { r.execRun(b, "e", "true") })
		timed(&bare, func() { r.runc(b, "e", "exec", "--cwd", "/", "e", "/bin/sh", "-c", "true") })
	}
	median := func(d []time.Duration) float64 {
		slices.Sort(d)
		return float64(d[len(d)/2].Microseconds()) / 1e3
	}
	b.ReportMetric(median(ours), "ms-shim")
	b.ReportMetric(median(bare), "ms-runc")
	b.ReportMetric(median(ours)-median(bare), "ms-added")
}

// BenchmarkLog is one container that writes lines of 100 bytes, until its end
// is known and all of them are in its log.
func BenchmarkLog(b *testing.B) {
	r := newRig(b)
	const size = 100_000_000
	b.SetBytes(size)
	i := 0
	for b.Loop() {
		b.StopTimer()
		id := "l" + strconv.Itoa(i)
		i++
		r.create(b, id, "yes "+strings.Repeat("x", 99)+" | head -c "+strconv.Itoa(size), nil)
		b.StartTimer()
		r.start(b, id)
		r.exit(b)
		b.StopTimer()
		const line = 100 + len("2006-01-02T15:04:05.000000000Z stdout F ") // a zone adds to it
		if st, err := os.Stat(r.logPath(id)); err != nil || st.Size() < int64(size/100*line) {
			b.Fatalf("the log is not whole: %v, %v", st, err)
		}
		if err := os.Truncate(r.logPath(id), 0); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
	}
}

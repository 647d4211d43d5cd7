package bench

import (
	"encoding/json"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/berth-dev/berth/test/golden"
)

func TestSummarize(t *testing.T) {
	var all []time.Duration
	for i := 100; i > 0; i-- {
		all = append(all, time.Duration(i)*time.Millisecond)
	}
	s := summarize(all)
	s.Samples = nil
	if d := cmp.Diff(Stats{Count: 100, Mean: 50.5, Min: 1, P50: 50, P90: 90, P99: 99, Max: 100}, s); d != "" {
		t.Error(d)
	}
	if all[0] != 100*time.Millisecond {
		t.Error("the input is changed")
	}
	one := summarize([]time.Duration{1500 * time.Microsecond})
	if one.P50 != 1.5 || one.P99 != 1.5 || one.Min != 1.5 {
		t.Errorf("of one: %+v", one)
	}
	if none := summarize(nil); none.Count != 0 || none.Max != 0 || none.Samples == nil {
		t.Errorf("of none: %+v", none)
	}
	for p, want := range map[float64]float64{0: 1, 1: 1, 50: 2, 51: 3, 75: 3, 76: 4, 100: 4} {
		if got := percentile([]float64{1, 2, 3, 4}, p); got != want {
			t.Errorf("percentile %v: %v, want %v", p, got, want)
		}
	}
}

func TestDrift(t *testing.T) {
	s := Soak{Samples: []Sample{{Second: 0, Descriptors: 100}, {Second: 1800, Descriptors: 10}, {Second: 3600, Descriptors: 12}, {Second: 5400, Descriptors: 14}}}
	first, last, hour := s.drift(func(s Sample) float64 { return float64(s.Descriptors) })
	if first != 10 || last != 14 || math.Abs(hour-4) > 1e-9 {
		t.Errorf("first %v, last %v, %v in an hour: the first wave counts, or the slope is wrong", first, last, hour)
	}
	if _, _, hour := (Soak{Samples: []Sample{{Second: 1, Threads: 3}}}).drift(func(s Sample) float64 { return float64(s.Threads) }); hour != 0 {
		t.Errorf("a single sample drifts by %v", hour)
	}
}

func TestGauge(t *testing.T) {
	text := "# HELP go_goroutines Number.\n# TYPE go_goroutines gauge\ngo_goroutines 37\ngo_goroutines_created 5\n"
	if n := gauge(text, "go_goroutines"); n != 37 {
		t.Error(n)
	}
	if n := gauge("", "go_goroutines"); n != 0 {
		t.Error(n)
	}
}

// What is measured must be the runtime's, and only what came with the pods.
func TestFamily(t *testing.T) {
	all := map[int]proc{}
	for _, p := range []proc{
		{pid: 1, exe: "/init"}, {pid: 10, ppid: 1, exe: "/daemon"}, {pid: 11, ppid: 10, exe: "/helper"},
		{pid: 20, ppid: 1, exe: "/shim"}, {pid: 21, ppid: 20, exe: "/pause"}, {pid: 22, ppid: 20, exe: "/app"}, {pid: 23, ppid: 22, exe: "/child"},
		{pid: 30, ppid: 1, exe: "/shim"}, {pid: 31, ppid: 30, exe: "/holder"}, // new, of no container
		{pid: 40, ppid: 1, exe: "/shim"}, {pid: 41, ppid: 40, exe: "/other"}, // was there before
		{pid: 50, ppid: 1, exe: "/stranger"},
	} {
		all[p.pid] = p
	}
	for inits, want := range map[bool][]int{false: {10, 11, 20, 21, 30, 31}, true: {10, 11, 20, 21, 22, 23, 30, 31}} {
		got := family(all, map[int]bool{40: true, 41: true}, 10, []int{22}, inits)
		slices.Sort(got)
		if d := cmp.Diff(want, got); d != "" {
			t.Errorf("inits %v: %s", inits, d)
		}
	}
	// Containers that were adopted by init or are gone make nobody a shim.
	if got := family(all, nil, 10, []int{50, 999}, false); len(got) != 2 {
		t.Errorf("without shims: %v", got)
	}
}

func TestParseStat(t *testing.T) {
	const rest = " S 7 1 1 0 -1 4194560 1 2 3 4 5 6 20 0 20 0 1 0 1"
	p, ok := parseStat(9, []byte("9 (a) b) c)"+rest))
	if !ok || p.ppid != 7 || p.children != 205*time.Millisecond {
		t.Errorf("%+v, %v", p, ok)
	}
	for _, bad := range []string{"", "9 (x) S 7", "9 x S", "9 (x) S y" + strings.Repeat(" 1", 20)} {
		if _, ok := parseStat(9, []byte(bad)); ok {
			t.Errorf("%q is taken", bad)
		}
	}
}

// The clock of a process counts what it uses.
func TestCPU(t *testing.T) {
	before := cpu(nil, []int{os.Getpid()})
	for end := time.Now().Add(30 * time.Millisecond); time.Now().Before(end); {
		_ = summarize([]time.Duration{1})
	}
	if used := cpu(nil, []int{os.Getpid()}) - before; before <= 0 || used <= 0 {
		t.Errorf("%v, then %v more", before, used)
	}
	if got := cpu(map[int]proc{1<<22 + 1: {children: time.Second}}, []int{1<<22 + 1}); got != time.Second {
		t.Errorf("of one that is gone: %v", got)
	}
}

func TestFindMount(t *testing.T) {
	info := []byte("1 0 0:30 /sub /wrong rw - overlay o rw\n2 1 0:31 / /other rw - overlay o rw\n3 1 0:30 / /a\\040b\\134 rw - overlay o rw\n")
	if got := findMount(info, "0:30"); got != `/a b\` {
		t.Errorf("%q", got)
	}
	if got := findMount(info, "0:3"); got != "" {
		t.Errorf("%q", got)
	}
	if got := unescape(`x\9\04`); got != `x\9\04` {
		t.Errorf("%q", got)
	}
}

func TestBundle(t *testing.T) {
	spec := func(group string) containerInfo {
		var info containerInfo
		doc := `{"pid":5,"runtimeSpec":{"process":{"args":["x"]},"root":{"path":"rootfs","readonly":true},"linux":{"cgroupsPath":"` + group + `","resources":{}}}}`
		if err := json.Unmarshal([]byte(doc), &info); err != nil {
			t.Fatal(err)
		}
		return info
	}
	for group, want := range map[string]string{"/pods/p/c": "/pods/p/new", "pods/c": "/pods/new", "": "/new", "a.slice:cri:c": "a.slice:berthctl-bench:new"} {
		info := spec(group)
		b, err := newBundle(info, "/mnt")
		if err != nil {
			t.Fatal(err)
		}
		doc, err := b.document("new")
		if err != nil {
			t.Fatal(err)
		}
		if text := string(doc); !strings.Contains(text, `"cgroupsPath":"`+want+`"`) || !strings.Contains(text, `"root":{"path":"/mnt","readonly":true}`) {
			t.Errorf("%q: %s", group, text)
		}
		if info.Spec["root"].(map[string]any)["path"] != "rootfs" || b.systemd != strings.Contains(group, ":") {
			t.Errorf("%q: the original is changed, or systemd is %v", group, b.systemd)
		}
	}
	if _, err := newBundle(containerInfo{Spec: map[string]any{}}, "/"); err == nil {
		t.Error("half a specification is taken")
	}
}

func TestPlan(t *testing.T) {
	good := Plan{Image: "i", Command: []string{"sleep"}, Exec: []string{"true"}, Pods: 1, Concurrency: []int{1}, Pulls: 1}
	if err := good.check(Local{}); err != nil {
		t.Error(err)
	}
	for want, edit := range map[string]func(*Plan, *Local){
		"--image":       func(p *Plan, _ *Local) { p.Image = "" },
		"--exec":        func(p *Plan, _ *Local) { p.Exec = nil },
		"--pods":        func(p *Plan, _ *Local) { p.Pods = 0 },
		"--concurrency": func(p *Plan, _ *Local) { p.Concurrency = []int{0} },
		"1,8,32":        func(p *Plan, _ *Local) { p.Concurrency = nil },
		"--pull i":      func(p *Plan, _ *Local) { p.Pull = "i" },
		"--oci-runtime": func(_ *Plan, l *Local) { l.OCI = "/no/such/runc" },
		"--restart":     func(_ *Plan, l *Local) { l.Restart, l.PID = "x", 5 },
	} {
		p, l := good, Local{}
		edit(&p, &l)
		if err := p.check(l); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", want, err)
		}
	}
}

// sample is a whole result; slow makes its figures worse.
func sample(name string, slow float64) Result {
	ms := func(f ...float64) Stats {
		var all []time.Duration
		for _, v := range f {
			all = append(all, time.Duration(v*slow*float64(time.Millisecond)))
		}
		return summarize(all)
	}
	round := func(at int) Round {
		return Round{Concurrency: at, Pods: 2, Calls: map[string]Stats{podUp: ms(100, 120, 180), "ExecSync": ms(50, 55), "ListContainers": ms(0.2, 0.4), podDown: ms(30)},
			Floor: map[string]Stats{floorUp: summarize([]time.Duration{90 * time.Millisecond}), floorExec: summarize([]time.Duration{48 * time.Millisecond})},
			Rates: Rates{UpPerSecond: 9 / slow, DownPerSecond: 30 / slow, CPUPerUp: 80 * slow, CPUPerExec: 52 * slow}, FloorRates: &Rates{UpPerSecond: 11, DownPerSecond: 50, CPUPerUp: 70, CPUPerExec: 50}}
	}
	fork, pull := ms(0.7), ms(60)
	return Result{Schema: Schema, Started: time.Unix(1_700_000_000, 0).UTC(), Command: []string{"berthctl", "bench", "<&>"},
		Machine: Machine{Kernel: "6.1", CPU: "A", CPUs: 2, Memory: 2048000, Cgroup: "v2"}, Runtime: Runtime{Name: name, Version: "1", OCI: "runc version 1"},
		Plan: Plan{Pods: 2, Execs: 1, Pull: "r/i:1"}, Fork: &fork, Pull: &pull, Rounds: []Round{round(1), round(8)},
		Held: &Held{Pods: 2, DaemonBefore: 20480, DaemonAfter: 24576, Others: 2048, PSSPerPod: 3072 * slow, AvailablePerPod: 4096, IdleSeconds: 60, IdleCPUPercent: 0.05, RestartFirst: 40, RestartAll: 44 * slow}}
}

func TestText(t *testing.T) {
	a, b := sample("berth", 1), sample("peer <&>", 3)
	b.Rounds, b.Held = b.Rounds[:1], nil
	golden.Compare(t, "one.txt", text([]Result{a}))
	golden.Compare(t, "two.txt", text([]Result{a, b}))
	soak := Result{Runtime: Runtime{Name: "berth"}, Soak: &Soak{Seconds: 7200, Pods: 9, Samples: []Sample{{Second: 1, PSS: 1024, Descriptors: 9, Threads: 5, Goroutines: 30}, {Second: 3601, PSS: 2048, Descriptors: 9, Threads: 5, Goroutines: 31}}}}
	golden.Compare(t, "soak.txt", text([]Result{soak}))
}

// Each pod up is divided by the floor of each, and a result without a floor has none to give.
func TestBundleRows(t *testing.T) {
	of := func(up, floor float64) Result {
		r := Round{Concurrency: 1, Calls: map[string]Stats{podUp: {P50: up}}}
		if floor > 0 {
			r.Floor = map[string]Stats{floorUp: {P50: floor}}
		}
		return Result{Runtime: Runtime{Name: "r"}, Rounds: []Round{r}}
	}
	a, b, bare := of(60, 40), of(240, 60), of(120, 0)
	want := [][]string{
		{"pod up / the OCI runtime alone, its own bundle, 1 at once", "1.50", "4.00", "-"},
		{"  r's bundle", "1.50", "6.00", "3.00"},
		{"  r-2's bundle", "1.00", "4.00", "2.00"},
	}
	if d := cmp.Diff(want, bundleRows([]Result{a, b, bare})); d != "" {
		t.Error(d)
	}
	for _, none := range [][]Result{{a}, {bare, bare}} {
		if rows := bundleRows(none); rows != nil {
			t.Error(rows)
		}
	}
}

func TestReport(t *testing.T) {
	a, b := sample("berth", 1), sample("peer <&>", 3)
	page, err := report([]Result{a, b})
	if err != nil {
		t.Fatal(err)
	}
	golden.Compare(t, "report.html", string(page))
	for _, not := range []string{"<&>", "<script", "http://", "https://", "ZgotmplZ", "NaN"} {
		if strings.Contains(string(page), not) {
			t.Errorf("the page has %q", not)
		}
	}
	if page, err = report([]Result{{}}); err != nil || strings.Contains(string(page), "<svg") {
		t.Errorf("of nothing: %v %s", err, page)
	}
}

// A result that was kept is the one that is read.
func TestLoad(t *testing.T) {
	dir := t.TempDir()
	write := func(name string, v any) string {
		raw, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		file := filepath.Join(dir, name)
		if err := os.WriteFile(file, raw, 0o600); err != nil {
			t.Fatal(err)
		}
		return file
	}
	want := sample("berth", 1)
	got, err := load([]string{write("good", want)})
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff([]Result{want}, got); d != "" {
		t.Error(d)
	}
	newer := want
	newer.Schema++
	for _, file := range []string{write("newer", newer), write("other", []string{"x"}), filepath.Join(dir, "missing")} {
		if _, err := load([]string{file}); err == nil || !strings.Contains(err.Error(), filepath.Base(file)) {
			t.Errorf("%s: %v", file, err)
		}
	}
}

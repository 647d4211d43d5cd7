package bench

import (
	"fmt"
	"path"
	"slices"
	"strconv"
	"strings"

	"github.com/berth-dev/berth/cmd/berthctl/cli"
)

// names of calls in the order in which they are shown.
func names() []string {
	return []string{podUp, "RunPodSandbox", "CreateContainer", "StartContainer", "ExecSync", podDown, "StopContainer", "StopPodSandbox", "RemovePodSandbox",
		"ListPodSandbox", "ListContainers", "PodSandboxStatus", "ContainerStatus", "ListContainerStats", "ListPodSandboxStats", "Status", "Version"}
}

// floorOf is what the OCI runtime alone does of a call; "" for most.
func floorOf(call string) string {
	return map[string]string{podUp: floorUp, "CreateContainer": floorCreate, "StartContainer": floorStart, "ExecSync": floorExec, podDown: floorDown}[call]
}

// text is all results in words: one whole, several beside each other.
func text(all []Result) string {
	var out strings.Builder
	for _, r := range all {
		fmt.Fprintf(&out, "%s %s, %s, %s; %d CPUs (%s), %d MiB, Linux %s, cgroup %s\n", r.Runtime.Name, r.Runtime.Version, orNone(r.Runtime.OCI, "no floor"),
			r.Started.Format("2006-01-02 15:04"), r.Machine.CPUs, orNone(r.Machine.CPU, "unknown"), r.Machine.Memory/1024, r.Machine.Kernel, r.Machine.Cgroup)
	}
	if t := callTable(all); len(t.Rows) > 0 {
		out.WriteString("\nMilliseconds:\n" + t.Plain())
	}
	if t := figureTable(all); len(t.Rows) > 0 {
		out.WriteString("\n" + t.Plain())
	}
	return out.String()
}

func orNone(s, none string) string {
	if s == "" {
		return none
	}
	return s
}

// labels tells results apart by the shortest names that do.
func labels(all []Result) (out []string) {
	for i, r := range all {
		name := orNone(strings.Join(strings.Fields(r.Runtime.Name), "-"), "unknown") // a column
		for _, k := range out {
			if k == name {
				name += "-" + strconv.Itoa(i+1)
				break
			}
		}
		out = append(out, name)
	}
	return out
}

// callTable shows one result with its spread, several by their medians.
func callTable(all []Result) cli.Table {
	if len(all) == 1 {
		return spreadTable(all[0])
	}
	var upper []string
	for _, l := range labels(all) {
		upper = append(upper, strings.ToUpper(l))
	}
	t := cli.Table{Header: "CALL AT-ONCE " + strings.Join(upper, " ")}
	for _, name := range upper[1:] {
		t.Header += " " + name + "/" + upper[0]
	}
	for _, at := range concurrencies(all) {
		for _, name := range names() {
			row, ratios := []string{name, strconv.Itoa(at)}, []string(nil)
			first, found := call(all[0], at, name)
			any := false
			for i, r := range all {
				s, ok := call(r, at, name)
				any = any || ok
				row = append(row, number(s.P50, ok))
				if i > 0 {
					ratios = append(ratios, ratio(s.P50, first.P50, ok && found))
				}
			}
			if any {
				t.Rows = append(t.Rows, append(row, ratios...))
			}
		}
	}
	return t
}

func spreadTable(r Result) cli.Table {
	t := cli.Table{Header: "CALL AT-ONCE COUNT P50 P90 P99 MAX FLOOR-P50 RATIO"}
	for _, round := range r.Rounds {
		for _, name := range names() {
			s, ok := round.Calls[name]
			if !ok {
				continue
			}
			f, floor := round.Floor[floorOf(name)]
			t.Rows = append(t.Rows, []string{name, strconv.Itoa(round.Concurrency), strconv.Itoa(s.Count), number(s.P50, true), number(s.P90, true),
				number(s.P99, true), number(s.Max, true), number(f.P50, floor), ratio(s.P50, f.P50, floor)})
		}
	}
	return t
}

func concurrencies(all []Result) (out []int) {
	for _, r := range all {
		for _, round := range r.Rounds {
			if !slices.Contains(out, round.Concurrency) {
				out = append(out, round.Concurrency)
			}
		}
	}
	slices.Sort(out)
	return out
}

func call(r Result, at int, name string) (Stats, bool) {
	for _, round := range r.Rounds {
		if round.Concurrency == at {
			s, ok := round.Calls[name]
			return s, ok
		}
	}
	return Stats{}, false
}

// number is a figure with three digits that mean something; - when there is none.
func number(f float64, ok bool) string {
	switch {
	case !ok:
		return "-"
	case f >= 100 || f <= -100:
		return strconv.FormatFloat(f, 'f', 0, 64)
	case f >= 10 || f <= -10:
		return strconv.FormatFloat(f, 'f', 1, 64)
	}
	return strconv.FormatFloat(f, 'f', 2, 64)
}

func ratio(f, by float64, ok bool) string {
	if !ok || by == 0 {
		return "-"
	}
	return strconv.FormatFloat(f/by, 'f', 2, 64)
}

// figure is a number of a result that is not about one call.
type figure struct {
	name  string
	value float64
	ok    bool
}

// figures are all there may be, in order, for every result.
func figures(r Result) (out []figure) {
	add := func(name string, value float64, ok bool) { out = append(out, figure{name, value, ok}) }
	for _, round := range r.Rounds {
		at := fmt.Sprintf(", %d at once", round.Concurrency)
		f := orZero(round.FloorRates)
		add("pods up in a second"+at, round.Rates.UpPerSecond, true)
		add("  the OCI runtime alone", f.UpPerSecond, round.FloorRates != nil)
		add("pods down in a second"+at, round.Rates.DownPerSecond, true)
		add("  the OCI runtime alone", f.DownPerSecond, round.FloorRates != nil)
		add("CPU ms of a pod up"+at, round.Rates.CPUPerUp, true)
		add("  the OCI runtime alone", f.CPUPerUp, round.FloorRates != nil)
		add("CPU ms of a command"+at, round.Rates.CPUPerExec, r.Plan.Execs > 0)
		add("  the OCI runtime alone", f.CPUPerExec, round.FloorRates != nil && r.Plan.Execs > 0)
	}
	h := orZero(r.Held)
	of := fmt.Sprintf(" with %d pods", h.Pods)
	const mib = 1024
	add("MiB of the daemon before", float64(h.DaemonBefore)/mib, r.Held != nil)
	add("MiB of the daemon"+of, float64(h.DaemonAfter)/mib, r.Held != nil)
	add("MiB of its other processes"+of, float64(h.Others)/mib, r.Held != nil)
	add("MiB for each pod (PSS)", h.PSSPerPod/mib, r.Held != nil)
	add("MiB for each pod (MemAvailable)", h.AvailablePerPod/mib, r.Held != nil)
	add("% of a CPU at rest"+of, h.IdleCPUPercent, h.IdleSeconds > 0)
	add("ms from restart to an answer"+of, h.RestartFirst, h.RestartAll > 0)
	add("ms from restart to a whole list"+of, h.RestartAll, h.RestartAll > 0)
	add("ms of a pull ("+path.Base(r.Plan.Pull)+")", orZero(r.Pull).P50, r.Pull != nil)
	add("ms of fork and exec of true", orZero(r.Fork).P50, r.Fork != nil)
	add("ms of fsync after a page", orZero(r.Disk).P50, r.Disk != nil)
	if r.Soak != nil {
		out = append(out, soakFigures(*r.Soak)...)
	}
	return slices.DeleteFunc(out, func(f figure) bool { return !f.ok })
}

func soakFigures(s Soak) (out []figure) {
	out = append(out, figure{"soak: seconds", s.Seconds, true}, figure{"soak: pods made and removed", float64(s.Pods), true})
	for _, of := range []struct {
		name string
		get  func(Sample) float64
	}{
		{"MiB of the daemon", func(s Sample) float64 { return float64(s.PSS) / 1024 }},
		{"descriptors", func(s Sample) float64 { return float64(s.Descriptors) }},
		{"threads", func(s Sample) float64 { return float64(s.Threads) }},
		{"goroutines", func(s Sample) float64 { return float64(s.Goroutines) }},
	} {
		first, last, drift := s.drift(of.get)
		known := of.name != "goroutines" || last > 0
		out = append(out, figure{"soak: " + of.name + ", first", first, known}, figure{"soak: " + of.name + ", last", last, known},
			figure{"soak: " + of.name + ", drift in an hour", drift, known})
	}
	return out
}

func orZero[T any](p *T) (v T) {
	if p != nil {
		v = *p
	}
	return v
}

// figureTable has a row for each figure that a result has. Rows of the floor
// belong to the row above them.
func figureTable(all []Result) cli.Table {
	var order []string
	values := map[string][]string{}
	for i, r := range all {
		above := ""
		for _, f := range figures(r) {
			key := f.name
			if strings.HasPrefix(key, " ") {
				key = above + "\x00" + key
			} else {
				above = key
			}
			if values[key] == nil {
				values[key] = slices.Repeat([]string{"-"}, len(all))
				order = append(order, key)
			}
			values[key][i] = number(f.value, true)
		}
	}
	t := cli.Table{Header: "FIGURE " + strings.ToUpper(strings.Join(labels(all), " "))}
	for _, key := range order {
		_, name, below := strings.Cut(key, "\x00")
		if !below {
			name = key
		}
		t.Rows = append(t.Rows, append([]string{name}, values[key]...))
	}
	t.Rows = append(t.Rows, bundleRows(all)...)
	return t
}

// bundleRows are each result's pod up against what the OCI runtime alone took
// for its own bundle, and for that of every result: the bundles differ, in their
// seccomp profiles above all. One result has that ratio beside its spread.
func bundleRows(all []Result) (rows [][]string) {
	if len(all) < 2 {
		return nil
	}
	for _, at := range concurrencies(all) {
		row := func(name string, floor func(i int) float64) []string {
			out := []string{name}
			for i, r := range all {
				s, ok := call(r, at, podUp)
				out = append(out, ratio(s.P50, floor(i), ok))
			}
			return out
		}
		own := row(fmt.Sprintf("pod up / the OCI runtime alone, its own bundle, %d at once", at), func(i int) float64 { return floorP50(all[i], at, podUp) })
		var each [][]string
		for i, name := range labels(all) {
			if f := floorP50(all[i], at, podUp); f > 0 {
				each = append(each, row("  "+name+"'s bundle", func(int) float64 { return f }))
			}
		}
		if len(each) > 0 {
			rows = append(append(rows, own), each...)
		}
	}
	return rows
}

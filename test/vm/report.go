package main

import (
	"fmt"
	"regexp"
	"strings"
)

// verdict is what came of one case.
type verdict struct {
	unit  string // package or name of the case
	test  string // "": the unit as a whole
	state string // PASS, FAIL or SKIP
	took  string
}

func (v verdict) String() string {
	s := v.state + "  " + v.unit
	if v.test != "" {
		s += "  " + v.test
	}
	if v.took != "" {
		s += "  (" + v.took + ")"
	}
	return s
}

// report reads what a machine says, line by line.
type report struct {
	unit     string // that runs now; "": none
	failed   bool   // the unit has a failed case
	passed   bool   // the unit has a passed case
	command  bool   // the unit is a command, with a verdict of its own
	finished bool   // the machine said that it is done
	counts   map[string]int
}

func newReport() *report { return &report{counts: map[string]int{}} }

var verdictLine = regexp.MustCompile(`^\s*--- (PASS|FAIL|SKIP): (\S+) \(([0-9.]+s)\)$`)

// line reads one line and returns the verdict in it, or "said" with text for
// the reader.
func (r *report) line(s string) (v *verdict, said string) {
	if text, ok := strings.CutPrefix(s, "BERTH-VM "); ok {
		return r.mark(text)
	}
	if m := verdictLine.FindStringSubmatch(s); m != nil && r.unit != "" {
		return r.add(verdict{unit: r.unit, test: m[2], state: m[1], took: m[3]}), ""
	}
	return nil, ""
}

func (r *report) mark(text string) (v *verdict, said string) {
	f := strings.Fields(text)
	switch {
	case f[0] == "begin" && len(f) == 2:
		r.unit, r.failed, r.passed, r.command = f[1], false, false, false
	case f[0] == "case" && len(f) == 3:
		state := map[string]string{"0": "PASS", "3": "SKIP"}[f[2]]
		if state == "" {
			state = "FAIL"
		}
		v, r.command = r.add(verdict{unit: f[1], state: state}), true
	case f[0] == "end" && len(f) == 3:
		// A program that dies has no verdict of its own, and tests that all
		// skip prove nothing here.
		if f[2] != "0" && !r.failed {
			v = r.add(verdict{unit: f[1], state: "FAIL", test: "(ended with status " + f[2] + ")"})
		} else if f[2] == "0" && !r.failed && !r.passed && !r.command {
			v = r.add(verdict{unit: f[1], state: "FAIL", test: "(nothing ran)"})
		}
		r.unit = ""
	case f[0] == "done":
		r.finished = true
	default:
		said = text
	}
	return v, said
}

func (r *report) add(v verdict) *verdict {
	r.counts[v.state]++
	r.failed = r.failed || v.state == "FAIL"
	r.passed = r.passed || v.state == "PASS"
	return &v
}

// end is the verdict on the whole: what is wrong, or nothing.
func (r *report) end() string {
	switch {
	case !r.finished && r.unit != "":
		return "the machine ended during " + r.unit
	case !r.finished:
		return "the machine did not finish"
	case r.counts["FAIL"] > 0:
		return fmt.Sprintf("%d failed", r.counts["FAIL"])
	case r.counts["PASS"] == 0:
		return "nothing ran"
	}
	return ""
}

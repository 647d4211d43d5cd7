// Package doctor checks a node: whether it has what Berth needs, whether
// anything is left of pods and containers that no record knows, and what a
// person who is asked for help should be sent.
//
// Gathering and judging are apart: Gather and Observe look at the node, Check
// and Leaks are pure functions over what they saw.
package doctor

import (
	"fmt"
	"io"
	"strings"
)

// Level says how bad a finding is.
type Level string

// Levels, in order.
const (
	OK   Level = "ok"
	Warn Level = "warn" // works, with something missing or worse than need be
	Fail Level = "fail" // pods do not run, or not safely
)

// Finding is the outcome of one check on one thing.
type Finding struct {
	Level  Level  `json:"level"`
	Check  string `json:"check"`
	Text   string `json:"finding"`
	Remedy string `json:"remedy,omitempty"` // what to do; never empty unless Level is OK
}

// Check judges the facts. Pure; findings come in a fixed order.
func Check(f Facts) []Finding {
	var out []Finding
	for _, check := range []func(Facts) []Finding{
		checkRoot, checkConfig, checkKernel, checkCgroup, checkSysctls, checkSecurity,
		checkHandlers, checkNetwork, checkDisks, checkClock, checkLimits, checkDaemon,
	} {
		out = append(out, check(f)...)
	}
	return out
}

// Count returns how many findings have a level.
func Count(all []Finding, l Level) (n int) {
	for _, f := range all {
		if f.Level == l {
			n++
		}
	}
	return n
}

func ok(check, format string, args ...any) Finding {
	return Finding{Level: OK, Check: check, Text: fmt.Sprintf(format, args...)}
}

func warn(check, remedy, format string, args ...any) Finding {
	return Finding{Level: Warn, Check: check, Text: fmt.Sprintf(format, args...), Remedy: remedy}
}

func fail(check, remedy, format string, args ...any) Finding {
	return Finding{Level: Fail, Check: check, Text: fmt.Sprintf(format, args...), Remedy: remedy}
}

// writeFindings prints findings as a table with the remedies below their lines,
// and a sum.
func writeFindings(w io.Writer, all []Finding) error {
	var b strings.Builder
	for _, f := range all {
		fmt.Fprintf(&b, "%-4s  %-20s  %s\n", f.Level, f.Check, f.Text)
		if f.Remedy != "" {
			fmt.Fprintf(&b, "      %-20s  -> %s\n", "", f.Remedy)
		}
	}
	fmt.Fprintf(&b, "%d ok, %d warnings, %d failures\n", Count(all, OK), Count(all, Warn), Count(all, Fail))
	_, err := io.WriteString(w, b.String())
	return err
}

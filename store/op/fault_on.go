//go:build faults

package op

import (
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// Fault kills the process with SIGKILL when BERTH_FAULT names this point, as
// <kind>/<step>/<where>: where is before, after, undo-before or undo-after,
// and the steps "journal" (after) and "commit" (before, after) stand for the
// runner's own writes. Verbs that have no steps call it themselves. With
// BERTH_FAULT_TRACE every point that is reached is appended to that file.
func Fault(kind, step, where string) {
	point := kind + "/" + step + "/" + where
	trace("reached " + point)
	if os.Getenv("BERTH_FAULT") != point {
		return
	}
	_ = unix.Kill(os.Getpid(), unix.SIGKILL)
	select {} // the signal may take a moment; nothing must run on
}

// declare traces which points a verb has, so that a crash test knows them all.
// Every verb is declared at a start, by its recovery.
func declare(points []string) {
	trace("declared " + strings.Join(points, "\ndeclared "))
}

func trace(lines string) {
	name := os.Getenv("BERTH_FAULT_TRACE")
	if name == "" {
		return
	}
	f, err := os.OpenFile(name, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		panic(err)
	}
	defer f.Close()
	if _, err := f.WriteString(lines + "\n"); err != nil {
		panic(err)
	}
}

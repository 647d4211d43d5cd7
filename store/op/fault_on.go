//go:build faults

package op

import (
	"os"

	"golang.org/x/sys/unix"
)

// fault kills the process with SIGKILL when BERTH_FAULT names this point, as
// <kind>/<step>/<where>: where is before, after, undo-before or undo-after,
// and the steps "journal" (after) and "commit" (before, after) stand for the
// runner's own writes.
func fault(kind, step, where string) {
	if os.Getenv("BERTH_FAULT") != kind+"/"+step+"/"+where {
		return
	}
	_ = unix.Kill(os.Getpid(), unix.SIGKILL)
	select {} // the signal may take a moment; nothing must run on
}

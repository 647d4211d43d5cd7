package shim

import (
	"os"
	"strings"
	"testing"
)

// maxPrivate is the private memory that a quiet container's shim may have, in KiB.
const maxPrivate = 819

// TestIntegrationMemory: names and a search path as long as those of a node
// must not make Go's collector run in a shim that does nothing: what it keeps
// for itself is more than all the rest.
func TestIntegrationMemory(t *testing.T) {
	if os.Getpagesize() != 4096 {
		t.Skip("the bound is for pages of 4 KiB")
	}
	t.Setenv("PATH", os.Getenv("PATH")+strings.Repeat(":/usr/local/bin", 20))
	r := newRig(t)
	id := strings.Repeat("m", 64)
	c := r.create(t, id, "echo hello; exec sleep 1000", nil)
	r.start(t, id)
	for range 3 {
		r.execRun(t, id, "true")
	}
	// Alone, a shim's program counts as private too.
	own := 0
	defer func() { t.Logf("%d KiB", own) }()
	until(t, "at most 819 KiB of memory of its own", func() bool {
		own = rollup(t, c.ShimPID)["Anonymous"]
		return own <= maxPrivate
	})
}

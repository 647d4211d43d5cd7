package checkpoint

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"sync"
	"time"

	"github.com/containerd/errdefs"
)

// checkTime bounds one run of `criu check`.
const checkTime = 30 * time.Second

// CRIU finds out whether this node's CRIU works. The zero value is ready.
type CRIU struct {
	mu   sync.Mutex
	good string // what was found good: path, size and time of the program
}

// Check reports why there can be no checkpoints here; nil when there can. The
// OCI runtime looks for the program in the same way. A failure is looked into
// again each time: loading a module of the kernel may be all that it takes.
func (c *CRIU) Check(ctx context.Context) error {
	path, err := exec.LookPath("criu")
	if err != nil {
		return fmt.Errorf("CRIU is not installed: no program criu in the daemon's PATH (package criu): %w", errdefs.ErrNotImplemented)
	}
	st, err := os.Stat(path)
	if err != nil {
		return fmt.Errorf("look at %s: %w: %w", path, err, errdefs.ErrNotImplemented)
	}
	is := fmt.Sprint(path, st.Size(), st.ModTime())
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.good == is {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, checkTime)
	defer cancel()
	cmd := exec.CommandContext(ctx, path, "check")
	cmd.WaitDelay = 10 * time.Second
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("CRIU does not work on this node: `%s check`: %s (%w): %w", path, firstError(string(out)), err, errdefs.ErrNotImplemented)
	}
	c.good = is
	return nil
}

// keepsNoNewPrivs reports why no_new_privs would be lost on the way: CRIU before
// 3.19 neither records nor restores it.
func keepsNoNewPrivs() error {
	ctx, cancel := context.WithTimeout(context.Background(), checkTime)
	defer cancel()
	cmd := exec.CommandContext(ctx, "criu", "--version")
	cmd.WaitDelay = 10 * time.Second
	out, err := cmd.Output()
	if err != nil {
		return fmt.Errorf("ask CRIU for its version: %w: %w", err, errdefs.ErrFailedPrecondition)
	}
	var major, minor int
	if _, err := fmt.Sscanf(string(out), "Version: %d.%d", &major, &minor); err != nil {
		return fmt.Errorf("CRIU says %.100q for its version: %w", out, errdefs.ErrFailedPrecondition)
	}
	if major < 3 || major == 3 && minor < 19 {
		return fmt.Errorf("CRIU %d.%d does not restore no_new_privs, which the container has because it may not escalate its privileges; 3.19 does: %w",
			major, minor, errdefs.ErrFailedPrecondition)
	}
	return nil
}

// firstError is what criu says is wrong, on one line.
func firstError(out string) string {
	last := "it says nothing"
	for line := range strings.Lines(out) {
		line = strings.TrimSpace(line)
		if _, text, ok := strings.Cut(line, "Error ("); ok {
			if _, after, ok := strings.Cut(text, "): "); ok {
				return after
			}
			return text
		}
		if line != "" {
			last = line
		}
	}
	return last
}

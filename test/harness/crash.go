package harness

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// Ended waits up to d for the daemon to end by itself, and reports whether it has.
func (n *Node) Ended(d time.Duration) bool {
	n.mu.Lock()
	p := n.proc
	n.mu.Unlock()
	if p == nil {
		return true
	}
	select {
	case <-p.done:
		n.mu.Lock()
		n.proc = nil
		n.mu.Unlock()
		return true
	case <-time.After(d):
		return false
	}
}

// Shims returns the PIDs of the shims of this node, by container.
func (n *Node) Shims() map[string]int {
	out := map[string]int{}
	procs, _ := filepath.Glob("/proc/[0-9]*")
	for _, p := range procs {
		cwd, _ := os.Readlink(p + "/cwd")
		id, ours := strings.CutPrefix(cwd, n.Dir("run", "containers")+"/")
		comm, _ := os.ReadFile(p + "/comm")
		if ours && (strings.HasPrefix(string(comm), "berth-shim") || strings.HasPrefix(string(comm), "exe")) {
			out[id], _ = strconv.Atoi(filepath.Base(p))
		}
	}
	return out
}

// Reboot ends everything as a power cut would: daemon, shims, containers,
// mounts and namespaces are gone, the run-time directory is empty, and the boot
// ID is another. The state directory stays. Start starts the daemon again.
func (n *Node) Reboot(ctx context.Context) error {
	if err := n.Kill(); err != nil {
		return err
	}
	for _, pid := range n.Shims() {
		_ = syscall.Kill(pid, syscall.SIGKILL)
	}
	n.killContainers()
	for _, dir := range n.ownCgroups() {
		if err := os.Remove(dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	n.cfg.Space.Close()
	space, err := NewSpace()
	if err != nil {
		return err
	}
	n.cfg.Space = space
	entries, err := os.ReadDir(n.Dir("run"))
	for _, e := range entries {
		err = errors.Join(err, os.RemoveAll(n.Dir("run", e.Name())))
	}
	if err != nil {
		return err
	}
	boot := n.Dir("boot_id")
	if err := os.WriteFile(boot, []byte("00000000-0000-4000-8000-000000000002\n"), 0o644); err != nil {
		return err
	}
	if out, err := space.Command(ctx, "mount", "--bind", boot, "/proc/sys/kernel/random/boot_id").CombinedOutput(); err != nil {
		return fmt.Errorf("change boot ID: %w: %s", err, out)
	}
	return nil
}

// killContainers kills all that runs in cgroups of the node's pods and
// containers, and waits for it to be gone.
func (n *Node) killContainers() {
	for end := time.Now().Add(time.Minute); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		left := 0
		for _, dir := range n.ownCgroups() {
			b, _ := os.ReadFile(filepath.Join(dir, "cgroup.procs"))
			for _, f := range strings.Fields(string(b)) {
				pid, _ := strconv.Atoi(f)
				_ = syscall.Kill(pid, syscall.SIGKILL)
				left++
			}
		}
		if left == 0 {
			return
		}
	}
}

// ownCgroups lists the cgroups of the node's pods and containers, children first.
func (n *Node) ownCgroups() []string {
	ids := n.ids.all()
	var out []string
	_ = filepath.WalkDir("/sys/fs/cgroup", func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() && slices.ContainsFunc(ids, func(id string) bool { return strings.Contains(path, id) }) {
			out = append(out, path)
		}
		return nil
	})
	slices.Reverse(out)
	return out
}

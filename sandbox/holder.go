package sandbox

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berth-dev/berth/store"
)

// holderWait bounds how long a killed holder may take to be gone.
const holderWait = 10 * time.Second

// holderOf returns the sandbox a process is the holder of, from its command
// line: IDs are random, so that no other process has it by chance. A zombie has
// no command line and is nobody's.
func holderOf(pid int) string {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	if err != nil {
		return ""
	}
	args := bytes.Split(bytes.TrimSuffix(b, []byte{0}), []byte{0})
	if len(args) != 3 || string(args[1]) != "holder" || !isID(string(args[2])) {
		return ""
	}
	return string(args[2])
}

func isHolder(pid int, id string) bool { return pid > 0 && holderOf(pid) == id }

// findHolders looks through all processes and returns holders by sandbox.
func findHolders() (map[string]int, error) {
	dirs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return nil, fmt.Errorf("list processes: %w", err)
	}
	found := map[string]int{}
	for _, d := range dirs {
		pid, err := strconv.Atoi(filepath.Base(d))
		if err != nil {
			continue
		}
		if id := holderOf(pid); id != "" {
			found[id] = pid
		}
	}
	return found, nil
}

// WatchHolders begins to watch the holders of the sandboxes there are, and
// returns where the ID of a sandbox comes out whose holder has ended although
// nobody stopped the sandbox: it is to be settled. Call it once.
func (m *Manager) WatchHolders() <-chan string {
	for _, rec := range m.db.Sandboxes() {
		m.watchHolder(rec)
	}
	return m.lost
}

// watchHolder reports the sandbox when its holder has ended. It costs a
// descriptor and no thread: the kernel wakes the goroutine.
func (m *Manager) watchHolder(rec store.Sandbox) {
	pid := rec.Facts.HolderPID
	if pid == 0 || !m.mayRun(rec.ID) {
		return
	}
	go func() {
		if err := waitHolder(pid, rec.ID); err != nil {
			m.cfg.Logger.Warn("cannot watch the holder of a sandbox; reconciling finds its end", "sandbox", rec.ID, "process", pid, "error", err)
			return
		}
		if m.mayRun(rec.ID) {
			m.lost <- rec.ID
		}
	}()
}

// mayRun reports whether the sandbox is one of this boot that nobody has stopped
// or is stopping.
func (m *Manager) mayRun(id string) bool {
	rec, err := m.db.Sandbox(id)
	return err == nil && !m.busy()[id] && rec.Facts.StoppedAt.IsZero() && rec.Facts.BootID == m.cfg.BootID
}

// busy returns the sandboxes that a verb of this package has in the journal. What
// others do to them, a checkpoint for example, changes nothing of what they are.
func (m *Manager) busy() map[string]bool {
	out := map[string]bool{}
	for _, o := range m.db.Ops() {
		if o.Kind == kindRun || o.Kind == kindStop || o.Kind == kindRemove {
			out[o.Subject] = true
		}
	}
	return out
}

// waitHolder returns when the process is not the sandbox's holder, or no longer.
func waitHolder(pid int, id string) error {
	fd, err := unix.PidfdOpen(pid, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("open process %d: %w", pid, err)
	}
	if err := unix.SetNonblock(fd, true); err != nil { // so that the runtime polls it
		return errors.Join(err, unix.Close(fd))
	}
	process := os.NewFile(uintptr(fd), "pidfd")
	defer process.Close()
	if !isHolder(pid, id) {
		return nil // the number is another process's
	}
	conn, err := process.SyscallConn()
	if err != nil {
		return err
	}
	return conn.Read(func(fd uintptr) bool {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 0)
		return n > 0 || err != nil && !errors.Is(err, unix.EINTR)
	})
}

// killAndWait kills a process and with it its PID namespace. The process is
// held by a descriptor, so that a reused PID is never hit.
func killAndWait(ctx context.Context, pid int) error {
	if pid <= 0 {
		return nil
	}
	id := holderOf(pid)
	fd, err := unix.PidfdOpen(pid, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if id == "" || holderOf(pid) != id {
		return nil // ended meanwhile
	}
	if err := unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return err
	}
	for end := time.Now().Add(holderWait); time.Now().Before(end) && ctx.Err() == nil; {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 100)
		if n > 0 {
			return nil
		}
		if err != nil && !errors.Is(err, unix.EINTR) {
			return err
		}
	}
	return errors.Join(ctx.Err(), errors.New("it is still there"))
}

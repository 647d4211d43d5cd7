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

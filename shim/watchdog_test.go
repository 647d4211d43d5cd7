package shim

import (
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/berth-dev/berth/shim/cgroup"
)

// watchdogEnv marks the watchdog: its value is the group of the tests that it
// watches, which end when its standard input does.
const watchdogEnv = "BERTH_SHIM_TEST_WATCHDOG"

// startWatchdog sees to it that tests which are killed, by a time limit or a
// user, leave no process. stop ends it when there is nothing left to do.
func startWatchdog() (stop func(), err error) {
	cmd := exec.Command("/proc/self/exe", binary)
	cmd.Env = append(os.Environ(), watchdogEnv+"="+groupRoot())
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	return func() {
		_ = in.Close()
		_ = cmd.Wait()
	}, nil
}

// watchdog removes what is left once the tests have ended.
func watchdog(group string) int {
	_, _ = io.Copy(io.Discard, os.Stdin)
	shim := os.Args[1]
	procs, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, p := range procs {
		b, err := os.ReadFile(p)
		if err != nil || !strings.HasPrefix(string(b), shim+"\x00") {
			continue
		}
		if pid, err := strconv.Atoi(filepath.Base(filepath.Dir(p))); err == nil {
			_ = unix.Kill(pid, unix.SIGKILL)
		}
	}
	if g, err := cgroup.Detect(); err == nil {
		_ = g.Kill("/" + group)
		_ = g.Remove("/" + group)
	}
	_ = os.RemoveAll(filepath.Dir(shim))
	return 0
}

package harness

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
)

// unitCommand changes the installed unit so that it runs this command line, and
// returns a program that starts it and ends when it does. All else stays as the
// unit says, but that systemd does not start the daemon behind the test's back.
func (n *Node) unitCommand(args, env []string) (*exec.Cmd, error) {
	var b strings.Builder
	fmt.Fprintf(&b, "[Service]\nExecStart=\nExecStart=%s\nRestart=no\n", strings.Join(args, " "))
	fmt.Fprintf(&b, "StandardOutput=append:%s\nStandardError=inherit\n", n.Dir("berthd.log"))
	for _, e := range env {
		fmt.Fprintf(&b, "Environment=%q\n", e)
	}
	file := n.dropIn()
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		return nil, err
	}
	if err := os.WriteFile(file, []byte(b.String()), 0o644); err != nil {
		return nil, err
	}
	if err := systemctl("daemon-reload"); err != nil {
		return nil, err
	}
	return exec.Command("systemctl", "start", "--wait", n.cfg.Unit), nil
}

func (n *Node) dropIn() string { return "/run/systemd/system/" + n.cfg.Unit + ".d/harness.conf" }

// restoreUnit takes the change back.
func (n *Node) restoreUnit() error {
	if err := os.RemoveAll(filepath.Dir(n.dropIn())); err != nil {
		return err
	}
	return systemctl("daemon-reload")
}

// endUnit ends the daemon as systemd does, or with its help as a crash would.
func (n *Node) endUnit(sig syscall.Signal) error {
	if sig == syscall.SIGTERM {
		return systemctl("stop", n.cfg.Unit)
	}
	return systemctl("kill", "--kill-whom=main", "--signal", strconv.Itoa(int(sig)), n.cfg.Unit)
}

// unitPID is the daemon's process ID; 0 when it does not run.
func (n *Node) unitPID() int {
	out, err := exec.Command("systemctl", "show", "--property=MainPID", "--value", n.cfg.Unit).Output()
	if err != nil {
		return 0
	}
	pid, _ := strconv.Atoi(strings.TrimSpace(string(out)))
	return pid
}

func systemctl(args ...string) error {
	if out, err := exec.Command("systemctl", args...).CombinedOutput(); err != nil {
		return fmt.Errorf("systemctl %s: %w: %s", strings.Join(args, " "), err, out)
	}
	return nil
}

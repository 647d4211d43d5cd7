package sandbox

import (
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// inNode marks the re-executed test: it stands in a network and a mount
// namespace of its own, so that bridges, packet filter rules and mounts never
// touch the machine's.
const inNode = "BERTH_TEST_IN_NODE"

// isHolderProcess: the test was executed anew in the place of a holder.
func isHolderProcess() bool { return len(os.Args) == 3 && os.Args[1] == "holder" }

// A holder makes its IPC namespace itself, and it is pinned from the first thread.
func init() {
	if !isHolderProcess() {
		return
	}
	runtime.LockOSThread()
	if err := unix.Unshare(unix.CLONE_NEWIPC); err != nil {
		panic(err)
	}
}

func TestMain(m *testing.M) {
	if isHolderProcess() {
		c := make(chan os.Signal, 1)
		signal.Notify(c, syscall.SIGTERM)
		ready := os.NewFile(3, "ready")
		_, _ = ready.Write([]byte{0})
		_ = ready.Close()
		<-c
		os.Exit(0)
	}
	if os.Geteuid() != 0 {
		os.Exit(m.Run())
	}
	if os.Getenv(inNode) == "" {
		os.Exit(reexec())
	}
	if err := setUpNode(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	before := podMounts() // of other nodes on this machine, if any
	code := m.Run()
	if left := leftovers(before); left != "" {
		fmt.Fprintln(os.Stderr, "left behind by the tests:\n"+left)
		code = 1
	}
	os.Exit(code)
}

func reexec() int {
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.Env = append(os.Environ(), inNode+"=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET | syscall.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL}
	if err := cmd.Run(); err != nil {
		if cmd.ProcessState == nil {
			fmt.Fprintln(os.Stderr, err)
		}
		return 1
	}
	return 0
}

func setUpNode() error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return err
	}
	return netlink.LinkSetUp(lo)
}

// podMounts lists the mounts that look like those of a sandbox, by mount ID.
func podMounts() map[string]string {
	found := map[string]string{}
	b, _ := os.ReadFile("/proc/self/mountinfo")
	for l := range strings.Lines(string(b)) {
		if strings.Contains(l, "/ns/") && strings.Contains(l, " nsfs ") || strings.Contains(l, "/sandboxes/") {
			id, _, _ := strings.Cut(l, " ")
			found[id] = l
		}
	}
	return found
}

// leftovers looks at what outlives a test: mounts, holders, links, sockets. The
// kernel takes pairs of virtual links away in the background, so it looks again.
func leftovers(before map[string]string) string {
	var out []string
	for range 300 {
		out = nil
		for id, l := range podMounts() {
			if before[id] == "" {
				out = append(out, "mount "+l)
			}
		}
		links, _ := netlink.LinkList()
		for _, l := range links {
			if l.Type() == "veth" {
				out = append(out, "link "+l.Attrs().Name)
			}
		}
		holders, _ := filepath.Glob("/proc/[0-9]*/cmdline")
		for _, h := range holders {
			b, _ := os.ReadFile(h)
			if a := strings.Split(string(b), "\x00"); len(a) > 2 && a[1] == "holder" && a[0] == os.Args[0] {
				out = append(out, "holder "+h)
			}
		}
		if len(out) == 0 {
			return ""
		}
		time.Sleep(100 * time.Millisecond)
	}
	return strings.Join(out, "\n")
}

// Package harness runs a throw-away berthd in network and mount namespaces of
// its own, so that its bridge, its packet filter rules and its mounts never
// touch the machine, and finds what a daemon left behind.
package harness

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// Space is a pair of network and mount namespaces, held by a process that ends
// with its creator. The zero value is the caller's own namespaces.
type Space struct {
	anchor *exec.Cmd
	stdin  io.Closer
}

const anchorScript = `set -e
mount --make-rshared /
ip link set lo up
echo ready
exec cat`

// NewSpace makes the namespaces. Mounts made inside are shared among processes
// inside, as on a node under systemd, and invisible outside.
func NewSpace() (*Space, error) {
	cmd := exec.Command("unshare", "--net", "--mount", "--propagation", "slave", "--", "sh", "-c", anchorScript)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	var stderr strings.Builder
	cmd.Stderr = &stderr
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("make namespaces: %w", err)
	}
	if line, err := bufio.NewReader(out).ReadString('\n'); err != nil || line != "ready\n" {
		in.Close()
		cmd.Wait()
		return nil, fmt.Errorf("make network and mount namespaces: %s", strings.TrimSpace(stderr.String()))
	}
	return &Space{anchor: cmd, stdin: in}, nil
}

// Close lets the namespaces go; they end with their last process.
func (s *Space) Close() error {
	if s.anchor == nil {
		return nil
	}
	s.stdin.Close()
	s.anchor.Wait()
	s.anchor = nil
	return nil
}

// NetNS is the path of the network namespace.
func (s *Space) NetNS() string { return s.proc("ns/net") }

// Root is a path to the file system as those inside see it, with their mounts.
func (s *Space) Root() string { return s.proc("root") }

// proc is a path below /proc of a process inside.
func (s *Space) proc(name string) string {
	if s.anchor == nil {
		return "/proc/self/" + name
	}
	return "/proc/" + strconv.Itoa(s.anchor.Process.Pid) + "/" + name
}

// Command is exec.CommandContext for a program that runs inside. The process
// that results has the started process's own pid.
func (s *Space) Command(ctx context.Context, program string, args ...string) *exec.Cmd {
	if s.anchor == nil {
		return exec.CommandContext(ctx, program, args...)
	}
	target := strconv.Itoa(s.anchor.Process.Pid)
	return exec.CommandContext(ctx, "nsenter", append([]string{"--target", target, "--net", "--mount", "--", program}, args...)...)
}

// InNetNS calls f on a thread inside the network namespace at path; "" is the
// caller's. Sockets that f makes stay there. f must not start goroutines.
func InNetNS(path string, f func() error) error {
	if path == "" {
		return f()
	}
	target, err := os.Open(path)
	if err != nil {
		return err
	}
	defer target.Close()
	runtime.LockOSThread()
	own, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		runtime.UnlockOSThread()
		return err
	}
	defer own.Close()
	if err := unix.Setns(int(target.Fd()), unix.CLONE_NEWNET); err != nil {
		runtime.UnlockOSThread()
		return fmt.Errorf("enter %s: %w", path, err)
	}
	ferr := f()
	// A thread that cannot return stays locked and ends with its goroutine.
	if err := unix.Setns(int(own.Fd()), unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("leave %s: %w", path, err)
	}
	runtime.UnlockOSThread()
	return ferr
}

// DialIn connects to a literal TCP address from inside a network namespace.
func DialIn(netns, addr string) (conn net.Conn, err error) {
	err = InNetNS(netns, func() (e error) {
		conn, e = net.Dial("tcp", addr)
		return e
	})
	return conn, err
}

// ListenIn returns a function that listens on loopback in a network namespace.
func ListenIn(netns string) func() (net.Listener, error) {
	return func() (l net.Listener, err error) {
		err = InNetNS(netns, func() (e error) {
			l, e = net.Listen("tcp", "127.0.0.1:0")
			return e
		})
		return l, err
	}
}

// Forward makes addr inside the namespace reachable at the address it returns,
// until stop is called.
func Forward(netns, addr string) (local string, stop func(), err error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", nil, err
	}
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go relay(c, netns, addr)
		}
	}()
	return l.Addr().String(), func() { l.Close() }, nil
}

func relay(c net.Conn, netns, addr string) {
	defer c.Close()
	up, err := DialIn(netns, addr)
	if err != nil {
		return
	}
	defer up.Close()
	done := make(chan struct{})
	go func() {
		defer close(done)
		io.Copy(c, up)
		closeWrite(c)
	}()
	io.Copy(up, c)
	closeWrite(up)
	<-done
}

func closeWrite(c net.Conn) {
	if t, ok := c.(*net.TCPConn); ok {
		t.CloseWrite()
	}
}

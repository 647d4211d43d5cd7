// Package netns makes the namespaces of a pod and keeps them alive without a
// process, by bind-mounting them onto files ("pins").
//
// A namespace is made on an operating system thread of its own that ends with
// the work, so that no other goroutine of the daemon ever runs inside it.
// Namespaces that belong to another process (a PID namespace's first process,
// or one that made a user namespace and the others inside it) are pinned from
// that process with PinFrom.
package netns

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/containerd/errdefs"

	"github.com/berth-dev/berth/osthread"
)

// The kinds of namespace this package knows, named as in /proc/PID/ns.
const (
	Net  = "net"
	IPC  = "ipc"
	UTS  = "uts"
	PID  = "pid"
	User = "user"
)

// Spec says which namespaces to make and what to set inside them.
type Spec struct {
	Dir      string            // pins are made at Dir/KIND; it is created when missing
	Kinds    []string          // any of Net, IPC, UTS
	Hostname string            // set when UTS is made; "" keeps the node's
	Sysctls  map[string]string // see CheckSysctls
}

// Create makes the namespaces, sets them up, brings the loopback interface up
// and pins them. It returns the pin of each kind. Pins that an earlier attempt
// left at the same place are replaced. On an error no pin is left.
func Create(s Spec) (map[string]string, error) {
	if err := CheckSysctls(s.Sysctls, s.Kinds); err != nil {
		return nil, err
	}
	flags, err := cloneFlags(s.Kinds)
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(s.Dir, 0o711); err != nil {
		return nil, fmt.Errorf("create namespaces: %w", err)
	}
	pins := make(map[string]string, len(s.Kinds))
	err = osthread.RunAndEnd(func() error {
		if err := unix.Unshare(flags); err != nil {
			return fmt.Errorf("unshare %v: %w", s.Kinds, err)
		}
		if err := setUp(s); err != nil {
			return err
		}
		for _, kind := range s.Kinds {
			pins[kind] = filepath.Join(s.Dir, kind)
			if err := pin("/proc/thread-self/ns/"+kind, pins[kind]); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return nil, errors.Join(err, Unpin(s.Dir, s.Kinds...))
	}
	return pins, nil
}

// PinFrom pins namespaces of a live process at dir/KIND and returns the pins.
func PinFrom(pid int, dir string, kinds ...string) (map[string]string, error) {
	if err := os.MkdirAll(dir, 0o711); err != nil {
		return nil, fmt.Errorf("pin namespaces of process %d: %w", pid, err)
	}
	pins := make(map[string]string, len(kinds))
	for _, kind := range kinds {
		pins[kind] = filepath.Join(dir, kind)
		if err := pin(fmt.Sprintf("/proc/%d/ns/%s", pid, kind), pins[kind]); err != nil {
			return nil, errors.Join(err, Unpin(dir, kinds...))
		}
	}
	return pins, nil
}

// cloneFlags maps kinds to unshare flags. A PID namespace cannot be made here:
// it needs a process of its own.
func cloneFlags(kinds []string) (int, error) {
	flags := 0
	for _, kind := range kinds {
		switch kind {
		case Net:
			flags |= unix.CLONE_NEWNET
		case IPC:
			flags |= unix.CLONE_NEWIPC
		case UTS:
			flags |= unix.CLONE_NEWUTS
		default:
			return 0, fmt.Errorf("create namespace of kind %q: %w", kind, errdefs.ErrInvalidArgument)
		}
	}
	return flags, nil
}

// setUp runs on the thread that is inside the new namespaces.
func setUp(s Spec) error {
	if slices.Contains(s.Kinds, Net) {
		if err := loopbackUp(); err != nil {
			return err
		}
	}
	if slices.Contains(s.Kinds, UTS) && s.Hostname != "" {
		if err := unix.Sethostname([]byte(s.Hostname)); err != nil {
			return fmt.Errorf("set hostname %q: %w", s.Hostname, err)
		}
	}
	now, _ := SplitSysctls(s.Sysctls)
	return writeSysctls("/proc/sys", now)
}

// loopbackUp brings lo of the calling thread's network namespace up.
func loopbackUp() error {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("find loopback interface: %w", err)
	}
	if err := netlink.LinkSetUp(lo); err != nil {
		return fmt.Errorf("bring loopback interface up: %w", err)
	}
	return nil
}

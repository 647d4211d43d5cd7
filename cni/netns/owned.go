package netns

import (
	"fmt"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/berth-dev/berth/osthread"
)

// SetUp sets up namespaces that a process of a user namespace made and that
// are pinned in s.Dir, as Create does with its own: loopback interface,
// hostname, sysctls. uid and gid are what that user namespace's root is on the
// node: the kernel lets nobody else write the IPC sysctls, not even the
// node's root.
func SetUp(s Spec, uid, gid uint32) error {
	if err := CheckSysctls(s.Sysctls, s.Kinds); err != nil {
		return err
	}
	owners, plain := map[string]string{}, map[string]string{}
	for name, value := range s.Sysctls {
		if sysctlKind(sysctlPath(name)) == IPC {
			owners[name] = value
		} else {
			plain[name] = value
		}
	}
	s.Sysctls = plain
	return osthread.RunAndEnd(func() error {
		for _, kind := range s.Kinds {
			if err := enter(filepath.Join(s.Dir, kind), kind); err != nil {
				return err
			}
		}
		if err := setUp(s); err != nil || len(owners) == 0 {
			return err
		}
		if err := become(uid, gid); err != nil {
			return err
		}
		return writeSysctls("/proc/sys", owners)
	})
}

// enter moves the calling thread into the namespace pinned at path.
func enter(path, kind string) error {
	flags, err := cloneFlags([]string{kind})
	if err != nil {
		return err
	}
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open %s namespace: %w", kind, err)
	}
	defer unix.Close(fd)
	if err := unix.Setns(fd, flags); err != nil {
		return fmt.Errorf("enter %s namespace: %w", kind, err)
	}
	return nil
}

// become changes the identity of the calling thread alone, for good: the
// library's functions would change every thread's.
func become(uid, gid uint32) error {
	for _, call := range [][2]uintptr{{unix.SYS_SETRESGID, uintptr(gid)}, {unix.SYS_SETRESUID, uintptr(uid)}} {
		if _, _, e := unix.RawSyscall(call[0], call[1], call[1], call[1]); e != 0 {
			return fmt.Errorf("become root of the user namespace: %w", e)
		}
	}
	return nil
}

// CloneFlags returns what makes these kinds of namespace, for a process that
// is to own them.
func CloneFlags(kinds ...string) (uintptr, error) {
	flags, err := cloneFlags(slices.DeleteFunc(slices.Clone(kinds), func(k string) bool { return k == User || k == PID }))
	if slices.Contains(kinds, User) {
		flags |= unix.CLONE_NEWUSER
	}
	if slices.Contains(kinds, PID) {
		flags |= unix.CLONE_NEWPID
	}
	return uintptr(flags), err
}

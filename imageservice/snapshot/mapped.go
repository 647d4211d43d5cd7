package snapshot

import (
	"errors"
	"fmt"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/berth-dev/berth/osthread"
)

// secbitNoFixup keeps a thread's capabilities when its file system user changes.
const secbitNoFixup = 1 << 2

// mountMapped mounts the overlay at target for the user namespace pinned at
// stack.UserNS: all owners in it are shifted, on the disk none is. It takes one
// idmapped tree, which is only ever attached in a mount namespace that ends
// with this call: the node sees the finished root file system alone.
func mountMapped(stack Stack, own ownDirs, target string) error {
	tree, err := idmap(stack.Tree, stack.UserNS)
	if err != nil {
		return err
	}
	defer unix.Close(tree)
	var done int
	err = osthread.RunAndEnd(func() error {
		if err := coverTree(tree, stack.Tree); err != nil {
			return err
		}
		if own.dir != "" {
			if err := becomeOwner(own.dir); err != nil {
				return err
			}
		}
		if err := overlay(stack.Lower, own, target); err != nil {
			return err
		}
		done, err = unix.OpenTree(unix.AT_FDCWD, target, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
		return err
	})
	if err != nil {
		return err
	}
	defer unix.Close(done)
	if err := unix.MoveMount(done, "", unix.AT_FDCWD, target, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return fmt.Errorf("attach overlay at %s: %w", target, err)
	}
	return nil
}

// idmap clones the mount at dir, without those below it, and shifts its owners
// by the maps of a user namespace. The result is attached nowhere.
func idmap(dir, userns string) (int, error) {
	ns, err := unix.Open(userns, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("open user namespace %s: %w", userns, err)
	}
	defer unix.Close(ns)
	tree, err := unix.OpenTree(unix.AT_FDCWD, dir, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return -1, fmt.Errorf("clone mount of %s: %w", dir, err)
	}
	attr := &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_IDMAP, Userns_fd: uint64(ns), Propagation: unix.MS_PRIVATE}
	if err := unix.MountSetattr(tree, "", unix.AT_EMPTY_PATH, attr); err != nil {
		_ = unix.Close(tree)
		if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOSYS) {
			return -1, fmt.Errorf("the file system of %s, or this kernel, makes no idmapped mounts, which a user namespace needs: %w: %w",
				dir, errdefs.ErrFailedPrecondition, err)
		}
		return -1, fmt.Errorf("idmap mount of %s: %w", dir, err)
	}
	return tree, nil
}

// CanIDMap reports why the file system of dir cannot serve a user namespace;
// nil when it can. userns is the path of any but the node's own.
func CanIDMap(dir, userns string) error {
	fd, err := idmap(dir, userns)
	if err != nil {
		return err
	}
	return unix.Close(fd)
}

// coverTree puts the mount over dir in a mount namespace of the thread's own.
func coverTree(tree int, dir string) error {
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		return fmt.Errorf("unshare mount namespace: %w", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	const flags = unix.MOVE_MOUNT_F_EMPTY_PATH | unix.MOVE_MOUNT_T_SYMLINKS
	if err := unix.MoveMount(tree, "", unix.AT_FDCWD, dir, flags); err != nil {
		return fmt.Errorf("attach idmapped mount: %w", err)
	}
	return nil
}

// becomeOwner gives the thread the file system identity of the owner of dir,
// which is the user namespace's root. Overlayfs keeps the identity it is
// mounted with, and works in its directories under that: the node's root is no
// owner an idmapped mount could store.
func becomeOwner(dir string) error {
	var st unix.Stat_t
	if err := unix.Stat(dir, &st); err != nil {
		return fmt.Errorf("look at %s: %w", dir, err)
	}
	if err := unix.Prctl(unix.PR_SET_SECUREBITS, secbitNoFixup, 0, 0, 0); err != nil {
		return fmt.Errorf("keep capabilities: %w", err)
	}
	// By system call, for this thread alone. They return the old ID, never an error.
	_, _, _ = unix.RawSyscall(unix.SYS_SETFSGID, uintptr(st.Gid), 0, 0)
	_, _, _ = unix.RawSyscall(unix.SYS_SETFSUID, uintptr(st.Uid), 0, 0)
	return nil
}

package netns

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// maxStack bounds how many mounts on top of each other Unpin takes away.
const maxStack = 16

// pin bind-mounts the namespace file source onto target.
func pin(source, target string) error {
	if err := unpin(target); err != nil {
		return err
	}
	f, err := os.OpenFile(target, os.O_CREATE|os.O_EXCL|os.O_RDONLY, 0o444)
	if err != nil {
		return fmt.Errorf("pin namespace: %w", err)
	}
	if err := f.Close(); err != nil {
		return fmt.Errorf("pin namespace: %w", err)
	}
	if err := unix.Mount(source, target, "none", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("pin namespace %s at %s: %w", source, target, err)
	}
	return nil
}

// IsPinned reports whether a namespace is mounted at path.
func IsPinned(path string) (bool, error) {
	var st unix.Statfs_t
	err := unix.Statfs(path, &st)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("look at namespace pin %s: %w", path, err)
	}
	return int64(st.Type) == unix.NSFS_MAGIC, nil
}

// Pinned returns which of the known kinds are pinned in dir; none when dir
// does not exist.
func Pinned(dir string) ([]string, error) {
	var kinds []string
	for _, kind := range []string{Net, IPC, UTS, PID, User} {
		ok, err := IsPinned(filepath.Join(dir, kind))
		if err != nil {
			return nil, err
		}
		if ok {
			kinds = append(kinds, kind)
		}
	}
	return kinds, nil
}

// Unpin releases the pins of these kinds in dir and removes dir when it is
// empty then. Idempotent: what is not there is no error.
func Unpin(dir string, kinds ...string) error {
	var errs []error
	for _, kind := range kinds {
		errs = append(errs, unpin(filepath.Join(dir, kind)))
	}
	err := os.Remove(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, unix.ENOTEMPTY) {
		errs = append(errs, fmt.Errorf("remove namespace directory: %w", err))
	}
	return errors.Join(errs...)
}

// UnpinAll releases every pin this package can have made in dir, and dir.
func UnpinAll(dir string) error { return Unpin(dir, Net, IPC, UTS, PID, User) }

func unpin(path string) error {
	for range maxStack {
		err := unix.Unmount(path, unix.UMOUNT_NOFOLLOW)
		if errors.Is(err, unix.EBUSY) {
			err = unix.Unmount(path, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
		}
		if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOENT) {
			break // not a mount any more, or not there
		}
		if err != nil {
			return fmt.Errorf("unmount namespace pin %s: %w", path, err)
		}
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove namespace pin: %w", err)
	}
	return nil
}

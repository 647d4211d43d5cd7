package layer

import (
	"archive/tar"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// paxXattr is how tar carries extended attributes.
const paxXattr = "SCHILY.xattr."

// xattrAllowed: attributes an image may set. trusted.* would let it forge
// overlayfs marks (redirects into other directories), security.selinux is the
// node's business.
func xattrAllowed(key string) bool {
	return strings.HasPrefix(key, "user.") || key == "security.capability" ||
		key == "system.posix_acl_access" || key == "system.posix_acl_default"
}

// applyAttributes sets owner, mode and xattrs of base below fd. The order
// matters: chown clears set-uid bits and capabilities.
func applyAttributes(fd int, base string, hdr *tar.Header) error {
	if err := unix.Fchownat(fd, base, hdr.Uid, hdr.Gid, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return fmt.Errorf("set owner: %w", err)
	}
	if hdr.Typeflag != tar.TypeSymlink {
		if err := unix.Fchmodat(fd, base, uint32(hdr.Mode)&0o7777, 0); err != nil {
			return fmt.Errorf("set mode: %w", err)
		}
	}
	return eachXattr(hdr, func(key string, value []byte) error {
		return unix.Lsetxattr(procPath(fd, base), key, value, 0)
	})
}

// applyAttributesFD is applyAttributes for an open file.
func applyAttributesFD(fd int, hdr *tar.Header) error {
	if err := unix.Fchown(fd, hdr.Uid, hdr.Gid); err != nil {
		return fmt.Errorf("set owner: %w", err)
	}
	if err := unix.Fchmod(fd, uint32(hdr.Mode)&0o7777); err != nil {
		return fmt.Errorf("set mode: %w", err)
	}
	return eachXattr(hdr, func(key string, value []byte) error {
		return unix.Fsetxattr(fd, key, value, 0)
	})
}

func eachXattr(hdr *tar.Header, set func(string, []byte) error) error {
	for k, v := range hdr.PAXRecords {
		key, ok := strings.CutPrefix(k, paxXattr)
		if !ok || !xattrAllowed(key) {
			continue
		}
		err := set(key, []byte(v))
		if err == nil || errors.Is(err, unix.ENOTSUP) && key != "security.capability" {
			continue
		}
		// user.* exists on files and directories only.
		if errors.Is(err, unix.EPERM) && strings.HasPrefix(key, "user.") {
			continue
		}
		return fmt.Errorf("set attribute %.80q: %w", key, err)
	}
	return nil
}

// copyAttributes gives base below fd the owner, mode and xattrs of f.
func copyAttributes(f found, fd int, base string) error {
	if err := unix.Fchownat(fd, base, int(f.stat.Uid), int(f.stat.Gid), unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return err
	}
	if f.kind() == unix.S_IFLNK {
		return nil
	}
	if err := unix.Fchmodat(fd, base, f.stat.Mode&0o7777, 0); err != nil {
		return err
	}
	if f.kind() != unix.S_IFREG && f.kind() != unix.S_IFDIR {
		return nil
	}
	src, err := f.open(unix.O_RDONLY)
	if err != nil {
		return err
	}
	defer unix.Close(src)
	names := make([]byte, 64<<10)
	n, err := unix.Flistxattr(src, names)
	if err != nil {
		return nil // a file system without xattrs has none to copy
	}
	value := make([]byte, 64<<10)
	for key := range strings.SplitSeq(string(names[:n]), "\x00") {
		if key == "" || !xattrAllowed(key) {
			continue
		}
		vn, err := unix.Fgetxattr(src, key, value)
		if err != nil {
			return err
		}
		if err := unix.Lsetxattr(procPath(fd, base), key, value[:vn], 0); err != nil {
			return err
		}
	}
	return nil
}

func (u *unpacker) noteTimes(p string, hdr *tar.Header) {
	at, mt := headerTimes(hdr)
	u.dirTimes = append(u.dirTimes, dirTime{path: p, atime: at, mtime: mt})
}

func setTimes(fd int, base string, hdr *tar.Header) error {
	at, mt := headerTimes(hdr)
	if err := unix.UtimesNanoAt(fd, base, []unix.Timespec{at, mt}, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return fmt.Errorf("set times: %w", err)
	}
	return nil
}

func headerTimes(hdr *tar.Header) (atime, mtime unix.Timespec) {
	spec := func(t time.Time) unix.Timespec {
		return unix.Timespec{Sec: t.Unix(), Nsec: int64(t.Nanosecond())}
	}
	mtime = spec(hdr.ModTime)
	if hdr.ModTime.IsZero() {
		mtime = unix.Timespec{}
	}
	if hdr.AccessTime.IsZero() {
		return mtime, mtime
	}
	return spec(hdr.AccessTime), mtime
}

// procPath names base below the directory fd for calls that take no fd.
func procPath(fd int, base string) string {
	return "/proc/self/fd/" + strconv.Itoa(fd) + "/" + base
}

// Package snapshot gives containers a writable root file system: an overlay
// mount of image layers with an upper directory per container.
//
//	<dir>/<container id>/upper   what the container writes
//	<dir>/<container id>/work    overlayfs' own
package snapshot

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// Store keeps the writable layers of all containers.
type Store struct{ dir string }

// Open returns the store in dir, which is made if missing.
func Open(dir string) (*Store, error) {
	if err := os.MkdirAll(filepath.Join(dir), 0o711); err != nil {
		return nil, fmt.Errorf("make %s: %w", dir, err)
	}
	return &Store{dir: dir}, nil
}

// Stack is what a container's root file system consists of.
type Stack struct {
	Lower []string // layer directories, top first; at least one
	Root  string   // directory whose mode and owner the root gets
	// For a container in a user namespace: its pin, and a directory on whose
	// mount all layers and the writable layer lie.
	UserNS, Tree string
	Label        string // SELinux label that all files show; "": their own
}

// ownDirs are a container's own directories, none for a read-only mount, and
// the SELinux label that its files show.
type ownDirs struct{ dir, upper, work, label string }

// Mount makes the writable layer of the container if missing and mounts the
// overlay at target. Idempotent.
func (s *Store) Mount(id string, stack Stack, target string) error {
	if mounted(target) {
		return nil
	}
	own := ownDirs{dir: filepath.Join(s.dir, id), upper: s.Upper(id), work: s.work(id), label: stack.Label}
	err := s.Make(id, stack)
	if err != nil {
		return err
	}
	if stack.UserNS == "" {
		err = overlay(stack.Lower, own, target)
	} else {
		err = mountMapped(stack, own, target)
	}
	if err != nil {
		return fmt.Errorf("mount root file system of %s: %w", id, err)
	}
	return nil
}

// Make makes the writable layer of the container if missing.
func (s *Store) Make(id string, stack Stack) error {
	err := os.MkdirAll(s.work(id), 0o711)
	if err == nil {
		err = makeUpper(s.Upper(id), stack.Root)
	}
	if err != nil {
		return fmt.Errorf("make writable layer of %s: %w", id, diskError(err))
	}
	return nil
}

func (s *Store) work(id string) string { return filepath.Join(s.dir, id, "work") }

// Upper returns the directory that a container writes to.
func (s *Store) Upper(id string) string { return filepath.Join(s.dir, id, "upper") }

// MountReadOnly mounts the layers of the stack at target, without a writable
// layer; at least two. Idempotent.
func (s *Store) MountReadOnly(stack Stack, target string) error {
	if mounted(target) {
		return nil
	}
	mount := overlay
	if stack.UserNS != "" {
		mount = func(_ []string, own ownDirs, target string) error { return mountMapped(stack, own, target) }
	}
	if err := mount(stack.Lower, ownDirs{label: stack.Label}, target); err != nil {
		return fmt.Errorf("mount layers at %s: %w", target, err)
	}
	return nil
}

// overlay mounts at target, by whichever interface the kernel has.
func overlay(lower []string, own ownDirs, target string) error {
	err := mountNew(lower, own, target)
	if errors.Is(err, unix.ENOSYS) || errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EPERM) {
		// No fsopen, or no "lowerdir+" (before Linux 6.8), or a seccomp filter.
		if old := mountOld(lower, own, target); old == nil {
			return nil
		}
	}
	return err
}

// makeUpper makes the upper directory; its attributes become those of "/".
func makeUpper(upper, like string) error {
	err := os.Mkdir(upper, 0o755)
	if errors.Is(err, os.ErrExist) {
		return nil
	}
	if err != nil || like == "" {
		return err
	}
	var st unix.Stat_t
	if err := unix.Stat(like, &st); err != nil {
		return err
	}
	if err := os.Chown(upper, int(st.Uid), int(st.Gid)); err != nil {
		return err
	}
	return unix.Chmod(upper, st.Mode&0o7777)
}

// Mounted reports whether target is the root of a mount.
func Mounted(target string) bool { return mounted(target) }

// mounted reports whether target is the root of a mount.
func mounted(target string) bool {
	var st unix.Statx_t
	err := unix.Statx(unix.AT_FDCWD, target, unix.AT_SYMLINK_NOFOLLOW, unix.STATX_TYPE, &st)
	return err == nil && st.Attributes&unix.STATX_ATTR_MOUNT_ROOT != 0
}

// fsconfig strings are limited to 255 bytes; a longer path goes in as a
// descriptor's name in /proc.
const maxOption = 255

// mountNew mounts through the file-descriptor API, which takes layers one at a
// time: no limit on the length of all paths together.
func mountNew(lower []string, own ownDirs, target string) error {
	fsfd, err := unix.Fsopen("overlay", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return fmt.Errorf("fsopen overlay: %w", err)
	}
	defer unix.Close(fsfd)
	var fds fdNames
	defer fds.close()
	set := func(key, value string) error {
		if strings.HasSuffix(key, "dir") || key == "lowerdir+" {
			if len(value) > maxOption {
				if value, err = fds.name(value); err != nil {
					return err
				}
			}
		}
		if err := unix.FsconfigSetString(fsfd, key, value); err != nil {
			return fmt.Errorf("overlay option %s=%s: %w%s", key, value, err, kernelLog(fsfd))
		}
		return nil
	}
	options := [][2]string{{"source", "berth"}}
	for _, l := range lower {
		options = append(options, [2]string{"lowerdir+", l})
	}
	if own.upper != "" {
		options = append(options, [2]string{"upperdir", own.upper}, [2]string{"workdir", own.work})
	}
	if own.label != "" {
		options = append(options, [2]string{"context", own.label})
	}
	if hasIndex() {
		options = append(options, [2]string{"index", "off"})
	}
	for _, o := range options {
		if err := set(o[0], o[1]); err != nil {
			return err
		}
	}
	if own.upper != "" {
		if err := unix.FsconfigSetFlag(fsfd, volatile); err != nil {
			return fmt.Errorf("overlay option %s: %w%s", volatile, err, kernelLog(fsfd))
		}
	}
	if err := unix.FsconfigCreate(fsfd); err != nil {
		return fmt.Errorf("create overlay: %w%s", err, kernelLog(fsfd))
	}
	mfd, err := unix.Fsmount(fsfd, unix.FSMOUNT_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("fsmount overlay: %w", err)
	}
	defer unix.Close(mfd)
	if err := unix.MoveMount(mfd, "", unix.AT_FDCWD, target, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return fmt.Errorf("attach overlay at %s: %w", target, err)
	}
	return nil
}

// volatile (Linux 5.10) has overlayfs sync nothing. A container's writable layer is
// not used again after a boot: there is nothing to keep. Without it each unmount
// waits until all that anybody wrote to the same disk is written out.
const volatile = "volatile"

// mountOld mounts with mount(2), whose options must fit in a page: layers go
// in as /proc/self/fd/N when their paths are too long together.
func mountOld(lower []string, own ownDirs, target string) error {
	var fds fdNames
	defer fds.close()
	tail := ""
	if own.upper != "" {
		tail = ",upperdir=" + own.upper + ",workdir=" + own.work
	}
	if own.label != "" {
		tail += `,context="` + own.label + `"`
	}
	if hasIndex() {
		tail += ",index=off"
	}
	limit := os.Getpagesize() - len(tail) - len("lowerdir=") - 1
	list := strings.Join(lower, ":")
	if len(list) > limit {
		names := make([]string, len(lower))
		for i, l := range lower {
			var err error
			if names[i], err = fds.name(l); err != nil {
				return err
			}
		}
		list = strings.Join(names, ":")
	}
	if len(list) > limit {
		return fmt.Errorf("image has %d layers, too many for this kernel's mount(2); Linux 6.8 lifts the limit: %w", len(lower), errdefs.ErrResourceExhausted)
	}
	if own.upper != "" && len(list)+len(volatile)+1 <= limit {
		if err := unix.Mount("berth", target, "overlay", 0, "lowerdir="+list+tail+","+volatile); !errors.Is(err, unix.EINVAL) {
			return err
		}
	}
	return unix.Mount("berth", target, "overlay", 0, "lowerdir="+list+tail)
}

// hasIndex reports whether the kernel knows inode indexes, which must be off:
// they tie an upper directory to one stack of layers for good.
func hasIndex() bool {
	_, err := os.Stat("/sys/module/overlay/parameters/index")
	return err == nil
}

// kernelLog reads why the kernel refused a file-system context.
func kernelLog(fsfd int) string {
	var b strings.Builder
	buf := make([]byte, 1024)
	for range 8 {
		n, err := unix.Read(fsfd, buf)
		if err != nil || n <= 0 {
			break
		}
		b.WriteString(" (" + strings.TrimSpace(string(buf[:n])) + ")")
	}
	return b.String()
}

// fdNames opens directories to name them by descriptor.
type fdNames []int

func (f *fdNames) name(dir string) (string, error) {
	fd, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return "", fmt.Errorf("open %s: %w", dir, err)
	}
	*f = append(*f, fd)
	return "/proc/self/fd/" + strconv.Itoa(fd), nil
}

func (f *fdNames) close() {
	for _, fd := range *f {
		_ = unix.Close(fd)
	}
}

// Unmount takes the mount at target away; one that is still in use is
// detached and goes with its last user. Idempotent.
func (s *Store) Unmount(target string) error {
	for range 16 { // mounts may be stacked
		err := unix.Unmount(target, unix.UMOUNT_NOFOLLOW)
		if errors.Is(err, unix.EBUSY) {
			err = unix.Unmount(target, unix.UMOUNT_NOFOLLOW|unix.MNT_DETACH)
		}
		if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOENT) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("unmount %s: %w", target, err)
		}
	}
	return fmt.Errorf("unmount %s: still a mount after 16 rounds: %w", target, errdefs.ErrFailedPrecondition)
}

// Remove deletes the container's writable layer. Idempotent.
func (s *Store) Remove(id string) error {
	if id == "" || strings.ContainsAny(id, "/.") {
		return fmt.Errorf("remove writable layer of %q: %w", id, errdefs.ErrInvalidArgument)
	}
	dir := filepath.Join(s.dir, id)
	// overlayfs leaves work/work with mode 000.
	_ = os.Chmod(filepath.Join(dir, "work", "work"), 0o700)
	err := errors.Join(os.RemoveAll(filepath.Join(dir, "upper")), os.RemoveAll(filepath.Join(dir, "work")))
	if err != nil {
		return fmt.Errorf("remove writable layer of %s: %w", id, err)
	}
	_ = os.Remove(dir) // others keep files there, too
	return nil
}

// Usage returns the bytes and inodes of all writable layers, by walking them.
func (s *Store) Usage(ctx context.Context) (bytes, inodes uint64, err error) {
	ids, err := os.ReadDir(s.dir)
	if err != nil {
		return 0, 0, fmt.Errorf("list writable layers: %w", err)
	}
	for _, id := range ids {
		b, n, err := s.UsageOf(ctx, id.Name())
		if err != nil {
			return 0, 0, err
		}
		bytes, inodes = bytes+b, inodes+n
	}
	return bytes, inodes, nil
}

// UsageOf returns the bytes and inodes of one writable layer; a file with
// several names counts once per name, a file that vanishes meanwhile not at all.
func (s *Store) UsageOf(ctx context.Context, id string) (bytes, inodes uint64, err error) {
	err = filepath.WalkDir(s.Upper(id), func(_ string, e fs.DirEntry, err error) error {
		if errors.Is(err, os.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		info, err := e.Info()
		if err != nil {
			return nil
		}
		if st, ok := info.Sys().(*syscall.Stat_t); ok {
			bytes += uint64(st.Blocks) * 512
		}
		inodes++
		return ctx.Err()
	})
	if err != nil {
		return 0, 0, fmt.Errorf("measure writable layer of %s: %w", id, err)
	}
	return bytes, inodes, nil
}

func diskError(err error) error {
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		return fmt.Errorf("%w: %w", err, errdefs.ErrResourceExhausted)
	}
	return err
}

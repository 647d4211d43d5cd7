package confine

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// selinuxAttr is where file systems keep a file's label.
const selinuxAttr = "security.selinux"

// relabel gives path, and everything below it, the label. A file that has it
// is not written to. What vanishes meanwhile is left out, and a file system
// without labels is no error: its mount has one label for all. A container that
// shares the tree cannot lead the walk elsewhere by exchanging directories for
// links: each is opened below its parent, and labels are set without following.
func relabel(path, label string) error {
	if err := mayRelabel(path); err != nil {
		return err
	}
	root, err := unix.Open(path, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("relabel %s: %w", path, err)
	}
	defer unix.Close(root)
	name := fdName(root)
	have, err := getLabel(name, true)
	if unsupported(err) {
		return nil
	}
	var st unix.Stat_t
	if err := unix.Fstat(root, &st); err != nil {
		return fmt.Errorf("relabel %s: %w", path, err)
	}
	if st.Mode&unix.S_IFMT == unix.S_IFDIR {
		if err := relabelBelow(root, label); err != nil {
			return fmt.Errorf("relabel %s: %w", path, err)
		}
	}
	if have == label {
		return nil
	}
	if err := unix.Setxattr(name, selinuxAttr, []byte(label), 0); err != nil && !unsupported(err) {
		return fmt.Errorf("relabel %s: %w", path, err)
	}
	return nil
}

func relabelBelow(parent int, label string) error {
	fd, err := unix.Openat(parent, ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	dir := os.NewFile(uintptr(fd), "directory")
	defer dir.Close()
	for {
		entries, err := dir.ReadDir(256)
		for _, e := range entries {
			if err := relabelEntry(fd, e.Name(), label); err != nil && !errors.Is(err, unix.ENOENT) {
				return fmt.Errorf("%s: %w", e.Name(), err)
			}
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

func relabelEntry(parent int, name, label string) error {
	sub, err := unix.Openat(parent, name, unix.O_PATH|unix.O_NOFOLLOW|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err == nil {
		err = relabelBelow(sub, label)
		unix.Close(sub)
		if err != nil {
			return err
		}
	} else if !errors.Is(err, unix.ENOTDIR) && !errors.Is(err, unix.ELOOP) {
		return err
	}
	at := fdName(parent) + "/" + name
	if have, err := getLabel(at, false); err == nil && have == label {
		return nil
	}
	if err := unix.Lsetxattr(at, selinuxAttr, []byte(label), 0); err != nil && !unsupported(err) {
		return err
	}
	return nil
}

func fdName(fd int) string { return "/proc/self/fd/" + strconv.Itoa(fd) }

func unsupported(err error) bool { return errors.Is(err, unix.ENOTSUP) }

// getLabel reads a label; it is "" where there is none.
func getLabel(path string, follow bool) (string, error) {
	get := unix.Lgetxattr
	if follow {
		get = unix.Getxattr
	}
	var b [1024]byte
	n, err := get(path, selinuxAttr, b[:])
	if err != nil {
		return "", err
	}
	// The kernel's own labels end with a NUL.
	return strings.TrimRight(string(b[:n]), "\x00"), nil
}

// mayRelabel refuses directories of the system, which would stop working.
func mayRelabel(path string) error {
	system := []string{
		"/", "/bin", "/boot", "/dev", "/etc", "/home", "/lib", "/lib32", "/lib64", "/libx32", "/media", "/mnt", "/opt",
		"/proc", "/root", "/run", "/sbin", "/srv", "/sys", "/tmp", "/usr", "/usr/bin", "/usr/lib", "/usr/sbin",
		"/var", "/var/lib", "/var/log", "/var/run", "/var/tmp",
	}
	path = filepath.Clean(path)
	if slices.Contains(system, path) || strings.HasPrefix(path, "/proc/") || strings.HasPrefix(path, "/sys/") {
		return fmt.Errorf("selinux_relabel: %s belongs to the system and keeps its label; mount a directory below it: %w", path, errdefs.ErrInvalidArgument)
	}
	return nil
}

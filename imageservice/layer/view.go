package layer

import (
	"errors"
	"fmt"
	"path"
	"strings"

	"golang.org/x/sys/unix"
)

// View is the merged sight of a stack of unpacked layers, as overlayfs would
// show it, without a mount.
type View struct {
	roots []int // O_PATH fds, top layer first
}

// OpenView opens the layers' directories, top first.
func OpenView(dirs []string) (*View, error) {
	v := &View{}
	for _, d := range dirs {
		fd, err := openRoot(d)
		if err != nil {
			v.Close()
			return nil, err
		}
		v.roots = append(v.roots, fd)
	}
	return v, nil
}

// Close closes the view.
func (v *View) Close() {
	for _, fd := range v.roots {
		_ = unix.Close(fd)
	}
	v.roots = nil
}

// found is a file of the view: where it lies and what it is. The path is
// relative to root and has no symlink in its directories.
type found struct {
	root int
	path string
	stat unix.Stat_t
}

func (f found) kind() uint32 { return f.stat.Mode & unix.S_IFMT }

// lookup finds a path whose directories are real directories in the merged
// view. It does not follow a symlink, not even in the middle: the caller
// resolves those. ok is false when the view has no such file.
func (v *View) lookup(p string) (f found, ok bool, err error) {
	active := v.roots
	parts := split(p)
	if len(parts) == 0 {
		return v.rootEntry()
	}
	prefix := ""
	for i, part := range parts {
		prefix = path.Join(prefix, part)
		var next []int
		f, next, err = findIn(active, prefix)
		if err != nil || len(next) == 0 {
			return found{}, false, err
		}
		if i < len(parts)-1 && f.kind() != unix.S_IFDIR {
			return found{}, false, nil
		}
		active = next
	}
	return f, true, nil
}

func (v *View) rootEntry() (found, bool, error) {
	if len(v.roots) == 0 {
		return found{}, false, nil
	}
	f := found{root: v.roots[0], path: "."}
	err := unix.Fstatat(f.root, ".", &f.stat, unix.AT_SYMLINK_NOFOLLOW)
	return f, err == nil, err
}

// findIn looks for path in the layers, top first, and returns the first file
// found and the layers that take part in it: all with the directory, down to
// a whiteout, an opaque mark or something that is no directory.
func findIn(roots []int, p string) (f found, layers []int, err error) {
	for _, root := range roots {
		var st unix.Stat_t
		err := statBelow(root, p, &st)
		if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP) {
			continue
		}
		if err != nil {
			return found{}, nil, fmt.Errorf("look up %q in the layers below: %w", p, err)
		}
		isDir := st.Mode&unix.S_IFMT == unix.S_IFDIR
		if isWhiteout(st) || (!isDir && len(layers) > 0) {
			break
		}
		if len(layers) == 0 {
			f = found{root: root, path: p, stat: st}
		}
		layers = append(layers, root)
		if !isDir || isOpaque(root, p) {
			break
		}
	}
	return f, layers, nil
}

// statBelow is fstatat that neither leaves root nor follows any symlink.
func statBelow(root int, p string, st *unix.Stat_t) error {
	dir, base := path.Split(p)
	if dir == "" {
		return unix.Fstatat(root, base, st, unix.AT_SYMLINK_NOFOLLOW)
	}
	fd, err := unix.Openat2(root, dir, &unix.OpenHow{
		Flags:   unix.O_PATH | unix.O_DIRECTORY | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS,
	})
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return unix.Fstatat(fd, base, st, unix.AT_SYMLINK_NOFOLLOW)
}

// openBelow opens a file the view found for reading.
func (f found) open(flags int) (int, error) {
	return unix.Openat2(f.root, f.path, &unix.OpenHow{
		Flags:   uint64(flags | unix.O_CLOEXEC | unix.O_NOFOLLOW),
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS,
	})
}

func isWhiteout(st unix.Stat_t) bool {
	return st.Mode&unix.S_IFMT == unix.S_IFCHR && st.Rdev == 0
}

const opaqueXattr = "trusted.overlay.opaque"

func isOpaque(root int, p string) bool {
	fd, err := found{root: root, path: p}.open(unix.O_RDONLY | unix.O_DIRECTORY)
	if err != nil {
		return false
	}
	defer unix.Close(fd)
	var buf [4]byte
	n, err := unix.Fgetxattr(fd, opaqueXattr, buf[:])
	return err == nil && n == 1 && buf[0] == 'y'
}

// split cuts a clean relative path into its parts; "." and "" have none.
func split(p string) []string {
	p = strings.Trim(path.Clean("/"+p), "/")
	if p == "" {
		return nil
	}
	return strings.Split(p, "/")
}

package layer

import (
	"errors"
	"fmt"
	"path"
	"strings"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// cleanName turns a tar name or hard-link target into a path relative to the
// root. Absolute names mean the layer's root; climbing out of it is an error.
func cleanName(name string) (string, error) {
	depth := 0
	for part := range strings.SplitSeq(name, "/") {
		switch part {
		case "", ".":
		case "..":
			if depth--; depth < 0 {
				return "", fmt.Errorf("path %.200q climbs out of the layer: %w", name, errdefs.ErrInvalidArgument)
			}
		default:
			depth++
		}
	}
	if strings.ContainsRune(name, 0) {
		return "", fmt.Errorf("path %.200q has a NUL byte: %w", name, errdefs.ErrInvalidArgument)
	}
	return strings.TrimPrefix(path.Clean("/"+name), "/"), nil
}

// dir returns an fd of the directory p of the merged view, made in this layer
// if it is not there yet. The fd belongs to the unpacker.
func (u *unpacker) dir(p string) (int, error) {
	if p == u.last.path && u.last.fd >= 0 {
		return u.last.fd, nil
	}
	fd, err := u.openDir(p)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP) {
		var real string
		if real, err = u.realDir(p); err != nil {
			return -1, err
		}
		fd, err = u.openDir(real)
	}
	if err != nil {
		return -1, fmt.Errorf("open directory %.200q: %w", p, err)
	}
	u.forgetDir()
	u.last = lastDir{path: p, fd: fd}
	return fd, nil
}

func (u *unpacker) forgetDir() {
	if u.last.fd >= 0 {
		_ = unix.Close(u.last.fd)
	}
	u.last = lastDir{fd: -1}
}

// openDir opens a directory of this layer; symlinks resolve inside the layer.
func (u *unpacker) openDir(p string) (int, error) {
	if p == "" {
		p = "."
	}
	return unix.Openat2(u.root, p, &unix.OpenHow{
		Flags:   unix.O_PATH | unix.O_DIRECTORY | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS,
	})
}

// realDir resolves p component by component over this layer and those below,
// following symlinks inside the root as a process in the container would, and
// makes each directory in this layer. It returns the path without symlinks.
func (u *unpacker) realDir(p string) (string, error) {
	todo := split(p)
	at := ""
	for links := 0; len(todo) > 0; {
		part := todo[0]
		todo = todo[1:]
		switch part {
		case ".":
			continue
		case "..":
			if at = path.Dir(at); at == "." {
				at = ""
			}
			continue
		}
		next := path.Join(at, part)
		target, err := u.enter(next)
		if err != nil {
			return "", err
		}
		if target == "" {
			at = next
			continue
		}
		if links++; links > 40 {
			return "", fmt.Errorf("path %.200q has too many symlinks: %w", p, errdefs.ErrInvalidArgument)
		}
		if path.IsAbs(target) {
			at = ""
		}
		todo = append(strings.FieldsFunc(target, func(r rune) bool { return r == '/' }), todo...)
	}
	return at, nil
}

// enter makes sure that p, whose parent is a real directory of this layer, is
// a directory here; when the merged view has a symlink there, it returns where
// that points.
func (u *unpacker) enter(p string) (link string, err error) {
	var st unix.Stat_t
	err = statBelow(u.root, p, &st)
	switch {
	case err == nil && st.Mode&unix.S_IFMT == unix.S_IFDIR:
		return "", nil
	case err == nil && st.Mode&unix.S_IFMT == unix.S_IFLNK:
		return readlink(found{root: u.root, path: p})
	case err == nil && isWhiteout(st):
		return "", u.implicitDir(p, nil, true)
	case err == nil:
		return "", fmt.Errorf("path %.200q is a file, not a directory: %w", p, errdefs.ErrInvalidArgument)
	case !errors.Is(err, unix.ENOENT):
		return "", fmt.Errorf("look up %.200q: %w", p, err)
	}
	below, err := u.below()
	if err != nil {
		return "", err
	}
	f, ok, err := u.hidden(below, p)
	if err != nil {
		return "", err
	}
	if ok && f.kind() == unix.S_IFLNK {
		return readlink(f)
	}
	if ok && f.kind() == unix.S_IFDIR {
		return "", u.implicitDir(p, &f, false)
	}
	return "", u.implicitDir(p, nil, false)
}

// hidden looks p up below unless an opaque directory of this layer hides it.
func (u *unpacker) hidden(below *View, p string) (found, bool, error) {
	for d := path.Dir(p); d != "." && d != "/"; d = path.Dir(d) {
		if u.opaque[d] {
			return found{}, false, nil
		}
	}
	if u.opaque[""] {
		return found{}, false, nil
	}
	return below.lookup(p)
}

// implicitDir makes a directory the tar has no entry for (yet), with the
// attributes it has in the layers below, so that it does not shadow them.
func (u *unpacker) implicitDir(p string, like *found, opaque bool) error {
	parent, base := path.Split(p)
	fd, err := u.openDir(strings.TrimSuffix(parent, "/"))
	if err != nil {
		return fmt.Errorf("make directory %.200q: %w", p, err)
	}
	defer unix.Close(fd)
	if opaque {
		if err := unix.Unlinkat(fd, base, 0); err != nil {
			return fmt.Errorf("replace whiteout %.200q: %w", p, err)
		}
	}
	if err := unix.Mkdirat(fd, base, 0o755); err != nil {
		return fmt.Errorf("make directory %.200q: %w", p, err)
	}
	u.result.Inodes++
	if opaque {
		u.result.Inodes--
		return u.setOpaque(fd, base, p)
	}
	if like == nil {
		return nil
	}
	if err := copyAttributes(*like, fd, base); err != nil {
		return fmt.Errorf("copy attributes of %.200q from the layer below: %w", p, err)
	}
	u.dirTimes = append(u.dirTimes, dirTime{path: p, atime: like.stat.Atim, mtime: like.stat.Mtim})
	return nil
}

// below opens the layers below, once.
func (u *unpacker) below() (*View, error) {
	if u.view != nil {
		return u.view, nil
	}
	if u.opts.Below == nil {
		u.view = &View{}
		return u.view, nil
	}
	v, err := u.opts.Below(u.ctx)
	if err != nil {
		return nil, err
	}
	u.view = v
	return v, nil
}

func readlink(f found) (string, error) {
	dir, base := path.Split(f.path)
	if dir == "" {
		dir = "."
	}
	fd, err := found{root: f.root, path: dir}.open(unix.O_PATH | unix.O_DIRECTORY)
	if err != nil {
		return "", err
	}
	defer unix.Close(fd)
	buf := make([]byte, unix.PathMax)
	n, err := unix.Readlinkat(fd, base, buf)
	if err != nil {
		return "", fmt.Errorf("read symlink %.200q: %w", f.path, err)
	}
	if n == 0 {
		return ".", nil
	}
	return string(buf[:n]), nil
}

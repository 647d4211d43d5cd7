package checkpoint

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// writeDiff writes what a writable layer of overlayfs holds as a tar, and
// returns the paths that it hides of the layers below. Nobody may change the
// layer meanwhile; a link in it leads nowhere outside.
func writeDiff(ctx context.Context, to, upper string, lower []string) (deleted []string, err error) {
	root, err := os.OpenRoot(upper)
	if err != nil {
		return nil, err
	}
	defer func() { _ = root.Close() }() // read only
	f, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, err
	}
	d := &differ{root: root, lower: lower, out: tar.NewWriter(f), links: map[uint64]string{}}
	err = d.dir(ctx, ".", false)
	if err == nil {
		err = d.out.Close()
	}
	return d.deleted, diskError(errors.Join(err, f.Close()))
}

type differ struct {
	root    *os.Root
	lower   []string
	out     *tar.Writer
	links   map[uint64]string // inode with several names -> first of them
	deleted []string
}

// dir adds what is in a directory. hidden: nothing of the layers below is seen in it.
func (d *differ) dir(ctx context.Context, name string, hidden bool) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	f, err := d.root.OpenFile(name, os.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return err
	}
	entries, err := f.ReadDir(-1)
	opaque, xerr := isOpaque(f)
	if err := errors.Join(err, xerr, f.Close()); err != nil {
		return err
	}
	slices.SortFunc(entries, func(a, b fs.DirEntry) int { return strings.Compare(a.Name(), b.Name()) })
	if hidden = hidden || opaque; hidden {
		below, err := namesBelow(d.lower, name)
		if err != nil {
			return err
		}
		for _, n := range below {
			if !slices.ContainsFunc(entries, func(e fs.DirEntry) bool { return e.Name() == n }) {
				d.deleted = append(d.deleted, "/"+path.Join(name, n))
			}
		}
	}
	for _, e := range entries {
		if err := d.entry(ctx, path.Join(name, e.Name()), hidden); err != nil {
			return err
		}
	}
	return nil
}

func (d *differ) entry(ctx context.Context, name string, hidden bool) error {
	info, err := d.root.Lstat(name)
	if err != nil {
		return err
	}
	sys := info.Sys().(*syscall.Stat_t)
	if isWhiteout(sys) {
		d.deleted = append(d.deleted, "/"+name)
		return nil
	}
	if info.Mode()&fs.ModeSocket != 0 {
		return nil // means nothing without who listens; CRIU knows of that
	}
	link := ""
	if info.Mode()&fs.ModeSymlink != 0 {
		if link, err = d.root.Readlink(name); err != nil {
			return err
		}
	}
	h, err := tar.FileInfoHeader(info, link)
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	h.Name, h.Uname, h.Gname, h.Format = name, "", "", tar.FormatPAX
	h.AccessTime, h.ChangeTime = time.Time{}, time.Time{}
	if info.IsDir() {
		h.Name += "/"
	} else if sys.Nlink > 1 {
		if first, again := d.links[sys.Ino]; again {
			h.Typeflag, h.Linkname, h.Size = tar.TypeLink, first, 0
			return d.out.WriteHeader(h)
		}
		d.links[sys.Ino] = name
	}
	if !info.IsDir() && !info.Mode().IsRegular() {
		return d.out.WriteHeader(h)
	}
	if err := d.content(ctx, name, h, sys); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	if info.IsDir() {
		return d.dir(ctx, name, hidden)
	}
	return nil
}

// content writes header and bytes of a file or directory, with its attributes.
func (d *differ) content(ctx context.Context, name string, h *tar.Header, want *syscall.Stat_t) error {
	f, err := d.root.OpenFile(name, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return err
	}
	if got := st.Sys().(*syscall.Stat_t); got.Ino != want.Ino || got.Mode != want.Mode {
		return fmt.Errorf("it was replaced while it was read: %w", errdefs.ErrAborted)
	}
	if h.PAXRecords, err = attributes(f); err != nil {
		return err
	}
	if err := d.out.WriteHeader(h); err != nil || h.Typeflag != tar.TypeReg {
		return err
	}
	return copyAll(ctx, d.out, f)
}

// attributes returns the extended attributes as records of the tar. Those of
// overlayfs are no attributes of the file.
func attributes(f *os.File) (map[string]string, error) {
	names := make([]byte, 64<<10)
	n, err := unix.Flistxattr(int(f.Fd()), names)
	if errors.Is(err, unix.ENOTSUP) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list attributes: %w", err)
	}
	out := map[string]string{}
	value := make([]byte, 64<<10)
	for raw := range bytes.SplitSeq(names[:n], []byte{0}) {
		name := string(raw)
		if name == "" || name == "security.selinux" {
			continue // a label is the node's affair
		}
		if strings.HasPrefix(name, "trusted.overlay.") {
			if name == "trusted.overlay.redirect" || name == "trusted.overlay.metacopy" {
				return nil, fmt.Errorf("overlayfs keeps it in another place (%s): %w", name, errdefs.ErrNotImplemented)
			}
			continue
		}
		n, err := unix.Fgetxattr(int(f.Fd()), name, value)
		if err != nil {
			return nil, fmt.Errorf("read attribute %s: %w", name, err)
		}
		out["SCHILY.xattr."+name] = string(value[:n])
	}
	return out, nil
}

func isWhiteout(st *syscall.Stat_t) bool {
	return st.Mode&syscall.S_IFMT == syscall.S_IFCHR && st.Rdev == 0
}

// isOpaque reports whether overlayfs shows nothing of the layers below in a directory.
func isOpaque(dir *os.File) (bool, error) {
	var b [1]byte
	n, err := unix.Fgetxattr(int(dir.Fd()), "trusted.overlay.opaque", b[:])
	switch {
	case err == nil:
		return n == 1 && b[0] == 'y', nil
	case errors.Is(err, unix.ENODATA) || errors.Is(err, unix.ENOTSUP) || errors.Is(err, unix.ERANGE):
		return false, nil
	}
	return false, err
}

// namesBelow lists a directory as the layers alone show it, the top one first.
func namesBelow(layers []string, dir string) ([]string, error) {
	seen := map[string]bool{} // true: it is there
	for _, l := range layers {
		more, err := namesIn(l, dir, seen)
		if err != nil {
			return nil, err
		}
		if !more {
			break
		}
	}
	var out []string
	for n, there := range seen {
		if there {
			out = append(out, n)
		}
	}
	slices.Sort(out)
	return out, nil
}

// namesIn adds the names that a layer has in a directory and that no layer above
// it had. more: those below it are seen through it.
func namesIn(layer, dir string, seen map[string]bool) (more bool, err error) {
	root, err := os.OpenRoot(layer)
	if err != nil {
		return false, err
	}
	defer func() { _ = root.Close() }() // read only
	more = true
	for at, rest := ".", dir; ; {
		info, err := root.Lstat(at)
		if errors.Is(err, os.ErrNotExist) {
			return more, nil
		}
		if err != nil || !info.IsDir() {
			return false, err // a file or whiteout hides what is below
		}
		f, err := root.Open(at)
		if err != nil {
			return false, err
		}
		opaque, err := isOpaque(f)
		more = more && !opaque
		if err != nil || rest == "." || rest == "" {
			entries, rerr := f.ReadDir(-1)
			note(entries, seen)
			return more, errors.Join(err, rerr, f.Close())
		}
		_ = f.Close()
		var first string
		first, rest, _ = strings.Cut(rest, "/")
		at = path.Join(at, first)
	}
}

func note(entries []fs.DirEntry, seen map[string]bool) {
	for _, e := range entries {
		if _, known := seen[e.Name()]; known {
			continue
		}
		there := true
		if e.Type()&fs.ModeCharDevice != 0 {
			if info, err := e.Info(); err == nil {
				there = !isWhiteout(info.Sys().(*syscall.Stat_t))
			}
		}
		seen[e.Name()] = there
	}
}

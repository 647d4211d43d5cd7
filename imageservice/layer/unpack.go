package layer

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"path"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/berth-dev/berth/imageservice/inventory"
)

// unpacker writes one tar into one directory. It is used by one goroutine, and
// nobody else writes to the directory meanwhile.
type unpacker struct {
	ctx    context.Context
	opts   Options
	limits Limits
	root   int
	view   *View

	last lastDir

	opaque           map[string]bool // directories of this layer that hide those below
	dirTimes         []dirTime       // set last: making children changes them
	entries, devices int64
	buf              []byte
	result           Result
}

// lastDir is the directory of the entry before: most entries follow in it.
type lastDir struct {
	path string
	fd   int // -1: none
}

type dirTime struct {
	path         string
	atime, mtime unix.Timespec
}

func newUnpacker(ctx context.Context, opts Options) (*unpacker, error) {
	root, err := openRoot(opts.Dir)
	if err != nil {
		return nil, err
	}
	return &unpacker{
		ctx: ctx, opts: opts, limits: opts.Limits.WithDefaults(), root: root, last: lastDir{fd: -1},
		opaque: map[string]bool{}, buf: make([]byte, 256<<10),
		result: Result{Inodes: 1, Bytes: blockSize, Sums: inventory.Sums{}},
	}, nil
}

func (u *unpacker) close() {
	u.forgetDir()
	if u.view != nil {
		u.view.Close()
	}
	_ = unix.Close(u.root)
}

// all unpacks every entry.
func (u *unpacker) all(tr *tar.Reader) error {
	for {
		if u.ctx.Err() != nil {
			return context.Cause(u.ctx)
		}
		hdr, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if u.entries++; u.entries > u.limits.Entries {
			return fmt.Errorf("layer has more than %d entries: %w", u.limits.Entries, errdefs.ErrResourceExhausted)
		}
		if err := u.entry(hdr, tr); err != nil {
			return fmt.Errorf("unpack %.200q: %w", hdr.Name, err)
		}
		if u.result.Bytes > uint64(u.limits.Bytes) {
			return fmt.Errorf("layer takes more than %d bytes: %w", u.limits.Bytes, errdefs.ErrResourceExhausted)
		}
	}
}

// whiteoutPrefix marks deletions in the OCI layer format.
const whiteoutPrefix = ".wh."

func (u *unpacker) entry(hdr *tar.Header, r io.Reader) error {
	if hdr.Typeflag == tar.TypeXGlobalHeader {
		return nil
	}
	if err := checkHeader(hdr, u.limits); err != nil {
		return err
	}
	name, err := cleanName(hdr.Name)
	if err != nil {
		return err
	}
	if name == "" {
		return u.rootEntry(hdr)
	}
	dir, base := path.Split(name)
	dir = strings.TrimSuffix(dir, "/")
	fd, err := u.dir(dir)
	if err != nil {
		return err
	}
	if mark, ok := strings.CutPrefix(base, whiteoutPrefix); ok {
		return u.whiteout(fd, dir, mark)
	}
	return u.create(fd, name, base, hdr, r)
}

func checkHeader(hdr *tar.Header, l Limits) error {
	const maxID = 1<<32 - 2 // 2^32-1 means "unchanged" to chown
	if hdr.Uid < 0 || hdr.Uid > maxID || hdr.Gid < 0 || hdr.Gid > maxID {
		return fmt.Errorf("owner %d:%d is out of range: %w", hdr.Uid, hdr.Gid, errdefs.ErrInvalidArgument)
	}
	if hdr.Size > l.Bytes {
		return fmt.Errorf("file of %d bytes is larger than the limit of %d: %w", hdr.Size, l.Bytes, errdefs.ErrResourceExhausted)
	}
	return nil
}

// rootEntry applies the entry of the root directory itself.
func (u *unpacker) rootEntry(hdr *tar.Header) error {
	if hdr.Typeflag != tar.TypeDir {
		return fmt.Errorf("the root is not a directory: %w", errdefs.ErrInvalidArgument)
	}
	u.result.OwnRoot = true
	u.noteTimes("", hdr)
	return applyAttributes(u.root, ".", hdr)
}

// whiteout turns a deletion mark into overlayfs form. Marks speak of the
// layers below only: what this layer brings itself stays.
func (u *unpacker) whiteout(fd int, dir, mark string) error {
	switch {
	case mark == ".wh..opq":
		return u.setOpaque(fd, ".", dir)
	case strings.HasPrefix(mark, whiteoutPrefix):
		return nil // bookkeeping of aufs
	case mark == "" || mark == "." || mark == "..":
		return fmt.Errorf("whiteout of %q: %w", mark, errdefs.ErrInvalidArgument)
	case u.opts.Below == nil:
		return nil // nothing below to delete from
	}
	var st unix.Stat_t
	err := unix.Fstatat(fd, mark, &st, unix.AT_SYMLINK_NOFOLLOW)
	switch {
	case err == nil && st.Mode&unix.S_IFMT == unix.S_IFDIR:
		return u.setOpaque(fd, mark, path.Join(dir, mark))
	case err == nil:
		return nil
	case !errors.Is(err, unix.ENOENT):
		return err
	}
	u.result.Inodes++
	return unix.Mknodat(fd, mark, unix.S_IFCHR, 0)
}

// setOpaque makes the directory base below fd, known as p, hide the layers below.
func (u *unpacker) setOpaque(fd int, base, p string) error {
	if u.opts.Below == nil {
		return nil
	}
	u.opaque[p] = true
	return unix.Lsetxattr(procPath(fd, base), opaqueXattr, []byte("y"), 0)
}

// create makes the file an entry describes, in place of what is there.
func (u *unpacker) create(fd int, name, base string, hdr *tar.Header, r io.Reader) error {
	switch hdr.Typeflag {
	case tar.TypeDir:
		if err := u.mkdir(fd, name, base); err != nil {
			return err
		}
		u.noteTimes(name, hdr)
		return applyAttributes(fd, base, hdr)
	case tar.TypeReg, tar.TypeGNUSparse, tar.TypeCont, '\x00':
		return u.regular(fd, name, base, hdr, r)
	case tar.TypeLink:
		return u.hardlink(name, base, hdr.Linkname)
	}
	make, err := u.special(fd, base, hdr)
	if err != nil {
		return err
	}
	if err := u.replace(fd, name, base, make); err != nil {
		return err
	}
	u.result.Inodes++
	if err := applyAttributes(fd, base, hdr); err != nil {
		return err
	}
	return setTimes(fd, base, hdr)
}

// special returns how to make a node that is neither file nor directory.
func (u *unpacker) special(fd int, base string, hdr *tar.Header) (func() error, error) {
	mode := uint32(0)
	switch hdr.Typeflag {
	case tar.TypeSymlink:
		if hdr.Linkname == "" {
			return nil, fmt.Errorf("symlink without a target: %w", errdefs.ErrInvalidArgument)
		}
		return func() error { return unix.Symlinkat(hdr.Linkname, fd, base) }, nil
	case tar.TypeFifo:
		mode = unix.S_IFIFO
	case tar.TypeChar:
		mode = unix.S_IFCHR
	case tar.TypeBlock:
		mode = unix.S_IFBLK
	default:
		return nil, fmt.Errorf("tar entry of unknown type %q: %w", hdr.Typeflag, errdefs.ErrInvalidArgument)
	}
	dev := 0
	if mode != unix.S_IFIFO {
		if u.devices++; u.devices > u.limits.Devices {
			return nil, fmt.Errorf("layer has more than %d device nodes: %w", u.limits.Devices, errdefs.ErrResourceExhausted)
		}
		dev = int(unix.Mkdev(uint32(hdr.Devmajor), uint32(hdr.Devminor)))
	}
	return func() error { return unix.Mknodat(fd, base, mode, dev) }, nil
}

// mkdir makes a directory; one of this layer that is there is kept. A
// directory where this layer had a whiteout hides what is below.
func (u *unpacker) mkdir(fd int, name, base string) error {
	err := unix.Mkdirat(fd, base, 0o700)
	if err == nil {
		u.result.Inodes++
		u.result.Bytes += blockSize
		return nil
	}
	var st unix.Stat_t
	if !errors.Is(err, unix.EEXIST) || unix.Fstatat(fd, base, &st, unix.AT_SYMLINK_NOFOLLOW) != nil {
		return err
	}
	if st.Mode&unix.S_IFMT == unix.S_IFDIR {
		return nil
	}
	if err := unix.Unlinkat(fd, base, 0); err != nil {
		return err
	}
	u.forgetBelow(name)
	if err := unix.Mkdirat(fd, base, 0o700); err != nil {
		return err
	}
	u.result.Bytes += blockSize
	if isWhiteout(st) {
		return u.setOpaque(fd, base, name)
	}
	return nil
}

// replace runs make, and once more after deleting what is in its place.
func (u *unpacker) replace(fd int, name, base string, make func() error) error {
	err := make()
	if !errors.Is(err, unix.EEXIST) {
		return err
	}
	if err := u.removeAt(fd, base); err != nil {
		return fmt.Errorf("replace: %w", err)
	}
	u.forgetBelow(name)
	return make()
}

// forgetBelow drops what was remembered of p and directories below it.
func (u *unpacker) forgetBelow(p string) {
	gone := func(q string) bool { return q == p || strings.HasPrefix(q, p+"/") }
	u.dirTimes = slices.DeleteFunc(u.dirTimes, func(d dirTime) bool { return gone(d.path) })
	for q := range u.opaque {
		if gone(q) {
			delete(u.opaque, q)
		}
	}
}

// finish sets the directories' times, deepest last made first.
func (u *unpacker) finish() error {
	for _, d := range slices.Backward(u.dirTimes) {
		p := d.path
		if p == "" {
			p = "."
		}
		fd, err := u.openDir(p)
		if err != nil {
			continue // replaced by something else meanwhile
		}
		err = unix.UtimesNanoAt(fd, ".", []unix.Timespec{d.atime, d.mtime}, 0)
		_ = unix.Close(fd)
		if err != nil {
			return fmt.Errorf("set times of %.200q: %w", d.path, err)
		}
	}
	return nil
}

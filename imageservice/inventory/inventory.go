// Package inventory says what a layer's directory must hold: each file with its
// type, mode, owner, size and checksum, taken when the layer was unpacked. A
// later look finds what was lost, cut, emptied, changed or added.
//
// The file is gzip of lines: a header, one line for each file in the order of
// the walk (mode in octal, uid, gid, size or device number, checksum of the
// content as CRC-32C or "-", quoted path; directories that hide those below
// have "o" before their mode), and a trailer with their number.
package inventory

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/klauspost/compress/gzip"
	"golang.org/x/sys/unix"
)

// Sums are CRC-32C checksums (see Table) of files' contents, by inode.
type Sums map[uint64]uint32

// Table returns the polynomial that Sums are made with.
func Table() *crc32.Table { return crc32.MakeTable(crc32.Castagnoli) }

const (
	header  = "berth inventory 1"
	trailer = "end "
	// maxLine bounds a line when reading: a path of 4096 bytes, quoted.
	maxLine = 20 << 10
)

// entry is one file.
type entry struct {
	opaque   bool
	mode     uint32
	uid, gid uint32
	size     int64 // of a regular file; device number of a device; length of a symlink
	sum      string
	name     string // clean path below the root; "." is the root
}

// String is the entry's line.
func (e entry) String() string {
	mark := ""
	if e.opaque {
		mark = "o"
	}
	return mark + strconv.FormatUint(uint64(e.mode), 8) + " " + strconv.FormatUint(uint64(e.uid), 10) + " " +
		strconv.FormatUint(uint64(e.gid), 10) + " " + strconv.FormatInt(e.size, 10) + " " + e.sum + " " + strconv.Quote(e.name)
}

func parse(line string) (e entry, err error) {
	f := strings.SplitN(line, " ", 6)
	if len(f) != 6 {
		return e, fmt.Errorf("line %.100q: %w", line, errdefs.ErrDataLoss)
	}
	mode, opaque := strings.CutPrefix(f[0], "o")
	m, e1 := strconv.ParseUint(mode, 8, 32)
	uid, e2 := strconv.ParseUint(f[1], 10, 32)
	gid, e3 := strconv.ParseUint(f[2], 10, 32)
	size, e4 := strconv.ParseInt(f[3], 10, 64)
	name, e5 := strconv.Unquote(f[5])
	if err := errors.Join(e1, e2, e3, e4, e5); err != nil {
		return e, fmt.Errorf("line %.100q: %w: %w", line, err, errdefs.ErrDataLoss)
	}
	return entry{opaque: opaque, mode: uint32(m), uid: uint32(uid), gid: uint32(gid), size: size, sum: f[4], name: name}, nil
}

// Write takes the inventory of the directory root and writes it to file, which
// must not exist. sums may lack files: their content is then not checked.
func Write(ctx context.Context, file, root string, sums Sums) error {
	f, err := os.OpenFile(file, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return fmt.Errorf("write inventory: %w", err)
	}
	err = write(ctx, f, root, sums)
	if err = errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("write inventory of %s: %w", root, err)
	}
	return nil
}

func write(ctx context.Context, w io.Writer, root string, sums Sums) error {
	z, err := gzip.NewWriterLevel(w, gzip.BestSpeed)
	if err != nil {
		return err
	}
	buf := bufio.NewWriterSize(z, 64<<10)
	_, _ = buf.WriteString(header + "\n")
	n := 0
	err = walk(ctx, root, func(e entry, st *unix.Stat_t, _ int) error {
		if sum, ok := sums[st.Ino]; ok && e.mode&unix.S_IFMT == unix.S_IFREG {
			e.sum = formatSum(sum)
		}
		n++
		_, err := buf.WriteString(e.String() + "\n")
		return err
	})
	if err != nil {
		return err
	}
	_, _ = buf.WriteString(trailer + strconv.Itoa(n) + "\n")
	return errors.Join(buf.Flush(), z.Close())
}

func formatSum(sum uint32) string { return fmt.Sprintf("%08x", sum) }

// reader reads an inventory's entries one by one: they come in the order of
// the walk, so that a check needs no memory for a layer of millions of files.
type reader struct {
	lines *bufio.Scanner
	n     int
}

func newReader(r io.Reader) (*reader, error) {
	z, err := gzip.NewReader(r)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", err, errdefs.ErrDataLoss)
	}
	lines := bufio.NewScanner(z)
	lines.Buffer(nil, maxLine)
	if !lines.Scan() || lines.Text() != header {
		return nil, fmt.Errorf("no inventory: %w", errdefs.ErrDataLoss)
	}
	return &reader{lines: lines}, nil
}

// next returns false after the last entry. It fails with DataLoss when the
// inventory is not whole: gzip's own checksum covers all of it.
func (r *reader) next() (e entry, ok bool, err error) {
	if !r.lines.Scan() {
		return e, false, fmt.Errorf("inventory is cut short: %w: %w", errors.Join(r.lines.Err(), io.ErrUnexpectedEOF), errdefs.ErrDataLoss)
	}
	line := r.lines.Text()
	if count, ok := strings.CutPrefix(line, trailer); ok {
		if count != strconv.Itoa(r.n) || r.lines.Scan() || r.lines.Err() != nil {
			return e, false, fmt.Errorf("inventory is not whole: %w: %w", errors.Join(r.lines.Err(), io.ErrUnexpectedEOF), errdefs.ErrDataLoss)
		}
		return e, false, nil
	}
	r.n++
	e, err = parse(line)
	return e, err == nil, err
}

// before reports whether the walk visits a before b: directories come before
// what is in them, names in a directory are sorted.
func before(a, b string) bool {
	if a == "." || b == "." {
		return a == "." && b != "."
	}
	return strings.ReplaceAll(a, "/", "\x00") < strings.ReplaceAll(b, "/", "\x00")
}

// walk visits root and all below it, each directory's names sorted. fd is that
// of the directory the entry lies in.
func walk(ctx context.Context, root string, visit func(e entry, st *unix.Stat_t, fd int) error) error {
	fd, err := unix.Open(root, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open %s: %w", root, err)
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return errors.Join(err, unix.Close(fd))
	}
	if err := visit(describe(".", &st, isOpaque(fd)), &st, fd); err != nil {
		return errors.Join(err, unix.Close(fd))
	}
	return walkDir(ctx, os.NewFile(uintptr(fd), root), "", visit)
}

func walkDir(ctx context.Context, dir *os.File, at string, visit func(e entry, st *unix.Stat_t, fd int) error) error {
	defer dir.Close()
	names, err := dir.Readdirnames(-1)
	if err != nil {
		return fmt.Errorf("list %s: %w", dir.Name(), err)
	}
	slices.Sort(names)
	fd := int(dir.Fd())
	for _, name := range names {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		full := path.Join(at, name)
		var st unix.Stat_t
		if err := unix.Fstatat(fd, name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
			return fmt.Errorf("look at %s: %w", full, err)
		}
		if st.Mode&unix.S_IFMT != unix.S_IFDIR {
			if err := visit(describe(full, &st, false), &st, fd); err != nil {
				return err
			}
			continue
		}
		sub, err := unix.Openat(fd, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		if err != nil {
			return fmt.Errorf("open %s: %w", full, err)
		}
		if err := visit(describe(full, &st, isOpaque(sub)), &st, fd); err != nil {
			return errors.Join(err, unix.Close(sub))
		}
		if err := walkDir(ctx, os.NewFile(uintptr(sub), full), full, visit); err != nil {
			return err
		}
	}
	return nil
}

func describe(name string, st *unix.Stat_t, opaque bool) entry {
	e := entry{opaque: opaque, mode: st.Mode, uid: st.Uid, gid: st.Gid, sum: "-", name: name}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG, unix.S_IFLNK:
		e.size = st.Size
	case unix.S_IFCHR, unix.S_IFBLK:
		e.size = int64(st.Rdev)
	}
	return e
}

func isOpaque(fd int) bool {
	var buf [4]byte
	n, err := unix.Fgetxattr(fd, "trusted.overlay.opaque", buf[:])
	return err == nil && n == 1 && buf[0] == 'y'
}

package layer

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"path"
	"strings"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/berth-dev/berth/imageservice/inventory"
)

// blockSize is the unit disk use is counted in.
const blockSize = 4096

// regular writes a file.
func (u *unpacker) regular(fd int, name, base string, hdr *tar.Header, r io.Reader) error {
	var out int
	err := u.replace(fd, name, base, func() (err error) {
		out, err = unix.Openat(fd, base, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
		return err
	})
	if err != nil {
		return err
	}
	defer unix.Close(out)
	u.result.Inodes++
	if err := u.data(out, hdr, r); err != nil {
		return err
	}
	if err := applyAttributesFD(out, hdr); err != nil {
		return err
	}
	return setTimes(fd, base, hdr)
}

// holeSize is the grain in which runs of zeros become holes.
const holeSize = 64 << 10

// data copies a file's bytes. Files the tar calls sparse get their holes back.
func (u *unpacker) data(out int, hdr *tar.Header, r io.Reader) error {
	sparse := isSparse(hdr)
	buf := u.buf
	var zeros []byte
	if sparse {
		buf, zeros = buf[:holeSize], make([]byte, holeSize)
	}
	var size, onDisk int64
	var sum uint32
	for {
		n, err := io.ReadFull(r, buf)
		if n > 0 {
			chunk := buf[:n]
			sum = crc32.Update(sum, inventory.Table(), chunk)
			if sparse && bytes.Equal(chunk, zeros[:n]) {
				if _, err := unix.Seek(out, int64(n), io.SeekCurrent); err != nil {
					return err
				}
			} else if err := writeAll(out, chunk); err != nil {
				return err
			} else {
				onDisk += int64(n)
			}
			size += int64(n)
		}
		if size > u.limits.Bytes {
			return fmt.Errorf("file is larger than the limit of %d bytes: %w", u.limits.Bytes, errdefs.ErrResourceExhausted)
		}
		if errors.Is(err, io.EOF) || (errors.Is(err, io.ErrUnexpectedEOF) && size == hdr.Size) {
			break
		}
		if err != nil {
			return err
		}
		if u.ctx.Err() != nil {
			return u.ctx.Err()
		}
	}
	u.result.Bytes += uint64(onDisk+blockSize-1) &^ (blockSize - 1)
	if sparse {
		if err := unix.Ftruncate(out, size); err != nil {
			return err
		}
	}
	return u.noteSum(out, sum)
}

// noteSum keeps the checksum of an open file's content.
func (u *unpacker) noteSum(fd int, sum uint32) error {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return err
	}
	u.result.Sums[st.Ino] = sum
	return nil
}

func isSparse(hdr *tar.Header) bool {
	return hdr.Typeflag == tar.TypeGNUSparse || hdr.PAXRecords["GNU.sparse.major"] != "" || hdr.PAXRecords["GNU.sparse.size"] != "" ||
		hdr.PAXRecords["GNU.sparse.realsize"] != ""
}

func writeAll(fd int, p []byte) error {
	for len(p) > 0 {
		n, err := unix.Write(fd, p)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return err
		}
		p = p[n:]
	}
	return nil
}

// hardlink links name to a file of this layer, or of the layers below: that
// one is then copied up first, as overlayfs does on link(2).
func (u *unpacker) hardlink(name, base, target string) error {
	target, err := cleanName(target)
	if err != nil {
		return fmt.Errorf("hard link target: %w", err)
	}
	if target == "" || target == name {
		return fmt.Errorf("hard link to %q: %w", target, errdefs.ErrInvalidArgument)
	}
	tdir, tbase := path.Split(target)
	// Resolve the target first: u.dir keeps only the last directory open.
	tfd, err := u.dir(strings.TrimSuffix(tdir, "/"))
	if err != nil {
		return err
	}
	if tfd, err = unix.FcntlInt(uintptr(tfd), unix.F_DUPFD_CLOEXEC, 0); err != nil {
		return err
	}
	defer unix.Close(tfd)
	var st unix.Stat_t
	err = unix.Fstatat(tfd, tbase, &st, unix.AT_SYMLINK_NOFOLLOW)
	switch {
	case errors.Is(err, unix.ENOENT):
		if err := u.copyUp(tfd, strings.TrimSuffix(tdir, "/"), tbase); err != nil {
			return err
		}
	case err != nil:
		return err
	case st.Mode&unix.S_IFMT == unix.S_IFDIR || isWhiteout(st):
		return fmt.Errorf("hard link to %.200q, which is no file: %w", target, errdefs.ErrInvalidArgument)
	}
	dir, _ := path.Split(name)
	fd, err := u.dir(strings.TrimSuffix(dir, "/"))
	if err != nil {
		return err
	}
	return u.replace(fd, name, base, func() error { return unix.Linkat(tfd, tbase, fd, base, 0) })
}

// copyUp brings dir/base of the layers below into this one, at fd/base.
func (u *unpacker) copyUp(fd int, dir, base string) error {
	below, err := u.below()
	if err != nil {
		return err
	}
	real, err := u.realDir(dir)
	if err != nil {
		return err
	}
	p := path.Join(real, base)
	f, ok, err := u.hidden(below, p)
	if err != nil {
		return err
	}
	if !ok || f.kind() == unix.S_IFDIR {
		return fmt.Errorf("hard link to %.200q, which is in no layer: %w", p, errdefs.ErrInvalidArgument)
	}
	if err := u.copyNode(f, fd, base); err != nil {
		return fmt.Errorf("copy %.200q from the layer below: %w", p, err)
	}
	u.result.Inodes++
	return unix.UtimesNanoAt(fd, base, []unix.Timespec{f.stat.Atim, f.stat.Mtim}, unix.AT_SYMLINK_NOFOLLOW)
}

func (u *unpacker) copyNode(f found, fd int, base string) error {
	switch f.kind() {
	case unix.S_IFREG:
		if err := u.copyFile(f, fd, base); err != nil {
			return err
		}
	case unix.S_IFLNK:
		target, err := readlink(f)
		if err != nil {
			return err
		}
		if err := unix.Symlinkat(target, fd, base); err != nil {
			return err
		}
	default:
		if u.devices++; u.devices > u.limits.Devices {
			return fmt.Errorf("layer has more than %d device nodes: %w", u.limits.Devices, errdefs.ErrResourceExhausted)
		}
		if err := unix.Mknodat(fd, base, f.kind(), int(f.stat.Rdev)); err != nil {
			return err
		}
	}
	return copyAttributes(f, fd, base)
}

func (u *unpacker) copyFile(f found, fd int, base string) error {
	in, err := f.open(unix.O_RDONLY)
	if err != nil {
		return err
	}
	defer unix.Close(in)
	out, err := unix.Openat(fd, base, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return err
	}
	defer unix.Close(out)
	var sum uint32
	for {
		n, err := unix.Read(in, u.buf)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return err
		}
		if n == 0 {
			break
		}
		sum = crc32.Update(sum, inventory.Table(), u.buf[:n])
		if err := writeAll(out, u.buf[:n]); err != nil {
			return err
		}
	}
	u.result.Bytes += uint64(f.stat.Size+blockSize-1) &^ (blockSize - 1)
	return u.noteSum(out, sum)
}

// removeAt deletes base below fd, whatever it is.
func (u *unpacker) removeAt(fd int, base string) error {
	var st unix.Stat_t
	if err := unix.Fstatat(fd, base, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFDIR {
		if st.Nlink == 1 {
			u.result.Inodes--
			if st.Mode&unix.S_IFMT == unix.S_IFREG {
				u.result.Bytes -= min(u.result.Bytes, uint64(st.Size+blockSize-1)&^(blockSize-1))
			}
		}
		return unix.Unlinkat(fd, base, 0)
	}
	// Its inodes stay counted: a tar that replaces a directory by a file is
	// rare enough for a figure that is a little high.
	return removeTree(fd, base)
}

func removeTree(fd int, base string) error {
	dir, err := unix.Openat(fd, base, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	f := os.NewFile(uintptr(dir), base)
	defer f.Close()
	names, err := f.Readdirnames(-1)
	if err != nil {
		return err
	}
	for _, n := range names {
		err := unix.Unlinkat(dir, n, 0)
		if errors.Is(err, unix.EISDIR) || errors.Is(err, unix.EPERM) {
			err = removeTree(dir, n)
		}
		if err != nil {
			return err
		}
	}
	return unix.Unlinkat(fd, base, unix.AT_REMOVEDIR)
}

package inventory

import (
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"os"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// maxFaults is how many faults of one layer are named; the rest is counted.
const maxFaults = 20

// Result is what a check has seen.
type Result struct {
	Files  int      // looked at
	Bytes  int64    // of content read
	Faults []string // what is wrong, at most 20 and a line that counts the rest
}

// Check compares the directory root with the inventory in file. deep reads all
// files and compares their checksums, else types, modes, owners and sizes are
// compared. An error means that the look itself failed; an inventory that is
// missing or not whole is a fault.
func Check(ctx context.Context, file, root string, deep bool) (Result, error) {
	f, err := os.Open(file)
	if err != nil {
		return Result{Faults: []string{"inventory: " + err.Error()}}, nil
	}
	defer f.Close()
	list, err := newReader(f)
	if err != nil {
		return Result{Faults: []string{err.Error()}}, nil
	}
	c := checker{list: list, deep: deep}
	if deep {
		c.buf, c.sums = make([]byte, 256<<10), Sums{}
	}
	if err = c.advance(); err == nil {
		err = walk(ctx, root, c.visit)
	}
	for err == nil && c.more {
		c.fault("%s is missing", c.want.name)
		err = c.advance()
	}
	switch {
	case err == nil:
	case errdefs.IsDataLoss(err), errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENOTDIR), errors.Is(err, unix.EIO), errors.Is(err, unix.EUCLEAN):
		c.fault("%v", err)
	default:
		return Result{}, err
	}
	return c.result(), nil
}

// checker walks a directory and reads its inventory at the same pace.
type checker struct {
	list   *reader
	want   entry // next of the list, while there are more
	more   bool
	deep   bool
	buf    []byte
	sums   Sums // of files that have several names, by inode: read once
	res    Result
	faults int
}

func (c *checker) advance() (err error) {
	c.want, c.more, err = c.list.next()
	return err
}

func (c *checker) fault(format string, args ...any) {
	if c.faults++; c.faults <= maxFaults {
		c.res.Faults = append(c.res.Faults, fmt.Sprintf(format, args...))
	}
}

func (c *checker) result() Result {
	if more := c.faults - maxFaults; more > 0 {
		c.res.Faults = append(c.res.Faults, fmt.Sprintf("and %d more", more))
	}
	return c.res
}

func (c *checker) visit(got entry, st *unix.Stat_t, fd int) error {
	c.res.Files++
	for c.more && before(c.want.name, got.name) {
		c.fault("%s is missing", c.want.name)
		if err := c.advance(); err != nil {
			return err
		}
	}
	if !c.more || c.want.name != got.name {
		c.fault("%s was not in the layer", got.name)
		return nil
	}
	if c.same(got, c.want) && c.deep && c.want.sum != "-" {
		c.read(got.name, st, fd)
	}
	return c.advance()
}

// same compares all but the content.
func (c *checker) same(got, want entry) bool {
	switch {
	case got.mode&unix.S_IFMT == want.mode&unix.S_IFMT && got.size != want.size:
		c.fault("%s has size %d, not %d", got.name, got.size, want.size)
		return false
	case got.mode != want.mode || got.uid != want.uid || got.gid != want.gid || got.opaque != want.opaque:
		c.fault("%s has mode %o and owner %d:%d, not %o and %d:%d", got.name, got.mode, got.uid, got.gid, want.mode, want.uid, want.gid)
		return false
	}
	return true
}

// read compares the content with what is wanted next.
func (c *checker) read(name string, st *unix.Stat_t, fd int) {
	sum, known := c.sums[st.Ino]
	if !known {
		var err error
		if sum, err = c.sum(fd, name); err != nil {
			c.fault("%s cannot be read: %v", name, err)
			return
		}
		if st.Nlink > 1 {
			c.sums[st.Ino] = sum
		}
	}
	if formatSum(sum) != c.want.sum {
		c.fault("%s has other content than it was unpacked with", name)
	}
}

// sum reads the file, which is in the directory fd.
func (c *checker) sum(fd int, name string) (uint32, error) {
	in, err := unix.Openat(fd, base(name), unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return 0, err
	}
	defer unix.Close(in)
	var sum uint32
	for {
		n, err := unix.Read(in, c.buf)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil || n == 0 {
			return sum, err
		}
		sum = crc32.Update(sum, Table(), c.buf[:n])
		c.res.Bytes += int64(n)
	}
}

func base(name string) string {
	for i := len(name) - 1; i >= 0; i-- {
		if name[i] == '/' {
			return name[i+1:]
		}
	}
	return name
}

// Package layer unpacks image layers into the form overlayfs stacks: deletions
// become character devices 0/0 and opaque directories carry
// trusted.overlay.opaque=y. Nothing is mounted to unpack, so layers of one
// image are unpacked in any order and at the same time.
//
// A tar is hostile until proven otherwise. Every path is resolved below the
// layer's directory (openat2 with RESOLVE_IN_ROOT, or component by component
// against the merged view of the layers below); names and link targets that
// climb out with ".." are errors; bytes, entries and device nodes are limited.
package layer

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"sync/atomic"
	"syscall"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"github.com/berth-dev/berth/imageservice/inventory"
)

// Limits bound what one layer may do to the node. Zero values get the defaults.
type Limits struct {
	Bytes   int64 // unpacked, holes of sparse files included; default 64 GiB
	Entries int64 // tar entries; default 2,000,000
	Devices int64 // device nodes, whiteouts not counted; default 1024
	// Ratio is how many unpacked bytes one packed byte may become, beyond the
	// first RatioFloor bytes; defaults 200 and 1 GiB.
	Ratio      int64
	RatioFloor int64
}

// WithDefaults fills in zero fields.
func (l Limits) WithDefaults() Limits {
	set := func(v *int64, def int64) {
		if *v <= 0 {
			*v = def
		}
	}
	set(&l.Bytes, 64<<30)
	set(&l.Entries, 2_000_000)
	set(&l.Devices, 1024)
	set(&l.Ratio, 200)
	set(&l.RatioFloor, 1<<30)
	return l
}

// Options says where a layer goes.
type Options struct {
	Dir    string // empty directory that becomes the layer's content
	Limits Limits
	// Below opens the layers below, top first; nil for a bottom layer. It is
	// called at most once, only when an entry cannot be placed without them,
	// and may wait until they are unpacked.
	Below func(ctx context.Context) (*View, error)
	// Gzip is a program that unpacks gzip from standard input to standard
	// output with -dc; "" for our own code. It serves layers of which Packed,
	// the size of the packed stream, says that it pays.
	Gzip   string
	Packed int64
	Plain  *atomic.Int64 // counts unpacked bytes; nil: nobody looks
}

// Result is what was unpacked.
type Result struct {
	DiffID digest.Digest // of the uncompressed stream
	Bytes  uint64        // taken on disk
	Inodes uint64
	// OwnRoot: the tar had an entry for the root directory itself, so that
	// its mode and owner are this layer's and not those of a layer below.
	OwnRoot bool
	// Sums are the checksums of the files' contents.
	Sums inventory.Sums
}

// Unpack reads a packed or plain tar stream to its end into opts.Dir.
// Errors: InvalidArgument for a tar that is broken or escapes its root,
// ResourceExhausted for exceeded limits and a full disk; errors of r pass.
func Unpack(ctx context.Context, r io.Reader, opts Options) (Result, error) {
	packed := &counter{r: r}
	u, err := newUnpacker(ctx, opts)
	if err != nil {
		return Result{}, err
	}
	defer u.close()
	stream := u.ahead(ctx, packed)
	defer stream.stop()
	if err := u.all(tar.NewReader(stream)); err != nil {
		return Result{}, stream.explain(err)
	}
	// What follows the end marker is part of the diff ID.
	if _, err := io.Copy(io.Discard, stream); err != nil {
		return Result{}, stream.explain(err)
	}
	if err := u.finish(); err != nil {
		return Result{}, diskError(err)
	}
	u.result.DiffID = digest.NewDigest(digest.SHA256, stream.sum)
	return u.result, nil
}

// readError prefers the reason the packed stream broke (a download that
// failed) over what the decompressor or tar reader made of it.
func readError(packed *counter, err error) error {
	if cause := packed.failed.Load(); cause != nil {
		return *cause
	}
	if errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, tar.ErrHeader) || errors.Is(err, io.EOF) {
		return fmt.Errorf("layer is not a whole tar archive: %w: %w", err, errdefs.ErrInvalidArgument)
	}
	return diskError(err)
}

// diskError turns a full disk into ResourceExhausted.
func diskError(err error) error {
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		return fmt.Errorf("%w (free space or inodes on the state directory's file system): %w", err, errdefs.ErrResourceExhausted)
	}
	return err
}

// counter counts what was read and keeps the error that ended it. A program's
// input may still be read when its output has ended.
type counter struct {
	r      io.Reader
	n      atomic.Int64
	failed atomic.Pointer[error]
}

// Read implements io.Reader.
func (c *counter) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.n.Add(int64(n))
	if err != nil && !errors.Is(err, io.EOF) {
		c.failed.Store(&err)
	}
	return n, err
}

// guard stops a stream that unpacks to more than the limits allow.
type guard struct {
	r      io.Reader
	packed *counter
	limits Limits
	n      int64
	err    error // what ended the stream
}

// Read implements io.Reader.
func (g *guard) Read(p []byte) (int, error) {
	n, err := g.read(p)
	g.err = err
	return n, err
}

func (g *guard) read(p []byte) (int, error) {
	n, err := g.r.Read(p)
	g.n += int64(n)
	if g.n > g.limits.Bytes {
		return n, fmt.Errorf("layer unpacks to more than %d bytes: %w", g.limits.Bytes, errdefs.ErrResourceExhausted)
	}
	if g.n > g.limits.RatioFloor && g.n > g.packed.n.Load()*g.limits.Ratio {
		return n, fmt.Errorf("layer unpacks to more than %d times its size (%d bytes from %d): %w",
			g.limits.Ratio, g.n, g.packed.n.Load(), errdefs.ErrResourceExhausted)
	}
	return n, err
}

// openRoot opens a directory to resolve paths below it.
func openRoot(dir string) (int, error) {
	fd, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("open layer directory %s: %w", dir, err)
	}
	return fd, nil
}

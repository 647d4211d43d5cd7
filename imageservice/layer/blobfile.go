package layer

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"path"
	"path/filepath"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"github.com/berth-dev/berth/imageservice/inventory"
)

// PlaceFile makes opts.Dir a layer with one file: the stream as it is, at name,
// which is a clean path below the root. It belongs to root and is readable by all.
func PlaceFile(ctx context.Context, r io.Reader, opts Options, name string) (Result, error) {
	if !filepath.IsLocal(name) || path.Clean(name) != name {
		return Result{}, fmt.Errorf("place file %.200q: %w", name, errdefs.ErrInvalidArgument)
	}
	res := Result{Inodes: 1, Bytes: blockSize}
	full := opts.Dir
	for dir := path.Dir(name); dir != "."; dir = path.Dir(dir) {
		res.Inodes++
		res.Bytes += blockSize
	}
	full = filepath.Join(full, name)
	if err := os.MkdirAll(filepath.Dir(full), 0o755); err != nil {
		return Result{}, fmt.Errorf("place file %.200q: %w", name, diskError(err))
	}
	f, err := os.OpenFile(full, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return Result{}, fmt.Errorf("place file %.200q: %w", name, diskError(err))
	}
	sum, check := sha256.New(), crc32.New(inventory.Table())
	limit := opts.Limits.WithDefaults().Bytes
	n, err := io.Copy(io.MultiWriter(f, sum, check), io.LimitReader(ctxReader{ctx, r}, limit+1))
	if err == nil && n > limit {
		err = fmt.Errorf("larger than %d bytes: %w", limit, errdefs.ErrResourceExhausted)
	}
	var st unix.Stat_t
	if err = errors.Join(err, f.Chmod(0o644), unix.Fstat(int(f.Fd()), &st), f.Close()); err != nil {
		return Result{}, fmt.Errorf("place file %.200q: %w", name, diskError(err))
	}
	res.Inodes++
	res.Bytes += uint64(n+blockSize-1) &^ (blockSize - 1)
	res.Sums = inventory.Sums{st.Ino: check.Sum32()}
	res.DiffID = digest.NewDigest(digest.SHA256, sum)
	return res, nil
}

type ctxReader struct {
	ctx context.Context
	r   io.Reader
}

// Read implements io.Reader.
func (c ctxReader) Read(p []byte) (int, error) {
	if c.ctx.Err() != nil {
		return 0, context.Cause(c.ctx)
	}
	return c.r.Read(p)
}

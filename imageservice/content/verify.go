package content

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
)

// Verify reads a complete blob and compares its digest; n is how many bytes it
// has. A blob with other bytes is DataLoss, a missing one NotFound.
func (s *Store) Verify(ctx context.Context, d digest.Digest) (n int64, err error) {
	if err := d.Validate(); err != nil {
		return 0, fmt.Errorf("verify blob %.80q: %w: %w", string(d), err, errdefs.ErrInvalidArgument)
	}
	f, err := os.Open(s.blobPath(d))
	if errors.Is(err, os.ErrNotExist) {
		return 0, fmt.Errorf("blob is missing: %w", errdefs.ErrNotFound)
	}
	if err != nil {
		return 0, fmt.Errorf("verify blob %s: %w", d, err)
	}
	defer f.Close()
	sum := d.Algorithm().Hash()
	n, err = io.Copy(sum, cancelled{ctx, f})
	if ctx.Err() != nil {
		return n, context.Cause(ctx)
	}
	if err != nil {
		return n, fmt.Errorf("blob cannot be read: %w: %w", err, errdefs.ErrDataLoss)
	}
	if got := digest.NewDigest(d.Algorithm(), sum); got != d {
		return n, fmt.Errorf("blob has other bytes, with digest %s: %w", got, errdefs.ErrDataLoss)
	}
	return n, nil
}

type cancelled struct {
	ctx context.Context
	r   io.Reader
}

// Read implements io.Reader.
func (c cancelled) Read(p []byte) (int, error) {
	if c.ctx.Err() != nil {
		return 0, c.ctx.Err()
	}
	return c.r.Read(p)
}

// Strangers lists files in the store that are neither blobs nor partial ones.
// Nothing may be under way.
func (s *Store) Strangers() ([]string, error) {
	var out []string
	for _, alg := range []string{"sha256", "sha512"} {
		dir := filepath.Join(s.cfg.Dir, "blobs", alg)
		names, err := namesOf(dir)
		if err != nil {
			return nil, err
		}
		for _, n := range names {
			if digest.Digest(alg+":"+n).Validate() != nil {
				out = append(out, filepath.Join(dir, n))
			}
		}
	}
	dir := filepath.Join(s.cfg.Dir, "ingest")
	names, err := namesOf(dir)
	for _, n := range names {
		// A partial may have notes beside it, under its own name and a suffix.
		name, _, _ := strings.Cut(n, ".")
		if digest.Digest(strings.Replace(name, "-", ":", 1)).Validate() != nil {
			out = append(out, filepath.Join(dir, n))
		}
	}
	return out, err
}

func namesOf(dir string) ([]string, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("list %s: %w", dir, err)
	}
	names := make([]string, len(entries))
	for i, e := range entries {
		names[i] = e.Name()
	}
	return names, nil
}

package content

import (
	"context"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
)

// transfer is one try to fill the file, verifying as it goes. The readers see
// only the prefix that it has written or found; wrong bytes end every reader
// with an error.
type transfer struct {
	*Download
	src  Source
	file *os.File
	sum  hash.Hash
	have int64
	// single: one connection only, because several did not go well.
	single bool
}

func (d *Download) transfer(ctx context.Context, src Source, f *os.File) error {
	t := &transfer{Download: d, src: src, file: f, sum: d.desc.Digest.Algorithm().Hash()}
	var err error
	if t.have, err = io.Copy(t.sum, io.NewSectionReader(f, 0, d.desc.Size)); err != nil {
		return err
	}
	d.advance(t.have)
	d.store.stats.Resumed.Add(t.have)
	for bad := 0; t.have < d.desc.Size; {
		before := t.have
		err := t.chunk(ctx)
		if t.have-before >= progress {
			bad = 0
		}
		if err == nil {
			continue
		}
		if bad++; bad >= attempts || ctx.Err() != nil || !passing(err) {
			return err
		}
		t.single = true
		d.store.stats.Breaks.Add(1)
		d.store.cfg.Logger.Info("blob transfer broke off, going on", "digest", d.desc.Digest, "offset", t.have, "error", err)
		select {
		case <-time.After(100 * time.Millisecond << bad):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	if got := digest.NewDigest(d.desc.Digest.Algorithm(), t.sum); got != d.desc.Digest {
		return fmt.Errorf("received bytes have digest %s: the registry or something on the way changed them: %w", got, errdefs.ErrDataLoss)
	}
	return nil
}

// chunk appends what one source delivers from offset have on.
func (t *transfer) chunk(ctx context.Context) error {
	rc, err := t.open(ctx)
	if err != nil {
		return err
	}
	defer rc.Close()
	buf := make([]byte, 256<<10)
	for {
		n, rerr := rc.Read(buf)
		if t.have+int64(n) > t.desc.Size {
			return fmt.Errorf("registry sends more than the %d bytes its manifest says: %w", t.desc.Size, errdefs.ErrDataLoss)
		}
		if n > 0 {
			if err := t.append(ctx, buf[:n]); err != nil {
				return err
			}
		}
		if rerr == nil {
			continue
		}
		if t.have == t.desc.Size && errors.Is(rerr, io.EOF) {
			return nil
		}
		if errors.Is(rerr, io.EOF) {
			rerr = io.ErrUnexpectedEOF
		}
		return fmt.Errorf("transfer ended after %d of %d bytes: %w: %w", t.have, t.desc.Size, rerr, errdefs.ErrUnavailable)
	}
}

// append writes bytes, shows them to the readers, and waits as long as the
// node's limit on bytes per second asks for.
func (t *transfer) append(ctx context.Context, p []byte) error {
	if _, err := t.file.WriteAt(p, t.have); err != nil {
		return diskError(err)
	}
	t.sum.Write(p)
	t.have += int64(len(p))
	t.advance(t.have)
	t.store.stats.Bytes.Add(int64(len(p)))
	return t.store.rate.Take(ctx, len(p))
}

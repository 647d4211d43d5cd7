package layer

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"

	"github.com/containerd/errdefs"
	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
)

var (
	gzipMagic  = []byte{0x1f, 0x8b}
	zstdMagic  = []byte{0x28, 0xb5, 0x2f, 0xfd}
	xzMagic    = []byte{0xfd, '7', 'z', 'X', 'Z', 0}
	bzip2Magic = []byte{'B', 'Z', 'h'}
)

// Decompress returns the plain stream of a gzip, zstd or plain one, told
// apart by the first bytes. A zstd stream may start with a skippable frame.
func Decompress(r io.Reader) (io.ReadCloser, error) { return decompress(context.Background(), r, "") }

// decompress is Decompress with a program for gzip, which ends with ctx.
func decompress(ctx context.Context, r io.Reader, program string) (io.ReadCloser, error) {
	br := bufio.NewReaderSize(r, 256<<10)
	head, err := br.Peek(8)
	if err != nil && len(head) == 0 {
		return nil, fmt.Errorf("read the layer's first bytes: %w", err)
	}
	switch {
	case bytes.HasPrefix(head, gzipMagic):
		if program != "" {
			return startProgram(ctx, program, br)
		}
		return gzip.NewReader(br)
	case bytes.HasPrefix(head, zstdMagic), skippable(head):
		// The window is capped: it is memory a registry could make us take.
		z, err := zstd.NewReader(br, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxWindow(128<<20))
		if err != nil {
			return nil, err
		}
		return z.IOReadCloser(), nil
	case bytes.HasPrefix(head, xzMagic), bytes.HasPrefix(head, bzip2Magic):
		return nil, fmt.Errorf("layer is packed with xz or bzip2; gzip, zstd and plain are supported: %w", errdefs.ErrNotImplemented)
	}
	return io.NopCloser(br), nil
}

// skippable reports a zstd skippable frame (magic 0x184D2A50 to 0x184D2A5F).
func skippable(head []byte) bool {
	return len(head) >= 4 && head[0]&0xf0 == 0x50 && head[1] == 0x2a && head[2] == 0x4d && head[3] == 0x18
}

package content

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/berth-dev/berth/imageservice/limit"
)

// Source delivers a blob's bytes.
type Source interface {
	// Open asks for the bytes from offset from to offset to. A source that
	// cannot serve ranges may begin earlier and end later. It may be called
	// while other parts are being read.
	Open(ctx context.Context, from, to int64) (Part, error)
	// Reject says that bytes were wrong, and returns whether another place is
	// left to try.
	Reject() bool
}

const (
	// attempts is how often in a row a transfer may break without progress.
	attempts = 4
	// progress is the least a transfer must bring to count as progress, so that
	// a registry that lets bytes drip does not keep a pull for ever.
	progress = 64 << 10
)

// Download is one blob under way, or already here. Everybody who asked for it
// holds a reference; the transfer stops when the last one lets go.
type Download struct {
	store  *Store
	desc   ocispec.Descriptor
	cancel context.CancelFunc
	refs   int           // guarded by store.mu; 0: being torn down
	gone   chan struct{} // closed once a download with no holder is torn down

	cond *sync.Cond // its lock guards what follows
	size int64      // bytes in file that readers may see
	file *os.File   // read and write, kept open until Release by all
	done bool
	err  error
	kept bool // moved to blobs/
	// again: the bytes were wrong, but another try may bring the right ones.
	again bool
}

// Fetch returns the download of a blob, started or joined. The caller must
// Release it. joined tells that another caller's source is in use: an error
// may be that one's.
func (s *Store) Fetch(desc ocispec.Descriptor, src Source) (d *Download, joined bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for d := s.flights[desc.Digest]; d != nil; d = s.flights[desc.Digest] {
		if d.refs > 0 {
			d.refs++
			return d, true
		}
		s.mu.Unlock() // the old transfer still has the file
		<-d.gone
		s.mu.Lock()
	}
	ctx, cancel := context.WithCancel(context.Background())
	d = &Download{store: s, desc: desc, cancel: cancel, refs: 1, gone: make(chan struct{})}
	d.cond = sync.NewCond(&sync.Mutex{})
	s.flights[desc.Digest] = d
	go d.run(ctx, src)
	return d, false
}

// Release lets go of the download. With the last reference the transfer stops;
// a partial stays for the next try.
func (d *Download) Release() {
	s := d.store
	s.mu.Lock()
	d.refs--
	last := d.refs == 0
	s.mu.Unlock()
	if !last {
		return
	}
	d.cancel()
	_ = d.Wait(context.Background()) // ends at once: it was cancelled
	d.cond.L.Lock()
	if d.file != nil {
		_ = d.file.Close()
		d.file = nil
	}
	d.cond.L.Unlock()
	s.mu.Lock()
	defer s.mu.Unlock()
	d.forget()
	close(d.gone)
}

// forget takes the download off the list; store.mu is held.
func (d *Download) forget() {
	if d.store.flights[d.desc.Digest] == d {
		delete(d.store.flights, d.desc.Digest)
	}
}

// Again reports that the download failed on wrong bytes, which are gone now,
// and that a new one may do better.
func (d *Download) Again() bool {
	d.cond.L.Lock()
	defer d.cond.L.Unlock()
	return d.again
}

// Wait returns when the blob is complete and verified, or why it is not.
func (d *Download) Wait(ctx context.Context) error {
	stop := context.AfterFunc(ctx, d.wake)
	defer stop()
	d.cond.L.Lock()
	defer d.cond.L.Unlock()
	for !d.done && ctx.Err() == nil {
		d.cond.Wait()
	}
	if !d.done {
		return context.Cause(ctx)
	}
	return d.err
}

func (d *Download) wake() {
	d.cond.L.Lock()
	defer d.cond.L.Unlock()
	d.cond.Broadcast()
}

// Reader returns the blob's bytes from the start and waits for those that have
// not arrived. It ends with EOF only after the digest was verified.
func (d *Download) Reader(ctx context.Context) io.Reader {
	context.AfterFunc(ctx, d.wake)
	return &follower{d: d, ctx: ctx}
}

type follower struct {
	d   *Download
	ctx context.Context
	off int64
}

// Read implements io.Reader.
func (f *follower) Read(p []byte) (int, error) {
	d := f.d
	d.cond.L.Lock()
	for f.off >= d.size && !d.done && f.ctx.Err() == nil {
		d.cond.Wait()
	}
	avail, file, done, err := d.size-f.off, d.file, d.done, d.err
	d.cond.L.Unlock()
	switch {
	case f.ctx.Err() != nil:
		return 0, context.Cause(f.ctx)
	case done && err != nil:
		return 0, err
	case avail <= 0:
		return 0, io.EOF
	case int64(len(p)) > avail:
		p = p[:avail]
	}
	n, err := file.ReadAt(p, f.off)
	f.off += int64(n)
	switch {
	case n > 0:
		return n, nil // an error that lasts comes again
	case errors.Is(err, io.EOF):
		// Bytes that were there are gone: they turned out to be wrong.
		return 0, cmp.Or(d.Wait(f.ctx), io.ErrUnexpectedEOF)
	}
	return 0, err
}

// run fetches the blob and tells the readers how it ended.
func (d *Download) run(ctx context.Context, src Source) {
	err := d.fetch(ctx, src)
	if err != nil {
		err = fmt.Errorf("download blob %s: %w", d.desc.Digest, err)
		// Nobody may join a download that failed.
		d.store.mu.Lock()
		if d.refs > 0 {
			d.forget()
		}
		d.store.mu.Unlock()
	}
	d.cond.L.Lock()
	d.done, d.err = true, err
	d.cond.Broadcast()
	d.cond.L.Unlock()
}

func (d *Download) fetch(ctx context.Context, src Source) error {
	s := d.store
	if f, err := os.Open(s.blobPath(d.desc.Digest)); err == nil {
		info, err := f.Stat()
		if err == nil && info.Size() == d.desc.Size {
			d.cond.L.Lock()
			d.file, d.size, d.kept = f, info.Size(), true
			d.cond.L.Unlock()
			return nil
		}
		_ = f.Close()
	}
	for _, g := range []*limit.Gate{s.slots, s.conns} {
		if err := g.Take(ctx); err != nil {
			return err
		}
		defer g.Give()
	}
	start := time.Now()
	defer func() { s.stats.Nanoseconds.Add(int64(time.Since(start))) }()
	f, err := os.OpenFile(s.ingestPath(d.desc.Digest), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return diskError(err)
	}
	before, err := f.Stat()
	if err != nil {
		_ = f.Close()
		return err
	}
	if before.Size() > 0 {
		s.account(before, -1) // counted as a partial; counted again below
	}
	d.cond.L.Lock()
	d.file = f
	d.cond.L.Unlock()
	err = d.transfer(ctx, src, f)
	if errdefs.IsDataLoss(err) {
		err = errors.Join(err, f.Truncate(0))
		// With an old partial in play the registry may be innocent.
		again := before.Size() > 0 || src.Reject()
		d.cond.L.Lock()
		d.again = again
		d.cond.L.Unlock()
	}
	if after, serr := f.Stat(); serr == nil {
		s.account(after, 1)
	}
	return err
}

// Have returns how many bytes have arrived, those of earlier tries included.
func (d *Download) Have() int64 {
	d.cond.L.Lock()
	defer d.cond.L.Unlock()
	return d.size
}

func (d *Download) advance(size int64) {
	d.cond.L.Lock()
	d.size = size
	d.cond.Broadcast()
	d.cond.L.Unlock()
}

func passing(err error) bool { return errdefs.IsUnavailable(err) }

// Keep moves the complete blob to its place, durably.
func (d *Download) Keep() error {
	d.cond.L.Lock()
	defer d.cond.L.Unlock()
	if d.kept {
		return nil
	}
	if !d.done || d.err != nil {
		return fmt.Errorf("keep blob %s: %w", d.desc.Digest, errdefs.ErrFailedPrecondition)
	}
	err := d.file.Sync()
	if err == nil {
		err = d.store.publish(d.store.ingestPath(d.desc.Digest), d.desc.Digest)
	}
	if err != nil {
		return fmt.Errorf("keep blob %s: %w", d.desc.Digest, diskError(err))
	}
	d.kept = true
	return nil
}

// Discard deletes the downloaded bytes; readers that have begun go on.
func (d *Download) Discard() error {
	d.cond.L.Lock()
	defer d.cond.L.Unlock()
	if d.kept {
		return nil
	}
	return d.store.removeFile(d.store.ingestPath(d.desc.Digest))
}

// Failure returns why the download failed, or nil while it has not.
func (d *Download) Failure() error {
	d.cond.L.Lock()
	defer d.cond.L.Unlock()
	return d.err
}

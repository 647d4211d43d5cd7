package content

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"

	"github.com/containerd/errdefs"
)

const (
	// rangeSize is what one ranged request asks for. As many of them as a blob
	// has connections are in memory at the most.
	rangeSize = 4 << 20
	// rangeMin is the least that is worth more than one connection.
	rangeMin = 4 * rangeSize
)

// open returns the blob's bytes from offset have on, in order: over several
// connections when the rest is large, the registry serves ranges and the node
// has connections to spare.
func (t *transfer) open(ctx context.Context) (io.ReadCloser, error) {
	per, size := t.store.perBlob(), t.desc.Size
	to := t.have + rangeSize
	if per < 2 || t.single || size-t.have < rangeMin {
		to = size
	}
	ctx, cancel := context.WithCancel(ctx)
	p, err := t.src.Open(ctx, t.have, to)
	if err != nil {
		cancel()
		return nil, err
	}
	if to == size || p.Start != t.have || p.End != to {
		body, err := p.from(t.have) // it sends what it likes: take all of that
		if err != nil {
			cancel()
			return nil, err
		}
		return single{body, cancel}, nil
	}
	r := &ranges{t: t, ctx: ctx, cancel: cancel, per: per, next: to}
	r.cond = sync.NewCond(&r.mu)
	r.start(&segment{from: t.have, to: to}, func() (Part, error) { return p, nil })
	return r, nil
}

// single is one connection's body; closing it ends the request.
type single struct {
	io.ReadCloser
	cancel context.CancelFunc
}

// Close implements io.Closer.
func (s single) Close() error {
	s.cancel()
	return s.ReadCloser.Close()
}

// Part is a stretch of a blob as a source delivers it.
type Part struct {
	Body       io.ReadCloser
	Start, End int64 // of the bytes in Body
}

// from skips to offset have, for sources that begin earlier.
func (p Part) from(have int64) (io.ReadCloser, error) {
	if _, err := io.CopyN(io.Discard, p.Body, have-p.Start); err != nil {
		p.Body.Close()
		return nil, fmt.Errorf("skip to byte %d: %w: %w", have, err, errdefs.ErrUnavailable)
	}
	return p.Body, nil
}

// ranges reads a stretch of a blob in order while several requests are under
// way. The download owns one connection; further ones are taken from the
// node's only while nobody waits for one.
type ranges struct {
	t      *transfer
	ctx    context.Context
	cancel context.CancelFunc
	per    int
	wg     sync.WaitGroup

	mu      sync.Mutex
	cond    *sync.Cond
	next    int64 // the first byte nobody has asked for
	segs    []*segment
	free    [][]byte
	ownBusy bool // the download's own connection is in use
}

// segment is one request; ranges.mu guards it.
type segment struct {
	from, to  int64
	buf       []byte
	got, read int  // filled and consumed of buf
	ended     bool // the request is over, with err or without
	err       error
	own       bool // on the download's own connection
}

// start begins a request; mu is held, or nobody else knows r yet.
func (r *ranges) start(s *segment, open func() (Part, error)) {
	if !r.ownBusy {
		r.ownBusy, s.own = true, true
	}
	if n := len(r.free); n > 0 {
		s.buf, r.free = r.free[n-1], r.free[:n-1]
	} else {
		s.buf = make([]byte, rangeSize)
	}
	s.buf = s.buf[:s.to-s.from]
	r.segs = append(r.segs, s)
	r.wg.Go(func() {
		err := r.fill(s, open)
		r.mu.Lock()
		defer r.mu.Unlock()
		s.ended, s.err = true, err
		if s.own {
			r.ownBusy = false
		} else {
			r.t.store.conns.Give()
		}
		r.cond.Broadcast()
	})
}

// fill reads one segment whole; the error is nil when it is.
func (r *ranges) fill(s *segment, open func() (Part, error)) error {
	p, err := open()
	if err != nil {
		return err
	}
	body, err := p.from(s.from)
	if err != nil {
		return err
	}
	defer body.Close()
	for at := 0; at < len(s.buf); {
		n, err := body.Read(s.buf[at:])
		at += n
		r.mu.Lock()
		s.got = at
		r.cond.Broadcast()
		r.mu.Unlock()
		if err != nil && at < len(s.buf) {
			if errors.Is(err, io.EOF) {
				err = io.ErrUnexpectedEOF
			}
			return err
		}
	}
	return nil
}

// more asks for further segments; mu is held.
func (r *ranges) more() {
	for len(r.segs) < r.per && r.next < r.t.desc.Size && (!r.ownBusy || r.t.store.conns.TryTake()) {
		s := &segment{from: r.next, to: min(r.next+rangeSize, r.t.desc.Size)}
		r.next = s.to
		r.start(s, func() (Part, error) {
			p, err := r.t.src.Open(r.ctx, s.from, s.to)
			if err == nil && p.Start > s.from {
				p.Body.Close()
				err = fmt.Errorf("asked for byte %d, got byte %d: %w", s.from, p.Start, errdefs.ErrUnavailable)
			}
			return p, err
		})
	}
}

// Read implements io.Reader.
func (r *ranges) Read(p []byte) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for {
		r.more()
		if len(r.segs) == 0 {
			return 0, io.EOF
		}
		s := r.segs[0]
		switch {
		case s.read < s.got:
			n := copy(p, s.buf[s.read:s.got])
			s.read += n
			return n, nil
		case s.ended && s.err == nil:
			r.segs = r.segs[1:]
			r.free = append(r.free, s.buf[:0])
			continue
		case s.ended:
			return 0, s.err
		}
		// Also for a request that has brought its last byte: until it is over it
		// counts among those the blob may have.
		r.cond.Wait()
	}
}

// Close ends all requests.
func (r *ranges) Close() error {
	r.cancel()
	r.wg.Wait()
	return nil
}

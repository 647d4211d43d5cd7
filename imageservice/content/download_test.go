package content

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// fakeSource serves a blob from memory and misbehaves on demand.
type fakeSource struct {
	body    []byte
	noRange bool
	// cut ends the nth request (from 1) after so many bytes.
	cut map[int]int

	mu      sync.Mutex
	asked   [][2]int64
	open    int
	most    int // requests at the same time
	flip    bool
	release chan struct{} // when set, reads wait for it
	linger  time.Duration // how long a request stays open behind its last byte
}

func (f *fakeSource) Open(ctx context.Context, from, to int64) (Part, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.asked = append(f.asked, [2]int64{from, to})
	f.open++
	f.most = max(f.most, f.open)
	p := Part{Start: from, End: to}
	if f.noRange {
		p = Part{End: int64(len(f.body))}
	}
	b := bytes.Clone(f.body[p.Start:p.End])
	if f.flip {
		b[len(b)-1] ^= 1
	}
	end := io.EOF
	if n, ok := f.cut[len(f.asked)]; ok {
		b, end = b[:min(n, len(b))], errors.New("connection reset")
	}
	p.Body = &fakeBody{f: f, ctx: ctx, r: bytes.NewReader(b), end: end}
	return p, nil
}

func (f *fakeSource) Reject() bool { return false }

type fakeBody struct {
	f    *fakeSource
	ctx  context.Context
	r    *bytes.Reader
	end  error
	once sync.Once
}

func (b *fakeBody) Read(p []byte) (int, error) {
	if c := b.f.release; c != nil {
		select {
		case <-c:
		case <-b.ctx.Done():
			return 0, b.ctx.Err()
		}
	}
	if b.ctx.Err() != nil {
		return 0, b.ctx.Err()
	}
	n, err := b.r.Read(p[:min(len(p), 100_000)])
	if errors.Is(err, io.EOF) {
		err = b.end
	}
	return n, err
}

func (b *fakeBody) Close() error {
	b.once.Do(func() {
		time.Sleep(b.f.linger)
		b.f.mu.Lock()
		defer b.f.mu.Unlock()
		b.f.open--
	})
	return nil
}

func testStore(t *testing.T, dir string, l Limits) *Store {
	t.Helper()
	s, err := Open(Config{Dir: dir, Limits: l})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func blob(n int) ([]byte, ocispec.Descriptor) {
	body := make([]byte, n)
	_, _ = rand.NewChaCha8([32]byte{byte(n)}).Read(body)
	return body, ocispec.Descriptor{Digest: digest.FromBytes(body), Size: int64(n)}
}

// get downloads and reads along, and returns what a reader saw.
func get(t *testing.T, s *Store, desc ocispec.Descriptor, src Source) ([]byte, error) {
	t.Helper()
	d, _ := s.Fetch(desc, src)
	defer d.Release()
	got, rerr := io.ReadAll(d.Reader(t.Context()))
	err := d.Wait(t.Context())
	if (rerr == nil) != (err == nil) {
		t.Errorf("reader: %v, download: %v", rerr, err)
	}
	return got, err
}

func TestParallelRanges(t *testing.T) {
	for _, size := range []int{rangeMin - 1, rangeMin + 12345} {
		body, desc := blob(size)
		for _, cut := range []map[int]int{nil, {1: rangeSize, 2: 70_000}, {3: 0}, {2: 1 << 20, 4: 99}} {
			src := &fakeSource{body: body, cut: cut, linger: 20 * time.Millisecond}
			s := testStore(t, t.TempDir(), Limits{Connections: 4, PerBlob: 3})
			got, err := get(t, s, desc, src)
			if err != nil || !bytes.Equal(got, body) {
				t.Errorf("%d bytes, cut %v: %v, %d bytes read", size, cut, err, len(got))
			}
			if src.open != 0 || src.most > 3 || size >= rangeMin && len(src.asked) < 4 {
				t.Errorf("%d bytes, cut %v: %d requests are open, at most %d were, %d in sum", size, cut, src.open, src.most, len(src.asked))
			}
			free := 0
			for s.conns.TryTake() {
				free++
			}
			if free != 4 {
				t.Errorf("%d connections are free, want 4", free)
			}
			if n := s.Stats().Bytes.Load(); n != int64(size) {
				t.Errorf("%d bytes counted of %d", n, size)
			}
		}
	}
}

// TestRangesLeaveConnections: what nobody else needs is used, and a download
// that comes is not kept waiting.
func TestRangesLeaveConnections(t *testing.T) {
	body, desc := blob(rangeMin)
	src := &fakeSource{body: body, release: make(chan struct{})}
	s := testStore(t, t.TempDir(), Limits{Connections: 2, PerBlob: 8})
	d, _ := s.Fetch(desc, src)
	small, sdesc := blob(1000)
	ended := make(chan error, 1)
	go func() {
		_, err := get(t, s, sdesc, &fakeSource{body: small})
		ended <- err
	}()
	close(src.release)
	if err := errors.Join(<-ended, d.Wait(t.Context())); err != nil {
		t.Error(err)
	}
	d.Release()
	if src.most > 2 {
		t.Errorf("%d connections at the same time, the limit is 2", src.most)
	}
}

func TestSourceWithoutRanges(t *testing.T) {
	body, desc := blob(rangeMin + 5)
	src := &fakeSource{body: body, noRange: true, cut: map[int]int{1: 3_000_000}}
	got, err := get(t, testStore(t, t.TempDir(), Limits{}), desc, src)
	if err != nil || !bytes.Equal(got, body) || len(src.asked) != 2 {
		t.Errorf("%v, %d bytes, asked %v", err, len(got), src.asked)
	}
}

// TestResumeAfterRestart: another Store on the same directory, as after a crash
// of the daemon, asks only for what is missing; a partial that is wrong is
// found out and fetched again from its start.
func TestResumeAfterRestart(t *testing.T) {
	body, desc := blob(rangeMin + rangeSize)
	dir := t.TempDir()
	s := testStore(t, dir, Limits{})
	stop := map[int]int{}
	for i := range 50 {
		stop[i+2] = 0
	}
	d, _ := s.Fetch(desc, &fakeSource{body: body, cut: stop})
	if err := d.Wait(t.Context()); !errdefs.IsUnavailable(err) {
		t.Fatalf("got %v", err)
	}
	have := d.Have()
	d.Release()
	if have < rangeSize {
		t.Fatalf("only %d bytes were kept", have)
	}
	src := &fakeSource{body: body}
	s = testStore(t, dir, Limits{})
	got, err := get(t, s, desc, src)
	if err != nil || !bytes.Equal(got, body) || src.asked[0][0] != have || s.Stats().Resumed.Load() != have {
		t.Errorf("%v, %d bytes, asked %v, had %d, counted %d", err, len(got), src.asked[0], have, s.Stats().Resumed.Load())
	}
	file := filepath.Join(dir, "ingest", "sha256-"+desc.Digest.Encoded())
	if err := os.WriteFile(file, append([]byte("wrong"), body[5:1000]...), 0o600); err != nil {
		t.Fatal(err)
	}
	s = testStore(t, dir, Limits{})
	d, _ = s.Fetch(desc, &fakeSource{body: body})
	if err := d.Wait(t.Context()); !errdefs.IsDataLoss(err) || !d.Again() {
		t.Errorf("a partial with wrong bytes: %v", err)
	}
	d.Release()
	if got, err := get(t, s, desc, &fakeSource{body: body}); err != nil || !bytes.Equal(got, body) {
		t.Error(err)
	}
}

func TestWrongBytesOverRanges(t *testing.T) {
	body, desc := blob(rangeMin)
	_, err := get(t, testStore(t, t.TempDir(), Limits{}), desc, &fakeSource{body: body, flip: true})
	if !errdefs.IsDataLoss(err) {
		t.Errorf("got %v", err)
	}
}

// TestDripEnds: transfers that each bring a few bytes are no progress.
func TestDripEnds(t *testing.T) {
	body, desc := blob(1 << 20)
	cut := map[int]int{}
	for i := range 1000 {
		cut[i+1] = 10
	}
	src := &fakeSource{body: body, cut: cut}
	_, err := get(t, testStore(t, t.TempDir(), Limits{}), desc, src)
	if !errdefs.IsUnavailable(err) || len(src.asked) != attempts {
		t.Errorf("%v after %d requests", err, len(src.asked))
	}
}

// TestLimitsChangeMeanwhile: a download that crawls is set free.
func TestLimitsChangeMeanwhile(t *testing.T) {
	body, desc := blob(4 << 20)
	s := testStore(t, t.TempDir(), Limits{Rate: 1})
	d, _ := s.Fetch(desc, &fakeSource{body: body})
	defer d.Release()
	for d.Have() == 0 {
		if err := d.Failure(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Millisecond)
	}
	if d.Have() > 1<<20 {
		t.Error("the limit on bytes per second is not kept")
	}
	s.SetLimits(Limits{})
	if err := d.Wait(t.Context()); err != nil {
		t.Error(err)
	}
}

// TestCancelledWhileLimited: who lets go of a download does not wait for it.
func TestCancelledWhileLimited(t *testing.T) {
	body, desc := blob(rangeMin)
	s := testStore(t, t.TempDir(), Limits{Rate: 1})
	for range 3 {
		d, _ := s.Fetch(desc, &fakeSource{body: body})
		for d.Have() == 0 && d.Failure() == nil {
			time.Sleep(time.Millisecond)
		}
		d.Release()
	}
	if len(s.flights) != 0 {
		t.Error(fmt.Sprint(len(s.flights), " downloads are left"))
	}
}

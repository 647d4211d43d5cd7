// Package content keeps blobs by digest and downloads them so that an
// interrupted transfer goes on where it stopped.
//
//	blobs/sha256/<hex>        complete, verified, synced
//	ingest/sha256-<hex>       partial: a prefix of the blob
package content

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"

	"github.com/berth-dev/berth/imageservice/limit"
)

// Config says where blobs live and how many are fetched at a time.
type Config struct {
	Dir    string // made if missing
	Limits Limits
	Logger *slog.Logger
}

// Limits bound the downloads of the whole node. Zero values get the defaults.
type Limits struct {
	Downloads   int   // blobs at the same time; default 3
	Connections int   // transfers at the same time; default 6
	PerBlob     int   // connections of one large blob; default 3
	Rate        int64 // bytes per second; default none
}

// Stats counts what downloads did since the start.
type Stats struct {
	Bytes       atomic.Int64 // received
	Resumed     atomic.Int64 // found of earlier tries, and not asked for again
	Breaks      atomic.Int64 // transfers that broke off and went on
	Nanoseconds atomic.Int64 // spent by all downloads together
}

// Store is a directory of blobs. All methods are safe for concurrent use.
type Store struct {
	cfg   Config
	slots *limit.Gate // downloads
	conns *limit.Gate // transfers
	rate  *limit.Rate
	per   atomic.Int64
	stats Stats
	bytes atomic.Int64 // complete blobs and partials, on disk
	files atomic.Int64

	mu      sync.Mutex
	flights map[digest.Digest]*Download
}

// Open opens or makes a store and counts what is in it.
func Open(cfg Config) (*Store, error) {
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	s := &Store{
		cfg: cfg, slots: limit.NewGate(0), conns: limit.NewGate(0), rate: limit.NewRate(0), flights: map[digest.Digest]*Download{},
	}
	s.SetLimits(cfg.Limits)
	for _, d := range []string{"blobs/sha256", "blobs/sha512", "ingest"} {
		if err := os.MkdirAll(filepath.Join(cfg.Dir, d), 0o700); err != nil {
			return nil, diskError(err)
		}
	}
	err := filepath.WalkDir(cfg.Dir, func(_ string, e fs.DirEntry, err error) error {
		if err != nil || !e.Type().IsRegular() {
			return err
		}
		info, err := e.Info()
		if err == nil {
			s.account(info, 1)
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("count blobs in %s: %w", cfg.Dir, err)
	}
	return s, nil
}

// SetLimits changes the limits, also for downloads under way.
func (s *Store) SetLimits(l Limits) {
	set := func(v *int, def int) {
		if *v <= 0 {
			*v = def
		}
	}
	set(&l.Downloads, 3)
	set(&l.Connections, 6)
	set(&l.PerBlob, 3)
	s.slots.Resize(l.Downloads)
	s.conns.Resize(l.Connections)
	s.per.Store(int64(l.PerBlob))
	s.rate.Resize(l.Rate)
}

func (s *Store) perBlob() int { return int(s.per.Load()) }

// Stats returns the counters, which go on counting.
func (s *Store) Stats() *Stats { return &s.stats }

// Usage returns the bytes and inodes that blobs and partials take.
func (s *Store) Usage() (bytes, inodes uint64) {
	return uint64(max(s.bytes.Load(), 0)), uint64(max(s.files.Load(), 0))
}

func (s *Store) account(info os.FileInfo, sign int64) {
	// Whole blocks by size, not st_blocks: that one moves with delayed
	// allocation, and a sum must lose exactly what it gained.
	s.bytes.Add(sign * ((info.Size() + 4095) &^ 4095))
	s.files.Add(sign)
}

func (s *Store) blobPath(d digest.Digest) string {
	return filepath.Join(s.cfg.Dir, "blobs", d.Algorithm().String(), d.Encoded())
}

func (s *Store) ingestPath(d digest.Digest) string {
	return filepath.Join(s.cfg.Dir, "ingest", d.Algorithm().String()+"-"+d.Encoded())
}

// Has reports whether the complete blob is here.
func (s *Store) Has(d digest.Digest) bool {
	if d.Validate() != nil {
		return false
	}
	_, err := os.Stat(s.blobPath(d))
	return err == nil
}

// Read returns a small blob, verified again: at most limit bytes. A damaged
// blob is DataLoss, a missing one NotFound.
func (s *Store) Read(d digest.Digest, limit int64) ([]byte, error) {
	if err := d.Validate(); err != nil {
		return nil, fmt.Errorf("read blob %.80q: %w: %w", string(d), err, errdefs.ErrInvalidArgument)
	}
	f, err := os.Open(s.blobPath(d))
	if errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("read blob %s: %w", d, errdefs.ErrNotFound)
	}
	if err != nil {
		return nil, fmt.Errorf("read blob %s: %w", d, err)
	}
	defer f.Close()
	raw, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err != nil {
		return nil, fmt.Errorf("read blob %s: %w", d, err)
	}
	if int64(len(raw)) > limit {
		return nil, fmt.Errorf("read blob %s: larger than %d bytes: %w", d, limit, errdefs.ErrResourceExhausted)
	}
	if d.Algorithm().FromBytes(raw) != d {
		return nil, fmt.Errorf("read blob %s: damaged on disk: %w", d, errdefs.ErrDataLoss)
	}
	return raw, nil
}

// Put stores bytes the caller has verified. Idempotent.
func (s *Store) Put(d digest.Digest, raw []byte) error {
	if s.Has(d) {
		return nil
	}
	tmp, err := os.CreateTemp(filepath.Join(s.cfg.Dir, "ingest"), ".put-")
	if err != nil {
		return fmt.Errorf("store blob %s: %w", d, diskError(err))
	}
	_, err = tmp.Write(raw)
	if err == nil {
		err = tmp.Sync()
	}
	var info os.FileInfo
	if err == nil {
		info, err = tmp.Stat()
	}
	err = errors.Join(err, tmp.Close())
	if err == nil {
		err = s.publish(tmp.Name(), d)
	}
	if err != nil {
		_ = os.Remove(tmp.Name())
		return fmt.Errorf("store blob %s: %w", d, diskError(err))
	}
	s.account(info, 1)
	return nil
}

// publish moves a synced file to its digest's place, durably.
func (s *Store) publish(from string, d digest.Digest) error {
	to := s.blobPath(d)
	if err := os.Rename(from, to); err != nil {
		return err
	}
	return syncDir(filepath.Dir(to))
}

// Remove deletes a blob and its partial. Idempotent.
func (s *Store) Remove(d digest.Digest) error {
	if err := d.Validate(); err != nil {
		return fmt.Errorf("remove blob %.80q: %w: %w", string(d), err, errdefs.ErrInvalidArgument)
	}
	return errors.Join(s.removeFile(s.blobPath(d)), s.removeFile(s.ingestPath(d)))
}

func (s *Store) removeFile(path string) error {
	info, err := os.Lstat(path)
	if err == nil {
		if err = os.Remove(path); err == nil {
			s.account(info, -1)
		}
	}
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return err
}

// Size returns the size of a complete blob in bytes; fs.ErrNotExist.
func (s *Store) Size(d digest.Digest) (int64, error) {
	info, err := os.Stat(s.blobPath(d))
	if err != nil {
		return 0, fmt.Errorf("size of blob %s: %w", d, err)
	}
	return info.Size(), nil
}

// Blobs returns the digests of all complete blobs.
func (s *Store) Blobs() ([]digest.Digest, error) {
	var all []digest.Digest
	for _, alg := range []string{"sha256", "sha512"} {
		entries, err := os.ReadDir(filepath.Join(s.cfg.Dir, "blobs", alg))
		if err != nil {
			return nil, fmt.Errorf("list blobs: %w", err)
		}
		for _, e := range entries {
			if d := digest.Digest(alg + ":" + e.Name()); d.Validate() == nil {
				all = append(all, d)
			}
		}
	}
	return all, nil
}

// SweepIngest deletes partials not touched for longer than age and leftovers
// of Put. Call it before the first download.
func (s *Store) SweepIngest(ctx context.Context, age time.Duration) error {
	dir := filepath.Join(s.cfg.Dir, "ingest")
	entries, err := os.ReadDir(dir)
	if err != nil {
		return fmt.Errorf("sweep partial blobs: %w", err)
	}
	var errs []error
	for _, e := range entries {
		info, err := e.Info()
		if err != nil || ctx.Err() != nil {
			continue
		}
		if strings.HasPrefix(e.Name(), ".put-") || time.Since(info.ModTime()) > age {
			errs = append(errs, s.removeFile(filepath.Join(dir, e.Name())))
		}
	}
	return errors.Join(errs...)
}

// DropPartial deletes what was fetched of a blob and not kept. It must not be
// under way. Idempotent.
func (s *Store) DropPartial(d digest.Digest) error { return s.removeFile(s.ingestPath(d)) }

// diskError turns a full disk into ResourceExhausted.
func diskError(err error) error {
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		return fmt.Errorf("%w (free space on the state directory's file system): %w", err, errdefs.ErrResourceExhausted)
	}
	return err
}

func syncDir(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

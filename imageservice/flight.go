package imageservice

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"github.com/berth-dev/berth/imageservice/content"
	"github.com/berth-dev/berth/imageservice/inventory"
	"github.com/berth-dev/berth/imageservice/layer"
	"github.com/berth-dev/berth/imageservice/limit"
	"github.com/berth-dev/berth/imageservice/manifest"
	"github.com/berth-dev/berth/store"
	"github.com/berth-dev/berth/store/op"
)

// flight is one layer being fetched and unpacked, shared by all pulls that
// need it. A pull that needs a layer needs all below it as well, so whoever
// keeps a flight alive keeps those it may wait for alive, too.
type flight struct {
	manifest.Layer
	packed
	below  []*flight // bottom first; the layers under this one
	cancel context.CancelFunc
	done   chan struct{} // closed when err, blob and record are final

	// guarded by Service.mu
	refs int

	err    error
	blob   *content.Download
	record store.Layer

	mu        sync.Mutex
	dir       string // staging directory, then the layer's place; "" when there is none
	committed bool
}

// place returns where the layer's files are now.
func (f *flight) place() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return filepath.Join(f.dir, "fs")
}

// wait returns when the flight has ended.
func (f *flight) wait(ctx context.Context) error {
	select {
	case <-f.done:
		return f.err
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// acquire returns the flights of an image's layers, bottom first: finished
// ones for layers that are here, others joined or started. joined tells that
// another pull's credentials are in use, so that an error may be that one's.
func (s *Service) acquire(layers []ocispec.Descriptor, ids []manifest.Layer, source func(ocispec.Descriptor) content.Source) (all []*flight, joined bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for i, desc := range layers {
		chain := ids[i].ChainID
		if rec, err := s.db.Layer(chain.String()); err == nil {
			s.pulls.counters.LayersPresent.Add(1)
			f := &flight{Layer: ids[i], packed: packed{desc: desc}, record: rec, dir: s.layerDir(chain.String()), committed: true, done: make(chan struct{}), refs: 1}
			close(f.done)
			all = append(all, f)
			continue
		}
		if f := s.held.flights[chain]; f != nil {
			f.refs++
			joined = true
			all = append(all, f)
			continue
		}
		ctx, cancel := context.WithCancel(context.Background())
		f := &flight{Layer: ids[i], packed: packed{desc: desc}, cancel: cancel, done: make(chan struct{}), refs: 1}
		f.below = append(f.below, all...)
		s.held.flights[chain] = f
		all = append(all, f)
		go s.fly(ctx, f, source(desc))
	}
	return all, joined
}

// release lets go of flights. One nobody waits for is stopped, and what it
// unpacked deleted unless it was committed; fetched bytes stay.
func (s *Service) release(all []*flight) {
	for _, f := range all {
		s.mu.Lock()
		f.refs--
		last := f.refs == 0
		if last && s.held.flights[f.ChainID] == f {
			delete(s.held.flights, f.ChainID)
		}
		s.mu.Unlock()
		if !last || f.cancel == nil {
			continue
		}
		f.cancel()
		<-f.done
		s.drop(f)
	}
}

// drop frees what a flight nobody holds has left.
func (s *Service) drop(f *flight) {
	if f.blob != nil {
		f.blob.Release()
	}
	f.mu.Lock()
	dir := f.dir
	keep := f.committed
	f.mu.Unlock()
	if !keep && dir != "" {
		if err := os.RemoveAll(dir); err != nil {
			s.cfg.Logger.Warn("staged layer was not deleted; the next start does it", "dir", dir, "error", err)
		}
	}
}

// fly fetches and unpacks one layer into staging.
func (s *Service) fly(ctx context.Context, f *flight, src content.Source) {
	defer close(f.done)
	for range 2 {
		f.blob, _ = s.blobs.Fetch(f.desc, src)
		f.begin(f.blob)
		f.err = s.unpack(ctx, f)
		if f.err == nil {
			s.pulls.counters.LayersFetched.Add(1)
			return
		}
		again := f.blob.Again()
		f.blob.Release()
		f.blob = nil
		if !again || ctx.Err() != nil {
			break
		}
		s.cfg.Logger.Warn("layer had wrong bytes, fetching it again", "digest", f.desc.Digest, "error", f.err)
	}
	s.mu.Lock()
	if s.held.flights[f.ChainID] == f {
		delete(s.held.flights, f.ChainID) // nobody may join a flight that failed
	}
	s.mu.Unlock()
}

// unpack reads the blob as it arrives. The result is trusted only once both
// the digest of the packed and of the plain bytes are right.
func (s *Service) unpack(ctx context.Context, f *flight) (err error) {
	slot := slot{gate: s.pulls.unpacks}
	if err := slot.take(ctx); err != nil {
		return err
	}
	defer slot.give()
	dir, err := os.MkdirTemp(s.staging(), "layer-")
	if err != nil {
		return fmt.Errorf("unpack layer %s: %w", f.desc.Digest, diskError(err))
	}
	defer func() {
		if err != nil {
			_ = os.RemoveAll(dir)
		}
	}()
	// Whoever reads ahead of the unpacking ends with it.
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	root := filepath.Join(dir, "fs")
	if err := errors.Join(os.Chmod(dir, 0o711), os.Mkdir(root, 0o755), os.Chmod(root, 0o755)); err != nil {
		return fmt.Errorf("unpack layer %s: %w", f.desc.Digest, diskError(err))
	}
	defer spent(&s.pulls.counters.UnpackNanoseconds)()
	opts := layer.Options{Dir: root, Limits: s.cfg.Limits, Plain: &f.plain, Gzip: *s.gzip.Load(), Packed: f.desc.Size}
	if len(f.below) > 0 {
		opts.Below = func(ctx context.Context) (*layer.View, error) {
			slot.give() // those below may need it
			v, err := viewOf(ctx, f.below)
			return v, errors.Join(err, slot.take(ctx))
		}
	}
	op.Fault("image.pull", "unpack", "before")
	res, err := f.write(ctx, opts)
	if err != nil {
		// A broken download shows as a broken archive first: whether its bytes
		// were the right ones is known only at their end.
		derr := f.blob.Failure()
		if errdefs.IsInvalidArgument(err) {
			derr = f.blob.Wait(ctx)
		}
		if derr != nil {
			err = derr
		}
		return fmt.Errorf("unpack layer %s: %w", f.desc.Digest, err)
	}
	if err := f.blob.Wait(ctx); err != nil {
		return err
	}
	if f.DiffID != "" && res.DiffID != f.DiffID {
		return fmt.Errorf("unpack layer %s: unpacked bytes have digest %s, the image configuration says %s: %w",
			f.desc.Digest, res.DiffID, f.DiffID, errdefs.ErrDataLoss)
	}
	if f.record, err = f.describe(ctx, dir, res, s.boot.id); err != nil {
		return fmt.Errorf("unpack layer %s: %w", f.desc.Digest, diskError(err))
	}
	op.Fault("image.pull", "unpack", "after")
	f.mu.Lock()
	f.dir = dir
	f.mu.Unlock()
	return nil
}

// write turns the blob into the layer's files.
func (f *flight) write(ctx context.Context, opts layer.Options) (layer.Result, error) {
	if f.File != "" {
		return layer.PlaceFile(ctx, f.blob.Reader(ctx), opts, f.File)
	}
	return layer.Unpack(ctx, f.blob.Reader(ctx), opts)
}

// describe writes inventory and record of the unpacked layer in dir.
func (f *flight) describe(ctx context.Context, dir string, res layer.Result, bootID string) (store.Layer, error) {
	rec := store.Layer{
		ChainID: f.ChainID.String(), DiffID: res.DiffID.String(), Blob: f.desc.Digest.String(),
		UsageBytes: res.Bytes, UsageInodes: res.Inodes, UnpackedAt: time.Now(), BootID: bootID,
	}
	if n := len(f.below); n > 0 {
		rec.Parent = f.below[n-1].ChainID.String()
	}
	if err := inventory.Write(ctx, filepath.Join(dir, fileInventory), filepath.Join(dir, "fs"), res.Sums); err != nil {
		return rec, err
	}
	rec.UsageBytes, rec.UsageInodes = withOwnFiles(dir, rec)
	return rec, writeRecord(dir, rec, res.OwnRoot)
}

// fileInventory is the layer's inventory, beside its files.
const fileInventory = "files.gz"

// withOwnFiles adds to a layer's use what Berth keeps beside its files: the
// directory, the record and the inventory.
func withOwnFiles(dir string, l store.Layer) (bytes, inodes uint64) {
	const block = 4096
	bytes, inodes = l.UsageBytes+2*block, l.UsageInodes+3
	if st, err := os.Stat(filepath.Join(dir, fileInventory)); err == nil {
		bytes += uint64(st.Size()+block-1) &^ (block - 1)
	}
	return bytes, inodes
}

// layerFile is layer.json: the record, and what only mounting needs.
type layerFile struct {
	Layer   store.Layer
	OwnRoot bool // the layer says mode and owner of "/"
}

func writeRecord(dir string, rec store.Layer, ownRoot bool) error {
	raw, err := json.Marshal(layerFile{Layer: rec, OwnRoot: ownRoot})
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, "layer.json"), raw, 0o600)
}

func readRecord(dir string) (layerFile, error) {
	var file layerFile
	raw, err := os.ReadFile(filepath.Join(dir, "layer.json"))
	if err == nil {
		err = json.Unmarshal(raw, &file)
	}
	if err != nil {
		return layerFile{}, fmt.Errorf("layer.json: %w", err)
	}
	return file, nil
}

// viewOf waits for the layers and opens their merged view.
func viewOf(ctx context.Context, below []*flight) (*layer.View, error) {
	for _, f := range below {
		if err := f.wait(ctx); err != nil {
			return nil, err
		}
	}
	for try := 0; ; try++ {
		var dirs []string
		for i := len(below) - 1; i >= 0; i-- {
			dirs = append(dirs, below[i].place())
		}
		v, err := layer.OpenView(dirs)
		// A commit may rename a directory between the two lines.
		if err == nil || !errors.Is(err, unix.ENOENT) || try > 100 {
			return v, err
		}
	}
}

// slot is one of a limited number of permits.
type slot struct {
	gate *limit.Gate
	held bool
}

func (s *slot) take(ctx context.Context) error {
	err := s.gate.Take(ctx)
	s.held = err == nil
	return err
}

func (s *slot) give() {
	if s.held {
		s.gate.Give()
		s.held = false
	}
}

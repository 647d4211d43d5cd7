package imageservice

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/berth-dev/berth/store"
	"github.com/berth-dev/berth/store/op"
)

// commit makes the finished flights durable, and with them the change that
// image returns: one sync of the file system, then the renames, then the
// records in one transaction.
func (s *Service) commit(ctx context.Context, flights []*flight, image func() store.Change) error {
	s.commitMu.Lock()
	defer s.commitMu.Unlock()
	defer spent(&s.pulls.counters.CommitNanoseconds)()
	var ready []*flight
	for _, f := range flights {
		select {
		case <-f.done:
			if f.err == nil && !f.committed {
				ready = append(ready, f)
			}
		default:
		}
	}
	if err := s.publish(ready); err != nil {
		s.ruin(ready)
		return fmt.Errorf("commit layers: %w", diskError(err))
	}
	var c store.Change
	if image != nil {
		c = image()
	}
	for _, f := range ready {
		c.PutLayers = append(c.PutLayers, f.record)
	}
	if len(c.PutLayers) == 0 && len(c.PutImages) == 0 {
		return nil
	}
	op.Fault("image.pull", "commit", "before")
	if err := s.db.Commit(ctx, c); err != nil {
		s.ruin(ready)
		return fmt.Errorf("commit records: %w", err)
	}
	op.Fault("image.pull", "commit", "after")
	for _, f := range ready {
		f.mu.Lock()
		f.committed = true
		f.mu.Unlock()
		if s.cfg.KeepBlobs {
			continue
		}
		if err := f.blob.Discard(); err != nil {
			s.cfg.Logger.Warn("unpacked blob was not deleted", "digest", f.desc.Digest, "error", err)
		}
	}
	return nil
}

// publish moves staged layers to their places, durably.
func (s *Service) publish(ready []*flight) error {
	if len(ready) == 0 {
		return nil
	}
	for _, f := range ready {
		if s.cfg.KeepBlobs {
			if err := f.blob.Keep(); err != nil {
				return err
			}
		}
	}
	op.Fault("image.pull", "sync", "before")
	if err := syncFS(s.staging()); err != nil {
		return fmt.Errorf("sync file system: %w", err)
	}
	for _, f := range ready {
		if err := s.place(f); err != nil {
			return err
		}
	}
	op.Fault("image.pull", "place", "after")
	return syncDir(filepath.Join(s.cfg.StateDir, "layers"))
}

// place renames one staged layer. A directory in the way has no record: it is
// what a crash left.
func (s *Service) place(f *flight) error {
	to := s.layerDir(f.ChainID.String())
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.dir == to {
		return nil // an earlier commit came this far
	}
	err := os.Rename(f.dir, to)
	if errors.Is(err, unix.ENOTEMPTY) || errors.Is(err, unix.EEXIST) {
		if err = s.discard(to); err == nil {
			err = os.Rename(f.dir, to)
		}
	}
	if err != nil {
		return fmt.Errorf("move layer %s into place: %w", f.ChainID, err)
	}
	f.dir = to
	return nil
}

// discard deletes a directory, out of sight first.
func (s *Service) discard(dir string) error {
	hidden, err := s.hide(dir)
	return errors.Join(err, os.RemoveAll(hidden))
}

func syncFS(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(unix.Syncfs(int(d.Fd())), d.Close())
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// ruin gives up layers that could not be committed. Their blobs stay, so the
// next pull unpacks again without fetching again.
func (s *Service) ruin(ready []*flight) {
	for _, f := range ready {
		s.mu.Lock()
		if s.held.flights[f.ChainID] == f {
			delete(s.held.flights, f.ChainID)
		}
		s.mu.Unlock()
		f.mu.Lock()
		if err := s.discard(f.dir); err != nil {
			s.cfg.Logger.Warn("layer without a record was not deleted; the next start does it", "dir", f.dir, "error", err)
		}
		f.dir = ""
		f.mu.Unlock()
	}
}

package imageservice

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"github.com/opencontainers/go-digest"

	"github.com/berth-dev/berth/store"
)

// FileAction is what is to be done about a layer or a directory of the store.
type FileAction struct {
	Do     string // forgetLayer or deleteFiles
	Name   string // chain ID, or path below the state directory
	Reason string
}

const (
	forgetLayer = "forget layer"
	deleteFiles = "delete files"
)

// fileView is what was seen of layers/ and staging/.
type fileView struct {
	Layers []string // directories that are there
	Whole  []string // those of them that hold a layer's record
	Staged []string // entries of staging/
	Busy   bool     // pulls or imports are under way: what is staged may be theirs
}

// planFiles compares the records of layers with the disk. Pure.
func planFiles(records []store.Layer, v fileView) []FileAction {
	var out []FileAction
	known := map[string]bool{"empty": true}
	for _, l := range records {
		name := digest.Digest(l.ChainID).Encoded()
		known[name] = true
		if !slices.Contains(v.Whole, name) {
			out = append(out, FileAction{forgetLayer, l.ChainID, "its files are gone; images that need it must be pulled again"})
		}
	}
	for _, name := range v.Layers {
		if !known[name] {
			out = append(out, FileAction{deleteFiles, filepath.Join("layers", name), "belongs to no record"})
		}
	}
	if v.Busy {
		return out
	}
	for _, name := range v.Staged {
		out = append(out, FileAction{deleteFiles, filepath.Join("staging", name), "nothing is under way that it could belong to"})
	}
	return out
}

// Reconcile compares records of layers with the disk, and does what follows; with
// dry it only says so. It may run beside pulls, imports and creations: commits wait
// until what goes is out of sight, and what is staged stays while any is under way.
func (s *Service) Reconcile(ctx context.Context, dry bool) ([]FileAction, error) {
	s.commitMu.Lock()
	v, err := s.viewFiles()
	if err != nil {
		s.commitMu.Unlock()
		return nil, fmt.Errorf("reconcile image store: %w", err)
	}
	plan := planFiles(s.db.Layers(), v)
	if dry || len(plan) == 0 {
		s.commitMu.Unlock()
		return plan, nil
	}
	gone, err := s.applyFiles(ctx, plan)
	s.commitMu.Unlock()
	for _, dir := range gone {
		err = errors.Join(err, os.RemoveAll(dir))
	}
	if err != nil {
		return plan, fmt.Errorf("reconcile image store: %w", err)
	}
	return plan, nil
}

// viewFiles looks at the disk. What is under way is asked last: a pull that began
// after the look has nothing in it, and none ends while commitMu is held.
func (s *Service) viewFiles() (v fileView, err error) {
	if v.Layers, err = names(filepath.Join(s.cfg.StateDir, "layers")); err != nil {
		return v, err
	}
	for _, name := range v.Layers {
		if _, err := os.Stat(filepath.Join(s.cfg.StateDir, "layers", name, "layer.json")); err == nil {
			v.Whole = append(v.Whole, name)
		}
	}
	if v.Staged, err = names(s.staging()); err != nil {
		return v, err
	}
	v.Busy = s.busy()
	return v, nil
}

// busy says that pulls or imports are under way.
func (s *Service) busy() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.held.imports > 0 || len(s.held.flights) > 0 || len(s.held.blobs) > 0
}

func names(dir string) (out []string, err error) {
	entries, err := os.ReadDir(dir)
	for _, e := range entries {
		out = append(out, e.Name())
	}
	return out, err
}

// applyFiles takes out of sight what goes, and returns the directories to delete.
// commitMu is held.
func (s *Service) applyFiles(ctx context.Context, plan []FileAction) (gone []string, err error) {
	var lost []string
	for _, a := range plan {
		s.cfg.Logger.Warn("reconcile image store", "action", a.Do, "name", a.Name, "reason", a.Reason)
		if a.Do == forgetLayer {
			lost = append(lost, a.Name)
		}
	}
	if len(lost) > 0 {
		if err := s.db.Commit(ctx, store.Change{DeleteLayers: lost}); err != nil {
			return nil, err
		}
	}
	for _, a := range plan {
		if a.Do != deleteFiles {
			continue
		}
		tmp, err := os.MkdirTemp(s.staging(), "gone-")
		if err != nil {
			return gone, diskError(err)
		}
		gone = append(gone, tmp)
		if err := os.Rename(filepath.Join(s.cfg.StateDir, a.Name), filepath.Join(tmp, "x")); err != nil && !errors.Is(err, os.ErrNotExist) {
			return gone, err
		}
	}
	return gone, nil
}

package imageservice

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"

	"github.com/berth-dev/berth/store"
	"github.com/berth-dev/berth/store/op"
)

// FileAction is what is to be done about a layer or a directory of the store.
type FileAction struct {
	Do     string // forgetLayer, shelveLayer, shelveFiles or deleteFiles
	Name   string // chain ID, or path below the state directory
	Reason string
	Err    error // nil: it was done, or was only to be said
}

const (
	forgetLayer = "forget layer"
	shelveLayer = "quarantine layer"
	shelveFiles = "quarantine files"
	deleteFiles = "delete files"
)

// fileView is what was seen of layers/ and staging/.
type fileView struct {
	Layers  []string      // directories that are there
	Whole   []string      // those of them that hold a layer's record
	Orphans []store.Layer // those of them that the index does not know, with all that is known of them
	Used    []string      // chain IDs of those orphans that containers were made of
	Staged  []string      // entries of staging/
	Busy    bool          // pulls or imports are under way: what is staged may be theirs
}

// planFiles compares the records of layers with the disk. Pure.
func planFiles(records []store.Layer, v fileView) []FileAction {
	var out []FileAction
	known := map[string]bool{"empty": true}
	for _, l := range records {
		name := digest.Digest(l.ChainID).Encoded()
		known[name] = true
		switch {
		case !slices.Contains(v.Layers, name):
			out = append(out, FileAction{Do: forgetLayer, Name: l.ChainID, Reason: "its files are gone; images that need it must be pulled again"})
		case !slices.Contains(v.Whole, name):
			out = append(out, FileAction{Do: shelveLayer, Name: l.ChainID, Reason: "its layer.json is gone; images that need it must be pulled again"})
		}
	}
	for _, name := range v.Layers {
		switch {
		case known[name]:
		case slices.Contains(v.Used, chainOf(name)):
			out = append(out, FileAction{Do: shelveFiles, Name: filepath.Join("layers", name), Reason: "belongs to no record, and containers were made of it"})
		default:
			out = append(out, FileAction{Do: deleteFiles, Name: filepath.Join("layers", name), Reason: "belongs to no record"})
		}
	}
	if v.Busy {
		return out
	}
	for _, name := range v.Staged {
		out = append(out, FileAction{Do: deleteFiles, Name: filepath.Join("staging", name), Reason: "nothing is under way that it could belong to"})
	}
	return out
}

// chainOf is the chain ID of the layer in a directory of layers/.
func chainOf(name string) string { return digest.NewDigestFromEncoded(digest.SHA256, name).String() }

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
	gone := s.applyFiles(ctx, plan, v.Orphans)
	s.commitMu.Unlock()
	for i, dir := range gone {
		plan[i].Err = errors.Join(plan[i].Err, os.RemoveAll(dir))
	}
	for _, a := range plan {
		if a.Err != nil {
			err = errors.Join(err, fmt.Errorf("%s %s: %w", a.Do, a.Name, a.Err))
		}
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
		own, err := readRecord(filepath.Join(s.cfg.StateDir, "layers", name))
		if !errors.Is(err, os.ErrNotExist) {
			v.Whole = append(v.Whole, name) // a torn one is for the check of images
		}
		if _, err := s.db.Layer(chainOf(name)); errdefs.IsNotFound(err) {
			v.Orphans = append(v.Orphans, store.Layer{ChainID: chainOf(name), Parent: own.Layer.Parent})
		}
	}
	s.mu.Lock()
	for _, l := range v.Orphans {
		if len(s.usersOf(l.ChainID, v.Orphans)) > 0 {
			v.Used = append(v.Used, l.ChainID)
		}
	}
	s.mu.Unlock()
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

// applyFiles takes out of sight what goes, and returns the directories to delete, by action.
// What fails is noted in the plan, and stands in the way of nothing else. commitMu
// is held.
func (s *Service) applyFiles(ctx context.Context, plan []FileAction, orphans []store.Layer) (gone map[int]string) {
	gone = map[int]string{}
	lost := store.Change{}
	for _, a := range plan {
		s.cfg.Logger.Warn("reconcile image store", "action", a.Do, "name", a.Name, "reason", a.Reason)
		if a.Do == forgetLayer {
			lost.DeleteLayers = append(lost.DeleteLayers, a.Name)
		}
	}
	op.Fault("image.reconcile", "forget", "before")
	var forgotten error
	if len(lost.DeleteLayers) > 0 {
		forgotten = s.db.Commit(ctx, lost)
	}
	for i, a := range plan {
		var err error
		switch a.Do {
		case forgetLayer:
			err = forgotten
		case shelveLayer:
			err = s.quarantineNow(ctx, a.Name, a.Reason)
		case shelveFiles:
			err = s.shelveOrphan(chainOf(filepath.Base(a.Name)), orphans, a.Reason)
		case deleteFiles:
			dir := filepath.Join(s.cfg.StateDir, a.Name)
			if filepath.Dir(dir) != s.staging() {
				dir, err = s.hide(dir)
			}
			gone[i] = dir
		}
		plan[i].Err = diskError(err)
	}
	op.Fault("image.reconcile", "hide", "after")
	return gone
}

// shelveOrphan puts into quarantine what containers still have mounted.
func (s *Service) shelveOrphan(chain string, orphans []store.Layer, reason string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	i := slices.IndexFunc(orphans, func(l store.Layer) bool { return l.ChainID == chain })
	_, err := s.shelve(orphans[i], orphans, reason)
	return err
}

// hide moves a directory into staging/, out of sight, to be deleted at leisure.
// That takes no room on a full disk. One that does not exist is no error.
func (s *Service) hide(dir string) (hidden string, err error) {
	hidden = filepath.Join(s.staging(), "gone-"+rand.Text())
	if err := os.Rename(dir, hidden); err != nil && !errors.Is(err, os.ErrNotExist) {
		return "", err
	}
	return hidden, nil
}

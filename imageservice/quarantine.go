package imageservice

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"

	"github.com/berth-dev/berth/store"
	"github.com/berth-dev/berth/store/op"
)

// A damaged layer is moved, whole, to quarantine/<hex>-<random>/x, with a note
// beside it, and its record is deleted: its images count as absent, and their
// next pull brings that layer alone. Containers that run on it keep it mounted,
// so that it is deleted only after the last of them.

// quarantineNote says what lies in quarantine.
type quarantineNote struct {
	Layer  store.Layer
	Reason string
	Users  []string // containers that were made from the layer before, and mounts on the node

	unread bool // Users are not known
}

const fileNote = "note.json"

func (s *Service) quarantineDir() string { return filepath.Join(s.cfg.StateDir, "quarantine") }

// quarantine takes a layer out of use: first the note, then the files, then the
// record. A crash between leaves the layer as it was, or a record without files,
// which the next start forgets; never files without a record that are in use. One
// without a record is done already.
func (s *Service) quarantine(ctx context.Context, chain, reason string) error {
	s.commitMu.Lock()
	defer s.commitMu.Unlock()
	return s.quarantineNow(ctx, chain, reason)
}

// quarantineNow is quarantine where commitMu is held.
func (s *Service) quarantineNow(ctx context.Context, chain, reason string) error {
	// No container comes to use the layer between the note and the end.
	s.mu.Lock()
	defer s.mu.Unlock()
	rec, err := s.db.Layer(chain)
	if errdefs.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return err
	}
	s.cfg.Logger.Error("image layer is damaged; its images must be pulled again", "layer", chain, "reason", reason)
	op.Fault("image.quarantine", "files", "before")
	undo, err := s.shelve(rec, nil, reason)
	if err != nil {
		return fmt.Errorf("quarantine layer %s: %w", chain, diskError(err))
	}
	op.Fault("image.quarantine", "files", "after")
	if err := s.db.Commit(ctx, store.Change{DeleteLayers: []string{chain}}); err != nil {
		return fmt.Errorf("quarantine layer %s: %w", chain, diskError(errors.Join(err, undo())))
	}
	op.Fault("image.quarantine", "commit", "after")
	return nil
}

// shelve moves the layer's files, if there are any, into quarantine with a note.
// undo puts them back. On an error they are where they were. orphans are layers
// without a record that it may stand below. mu is held.
func (s *Service) shelve(rec store.Layer, orphans []store.Layer, reason string) (undo func() error, err error) {
	if err := os.MkdirAll(s.quarantineDir(), 0o711); err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp(s.quarantineDir(), digest.Digest(rec.ChainID).Encoded()+"-")
	if err != nil {
		return nil, err
	}
	from, to := s.layerDir(rec.ChainID), filepath.Join(dir, "x")
	note, err := json.Marshal(quarantineNote{Layer: rec, Reason: reason, Users: s.usersOf(rec.ChainID, orphans)})
	if err == nil {
		err = os.WriteFile(filepath.Join(dir, fileNote), note, 0o600)
	}
	if err == nil {
		err = os.Rename(from, to)
	}
	if errors.Is(err, os.ErrNotExist) { // there is nothing left of it
		return func() error { return nil }, os.RemoveAll(dir)
	}
	if err != nil {
		return nil, errors.Join(err, os.RemoveAll(dir))
	}
	return func() error { return errors.Join(os.Rename(to, from), os.RemoveAll(dir)) }, nil
}

// usersOf lists the containers whose root file system or volumes have the layer.
// orphans are layers without a record, for the way down to it. mu is held.
func (s *Service) usersOf(chain string, orphans []store.Layer) []string {
	parent := parents(append(s.db.Layers(), orphans...))
	var users []string
	for id, chains := range s.held.mounts {
		if slices.Contains(chains, chain) {
			users = append(users, id)
		}
	}
	for _, c := range s.db.Containers() {
		if !slices.Contains(users, c.ID) && !s.held.gone[c.ID] && uses(c, chain, parent) {
			users = append(users, c.ID)
		}
	}
	slices.Sort(users)
	return users
}

// uses reports whether the container was made with the layer. Pure.
func uses(c store.Container, chain string, parent map[string]string) bool {
	for _, use := range append([]store.ImageUse{c.Facts.Image}, c.Facts.Volumes...) {
		for l := use.TopLayer; l != ""; l = parent[l] {
			if l == chain {
				return true
			}
		}
	}
	return false
}

func parents(layers []store.Layer) map[string]string {
	out := map[string]string{}
	for _, l := range layers {
		out[l.ChainID] = l.Parent
	}
	return out
}

// quarantined lists what lies in quarantine, by directory. What has no note has an
// empty one: a crash came before its files. Where one cannot be read the layer's own
// record serves, and its users are not known.
func (s *Service) quarantined() (map[string]quarantineNote, error) {
	entries, err := os.ReadDir(s.quarantineDir())
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("list quarantine: %w", err)
	}
	out := map[string]quarantineNote{}
	for _, e := range entries {
		var note quarantineNote
		raw, err := os.ReadFile(filepath.Join(s.quarantineDir(), e.Name(), fileNote))
		if err == nil {
			err = json.Unmarshal(raw, &note)
		}
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			name, _, _ := strings.Cut(e.Name(), "-")
			own, _ := readRecord(filepath.Join(s.quarantineDir(), e.Name(), "x"))
			note = quarantineNote{Layer: own.Layer, unread: true}
			note.Layer.ChainID = chainOf(name)
		}
		out[filepath.Join(s.quarantineDir(), e.Name())] = note
	}
	return out, nil
}

// free reports whether no user of the note is left: a container, also one that has
// no record yet, or a mount on the node. Pure.
func (n quarantineNote) free(containers []store.Container, h held) bool {
	for _, c := range containers {
		if !h.gone[c.ID] && slices.Contains(n.Users, c.ID) {
			return false
		}
	}
	return !slices.ContainsFunc(n.Users, func(id string) bool { _, mounted := h.mounts[id]; return mounted })
}

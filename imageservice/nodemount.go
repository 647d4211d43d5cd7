package imageservice

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"github.com/containerd/errdefs"

	"github.com/berth-dev/berth/imageservice/snapshot"
	"github.com/berth-dev/berth/store"
)

// nodeMount is an image mounted on the node for its operator.
type nodeMount struct {
	Target string
	Image  string   // ID
	Layers []string // chain IDs, which stay while it is mounted
}

// fileMounts lists the nodeMounts in the state directory.
const fileMounts = "image-mounts.json"

func mountKey(target string) string { return "node " + target }

// MountAt shows an image's files read-only in the directory target. Its layers
// stay until UnmountAt, through restarts of the daemon too.
func (s *Service) MountAt(ctx context.Context, image, target string) error {
	if st, err := os.Stat(target); err != nil || !st.IsDir() || !filepath.IsAbs(target) {
		return fmt.Errorf("mount image %q: target %q is not the absolute path of a directory: %w", image, target, errdefs.ErrInvalidArgument)
	}
	target = filepath.Clean(target)
	if snapshot.Mounted(target) {
		return fmt.Errorf("mount image %q: something is mounted at %s: %w", image, target, errdefs.ErrAlreadyExists)
	}
	img, err := s.find(image, "")
	if err != nil {
		return fmt.Errorf("mount image: %w", err)
	}
	if err := s.changeMounts(func(list []nodeMount) []nodeMount {
		return append(list, nodeMount{Target: target, Image: img.ID, Layers: img.Layers})
	}); err != nil {
		return fmt.Errorf("mount image %s: %w", img.ID, err)
	}
	if err := s.show(ctx, mountKey(target), img, target, store.RootView{}); err != nil {
		return errors.Join(err, s.forgetMount(target))
	}
	return nil
}

// UnmountAt takes the mount at target away, if it is one of MountAt. NotFound
// when it is none.
func (s *Service) UnmountAt(ctx context.Context, target string) error {
	target = filepath.Clean(target)
	list, err := s.nodeMounts()
	if err != nil {
		return fmt.Errorf("unmount image: %w", err)
	}
	if !slices.ContainsFunc(list, func(m nodeMount) bool { return m.Target == target }) {
		return fmt.Errorf("unmount image: none is mounted at %s: %w", target, errdefs.ErrNotFound)
	}
	if err := s.upper.Unmount(target); err != nil {
		return fmt.Errorf("unmount image: %w", err)
	}
	if err := s.forgetMount(target); err != nil {
		return fmt.Errorf("unmount image at %s: %w", target, err)
	}
	return s.collect(context.WithoutCancel(ctx), false)
}

func (s *Service) forgetMount(target string) error {
	s.mu.Lock()
	delete(s.held.mounts, mountKey(target))
	s.mu.Unlock()
	return s.changeMounts(func(list []nodeMount) []nodeMount {
		return slices.DeleteFunc(list, func(m nodeMount) bool { return m.Target == target })
	})
}

func (s *Service) nodeMounts() ([]nodeMount, error) {
	raw, err := os.ReadFile(filepath.Join(s.cfg.StateDir, fileMounts))
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	var list []nodeMount
	if err == nil {
		err = json.Unmarshal(raw, &list)
	}
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", fileMounts, err)
	}
	return list, nil
}

// changeMounts writes the list anew. It is not synced: mounts do not outlive the boot.
func (s *Service) changeMounts(change func([]nodeMount) []nodeMount) error {
	s.commitMu.Lock()
	defer s.commitMu.Unlock()
	list, err := s.nodeMounts()
	if err != nil {
		return err
	}
	raw, err := json.Marshal(change(list))
	if err != nil {
		return err
	}
	path := filepath.Join(s.cfg.StateDir, fileMounts)
	if err := os.WriteFile(path+".tmp", raw, 0o600); err != nil {
		return diskError(err)
	}
	return os.Rename(path+".tmp", path)
}

// recoverMounts holds the layers of what is still mounted.
func (s *Service) recoverMounts() error {
	list, err := s.nodeMounts()
	if err != nil {
		return errors.Join(err, os.Remove(filepath.Join(s.cfg.StateDir, fileMounts)))
	}
	var gone []string
	s.mu.Lock()
	for _, m := range list {
		if snapshot.Mounted(m.Target) {
			s.held.mounts[mountKey(m.Target)] = m.Layers
		} else {
			gone = append(gone, m.Target)
		}
	}
	s.mu.Unlock()
	if len(gone) == 0 {
		return nil
	}
	return s.changeMounts(func(list []nodeMount) []nodeMount {
		return slices.DeleteFunc(list, func(m nodeMount) bool { return slices.Contains(gone, m.Target) })
	})
}

// Description is what is known of an image.
type Description struct {
	Image      store.Image
	Pinned     bool
	Layers     []store.Layer  // bottom first; a missing one has its chain ID alone
	Shared     map[string]int // chain ID -> images that have it
	Containers []string       // made from it, or mounting it
	Mounts     []string       // of MountAt
}

// Describe tells of the images named, or of all.
func (s *Service) Describe(names []string) ([]Description, error) {
	images := s.db.Images()
	shared := map[string]int{}
	for _, img := range images {
		for _, l := range img.Layers {
			shared[l]++
		}
	}
	if len(names) > 0 {
		images = nil
		for _, n := range names {
			img, err := s.find(n, "")
			if err != nil {
				return nil, fmt.Errorf("describe image: %w", err)
			}
			images = append(images, img)
		}
	}
	mounts, err := s.nodeMounts()
	if err != nil {
		return nil, fmt.Errorf("describe images: %w", err)
	}
	var out []Description
	for _, img := range images {
		img.RepoTags, img.RepoDigests = img.Names()
		d := Description{Image: img, Pinned: s.isPinned(img), Shared: shared}
		for _, chain := range img.Layers {
			l, err := s.db.Layer(chain)
			if err != nil {
				l = store.Layer{ChainID: chain}
			}
			d.Layers = append(d.Layers, l)
		}
		for _, c := range s.db.Containers() {
			if slices.ContainsFunc(append([]store.ImageUse{c.Facts.Image}, c.Facts.Volumes...), func(u store.ImageUse) bool { return u.ID == img.ID }) {
				d.Containers = append(d.Containers, c.ID)
			}
		}
		for _, m := range mounts {
			if m.Image == img.ID {
				d.Mounts = append(d.Mounts, m.Target)
			}
		}
		out = append(out, d)
	}
	return out, nil
}

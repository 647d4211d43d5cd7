package imageservice

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"

	"github.com/containerd/errdefs"

	"github.com/berth-dev/berth/imageservice/layer"
	"github.com/berth-dev/berth/imageservice/snapshot"
	"github.com/berth-dev/berth/store"
)

// Mount makes the writable layer of container id if missing and mounts its
// root file system at target, which exists. From here until Remove the
// image's layers stay, whatever happens to the image. FailedPrecondition when
// a layer is not here any more, or cannot be shown with other owners. Idempotent.
func (s *Service) Mount(ctx context.Context, id string, img store.Image, target string, view store.RootView) error {
	stack, err := s.rootStack(ctx, id, img, view)
	if err != nil {
		return fmt.Errorf("mount root file system of %s: %w", id, err)
	}
	return s.upper.Mount(id, stack, target)
}

// Fill makes the writable layer of container id, which Mount has not shown yet,
// and puts into it what another container of the image has written: a tar in the
// form of an image's layer. It is as hostile as one. On an error Remove clears
// away what is there.
func (s *Service) Fill(ctx context.Context, id string, img store.Image, files io.Reader) error {
	stack, err := s.rootStack(ctx, id, img, store.RootView{})
	if err == nil {
		err = s.upper.Make(id, stack)
	}
	if err == nil {
		_, err = layer.Unpack(ctx, files, layer.Options{Dir: s.upper.Upper(id), Limits: s.cfg.Limits,
			Below: func(context.Context) (*layer.View, error) { return layer.OpenView(stack.Lower) }})
	}
	if err != nil {
		return fmt.Errorf("fill writable layer of %s: %w", id, err)
	}
	return nil
}

// Unpack puts the files of a tar, which may be hostile, into a directory that is
// empty and whose files nobody else uses yet.
func (s *Service) Unpack(ctx context.Context, dir string, files io.Reader) error {
	if _, err := layer.Unpack(ctx, files, layer.Options{Dir: dir, Limits: s.cfg.Limits}); err != nil {
		return fmt.Errorf("unpack to %s: %w", dir, err)
	}
	return nil
}

// rootStack holds the image's layers for the container and names them.
func (s *Service) rootStack(ctx context.Context, id string, img store.Image, view store.RootView) (snapshot.Stack, error) {
	stack := s.stack(img, view)
	if err := errors.Join(s.permitted(img), s.trust(ctx, img.Layers), s.hold(id, img)); err != nil {
		return stack, err
	}
	// Overlayfs takes the attributes of "/" from the writable layer: give it
	// those of the topmost layer that has an opinion.
	for i := len(img.Layers) - 1; i >= 0; i-- {
		own, err := s.ownRoot(img.Layers[i])
		if err != nil {
			return stack, err
		}
		if own {
			stack.Root = filepath.Join(s.layerDir(img.Layers[i]), "fs")
			break
		}
	}
	if len(stack.Lower) == 0 {
		stack.Lower = []string{stack.Root}
	}
	return stack, nil
}

// stack names the image's layers.
func (s *Service) stack(img store.Image, view store.RootView) snapshot.Stack {
	stack := snapshot.Stack{UserNS: view.UserNS, Label: view.Label, Tree: s.cfg.StateDir, Root: filepath.Join(s.cfg.StateDir, "layers", "empty")}
	for i := len(img.Layers) - 1; i >= 0; i-- {
		stack.Lower = append(stack.Lower, filepath.Join(s.layerDir(img.Layers[i]), "fs"))
	}
	return stack
}

// Lend mounts the files of an image or artifact read-only at target, which
// exists, for container id: the layers stay until Remove. Unmount takes the
// mount away. Idempotent.
func (s *Service) Lend(ctx context.Context, id string, img store.Image, target string, view store.RootView) error {
	if err := s.permitted(img); err != nil {
		return fmt.Errorf("mount image for %s: %w", id, err)
	}
	return s.show(ctx, id, img, target, view)
}

// show is Lend for whoever may see any image: the node's operator.
func (s *Service) show(ctx context.Context, id string, img store.Image, target string, view store.RootView) error {
	if len(img.Layers) == 0 {
		return fmt.Errorf("mount image %s: it has no files: %w", img.ID, errdefs.ErrInvalidArgument)
	}
	if err := errors.Join(s.trust(ctx, img.Layers), s.hold(id, img)); err != nil {
		return fmt.Errorf("mount image %s: %w", img.ID, err)
	}
	stack := s.stack(img, view)
	stack.Lower = append(stack.Lower, stack.Root) // overlayfs wants two
	return s.upper.MountReadOnly(stack, target)
}

// CanIDMap reports why images cannot be shown in the user namespace pinned at
// userns, nil when they can: it depends on kernel and file system.
func (s *Service) CanIDMap(userns string) error { return snapshot.CanIDMap(s.cfg.StateDir, userns) }

// hold protects the image's layers for the container.
func (s *Service) hold(id string, img store.Image) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, l := range img.Layers {
		if _, err := s.db.Layer(l); err != nil {
			return fmt.Errorf("image %s lacks layer %s; pull it again: %w", img.ID, l, errdefs.ErrFailedPrecondition)
		}
	}
	s.held.mounts[id] = append(slices.Clone(s.held.mounts[id]), img.Layers...)
	delete(s.held.gone, id)
	return nil
}

// ownRoot reports whether the layer's tar had an entry for "/".
func (s *Service) ownRoot(chain string) (bool, error) {
	file, err := readRecord(s.layerDir(chain))
	if err != nil {
		return false, fmt.Errorf("read record of layer %s: %w: %w", chain, err, errdefs.ErrDataLoss)
	}
	return file.OwnRoot, nil
}

// Unmount takes the container's root file system away from target. Idempotent.
func (s *Service) Unmount(_ context.Context, _ string, target string) error {
	return s.upper.Unmount(target)
}

// Remove deletes the container's writable layer, and layers of removed images
// that only it had kept. Idempotent.
func (s *Service) Remove(ctx context.Context, id string) error {
	if err := s.upper.Remove(id); err != nil {
		return err
	}
	s.mu.Lock()
	delete(s.held.mounts, id)
	for gone := range s.held.gone {
		if _, err := s.db.Container(gone); err != nil {
			delete(s.held.gone, gone) // its record went, too
		}
	}
	s.held.gone[id] = true
	waiting := len(s.held.condemned) > 0
	s.mu.Unlock()
	if lost, err := os.ReadDir(s.quarantineDir()); err == nil && len(lost) > 0 {
		waiting = true // this may have been the last user of a damaged layer
	}
	if !waiting {
		return nil
	}
	if err := s.collect(context.WithoutCancel(ctx), false); err != nil {
		s.cfg.Logger.Warn("layers of removed images were not all deleted", "error", err)
	}
	return nil
}

// WritableUsage returns the bytes and inodes container id has written.
func (s *Service) WritableUsage(ctx context.Context, id string) (bytes, inodes uint64, err error) {
	return s.upper.UsageOf(ctx, id)
}

// WritableLayer returns the directory that container id writes to, and those of
// the layers under it from topLayer on, top first.
func (s *Service) WritableLayer(id, topLayer string) (upper string, lower []string, err error) {
	for at := topLayer; at != ""; {
		l, err := s.db.Layer(at)
		if err != nil {
			return "", nil, fmt.Errorf("layers of container %s: layer %s: %w", id, at, err)
		}
		lower = append(lower, filepath.Join(s.layerDir(at), "fs"))
		at = l.Parent
	}
	return s.upper.Upper(id), lower, nil
}

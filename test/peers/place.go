package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// place is where a measured runtime has its files, as on a node: run is a tmpfs,
// and disk an ext4 with a journal. The machine's own disk may be of a kind that no
// node has: ext4 without a journal looks for a long time for an inode after many
// files were deleted.
type place struct{ dir, run, disk string }

// diskBytes is the size of the disk; its file is sparse.
const diskBytes = 16 << 30

// newPlace must come before the mount namespace that is to see it.
func newPlace(ctx context.Context) (p *place, err error) {
	dir, err := os.MkdirTemp("", "bench-") // Unix socket paths are short
	if err != nil {
		return nil, err
	}
	p = &place{dir: dir, run: filepath.Join(dir, "run"), disk: filepath.Join(dir, "disk")}
	defer func() {
		if err != nil {
			err = errors.Join(err, p.close())
		}
	}()
	image := filepath.Join(dir, "disk.img")
	if err := errors.Join(os.Chmod(dir, 0o711), os.Mkdir(p.run, 0o711), os.Mkdir(p.disk, 0o711), os.WriteFile(image, nil, 0o600), os.Truncate(image, diskBytes)); err != nil {
		return nil, err
	}
	if err := unix.Mount("tmpfs", p.run, "tmpfs", 0, "mode=0711"); err != nil {
		return nil, fmt.Errorf("mount %s: %w", p.run, err)
	}
	for _, args := range [][]string{{"mkfs.ext4", "-q", "-F", image}, {"mount", "-o", "loop", image, p.disk}} {
		if out, err := exec.CommandContext(ctx, args[0], args[1:]...).CombinedOutput(); err != nil {
			return nil, fmt.Errorf("%v: %w: %s", args, err, out)
		}
	}
	return p, os.Chmod(p.disk, 0o711)
}

func (p *place) close() (err error) {
	for _, dir := range []string{p.run, p.disk} {
		if uerr := unix.Unmount(dir, 0); uerr != nil && !errors.Is(uerr, unix.EINVAL) {
			err = errors.Join(err, fmt.Errorf("unmount %s: %w", dir, uerr))
		}
	}
	if err != nil {
		return err // what is mounted must not be emptied
	}
	return os.RemoveAll(p.dir)
}

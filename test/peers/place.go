package peers

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// Place is where a measured runtime has its files, as on a node: Run is a tmpfs,
// and Disk an ext4 with a journal. The machine's own disk may be of a kind that no
// node has: ext4 without a journal looks for a long time for an inode after many
// files were deleted.
type Place struct{ dir, Run, Disk string }

// diskBytes is the size of the disk; its file is sparse.
const diskBytes = 16 << 30

// NewPlace makes one in a new directory below dir, by default that of temporary files. It
// must come before the mount namespace that is to see it.
func NewPlace(ctx context.Context, dir string) (p *Place, err error) {
	dir, err = os.MkdirTemp(dir, "bench-") // Unix socket paths are short
	if err != nil {
		return nil, err
	}
	p = &Place{dir: dir, Run: filepath.Join(dir, "run"), Disk: filepath.Join(dir, "disk")}
	defer func() {
		if err != nil {
			err = errors.Join(err, p.Close())
		}
	}()
	image := filepath.Join(dir, "disk.img")
	if err := errors.Join(os.Chmod(dir, 0o711), os.Mkdir(p.Run, 0o711), os.Mkdir(p.Disk, 0o711), os.WriteFile(image, nil, 0o600), os.Truncate(image, diskBytes)); err != nil {
		return nil, err
	}
	if err := unix.Mount("tmpfs", p.Run, "tmpfs", 0, "mode=0711"); err != nil {
		return nil, fmt.Errorf("mount %s: %w", p.Run, err)
	}
	for _, args := range [][]string{{"mkfs.ext4", "-q", "-F", image}, {"mount", "-o", "loop", image, p.Disk}} {
		if out, err := exec.CommandContext(ctx, args[0], args[1:]...).CombinedOutput(); err != nil {
			return nil, fmt.Errorf("%v: %w: %s", args, err, out)
		}
	}
	return p, os.Chmod(p.Disk, 0o711)
}

// Close unmounts and removes everything.
func (p *Place) Close() (err error) {
	for _, dir := range []string{p.Run, p.Disk} {
		if uerr := unix.Unmount(dir, 0); uerr != nil && !errors.Is(uerr, unix.EINVAL) {
			err = errors.Join(err, fmt.Errorf("unmount %s: %w", dir, uerr))
		}
	}
	if err != nil {
		return err // what is mounted must not be emptied
	}
	return os.RemoveAll(p.dir)
}

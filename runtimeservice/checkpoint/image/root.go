package image

import (
	"errors"
	"fmt"
	"os"
	"path"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// CheckRoot reports links in the container's root file system, which is at dir and
// complete, on the way to where CRIU mounts, makes and opens something. It goes
// there with the node's files in reach. Call it after Check.
func CheckRoot(img *Image, dir string) error {
	root, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return &os.PathError{Op: "open", Path: dir, Err: err}
	}
	defer unix.Close(root)
	c := &check{img: img, points: map[string]*Mount{}}
	var paths []string
	for _, mounts := range img.Mounts {
		for i := range mounts {
			c.points[mounts[i].Point] = &mounts[i]
			if mounts[i].Point != "/" {
				paths = append(paths, mounts[i].Point)
			}
		}
	}
	for _, f := range img.Files {
		if f.Path != "" && f.Path[0] == 0 { // no path, but an abstract name
			continue
		}
		for _, p := range append([]string{f.Path, f.Dir}, f.Watched...) {
			if p != "" {
				paths = append(paths, p)
			}
		}
	}
	for _, p := range paths {
		if p = path.Clean("/" + p); p == "/" {
			continue
		}
		// What is in another mount is looked for up to there.
		for in := c.above(path.Dir(p)); in != nil && in.Point != "/"; in = c.above(path.Dir(p)) {
			p = in.Point
		}
		if err := noLink(root, p); err != nil {
			return fmt.Errorf("the checkpoint is not restored: %w: %w", err, errdefs.ErrFailedPrecondition)
		}
	}
	return nil
}

func noLink(root int, p string) error {
	fd, err := unix.Openat2(root, p, &unix.OpenHow{Flags: unix.O_PATH | unix.O_CLOEXEC, Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_SYMLINKS})
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("%s in the root file system: %w", p, err)
	}
	return unix.Close(fd)
}

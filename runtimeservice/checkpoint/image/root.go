package image

import (
	"errors"
	"fmt"
	"os"
	"path"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
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

// Resolve returns a specification with the destinations of mounts as CRIU sees
// them: without the links that are on the way in the root file system, which is at
// dir. Services' tokens are in /var/run, which is a link in most images.
func Resolve(spec *specs.Spec, dir string) (*specs.Spec, error) {
	root, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: dir, Err: err}
	}
	defer unix.Close(root)
	out := *spec
	out.Mounts = slices.Clone(spec.Mounts)
	at := map[string]string{} // resolved, by destination
	for i := range out.Mounts {
		p := path.Clean("/" + out.Mounts[i].Destination)
		resolved, err := resolve(root, p, at)
		if err != nil {
			return nil, fmt.Errorf("mount at %s: %w", p, err)
		}
		at[p], out.Mounts[i].Destination = resolved, resolved
	}
	return &out, nil
}

// resolve follows links up to what is not there. What is in a mount before it is
// taken as it is.
func resolve(root int, p string, at map[string]string) (string, error) {
	for dir := p; dir != "/"; dir = path.Dir(dir) {
		if to, ok := at[dir]; ok {
			return path.Join(to, p[len(dir):]), nil
		}
	}
	for dir := p; dir != "/"; dir = path.Dir(dir) {
		to, err := linked(root, dir)
		if err == nil {
			return path.Join(to, p[len(dir):]), nil
		}
		if !errors.Is(err, unix.ENOENT) {
			return "", err
		}
	}
	return p, nil
}

// linked returns where a path in the root leads.
func linked(root int, p string) (string, error) {
	fd, err := unix.Openat2(root, p, &unix.OpenHow{Flags: unix.O_PATH | unix.O_CLOEXEC, Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS})
	if err != nil {
		return "", err
	}
	defer unix.Close(fd)
	base, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", root))
	if err != nil {
		return "", err
	}
	got, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", fd))
	if err != nil {
		return "", err
	}
	if got != base && !strings.HasPrefix(got, base+"/") {
		return "", fmt.Errorf("%s leads to %s", p, got)
	}
	return path.Join("/", strings.TrimPrefix(got, base)), nil
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

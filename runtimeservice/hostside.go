package runtimeservice

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	crierrors "k8s.io/cri-api/pkg/errors"

	"github.com/berth-dev/berth/sandbox/spec"
)

// readInRoot reads the file at path, as a process whose root is root would see
// it: no symlink and no .. leads out, and nothing but a regular file of at most
// limit bytes is read. A missing file is nil without an error.
func readInRoot(root, path string, limit int64) ([]byte, error) {
	dir, err := unix.Open(root, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open root %s: %w", root, err)
	}
	defer unix.Close(dir)
	how := unix.OpenHow{
		// Without O_NONBLOCK a fifo put there by the image would block the open.
		Flags:   unix.O_RDONLY | unix.O_CLOEXEC | unix.O_NONBLOCK | unix.O_NOCTTY,
		Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS,
	}
	var fd int
	for {
		if fd, err = unix.Openat2(dir, path, &how); !errors.Is(err, unix.EINTR) && !errors.Is(err, unix.EAGAIN) {
			break
		}
	}
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("open /%s in the root file system: %w", path, err)
	}
	f := os.NewFile(uintptr(fd), path)
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("stat /%s in the root file system: %w", path, err)
	}
	if !st.Mode().IsRegular() {
		return nil, fmt.Errorf("/%s in the root file system is not a regular file: %w", path, errdefs.ErrInvalidArgument)
	}
	b, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err != nil {
		return nil, fmt.Errorf("read /%s in the root file system: %w", path, err)
	}
	if int64(len(b)) > limit {
		return nil, fmt.Errorf("/%s in the root file system is larger than %d bytes: %w", path, limit, errdefs.ErrInvalidArgument)
	}
	if b == nil {
		b = []byte{}
	}
	return b, nil
}

// hostMounts looks at the host side of a container's mounts. volume returns
// where the image of the n-th image mount is mounted.
func hostMounts(mounts []*runtimeapi.Mount, volume func(n int) string) ([]spec.Mount, error) {
	var table []mountPoint
	volumes := 0
	out := make([]spec.Mount, 0, len(mounts))
	for i, m := range mounts {
		if m.GetImage() != nil {
			src, err := inVolume(volume(volumes), m.GetImageSubPath())
			if err != nil {
				return nil, fmt.Errorf("%w: mounts[%d] (%s): %w", crierrors.ErrImageVolumeMountFailed, i, m.GetContainerPath(), err)
			}
			volumes++
			out = append(out, spec.Mount{CRI: m, Source: src})
			continue
		}
		if !filepath.IsAbs(m.GetHostPath()) {
			return nil, fmt.Errorf("mounts[%d] (%s): host_path %q is not absolute: %w", i, m.GetContainerPath(), m.GetHostPath(), errdefs.ErrInvalidArgument)
		}
		src, err := filepath.EvalSymlinks(m.GetHostPath())
		if errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("mounts[%d] (%s): host_path %s does not exist on the node; the CRI has it made by the client: %w",
				i, m.GetContainerPath(), m.GetHostPath(), errdefs.ErrFailedPrecondition)
		}
		if err != nil {
			return nil, fmt.Errorf("mounts[%d] (%s): resolve host_path: %w", i, m.GetContainerPath(), err)
		}
		st, err := os.Stat(src)
		if err != nil {
			return nil, fmt.Errorf("mounts[%d] (%s): look at host_path: %w", i, m.GetContainerPath(), err)
		}
		hm := spec.Mount{CRI: m, Source: src, IsDir: st.IsDir()}
		if m.GetPropagation() != runtimeapi.MountPropagation_PROPAGATION_PRIVATE {
			if table == nil {
				if table, err = readMounts(); err != nil {
					return nil, err
				}
			}
			hm.SourcePropagation = propagationOf(table, src)
		}
		out = append(out, hm)
	}
	return out, nil
}

// inVolume returns the path of sub in the image mounted at root, without
// symlinks: they are followed inside the image alone.
func inVolume(root, sub string) (string, error) {
	if sub == "" {
		return root, nil
	}
	if !filepath.IsLocal(sub) {
		return "", fmt.Errorf("image_sub_path %q is absolute or climbs out with ..: %w", sub, errdefs.ErrInvalidArgument)
	}
	dir, err := unix.Open(root, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return "", fmt.Errorf("open image volume: %w", err)
	}
	defer unix.Close(dir)
	how := unix.OpenHow{Flags: unix.O_PATH | unix.O_CLOEXEC, Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS}
	var fd int
	for {
		if fd, err = unix.Openat2(dir, sub, &how); !errors.Is(err, unix.EINTR) && !errors.Is(err, unix.EAGAIN) {
			break
		}
	}
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) {
		return "", fmt.Errorf("image_sub_path %q is not in the image: %w", sub, errdefs.ErrNotFound)
	}
	if err != nil {
		return "", fmt.Errorf("open image_sub_path %q: %w", sub, err)
	}
	defer unix.Close(fd)
	return os.Readlink("/proc/self/fd/" + strconv.Itoa(fd))
}

// checkIDMaps tries the idmapped mounts that a container in the pod's user
// namespace asks for: the OCI runtime would fail with a bare "invalid argument".
func checkIDMaps(mounts []spec.Mount, userns string) error {
	for _, m := range mounts {
		if len(m.CRI.GetUidMappings()) == 0 || userns == "" || m.CRI.GetImage() != nil {
			continue
		}
		if err := tryIDMap(m.Source, userns); err != nil {
			return fmt.Errorf("mount %s uidMappings: the file system of %s makes no idmapped mounts: %w: %w",
				m.CRI.GetContainerPath(), m.Source, errdefs.ErrFailedPrecondition, err)
		}
	}
	return nil
}

func tryIDMap(path, userns string) error {
	ns, err := unix.Open(userns, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open user namespace: %w", err)
	}
	defer unix.Close(ns)
	tree, err := unix.OpenTree(unix.AT_FDCWD, path, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return fmt.Errorf("clone mount: %w", err)
	}
	defer unix.Close(tree)
	return unix.MountSetattr(tree, "", unix.AT_EMPTY_PATH, &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_IDMAP, Userns_fd: uint64(ns)})
}

// mountPoint is one line of mountinfo.
type mountPoint struct {
	path        string
	propagation string // "shared", "slave" or "private"
}

func readMounts() ([]mountPoint, error) {
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, fmt.Errorf("read mounts: %w", err)
	}
	return parseMounts(b), nil
}

// parseMounts reads the text of /proc/PID/mountinfo (see proc(5)). Lines that
// make no sense are left out. Pure.
func parseMounts(text []byte) []mountPoint {
	out := []mountPoint{}
	for line := range bytes.Lines(text) {
		f := strings.Fields(string(line))
		if len(f) < 7 {
			continue
		}
		p := mountPoint{path: unescapeMount(f[4]), propagation: "private"}
		for _, tag := range f[6:] {
			if tag == "-" {
				break
			}
			if strings.HasPrefix(tag, "shared:") {
				p.propagation = "shared"
				break
			}
			if strings.HasPrefix(tag, "master:") {
				p.propagation = "slave"
			}
		}
		out = append(out, p)
	}
	return out
}

// unescapeMount undoes the kernel's \ooo for blanks and backslashes.
func unescapeMount(s string) string {
	if !strings.Contains(s, `\`) {
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+3 < len(s) {
			if n, err := strconv.ParseUint(s[i+1:i+4], 8, 8); err == nil {
				b.WriteByte(byte(n))
				i += 3
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

// propagationOf returns the propagation of the mount that path lies on: the
// deepest mount point above it, the latest of several at one place.
func propagationOf(table []mountPoint, path string) string {
	best, out := -1, "private"
	for _, m := range table {
		if !within(path, m.path) || len(m.path) < best {
			continue
		}
		best, out = len(m.path), m.propagation
	}
	return out
}

func within(path, dir string) bool {
	return dir == "/" || path == dir || strings.HasPrefix(path, dir+"/")
}

// isMountPoint reports whether something is mounted at path.
func isMountPoint(path string) (bool, error) {
	table, err := readMounts()
	if err != nil {
		return false, err
	}
	real, err := filepath.EvalSymlinks(path)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("resolve %s: %w", path, err)
	}
	for _, m := range table {
		if m.path == real {
			return true, nil
		}
	}
	return false, nil
}

// mountedBelow reports whether something is mounted at path or below it.
func mountedBelow(path string) (bool, error) {
	table, err := readMounts()
	if err != nil {
		return false, err
	}
	real, err := filepath.EvalSymlinks(path)
	if err != nil {
		return false, fmt.Errorf("resolve %s: %w", path, err)
	}
	return slices.ContainsFunc(table, func(m mountPoint) bool { return within(m.path, real) }), nil
}

// hostDevices finds the nodes behind a container's devices. A directory stands
// for all devices in it.
func hostDevices(devices []*runtimeapi.Device) ([]spec.HostDevice, error) {
	var out []spec.HostDevice
	for i, d := range devices {
		path, err := filepath.EvalSymlinks(d.GetHostPath())
		if errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("devices[%d]: host_path %q does not exist on the node: %w", i, d.GetHostPath(), errdefs.ErrFailedPrecondition)
		}
		if err != nil {
			return nil, fmt.Errorf("devices[%d]: resolve host_path: %w", i, err)
		}
		perms := d.GetPermissions()
		if perms == "" {
			perms = "rwm"
		}
		if dev, ok := deviceAt(path); ok {
			dev.ContainerPath, dev.Permissions = d.GetContainerPath(), perms
			out = append(out, dev)
			continue
		}
		found, err := allDevices(path)
		if err != nil {
			return nil, fmt.Errorf("devices[%d]: %w", i, err)
		}
		if len(found) == 0 {
			return nil, fmt.Errorf("devices[%d]: host_path %s is neither a device nor a directory with devices: %w", i, d.GetHostPath(), errdefs.ErrInvalidArgument)
		}
		for _, dev := range found {
			dev.ContainerPath = filepath.Join(d.GetContainerPath(), strings.TrimPrefix(dev.HostPath, path))
			dev.Permissions = perms
			out = append(out, dev)
		}
	}
	return out, nil
}

// deviceAt returns the device node at path, if it is one.
func deviceAt(path string) (spec.HostDevice, bool) {
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		return spec.HostDevice{}, false
	}
	d := spec.HostDevice{
		HostPath: path, ContainerPath: path, Permissions: "rwm",
		Major: int64(unix.Major(uint64(st.Rdev))), Minor: int64(unix.Minor(uint64(st.Rdev))),
		Mode: st.Mode & 0o7777, UID: st.Uid, GID: st.Gid,
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFCHR:
		d.Type = "c"
	case unix.S_IFBLK:
		d.Type = "b"
	default:
		return d, false
	}
	return d, true
}

// allDevices returns the device nodes below dir. File systems of their own
// below /dev and the node's console are left out: a container has its own.
func allDevices(dir string) ([]spec.HostDevice, error) {
	var out []spec.HostDevice
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			// Nodes come and go while we walk; one that went is no failure.
			if errors.Is(err, fs.ErrNotExist) && path != dir {
				return nil
			}
			return err
		}
		if e.IsDir() {
			switch path {
			case "/dev/pts", "/dev/shm", "/dev/fd", "/dev/mqueue", "/dev/.lxc", "/dev/.lxd-mounts", "/dev/.udev":
				return fs.SkipDir
			}
			return nil
		}
		if e.Type()&fs.ModeDevice == 0 || path == "/dev/console" {
			return nil
		}
		if d, ok := deviceAt(path); ok && (d.Major != 0 || d.Minor != 0) {
			out = append(out, d)
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("look for devices in %s: %w", dir, err)
	}
	return out, nil
}

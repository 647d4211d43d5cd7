// Package unixsock serves and dials unix sockets whose paths may be longer
// than the kernel's 107 bytes, and replaces stale ones safely.
package unixsock

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"

	"github.com/containerd/errdefs"
)

// DirMode is the mode of a socket directory that Listen has to make: others
// may pass through it, but not list it.
const DirMode = 0o711

// Listen serves path with the given permissions. A socket that somebody
// answers on is AlreadyExists; one that nobody answers on is replaced; any
// other file is FailedPrecondition. The socket is never visible with wider
// permissions than mode.
func Listen(path string, mode fs.FileMode) (net.Listener, error) {
	if err := os.MkdirAll(filepath.Dir(path), DirMode); err != nil {
		return nil, fmt.Errorf("make directory of socket: %w", err)
	}
	if err := checkFree(path); err != nil {
		return nil, err
	}
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return nil, fmt.Errorf("open directory of socket: %w", err)
	}
	// Bind under another name and rename: the rename replaces a stale socket
	// in one step, after the permissions are right.
	tmp := "." + filepath.Base(path) + "." + strconv.Itoa(os.Getpid())
	_ = os.Remove(through(dir, tmp))
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: through(dir, tmp), Net: "unix"})
	if err != nil {
		_ = dir.Close()
		return nil, fmt.Errorf("listen on %s: %w", path, err)
	}
	l.SetUnlinkOnClose(false)
	err = errors.Join(os.Chmod(through(dir, tmp), mode), os.Rename(through(dir, tmp), through(dir, filepath.Base(path))))
	var info fs.FileInfo
	if err == nil {
		info, err = os.Lstat(path)
	}
	if err != nil {
		_ = l.Close()
		_ = os.Remove(through(dir, tmp))
		_ = dir.Close()
		return nil, fmt.Errorf("publish socket %s: %w", path, err)
	}
	return &listener{UnixListener: l, path: path, info: info, dir: dir}, nil
}

// checkFree fails when path is anything but absent or a dead socket.
func checkFree(path string) error {
	info, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("look at socket: %w", err)
	}
	if info.Mode().Type() != fs.ModeSocket {
		return fmt.Errorf("listen on %s: it exists and is not a socket; remove it or choose another path: %w",
			path, errdefs.ErrFailedPrecondition)
	}
	c, err := Dial(context.Background(), path)
	if err == nil {
		_ = c.Close()
		return fmt.Errorf("listen on %s: another daemon serves this socket; stop it or choose another path: %w",
			path, errdefs.ErrAlreadyExists)
	}
	if errors.Is(err, syscall.ECONNREFUSED) || errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return fmt.Errorf("listen on %s: cannot tell whether it is in use: %w", path, err)
}

// Dial connects to the socket at path.
func Dial(ctx context.Context, path string) (net.Conn, error) {
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return nil, fmt.Errorf("open directory of socket: %w", err)
	}
	defer func() { _ = dir.Close() }()
	c, err := new(net.Dialer).DialContext(ctx, "unix", through(dir, filepath.Base(path)))
	if err != nil {
		return nil, fmt.Errorf("connect to %s: %w", path, err)
	}
	return c, nil
}

// Short returns a name for path that the kernel takes as a socket's, for
// libraries that listen by themselves. It is good in this process and as long
// as dir is open; dir is nil when path is short enough. The directory is made.
func Short(path string) (name string, dir *os.File, err error) {
	if len(path) < len(syscall.RawSockaddrUnix{}.Path) {
		return path, nil, nil
	}
	if err := os.MkdirAll(filepath.Dir(path), DirMode); err != nil {
		return "", nil, fmt.Errorf("make directory of socket: %w", err)
	}
	if dir, err = os.Open(filepath.Dir(path)); err != nil {
		return "", nil, fmt.Errorf("open directory of socket: %w", err)
	}
	return through(dir, filepath.Base(path)), dir, nil
}

// through names a file of an open directory in few bytes.
func through(dir *os.File, name string) string {
	return fmt.Sprintf("/proc/self/fd/%d/%s", dir.Fd(), name)
}

// listener removes its socket when it closes, unless the path has become
// somebody else's.
type listener struct {
	*net.UnixListener
	path string
	info fs.FileInfo
	dir  *os.File
	once sync.Once
}

// Close stops listening and removes the socket.
func (l *listener) Close() error {
	err := l.UnixListener.Close()
	l.once.Do(func() {
		if now, statErr := os.Lstat(l.path); statErr == nil && os.SameFile(now, l.info) {
			_ = os.Remove(l.path)
		}
		_ = l.dir.Close()
	})
	return err
}

// Addr returns the path that was asked for.
func (l *listener) Addr() net.Addr { return &net.UnixAddr{Name: l.path, Net: "unix"} }

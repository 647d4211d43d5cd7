package cni

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"

	"golang.org/x/sys/unix"
)

// watchMask is every event after which a directory may hold another
// configuration than before.
const watchMask = unix.IN_CREATE | unix.IN_DELETE | unix.IN_CLOSE_WRITE | unix.IN_MODIFY | unix.IN_ATTRIB |
	unix.IN_MOVED_FROM | unix.IN_MOVED_TO | unix.IN_DELETE_SELF | unix.IN_MOVE_SELF | unix.IN_ONLYDIR

// watcher tells that a directory may have changed: what is in it, or what its
// path leads to. It never says what changed, the reader looks for itself.
type watcher struct {
	f       *os.File // the inotify instance; reading waits for events
	mu      sync.Mutex
	watched map[int32]string // watch descriptor -> the only name that matters; "" for all
}

func newWatcher() (*watcher, error) {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("watch network configuration: %w", err)
	}
	return &watcher{f: os.NewFile(uintptr(fd), "inotify"), watched: map[int32]string{}}, nil
}

// Close ends a wait that is under way.
func (w *watcher) Close() error { return w.f.Close() }

// aim watches what path leads to now, and the places where it could be led
// elsewhere: where it is or would be made, and where a symbolic link ends.
func (w *watcher) aim(path string) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	stale := w.watched
	w.watched = map[int32]string{}
	var errs []error
	add := func(dir, name string) error {
		wd, err := w.add(dir)
		if err != nil {
			return err
		}
		delete(stale, wd)
		if old, twice := w.watched[wd]; twice && old != name {
			name = ""
		}
		w.watched[wd] = name
		return nil
	}
	// What was absent may have been made before the place above it was watched:
	// once nothing new is found, the next to be made is told.
	for known := -1; known != len(w.watched) && len(errs) == 0; {
		known = len(w.watched)
		for _, p := range hops(path, maxLinks) {
			errs = append(errs, walk(p, add)...)
		}
	}
	for wd := range stale {
		w.remove(wd)
	}
	return errors.Join(errs...)
}

// absent reports that there is no such directory yet.
func absent(err error) bool { return errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOTDIR) }

// walk adds the directory at path, and the lowest directory above it that exists.
func walk(path string, add func(dir, name string) error) (errs []error) {
	if err := add(path, ""); err != nil && !absent(err) {
		errs = append(errs, err)
	}
	for at := path; at != "/" && at != "."; at = filepath.Dir(at) {
		err := add(filepath.Dir(at), filepath.Base(at))
		if err == nil {
			break // everything above exists
		}
		if !absent(err) {
			return append(errs, err)
		}
	}
	return errs
}

// maxLinks is how many symbolic links that lead to nothing are followed, as the
// kernel does.
const maxLinks = 40

// hops are path, every symbolic link on the way it leads, and its end, also if
// nothing is there yet.
func hops(path string, links int) (out []string) {
	if dir := filepath.Dir(path); dir != path {
		out = hops(dir, links)
		end := len(out) - 1
		path, out = filepath.Join(out[end], filepath.Base(path)), out[:end]
	}
	to, err := os.Readlink(path)
	if err != nil || links == 0 {
		return append(out, path)
	}
	if !filepath.IsAbs(to) {
		to = filepath.Join(filepath.Dir(path), to)
	}
	return append(append(out, path), hops(to, links-1)...)
}

func (w *watcher) add(dir string) (wd int32, err error) {
	raw, err := w.f.SyscallConn()
	if err != nil {
		return 0, err
	}
	ctlErr := raw.Control(func(fd uintptr) {
		var n int
		n, err = unix.InotifyAddWatch(int(fd), dir, watchMask)
		wd = int32(n)
	})
	if err = errors.Join(ctlErr, err); err != nil {
		return 0, fmt.Errorf("watch %s: %w", dir, err)
	}
	return wd, nil
}

// remove forgets a watch; the kernel has done so itself when its directory is gone.
func (w *watcher) remove(wd int32) {
	if raw, err := w.f.SyscallConn(); err == nil {
		_ = raw.Control(func(fd uintptr) { _, _ = unix.InotifyRmWatch(int(fd), uint32(wd)) })
	}
}

// wait returns after an event that matters. An error means that the watcher is
// of no use any more.
func (w *watcher) wait() error {
	buf := make([]byte, 16<<10)
	for {
		n, err := w.f.Read(buf)
		if err != nil {
			return fmt.Errorf("watch network configuration: %w", err)
		}
		w.mu.Lock()
		matters := relevant(buf[:n], w.watched)
		w.mu.Unlock()
		if matters {
			return nil
		}
	}
}

// relevant reports whether one of the events in buf, as inotify(7) lays them
// out, is about a name that matters. Pure.
func relevant(buf []byte, watched map[int32]string) bool {
	const head = unix.SizeofInotifyEvent
	for len(buf) >= head {
		wd := int32(binary.NativeEndian.Uint32(buf))
		mask := binary.NativeEndian.Uint32(buf[4:])
		size := int(binary.NativeEndian.Uint32(buf[12:]))
		if size < 0 || size > len(buf)-head {
			return true // not what the manual says; better to look
		}
		name := string(bytes.TrimRight(buf[head:head+size], "\x00"))
		only, known := watched[wd]
		switch {
		case mask&unix.IN_Q_OVERFLOW != 0:
			return true
		case known && (only == "" || only == name || name == ""):
			return true
		}
		buf = buf[head+size:]
	}
	return false
}

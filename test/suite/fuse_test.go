package suite

import (
	"encoding/binary"
	"errors"
	"fmt"
	"testing"

	"golang.org/x/sys/unix"
)

// hangingFS is a FUSE file system that never tells whether a name exists: who
// asks sleeps in the kernel, and no signal ends that sleep.
type hangingFS struct {
	dir   string
	asked chan struct{} // receives once per look-up that hangs
	fd    int
}

// Kinds of FUSE requests, as in linux/fuse.h.
const (
	fuseLookup      = 1
	fuseForget      = 2
	fuseGetattr     = 3
	fuseStatfs      = 17
	fuseRelease     = 18
	fuseInit        = 26
	fuseOpendir     = 27
	fuseReleasedir  = 29
	fuseInterrupt   = 36
	fuseDestroy     = 38
	fuseBatchForget = 42
)

// hang mounts one. It skips the test where FUSE is not to be had.
func hang(t *testing.T) *hangingFS {
	t.Helper()
	fd, err := unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Skipf("needs FUSE: %v", err)
	}
	h := &hangingFS{dir: t.TempDir(), asked: make(chan struct{}, 64), fd: fd}
	if err := unix.Mount("berth-test", h.dir, "fuse", 0, fmt.Sprintf("fd=%d,rootmode=40000,user_id=0,group_id=0,allow_other", fd)); err != nil {
		_ = unix.Close(fd)
		t.Skipf("needs FUSE: %v", err)
	}
	done := make(chan struct{})
	go func() { defer close(done); h.serve() }()
	t.Cleanup(func() {
		h.abort()
		if err := unix.Unmount(h.dir, unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) {
			t.Error(err)
		}
		<-done
		_ = unix.Close(fd)
	})
	return h
}

// abort ends the file system: everybody who waits gets an error.
func (h *hangingFS) abort() { _ = unix.Unmount(h.dir, unix.MNT_FORCE) }

// serve answers until the file system ends.
func (h *hangingFS) serve() {
	buf := make([]byte, 256<<10)
	for {
		n, err := unix.Read(h.fd, buf)
		if err == unix.EINTR || err == unix.EAGAIN || err == unix.ENOENT {
			continue
		}
		if err != nil || n < 40 {
			return
		}
		kind, unique := binary.NativeEndian.Uint32(buf[4:]), binary.NativeEndian.Uint64(buf[8:])
		if kind == fuseLookup {
			h.asked <- struct{}{}
			continue
		}
		if body, errno, answer := fuseAnswer(kind); answer {
			out := make([]byte, 16, 16+len(body))
			binary.NativeEndian.PutUint32(out, uint32(16+len(body)))
			binary.NativeEndian.PutUint32(out[4:], uint32(-int32(errno)))
			binary.NativeEndian.PutUint64(out[8:], unique)
			_, _ = unix.Write(h.fd, append(out, body...))
		}
	}
}

// fuseAnswer is the answer to a request that does not hang.
func fuseAnswer(kind uint32) (body []byte, errno unix.Errno, answer bool) {
	switch kind {
	case fuseForget, fuseBatchForget, fuseInterrupt, fuseDestroy:
		return nil, 0, false
	case fuseInit:
		body = make([]byte, 64)
		binary.NativeEndian.PutUint32(body, 7)
		binary.NativeEndian.PutUint32(body[4:], 31)
		binary.NativeEndian.PutUint32(body[20:], 64<<10) // max_write
	case fuseGetattr:
		body = make([]byte, 104)
		binary.NativeEndian.PutUint64(body[16:], 1) // ino
		binary.NativeEndian.PutUint32(body[76:], unix.S_IFDIR|0o755)
		binary.NativeEndian.PutUint32(body[80:], 2) // nlink
	case fuseStatfs:
		body = make([]byte, 80)
	case fuseOpendir:
		body = make([]byte, 16)
	case fuseRelease, fuseReleasedir:
	default:
		return nil, unix.ENOSYS, true
	}
	return body, 0, true
}

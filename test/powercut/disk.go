package powercut

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"sync"

	"golang.org/x/sys/unix"
)

// event is a write, a flush, or a note of the test.
type event struct {
	off   int64
	data  []byte // nil: no write
	flush bool
	note  string
}

// disk is a file in memory, served over FUSE as DIR/disk, that records what is
// written to it.
type disk struct {
	dir   string
	dev   int
	ended chan struct{} // closed when the loop has ended

	mu   sync.Mutex
	data []byte
	log  []event
}

// Operations of the FUSE protocol, version 7.31 (linux/fuse.h).
const (
	opLookup, opForget, opGetattr, opSetattr, opOpen, opRead, opWrite = 1, 2, 3, 4, 14, 15, 16
	opStatfs, opRelease, opFsync, opFlush, opInit, opDestroy          = 17, 18, 20, 25, 26, 38
	opInterrupt, opBatchForget                                        = 36, 42

	maxWrite = 1 << 20
	fileNode = 2
)

// serve mounts the disk at dir.
func serve(dir string, size int) (*disk, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	dev, err := unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open /dev/fuse: %w", err)
	}
	opts := "fd=" + strconv.Itoa(dev) + ",rootmode=40000,user_id=0,group_id=0"
	if err := unix.Mount("powercut", dir, "fuse", unix.MS_NOSUID|unix.MS_NODEV, opts); err != nil {
		return nil, errors.Join(fmt.Errorf("mount FUSE: %w", err), unix.Close(dev))
	}
	d := &disk{dir: dir, dev: dev, ended: make(chan struct{}), data: make([]byte, size)}
	go d.loop()
	return d, nil
}

func (d *disk) path() string { return filepath.Join(d.dir, "disk") }

// note puts a remark of the test into the log.
func (d *disk) note(s string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.log = append(d.log, event{note: s})
}

// begin forgets the log and returns the disk as it is now.
func (d *disk) begin() []byte {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.log = nil
	return append([]byte(nil), d.data...)
}

func (d *disk) recorded() []event {
	d.mu.Lock()
	defer d.mu.Unlock()
	return append([]event(nil), d.log...)
}

// close ends the file system, whatever still uses it, and then the loop.
func (d *disk) close() error {
	if err := unix.Unmount(d.dir, unix.MNT_FORCE|unix.MNT_DETACH); err != nil {
		return fmt.Errorf("unmount FUSE: %w", err)
	}
	<-d.ended
	return unix.Close(d.dev)
}

// loop answers one request after the other, so that the log has the order in
// which writes reached the disk.
func (d *disk) loop() {
	defer close(d.ended)
	buf := make([]byte, maxWrite+(64<<10))
	for {
		n, err := unix.Read(d.dev, buf)
		switch {
		case errors.Is(err, unix.EINTR), errors.Is(err, unix.ENOENT):
			continue
		case err != nil:
			return // unmounted
		}
		op := binary.LittleEndian.Uint32(buf[4:])
		if op == opForget || op == opBatchForget || op == opInterrupt {
			continue
		}
		out, errno := d.answer(op, binary.LittleEndian.Uint64(buf[16:]), buf[40:n])
		reply := make([]byte, 16, 16+len(out))
		binary.LittleEndian.PutUint32(reply, uint32(16+len(out)))
		binary.LittleEndian.PutUint32(reply[4:], uint32(-int32(errno)))
		copy(reply[8:16], buf[8:16])
		_, _ = unix.Write(d.dev, append(reply, out...))
	}
}

func (d *disk) answer(op uint32, node uint64, in []byte) ([]byte, unix.Errno) {
	le := binary.LittleEndian
	d.mu.Lock()
	defer d.mu.Unlock()
	switch op {
	case opInit:
		out := le.AppendUint32(nil, 7)
		out = le.AppendUint32(out, 31)
		out = le.AppendUint32(out, 128<<10)
		out = le.AppendUint32(out, 1<<5|1<<22) // big writes, max_pages
		out = le.AppendUint32(out, 0)
		out = le.AppendUint32(out, maxWrite)
		out = le.AppendUint32(out, 1)
		out = le.AppendUint16(out, maxWrite/4096)
		return append(out, make([]byte, 64-len(out))...), 0
	case opLookup:
		if string(in) != "disk\x00" {
			return nil, unix.ENOENT
		}
		out := le.AppendUint64(nil, fileNode)
		out = append(out, make([]byte, 32)...)
		return append(out, d.attr(fileNode)...), 0
	case opGetattr, opSetattr:
		return append(make([]byte, 16), d.attr(node)...), 0
	case opOpen:
		return make([]byte, 16), 0
	case opRead:
		off, size := int64(le.Uint64(in[8:])), int64(le.Uint32(in[16:]))
		end := min(off+size, int64(len(d.data)))
		return append([]byte(nil), d.data[min(off, end):end]...), 0
	case opWrite:
		off, size := int64(le.Uint64(in[8:])), int64(le.Uint32(in[16:]))
		if off+size > int64(len(d.data)) {
			return nil, unix.EFBIG
		}
		data := append([]byte(nil), in[40:40+size]...)
		copy(d.data[off:], data)
		d.log = append(d.log, event{off: off, data: data})
		return le.AppendUint64(nil, uint64(size)), 0
	case opFsync:
		d.log = append(d.log, event{flush: true})
		return nil, 0
	case opRelease, opFlush, opDestroy:
		return nil, 0
	case opStatfs:
		return make([]byte, 80), 0
	}
	return nil, unix.ENOSYS
}

func (d *disk) attr(node uint64) []byte {
	le := binary.LittleEndian
	mode, size := uint32(unix.S_IFDIR|0o700), uint64(0)
	if node == fileNode {
		mode, size = unix.S_IFREG|0o600, uint64(len(d.data))
	}
	out := le.AppendUint64(nil, node)
	out = le.AppendUint64(out, size)
	out = le.AppendUint64(out, size/512)
	out = append(out, make([]byte, 36)...) // times
	out = le.AppendUint32(out, mode)
	out = le.AppendUint32(out, 1)
	out = append(out, make([]byte, 12)...) // owner, device
	out = le.AppendUint32(out, 4096)
	return le.AppendUint32(out, 0)
}

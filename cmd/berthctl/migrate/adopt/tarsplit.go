package adopt

import (
	"bufio"
	"compress/gzip"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// entry is one of tar-split's: bytes of the tar as they were, or the place of a
// file's content.
type entry struct {
	Type    int    `json:"type"`
	Name    string `json:"name"`
	RawName []byte `json:"name_raw"` // of a name that is not UTF-8
	Size    int64  `json:"size"`
	Payload []byte `json:"payload"` // the bytes; of a file its checksum
}

const (
	entryFile    = 1
	entrySegment = 2
)

// entries calls f for each of a layer's.
func (c *containers) entries(id string, f func(entry) error) error {
	file, err := os.Open(filepath.Join(c.root, "overlay-layers", id+".tar-split.gz"))
	if err != nil {
		return err
	}
	defer file.Close()
	z, err := gzip.NewReader(bufio.NewReader(file))
	if err != nil {
		return fmt.Errorf("%s: %w: %w", file.Name(), err, errdefs.ErrDataLoss)
	}
	for dec := json.NewDecoder(z); ; {
		var e entry
		err := dec.Decode(&e)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("%s: %w: %w", file.Name(), err, errdefs.ErrDataLoss)
		}
		if e.Size < 0 || e.Type != entryFile && e.Type != entrySegment {
			return fmt.Errorf("%s: entry of type %d and size %d: %w", file.Name(), e.Type, e.Size, errdefs.ErrDataLoss)
		}
		if len(e.RawName) > 0 {
			e.Name = string(e.RawName)
		}
		if err := f(e); err != nil {
			return err
		}
	}
}

// tarSize is the length of a layer's tar, in bytes.
func (c *containers) tarSize(id string) (n int64, err error) {
	err = c.entries(id, func(e entry) error {
		if n += int64(len(e.Payload)); e.Type == entryFile {
			n += e.Size - int64(len(e.Payload))
		}
		return nil
	})
	return n, err
}

// tar makes a layer's tar again. Whether it is the one that was pulled is for
// whoever knows its digest to see.
func (c *containers) tar(id string) io.ReadCloser {
	r, w := io.Pipe()
	go func() { w.CloseWithError(c.assemble(id, w)) }()
	return r
}

func (c *containers) assemble(id string, w io.Writer) error {
	dir, err := unix.Open(filepath.Join(c.root, "overlay", id, "diff"), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("files of layer %s: %w", id, err)
	}
	defer unix.Close(dir)
	return c.entries(id, func(e entry) error {
		switch {
		case e.Type == entrySegment:
			_, err := w.Write(e.Payload)
			return err
		case e.Size == 0:
			return nil // a directory, a link, an empty file
		}
		f, err := openIn(dir, e.Name)
		if err != nil {
			return fmt.Errorf("file %q of layer %s: %w", e.Name, id, err)
		}
		defer f.Close()
		_, err = io.CopyN(w, f, e.Size)
		if errors.Is(err, io.EOF) {
			err = fmt.Errorf("shorter than %d bytes: %w", e.Size, errdefs.ErrDataLoss)
		}
		if err != nil {
			return fmt.Errorf("file %q of layer %s: %w", e.Name, id, err)
		}
		return nil
	})
}

// openIn opens a regular file below dir, which no link leads out of.
func openIn(dir int, name string) (*os.File, error) {
	fd, err := unix.Openat2(dir, name, &unix.OpenHow{
		Flags: unix.O_RDONLY | unix.O_NOFOLLOW | unix.O_NONBLOCK | unix.O_CLOEXEC, Resolve: unix.RESOLVE_IN_ROOT,
	})
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), name)
	if st, err := f.Stat(); err != nil || !st.Mode().IsRegular() {
		return nil, errors.Join(fmt.Errorf("not a regular file: %w", errdefs.ErrDataLoss), err, f.Close())
	}
	return f, nil
}

package adopt

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime/debug"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	"go.etcd.io/bbolt"
	bolterrors "go.etcd.io/bbolt/errors"
	"golang.org/x/sys/unix"

	"github.com/berth-dev/berth/store"
)

// containerd's store: blobs by digest in files, and in meta.db, a bbolt database,
//
//	v1/k8s.io/images/NAME/target/digest
//	v1/k8s.io/images/NAME/labels/io.cri-containerd.pinned
const (
	metaDB      = "io.containerd.metadata.v1.bolt/meta.db"
	contentDir  = "io.containerd.content.v1.content/blobs"
	namespace   = "k8s.io"
	labelPinned = "io.cri-containerd.pinned"
)

type containerd struct {
	root string
	db   *bbolt.DB
}

func openContainerd(root string) (Store, error) {
	file := filepath.Join(root, metaDB)
	if _, err := os.Stat(file); err != nil {
		return nil, fmt.Errorf("containerd's store: %w", err)
	}
	c := &containerd{root: root}
	// bbolt does not survive bad pages.
	err := store.CheckPages(file, time.Second)
	if err == nil {
		err = c.guarded(func() (err error) {
			c.db, err = bbolt.Open(file, 0, &bbolt.Options{ReadOnly: true, Timeout: time.Second})
			return err
		})
	}
	if errors.Is(err, bolterrors.ErrTimeout) || errdefs.IsFailedPrecondition(err) {
		return nil, fmt.Errorf("%s is in use: containerd runs: %w", file, errdefs.ErrUnavailable)
	}
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", file, err)
	}
	return c, nil
}

// guarded makes an error of what bbolt does when a file cannot be read any more:
// it reads through a memory map, which faults, and panics on what it does not know.
func (c *containerd) guarded(read func() error) (err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if r := recover(); r != nil {
			c.db = nil // its locks may be held: it cannot be closed any more
			err = fmt.Errorf("the database is damaged: %v: %w", r, errdefs.ErrDataLoss)
		}
	}()
	return read()
}

// Close implements Store.
func (c *containerd) Close() error {
	if c.db == nil {
		return nil
	}
	return c.db.Close()
}

// Images implements Store.
func (c *containerd) Images() ([]Image, error) {
	var found byTop
	file := filepath.Join(c.root, metaDB)
	err := c.guarded(func() error { return c.db.View(func(tx *bbolt.Tx) error { return list(tx, &found) }) })
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", file, err)
	}
	return found.list(c.fill), nil
}

// list finds the names of the images for Kubernetes.
func list(tx *bbolt.Tx, found *byTop) error {
	images := below(tx.Bucket([]byte("v1")), namespace, "images")
	if images == nil {
		return nil // nothing was ever pulled for Kubernetes
	}
	return images.ForEachBucket(func(name []byte) error {
		target, labels := below(images, string(name), "target"), below(images, string(name), "labels")
		if target == nil {
			found.left = append(found.left, Image{Names: []string{string(name)}, Reason: "its record is damaged: nothing says what it stands for"})
			return nil
		}
		pinned := labels != nil && string(labels.Get([]byte(labelPinned))) == "pinned"
		found.add(string(name), digest.Digest(target.Get([]byte("digest"))), pinned)
		return nil
	})
}

// below goes down buckets; nil when one of them is not there.
func below(b *bbolt.Bucket, names ...string) *bbolt.Bucket {
	for _, n := range names {
		if b == nil {
			return nil
		}
		b = b.Bucket([]byte(n))
	}
	return b
}

// fill finds an image's documents and layers.
func (c *containerd) fill(img *Image) error {
	layers, parsed, err := img.resolve(c)
	if err != nil {
		return err
	}
	for n, d := range layers {
		file := c.path(d.Digest)
		st, err := os.Stat(file)
		if errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("layer %s is not in the content store: it was discarded after unpacking (discard_unpacked_layers), or never fetched", d.Digest)
		}
		if err == nil && !st.Mode().IsRegular() {
			err = fmt.Errorf("%s is no file: %w", file, errdefs.ErrDataLoss)
		}
		if err != nil {
			return err
		}
		img.Layers = append(img.Layers, Layer{
			ChainID: parsed.Layers[n].ChainID, digest: d.Digest, size: st.Size(),
			open: func() (io.ReadCloser, error) { return openFile(file) },
		})
	}
	return nil
}

func (c *containerd) path(d digest.Digest) string {
	return filepath.Join(c.root, contentDir, d.Algorithm().String(), d.Encoded())
}

// document implements blobs.
func (c *containerd) document(d digest.Digest) ([]byte, error) {
	raw, err := readDocument(c.path(d))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%s is not in the content store", d)
	}
	return raw, err
}

// openFile opens a regular file; what is none could keep its reader for ever.
func openFile(file string) (*os.File, error) {
	f, err := os.OpenFile(file, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	if st, err := f.Stat(); err != nil || !st.Mode().IsRegular() {
		return nil, errors.Join(fmt.Errorf("%s is no file: %w", file, errdefs.ErrDataLoss), err, f.Close())
	}
	return f, nil
}

// readDocument reads a file of bounded size.
func readDocument(file string) ([]byte, error) {
	f, err := openFile(file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	raw, err := io.ReadAll(io.LimitReader(f, maxDocument+1))
	if err == nil && len(raw) > maxDocument {
		err = fmt.Errorf("%s has more than %d bytes: %w", file, maxDocument, errdefs.ErrResourceExhausted)
	}
	return raw, err
}

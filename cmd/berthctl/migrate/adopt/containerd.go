package adopt

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	"go.etcd.io/bbolt"
	bolterrors "go.etcd.io/bbolt/errors"
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
	db, err := bbolt.Open(file, 0, &bbolt.Options{ReadOnly: true, Timeout: time.Second})
	if errors.Is(err, bolterrors.ErrTimeout) {
		return nil, fmt.Errorf("%s is in use: containerd runs: %w", file, errdefs.ErrUnavailable)
	}
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", file, err)
	}
	return &containerd{root: root, db: db}, nil
}

// Close implements Store.
func (c *containerd) Close() error { return c.db.Close() }

// Images implements Store.
func (c *containerd) Images() ([]Image, error) {
	var found byTop
	err := c.db.View(func(tx *bbolt.Tx) error {
		images := below(tx.Bucket([]byte("v1")), namespace, "images")
		if images == nil {
			return nil // nothing was ever pulled for Kubernetes
		}
		return images.ForEachBucket(func(name []byte) error {
			img := images.Bucket(name)
			target, labels := below(img, "target"), below(img, "labels")
			if target == nil {
				return fmt.Errorf("image %q of %s has no target: %w", name, c.db.Path(), errdefs.ErrDataLoss)
			}
			pinned := labels != nil && string(labels.Get([]byte(labelPinned))) == "pinned"
			found.add(string(name), digest.Digest(target.Get([]byte("digest"))), pinned)
			return nil
		})
	})
	if err != nil {
		return nil, err
	}
	return found.list(c.fill), nil
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
		st, err := os.Stat(c.path(d.Digest))
		if errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("layer %s is not in the content store: it was discarded after unpacking (discard_unpacked_layers), or never fetched", d.Digest)
		}
		if err != nil {
			return err
		}
		img.Layers = append(img.Layers, Layer{
			ChainID: parsed.Layers[n].ChainID, digest: d.Digest, size: st.Size(),
			open: func() (io.ReadCloser, error) { return os.Open(c.path(d.Digest)) },
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

// readDocument reads a file of bounded size.
func readDocument(file string) ([]byte, error) {
	f, err := os.Open(file)
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

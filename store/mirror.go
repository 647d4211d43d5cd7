package store

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"

	"github.com/containerd/errdefs"
	bolt "go.etcd.io/bbolt"
)

// Beside the database every object has its record in a file of its own, so
// that a lost database can be rebuilt (see rebuild.go):
//
//	sandboxes/<id>/record   in the sandbox's directory
//	containers/<id>/record  in the container's directory
//	images/<algorithm>-<hex>
//	layers/<hex>/layer.json written and synced by the image side
//
// A file is written after the transaction, in place and without a sync: it is a
// copy for the day the database is gone, and the database is what is synced. A
// power cut can leave a file old or torn, a crash in the middle of the write
// torn; the next Open brings all of them up to date. A checksum tells a torn one.
const (
	dirImages      = "images"
	fileRecord     = "record"
	fileLayer      = "layer.json"
	maxRecordBytes = 64 << 20
)

// objectKey names an object: bucket and ID.
type objectKey struct{ bucket, id string }

// recordHeader says what a record file holds. The schema is that of the
// database the record came from.
type recordHeader struct {
	Schema int
	Bucket string
	ID     string
}

// mirror keeps the record files. It is used under DB.commit.
type mirror struct {
	dir    string
	schema int
	log    *slog.Logger
	stale  map[objectKey]struct{} // files that are to be brought up to date
	failed bool                   // the last attempt did; told once
}

// path returns where an object's record file is; "" when it has none: layers
// have their own, and other IDs than Berth's must not become file names.
func (m *mirror) path(k objectKey) string {
	switch {
	case k.bucket == bucketImages && plainImageID(k.id):
		return filepath.Join(m.dir, dirImages, strings.Replace(k.id, ":", "-", 1))
	case (k.bucket == bucketSandboxes || k.bucket == bucketContainers) && isObjectID(k.id):
		return filepath.Join(m.dir, k.bucket, k.id, fileRecord)
	}
	return ""
}

func isObjectID(id string) bool {
	return len(id) == 64 && strings.Trim(id, "0123456789abcdef") == ""
}

// plainImageID accepts a digest: algorithm, colon, hex.
func plainImageID(id string) bool {
	algorithm, hex, ok := strings.Cut(id, ":")
	return ok && algorithm != "" && hex != "" && strings.Trim(algorithm+hex, "0123456789abcdefghijklmnopqrstuvwxyz") == ""
}

// follow brings the files up to date with the change, and those that an
// earlier attempt left. A failure is logged and made good later: what the
// caller committed is durable without them.
func (m *mirror) follow(c Change, x *index) {
	for _, s := range c.PutSandboxes {
		m.stale[objectKey{bucketSandboxes, s.ID}] = struct{}{}
	}
	for _, v := range c.PutContainers {
		m.stale[objectKey{bucketContainers, v.ID}] = struct{}{}
	}
	for _, i := range c.PutImages {
		m.stale[objectKey{bucketImages, i.ID}] = struct{}{}
	}
	for bucket, ids := range map[string][]string{bucketSandboxes: c.DeleteSandboxes, bucketContainers: c.DeleteContainers, bucketImages: c.DeleteImages} {
		for _, id := range ids {
			m.stale[objectKey{bucket, id}] = struct{}{}
		}
	}
	m.flush(x)
}

func (m *mirror) flush(x *index) {
	for k := range m.stale {
		if err := m.update(k, x); err != nil {
			if !m.failed {
				m.log.Warn("cannot write the copy of a record, trying again with the next change", "kind", k.bucket, "id", k.id, "error", err)
			}
			m.failed = true
			return
		}
		delete(m.stale, k)
	}
	m.failed = false
}

// update makes one file as the index has it.
func (m *mirror) update(k objectKey, x *index) error {
	path := m.path(k)
	if path == "" {
		return nil
	}
	record, ok, err := x.encode(k)
	if err != nil {
		return err
	}
	if !ok {
		return removeFile(path)
	}
	data, err := m.wrap(k, record)
	if err != nil {
		return err
	}
	return m.write(k, path, data)
}

func (m *mirror) wrap(k objectKey, record []byte) ([]byte, error) {
	return sealWith(record, recordHeader{Schema: m.schema, Bucket: k.bucket, ID: k.id})
}

func imageOfFile(name string) string { return strings.Replace(name, "-", ":", 1) }

// write writes a file in place, which costs a tenth of a rename. An object that
// has no directory is being removed.
func (m *mirror) write(k objectKey, path string, data []byte) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE, 0o600)
	if errors.Is(err, fs.ErrNotExist) && k.bucket != bucketImages {
		return nil
	}
	if err != nil {
		return err
	}
	_, err = f.WriteAt(data, 0)
	if err == nil {
		err = f.Truncate(int64(len(data)))
	}
	return errors.Join(err, f.Close())
}

func removeFile(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// match brings all files up to date with the database, after a start. A record is
// compared as it is stored: encoding each anew would be half the cost of a start.
func (m *mirror) match(db *bolt.DB, x *index) error {
	if err := os.MkdirAll(filepath.Join(m.dir, dirImages), 0o700); err != nil {
		return err
	}
	err := db.View(func(tx *bolt.Tx) error {
		for k := range x.keys() {
			if !m.isCurrent(k, tx.Bucket([]byte(k.bucket)).Get([]byte(k.id))) {
				m.stale[k] = struct{}{}
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	entries, err := os.ReadDir(filepath.Join(m.dir, dirImages))
	if err != nil {
		return err
	}
	for _, e := range entries {
		if id := imageOfFile(e.Name()); x.images.byID[id] == nil {
			m.stale[objectKey{bucketImages, id}] = struct{}{}
		}
	}
	m.flush(x)
	return nil
}

// isCurrent reports whether an object's file, if it may have one, holds record.
func (m *mirror) isCurrent(k objectKey, record []byte) bool {
	path := m.path(k)
	if path == "" {
		return true
	}
	have, err := os.ReadFile(path)
	if err != nil {
		return false
	}
	want, err := m.wrap(k, record)
	return err == nil && bytes.Equal(have, want)
}

// read returns the record in an object's file. It fails with NotFound when
// there is no file and with DataLoss when it cannot be used.
func (m *mirror) read(k objectKey) (record []byte, schema int, err error) {
	path := m.path(k)
	if path == "" {
		return nil, 0, errdefs.ErrNotFound
	}
	data, err := readSmall(path)
	if err != nil {
		return nil, 0, err
	}
	e, err := unseal(data)
	if err != nil {
		return nil, 0, fmt.Errorf("%s: %w", path, err)
	}
	var h recordHeader
	if err := json.Unmarshal(e.facts, &h); err != nil || h.Bucket != k.bucket || h.ID != k.id {
		return nil, 0, fmt.Errorf("%s is not the record of %s %s: %w", path, k.bucket, k.id, errdefs.ErrDataLoss)
	}
	return e.blob, h.Schema, nil
}

// readSmall reads a file that Berth wrote.
func readSmall(path string) ([]byte, error) {
	st, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, fmt.Errorf("%s: %w", path, errdefs.ErrNotFound)
	case err != nil:
		return nil, err
	case !st.Mode().IsRegular() || st.Size() > maxRecordBytes:
		return nil, fmt.Errorf("%s is not a record: %w", path, errdefs.ErrDataLoss)
	}
	return os.ReadFile(path)
}

// encode returns the record of an object; false when there is none.
func (x *index) encode(k objectKey) (record []byte, ok bool, err error) {
	switch k.bucket {
	case bucketSandboxes:
		return encodeFrom(&x.sandboxes, sandboxCodec(), k.id)
	case bucketContainers:
		return encodeFrom(&x.containers, containerCodec(), k.id)
	case bucketImages:
		return encodeFrom(&x.images, imageCodec(), k.id)
	}
	return nil, false, nil
}

func encodeFrom[T any](t *table[T], c codec[T], id string) ([]byte, bool, error) {
	v, ok := t.byID[id]
	if !ok {
		return nil, false, nil
	}
	b, err := c.encode(*v)
	return b, true, err
}

// keys are the objects that have a record file.
func (x *index) keys() map[objectKey]struct{} {
	out := map[objectKey]struct{}{}
	for id := range x.sandboxes.byID {
		out[objectKey{bucketSandboxes, id}] = struct{}{}
	}
	for id := range x.containers.byID {
		out[objectKey{bucketContainers, id}] = struct{}{}
	}
	for id := range x.images.byID {
		out[objectKey{bucketImages, id}] = struct{}{}
	}
	return out
}

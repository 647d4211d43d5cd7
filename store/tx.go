package store

import (
	"fmt"

	"github.com/containerd/errdefs"
	bolt "go.etcd.io/bbolt"
)

// applyChange writes a change: deletions, then puts. Pure database work.
func applyChange(tx *bolt.Tx, c Change) error {
	if err := applyDeletes(tx, c); err != nil {
		return err
	}
	for _, s := range c.PutSandboxes {
		if err := putNamed(tx, sandboxCodec(), s, SandboxName); err != nil {
			return err
		}
	}
	for _, v := range c.PutContainers {
		if err := putNamed(tx, containerCodec(), v, ContainerName); err != nil {
			return err
		}
	}
	for _, i := range c.PutImages {
		if err := putRecord(tx, imageCodec(), i); err != nil {
			return err
		}
	}
	for _, l := range c.PutLayers {
		if err := putRecord(tx, layerCodec(), l); err != nil {
			return err
		}
	}
	return applyQuarantine(tx, c)
}

func applyDeletes(tx *bolt.Tx, c Change) error {
	for _, id := range c.DeleteContainers {
		if err := deleteNamed(tx, containerCodec(), id, ContainerName); err != nil {
			return err
		}
	}
	for _, id := range c.DeleteSandboxes {
		if err := deleteNamed(tx, sandboxCodec(), id, SandboxName); err != nil {
			return err
		}
	}
	plain := []struct {
		bucket string
		ids    []string
	}{
		{bucketImages, c.DeleteImages},
		{bucketLayers, c.DeleteLayers},
		{bucketOps, c.EndOps},
	}
	for _, p := range plain {
		for _, id := range p.ids {
			if err := tx.Bucket([]byte(p.bucket)).Delete([]byte(id)); err != nil {
				return fmt.Errorf("delete %s/%s: %w", p.bucket, id, err)
			}
		}
	}
	return nil
}

func putRecord[T any](tx *bolt.Tx, c codec[T], v T) error {
	id := c.id(v)
	if id == "" {
		return fmt.Errorf("%s has no ID: %w", c.kind, errdefs.ErrInvalidArgument)
	}
	data, err := c.encode(v)
	if err != nil {
		return fmt.Errorf("encode %s %s: %w", c.kind, id, err)
	}
	if err := tx.Bucket([]byte(c.bucket)).Put([]byte(id), data); err != nil {
		return fmt.Errorf("put %s %s: %w", c.kind, id, err)
	}
	return nil
}

// putNamed writes a record and claims its unique name, or fails with AlreadyExists.
func putNamed[T any](tx *bolt.Tx, c codec[T], v T, nameOf func(T) string) error {
	id, name := c.id(v), nameOf(v)
	names := namesBucket(tx, c.bucket)
	if name != "" {
		if owner := names.Get([]byte(name)); owner != nil && string(owner) != id {
			return fmt.Errorf("%s name %q belongs to %s: %w", c.kind, name, owner, errdefs.ErrAlreadyExists)
		}
	}
	if err := releaseName(tx, c, id, nameOf); err != nil {
		return err
	}
	if err := putRecord(tx, c, v); err != nil {
		return err
	}
	if name == "" {
		return nil
	}
	if err := names.Put([]byte(name), []byte(id)); err != nil {
		return fmt.Errorf("put name %q: %w", name, err)
	}
	return nil
}

func deleteNamed[T any](tx *bolt.Tx, c codec[T], id string, nameOf func(T) string) error {
	if err := releaseName(tx, c, id, nameOf); err != nil {
		return err
	}
	if err := tx.Bucket([]byte(c.bucket)).Delete([]byte(id)); err != nil {
		return fmt.Errorf("delete %s %s: %w", c.kind, id, err)
	}
	return nil
}

// releaseName frees the name that the record on disk holds.
func releaseName[T any](tx *bolt.Tx, c codec[T], id string, nameOf func(T) string) error {
	data := tx.Bucket([]byte(c.bucket)).Get([]byte(id))
	if data == nil {
		return nil
	}
	old, err := c.decode(id, data)
	if err != nil {
		return fmt.Errorf("read %s %s: %w", c.kind, id, err)
	}
	name, names := []byte(nameOf(old)), namesBucket(tx, c.bucket)
	if string(names.Get(name)) != id {
		return nil
	}
	if err := names.Delete(name); err != nil {
		return fmt.Errorf("delete name %q: %w", name, err)
	}
	return nil
}

func namesBucket(tx *bolt.Tx, kind string) *bolt.Bucket {
	return tx.Bucket([]byte(bucketNames)).Bucket([]byte(kind))
}

// Package store keeps the facts of the node: it is the only importer of bbolt.
package store

import (
	"context"

	"github.com/containerd/errdefs"
)

// Config says where the database lives.
type Config struct {
	Dir string // state directory; the database is Dir/berth.db
}

// DB is the store of facts. Reads are served from memory, writes are durable
// when the call returns.
type DB struct{}

// Open opens or creates the database and loads it into memory.
func Open(cfg Config) (*DB, error) { return nil, errdefs.ErrNotImplemented }

// Close closes the database.
func (db *DB) Close() error { return nil }

// Commit applies a change in one synced transaction. It fails with
// AlreadyExists when a sandbox or container name belongs to another ID.
func (db *DB) Commit(ctx context.Context, c Change) error { return errdefs.ErrNotImplemented }

// Sandbox returns a sandbox by its full ID or a unique prefix of it.
func (db *DB) Sandbox(id string) (Sandbox, error) { return Sandbox{}, errdefs.ErrNotFound }

// Sandboxes returns all sandboxes, oldest first.
func (db *DB) Sandboxes() []Sandbox { return nil }

// SandboxByName returns the sandbox with that unique name (see SandboxName).
func (db *DB) SandboxByName(name string) (Sandbox, bool) { return Sandbox{}, false }

// Container returns a container by its full ID or a unique prefix of it.
func (db *DB) Container(id string) (Container, error) { return Container{}, errdefs.ErrNotFound }

// Containers returns all containers, oldest first.
func (db *DB) Containers() []Container { return nil }

// ContainersOf returns the containers of a sandbox, oldest first.
func (db *DB) ContainersOf(sandboxID string) []Container { return nil }

// ContainerByName returns the container with that unique name (see ContainerName).
func (db *DB) ContainerByName(name string) (Container, bool) { return Container{}, false }

// Image returns an image by ID ("sha256:..." or bare hex, full or unique prefix).
func (db *DB) Image(id string) (Image, error) { return Image{}, errdefs.ErrNotFound }

// ImageByRef returns the image that carries this normalized tag or digest reference.
func (db *DB) ImageByRef(ref string) (Image, bool) { return Image{}, false }

// Images returns all images.
func (db *DB) Images() []Image { return nil }

// Layer returns a layer by chain ID.
func (db *DB) Layer(chainID string) (Layer, error) { return Layer{}, errdefs.ErrNotFound }

// Layers returns all layers.
func (db *DB) Layers() []Layer { return nil }

// BeginOp writes a journal entry; it is durable when the call returns.
func (db *DB) BeginOp(ctx context.Context, o Op) error { return errdefs.ErrNotImplemented }

// Ops returns the journal entries that have not ended, oldest first.
func (db *DB) Ops() []Op { return nil }

// SandboxName is the unique name of a sandbox: pod name, namespace, uid and
// attempt, as other CRI runtimes form it.
func SandboxName(s Sandbox) string { return "" }

// ContainerName is the unique name of a container: container name, sandbox ID and attempt.
func ContainerName(c Container) string { return "" }

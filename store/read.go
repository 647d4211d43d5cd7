package store

import (
	"slices"
)

// Sandbox returns a sandbox by its full ID or a unique prefix of it. It fails
// with NotFound, or with InvalidArgument for an empty or ambiguous prefix.
func (db *DB) Sandbox(id string) (Sandbox, error) {
	db.mu.RLock()
	defer db.mu.RUnlock()
	return db.index.sandboxes.find(id, "")
}

// Sandboxes returns all sandboxes, oldest first.
func (db *DB) Sandboxes() []Sandbox {
	db.mu.RLock()
	defer db.mu.RUnlock()
	return db.index.sandboxes.list()
}

// SandboxByName returns the sandbox with that unique name (see SandboxName).
func (db *DB) SandboxByName(name string) (Sandbox, bool) {
	db.mu.RLock()
	defer db.mu.RUnlock()
	return byAlias(&db.index.sandboxes, db.index.sandboxNames, name)
}

// Container returns a container by its full ID or a unique prefix of it. It
// fails with NotFound, or with InvalidArgument for an empty or ambiguous prefix.
func (db *DB) Container(id string) (Container, error) {
	db.mu.RLock()
	defer db.mu.RUnlock()
	return db.index.containers.find(id, "")
}

// Containers returns all containers, oldest first.
func (db *DB) Containers() []Container {
	db.mu.RLock()
	defer db.mu.RUnlock()
	return db.index.containers.list()
}

// ContainersOf returns the containers of a sandbox, oldest first. It takes the
// full ID of the sandbox.
func (db *DB) ContainersOf(sandboxID string) []Container {
	db.mu.RLock()
	defer db.mu.RUnlock()
	x := db.index
	found := make([]*Container, 0, len(x.members[sandboxID]))
	for id := range x.members[sandboxID] {
		found = append(found, x.containers.byID[id])
	}
	slices.SortFunc(found, x.containers.compare)
	out := make([]Container, len(found))
	for i, c := range found {
		out[i] = *c
	}
	return out
}

// ContainerByName returns the container with that unique name (see ContainerName).
func (db *DB) ContainerByName(name string) (Container, bool) {
	db.mu.RLock()
	defer db.mu.RUnlock()
	return byAlias(&db.index.containers, db.index.containerNames, name)
}

// Image returns an image by ID ("sha256:..." or bare hex, full or unique
// prefix). It fails with NotFound, or with InvalidArgument for an empty or
// ambiguous prefix.
func (db *DB) Image(id string) (Image, error) {
	db.mu.RLock()
	defer db.mu.RUnlock()
	return db.index.images.find(id, "sha256:")
}

// ImageByRef returns the image that carries this normalized tag or digest
// reference, or this entry of Elsewhere.
func (db *DB) ImageByRef(ref string) (Image, bool) {
	db.mu.RLock()
	defer db.mu.RUnlock()
	return byAlias(&db.index.images, db.index.refs, ref)
}

// Images returns all images, the one pulled first at the front.
func (db *DB) Images() []Image {
	db.mu.RLock()
	defer db.mu.RUnlock()
	return db.index.images.list()
}

// Layer returns a layer by chain ID, full or a unique prefix.
func (db *DB) Layer(chainID string) (Layer, error) {
	db.mu.RLock()
	defer db.mu.RUnlock()
	return db.index.layers.find(chainID, "sha256:")
}

// Layers returns all layers, the one unpacked first at the front.
func (db *DB) Layers() []Layer {
	db.mu.RLock()
	defer db.mu.RUnlock()
	return db.index.layers.list()
}

// LayerUsage returns what all layers take on disk, by their records.
func (db *DB) LayerUsage() (bytes, inodes uint64) {
	db.mu.RLock()
	defer db.mu.RUnlock()
	return db.index.layerUse.bytes, db.index.layerUse.inodes
}

// Ops returns the journal entries that have not ended, oldest first.
func (db *DB) Ops() []Op {
	db.mu.RLock()
	defer db.mu.RUnlock()
	return db.index.ops.list()
}

// ClaimOp keeps a journal entry to the caller until ReleaseOp, so that a
// recovery in the background leaves alone what a running verb works on. It
// reports false when the entry is claimed or has ended. Claims are not durable.
func (db *DB) ClaimOp(id string) bool {
	db.mu.Lock()
	defer db.mu.Unlock()
	if _, taken := db.live[id]; taken {
		return false
	}
	if _, ok := db.index.ops.byID[id]; !ok {
		return false
	}
	db.live[id] = struct{}{}
	return true
}

// ReleaseOp gives a claim up. An entry that has not ended is left to whoever
// receives from Leftovers.
func (db *DB) ReleaseOp(id string) {
	db.mu.Lock()
	defer db.mu.Unlock()
	delete(db.live, id)
	if _, ok := db.index.ops.byID[id]; !ok {
		return
	}
	select {
	case db.left <- struct{}{}:
	default: // it has been told already
	}
}

// Leftovers tells, after the fact, that a verb ended and its journal entry did
// not: it could be neither finished nor undone.
func (db *DB) Leftovers() <-chan struct{} { return db.left }

// UnclaimedOps returns the journal entries that nobody works on.
func (db *DB) UnclaimedOps() []Op {
	db.mu.RLock()
	defer db.mu.RUnlock()
	return slices.DeleteFunc(db.index.ops.list(), func(o Op) bool {
		_, taken := db.live[o.ID]
		return taken
	})
}

func byAlias[T any](t *table[T], aliases map[string]string, name string) (T, bool) {
	var none T
	id, ok := aliases[name]
	if !ok {
		return none, false
	}
	v, ok := t.byID[id]
	if !ok {
		return none, false
	}
	return *v, true
}

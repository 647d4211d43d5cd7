package reconcile

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/berth-dev/berth/store"
)

// Places are the directories that have an entry per container.
type Places struct {
	Bundles string            // of the run-time directory
	States  string            // of the state directory
	Runc    map[string]string // state of OCI runtimes, by handler
}

// RootFS is where a container's root file system is mounted.
func (p Places) RootFS(id string) string { return filepath.Join(p.Bundles, id, "rootfs") }

// Observe looks at the places, and at the journal last: what was seen and has
// no entry then is not under way. It may run beside verbs.
func Observe(p Places, journal func() []store.Op) (World, error) {
	w := World{Mounts: map[string]bool{}, Runc: map[string]string{}, Busy: map[string]bool{}}
	var err error
	if w.Bundles, err = idsIn(p.Bundles); err != nil {
		return w, err
	}
	if w.States, err = idsIn(p.States); err != nil {
		return w, err
	}
	for id := range w.Bundles {
		if mounted(p.RootFS(id)) {
			w.Mounts[id] = true
		}
	}
	for handler, root := range p.Runc {
		ids, err := idsIn(root)
		if err != nil {
			return w, err
		}
		for id := range ids {
			if w.Bundles[id] || w.States[id] || p.madeHere(root, id) {
				w.Runc[id] = handler
			}
		}
	}
	for _, o := range journal() {
		w.Busy[o.Subject] = true
	}
	return w, nil
}

// mounted reports whether path is the root of a mount.
func mounted(path string) bool {
	var st unix.Statx_t
	err := unix.Statx(unix.AT_FDCWD, path, unix.AT_SYMLINK_NOFOLLOW, unix.STATX_TYPE, &st)
	return err == nil && st.Attributes&unix.STATX_ATTR_MOUNT_ROOT != 0
}

// idsIn returns the directories that have the name of a container.
func idsIn(dir string) (map[string]bool, error) {
	out := map[string]bool{}
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return out, fmt.Errorf("look for containers: %w", err)
	}
	for _, e := range entries {
		if e.IsDir() && isID(e.Name()) {
			out[e.Name()] = true
		}
	}
	return out, nil
}

// isID reports whether a name is of the form that Berth gives: 64 hex digits.
// Others give such names, too.
func isID(name string) bool {
	if len(name) != 64 {
		return false
	}
	for _, c := range name {
		if (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return false
		}
	}
	return true
}

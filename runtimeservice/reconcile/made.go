package reconcile

import (
	"encoding/json"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

const stateLimit = 4 << 20 // of what an OCI runtime keeps about a container

// madeHere reports whether an OCI runtime says of a container in its root that
// its bundle is, or was, one of these places. The root may be shared with others,
// whose containers have the same sort of names; what can't be read is theirs.
func (p Places) madeHere(root, id string) bool {
	bundle := bundleOf(filepath.Join(root, id))
	if bundle == "" {
		return false
	}
	if bundle == filepath.Join(p.Bundles, id) {
		return true
	}
	// Runtimes note their working directory, which has no symbolic links.
	resolved, err := filepath.EvalSymlinks(p.Bundles)
	return err == nil && bundle == filepath.Join(resolved, id)
}

// bundleOf returns what the state of a container says; "" when it does not.
func bundleOf(dir string) string {
	var runc struct {
		Config struct {
			Labels []string `json:"labels"`
		} `json:"config"`
	}
	if readState(filepath.Join(dir, "state.json"), &runc) {
		// Annotations are labels as well; the runtime's own comes last.
		for _, l := range slices.Backward(runc.Config.Labels) {
			if path, ok := strings.CutPrefix(l, "bundle="); ok {
				return path
			}
		}
	}
	var crun struct {
		Bundle string `json:"bundle"`
	}
	if readState(filepath.Join(dir, "status"), &crun) {
		return crun.Bundle
	}
	return ""
}

func readState(path string, into any) bool {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return false
	}
	defer func() { _ = f.Close() }()
	b, err := io.ReadAll(io.LimitReader(f, stateLimit))
	return err == nil && json.Unmarshal(b, into) == nil
}

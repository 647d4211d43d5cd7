package doctor

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-dev/berth/cri/admin"
	"github.com/berth-dev/berth/store"
)

// settleTime is how long what looks leaked is watched: the kernel, and verbs
// under way, take some things away a moment later.
const settleTime = 5 * time.Second

// FindLeaks compares the node with the records until nothing is leaked, or what
// is has stayed for settleTime.
func FindLeaks(ctx context.Context, n Node) ([]Leak, error) {
	var out []Leak
	first := true
	for end := time.Now().Add(settleTime); ; {
		now, err := n.leaksNow(ctx)
		if err != nil {
			return nil, err
		}
		if out = now; !first {
			out = both(now, out)
		}
		first = false
		if len(out) == 0 || time.Now().After(end) {
			return out, nil
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(settleTime / 10):
		}
	}
}

// leaksNow asks the records before and after it looks: what is made or removed
// meanwhile is in one of the answers.
func (n *Node) leaksNow(ctx context.Context) ([]Leak, error) {
	before, err := n.known(ctx)
	if err != nil {
		return nil, err
	}
	things := n.observe(ctx)
	after, err := n.known(ctx)
	if err != nil {
		return nil, err
	}
	for _, pair := range [][2]map[string]bool{{after.Sandboxes, before.Sandboxes}, {after.Containers, before.Containers}, {after.Busy, before.Busy}} {
		for id, v := range pair[1] {
			pair[0][id] = pair[0][id] || v
		}
	}
	after.Foreign = foreign(things)
	return Leaks(after, things), nil
}

func (n *Node) known(ctx context.Context) (Known, error) {
	k := Known{Sandboxes: map[string]bool{}, Containers: map[string]bool{}, Busy: map[string]bool{}, Alone: alone(int(n.Info.GetPid()))}
	if n.alive() {
		return k, n.askDaemon(ctx, &k)
	}
	return k, n.askDatabase(&k)
}

func (n *Node) askDaemon(ctx context.Context, k *Known) error {
	k.Source = "the daemon"
	pods, err := n.CRI.ListPodSandbox(ctx, &runtimeapi.ListPodSandboxRequest{})
	if err != nil {
		return err
	}
	for _, p := range pods.GetItems() {
		k.Sandboxes[p.GetId()] = true
	}
	cs, err := n.CRI.ListContainers(ctx, &runtimeapi.ListContainersRequest{})
	if err != nil {
		return err
	}
	for _, c := range cs.GetContainers() {
		k.Containers[c.GetId()] = c.GetState() != runtimeapi.ContainerState_CONTAINER_EXITED
	}
	ops, err := n.Admin.Operations(ctx, &admin.OperationsRequest{})
	if err != nil {
		return err
	}
	for _, o := range ops.GetOperations() {
		if time.Since(time.Unix(0, o.GetStartedAt())) < operationAge {
			k.Busy[o.GetSubject()] = true
		}
	}
	return nil
}

// askDatabase reads a copy of the database of a daemon that does not run. A
// directory without one and without objects has no records, so that all is leaked.
// One that can't be read is an error: what its daemon rebuilds it from at its next
// start is not leaked.
func (n *Node) askDatabase(k *Known) error {
	k.Source = "the database"
	if n.CRIErr == nil || n.AdminErr == nil {
		return fmt.Errorf("one of the daemon's sockets does not answer (%w): name both with --address and --admin-address", errors.Join(n.CRIErr, n.AdminErr))
	}
	began := time.Now()
	db, done, err := openCopy(n.root("berth.db"))
	if left, _ := filepath.Glob(n.root("*", "*", "record")); err == nil && db == nil && len(left) > 0 {
		err = fmt.Errorf("%s is gone, and records of %d pods and containers are there", n.root("berth.db"), len(left))
	}
	if err != nil {
		return unreadable(err)
	}
	defer done()
	if db == nil {
		return nil
	}
	for _, q := range db.Quarantined() {
		switch {
		case q.FoundAt.Before(began): // its daemon has settled what became of it
		case q.Bucket == "sandboxes":
			k.Sandboxes[q.Key] = true
		case q.Bucket == "containers":
			k.Containers[q.Key] = true
		case q.Bucket == "ops":
			return unreadable(fmt.Errorf("operation %s: %s", q.Key, q.Reason))
		}
	}
	for _, s := range db.Sandboxes() {
		k.Sandboxes[s.ID] = true
	}
	for _, c := range db.Containers() {
		k.Containers[c.ID] = c.Facts.Exit == nil
	}
	for _, o := range db.Ops() {
		k.Busy[o.Subject] = true
	}
	return nil
}

func unreadable(err error) error {
	return fmt.Errorf("the daemon does not answer, and its records can't be read, so nothing can be told from what is leaked; start it and look again: %w", err)
}

// openCopy opens a copy, so that the original is neither locked nor changed; nil
// without an error when there is no database.
func openCopy(path string) (_ *store.DB, done func(), err error) {
	src, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, func() {}, nil
	}
	if err != nil {
		return nil, nil, err
	}
	defer func() { _ = src.Close() }()
	dir, err := os.MkdirTemp("", "berth-doctor-")
	if err != nil {
		return nil, nil, err
	}
	db, err := copyAndOpen(src, dir)
	if err != nil {
		return nil, nil, errors.Join(err, os.RemoveAll(dir))
	}
	return db, func() { _ = db.Close(); _ = os.RemoveAll(dir) }, nil
}

func copyAndOpen(src io.Reader, dir string) (*store.DB, error) {
	dst, err := os.OpenFile(filepath.Join(dir, "berth.db"), os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	_, err = io.Copy(dst, src)
	if err := errors.Join(err, dst.Close()); err != nil {
		return nil, err
	}
	return store.Open(store.Config{Dir: dir, Copy: true})
}

// foreign finds the owners that containerd, CRI-O or Podman know.
func foreign(things []Thing) map[string]bool {
	owners, out := map[string]bool{}, map[string]bool{}
	for _, t := range things {
		if t.Shared && isID(t.Owner) {
			owners[t.Owner] = true
		}
	}
	for id := range maps.Keys(owners) {
		for _, pattern := range []string{"/run/containerd/io.containerd.*/*/", "/run/containers/storage/overlay-containers/", "/run/docker/containerd/daemon/io.containerd.*/*/"} {
			if found, _ := filepath.Glob(pattern + id); len(found) > 0 {
				out[id] = true
			}
		}
	}
	return out
}

// alone reports whether no berthd but the one with this PID runs.
func alone(pid int) bool {
	procs, _ := filepath.Glob("/proc/[0-9]*/comm")
	for _, p := range procs {
		other, _ := strconv.Atoi(filepath.Base(filepath.Dir(p)))
		if other != pid && strings.HasPrefix(read(p), "berthd") {
			return false
		}
	}
	return true
}

// isID reports whether a name is one that Berth gives: 64 hex digits.
func isID(name string) bool {
	if len(name) != 64 {
		return false
	}
	return strings.Trim(name, "0123456789abcdef") == ""
}

// idIn returns the ID among the parts of a path, the last one.
func idIn(path string) string {
	out := ""
	for part := range strings.SplitSeq(path, "/") {
		if isID(part) {
			out = part
		}
	}
	return out
}

package crash

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"

	"google.golang.org/grpc"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-dev/berth/cri/admin"
)

// damage spoils the image's files, then the index of layers, adds what belongs to
// no object, and has it all repaired: the image is whole afterwards, and nothing
// is left of the bad parts.
func (n *node) damage() {
	t := n.t
	t.Helper()
	layers := n.layers()
	if len(layers) == 0 {
		t.Fatal("the image has no layers")
	}
	must(t, os.WriteFile(filepath.Join(layers[0], "fs", "damage"), nil, 0o600))
	n.check(true)
	if left := n.check(false); len(left) > 0 {
		t.Errorf("damage that a repair has left: %v", left)
	}
	must(t, os.RemoveAll(n.layers()[0]))
	stray := n.h.Dir("state", "layers", strings.Repeat("0", 64))
	must(t, os.MkdirAll(filepath.Join(stray, "fs"), 0o755))
	strays := []string{stray, n.h.Dir("state", "containers", strings.Repeat("1", 64)), n.h.Dir("state", "sandboxes", strings.Repeat("2", 64))}
	for _, dir := range strays[1:] {
		must(t, os.MkdirAll(dir, 0o700))
	}
	n.must("reconcile", func(ctx context.Context) error {
		return n.admin(func(c admin.AdminClient) error {
			_, err := c.Reconcile(ctx, &admin.ReconcileRequest{})
			return err
		})
	})
	for _, dir := range strays {
		if _, err := os.Stat(dir); err == nil {
			t.Errorf("left, although no record has it: %s", dir)
		}
	}
	n.must("look at the image", func(ctx context.Context) error {
		r, err := n.im.ImageStatus(ctx, &runtimeapi.ImageStatusRequest{Image: &runtimeapi.ImageSpec{Image: testImage}})
		if r.GetImage() != nil {
			t.Error("an image that lacks a layer is reported")
		}
		return err
	})
	n.pull()
	for _, dir := range []string{"quarantine", "staging"} {
		files(t, n.h.Dir("state", dir))
	}
}

// layers lists the directories of layers.
func (n *node) layers() (dirs []string) {
	n.t.Helper()
	all, err := filepath.Glob(n.h.Dir("state", "layers", "*"))
	must(n.t, err)
	for _, d := range all {
		if filepath.Base(d) != "empty" {
			dirs = append(dirs, d)
		}
	}
	return dirs
}

// check has the image store checked, and repaired, and returns what is wrong.
func (n *node) check(repair bool) (problems []*admin.ImageProblem) {
	n.t.Helper()
	n.must("check images", func(ctx context.Context) error {
		return n.dialAdmin(func(c *grpc.ClientConn) error {
			events, err := admin.NewImagesClient(c).CheckImages(ctx, &admin.CheckImagesRequest{Repair: repair})
			for err == nil {
				var e *admin.CheckImagesEvent
				if e, err = events.Recv(); e.GetReport() != nil {
					problems = e.GetReport().GetProblems()
				}
			}
			if errors.Is(err, io.EOF) {
				return nil
			}
			return err
		})
	})
	return problems
}

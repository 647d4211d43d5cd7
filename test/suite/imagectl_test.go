package suite

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-dev/berth/test/harness"
)

func imagectlStories() []story {
	return []story{
		{name: "berthctl/images in and out", owned: true, tell: imagesInAndOut},
		{name: "berthctl/images check", owned: true, tell: imagesChecked},
	}
}

// ctl runs berthctl on the node and returns its output.
func (n *node) ctl(t *testing.T, args ...string) (string, error) {
	t.Helper()
	p, err := harness.Find(*binDir)
	must(t, err)
	args = append([]string{"--address", n.own.Dir("run", "berth.sock"), "--admin-address", n.own.Dir("run", "admin.sock")}, args...)
	out, err := n.own.Space().Command(t.Context(), filepath.Join(p.Bin, "berthctl"), args...).CombinedOutput()
	return strings.TrimSpace(string(out)), err
}

func (n *node) mustCtl(t *testing.T, args ...string) string {
	t.Helper()
	out, err := n.ctl(t, args...)
	if err != nil {
		t.Fatalf("berthctl %v: %v\n%s", args, err, out)
	}
	return out
}

func imagesInAndOut(t *testing.T, n *node) {
	n.pull(t, "probe:1") // shares layers
	ref := n.pull(t, "whiteout:1")
	id := n.imageStatus(t, ref).GetId()
	tar := filepath.Join(t.TempDir(), "out.tar")
	n.mustCtl(t, "images", "export", tar, ref)
	n.removeImage(t, ref)
	has(t, "import", n.mustCtl(t, "images", "import", tar), id, ref)
	equal(t, "image of the import", n.imageStatus(t, ref).GetId(), id)
	equal(t, "tag", n.mustCtl(t, "images", "tag", ref, "example.test/other:2"), "example.test/other:2")
	equal(t, "image of the new name", n.imageStatus(t, "example.test/other:2").GetId(), id)
	has(t, "container of the imported image", n.pod(t).output(t, image("whiteout:1"), shell("cat /full/new")), "new")

	dir := n.own.Dir("mnt")
	must(t, os.MkdirAll(dir, 0o755))
	n.mustCtl(t, "images", "mount", id, dir)
	out, err := n.own.Space().Command(t.Context(), "cat", filepath.Join(dir, "data/kept")).Output()
	must(t, err)
	equal(t, "mounted file", string(out), "kept\n")
	var described struct {
		ID      string         `json:"id"`
		Config  map[string]any `json:"config"`
		Layers  []any          `json:"layers"`
		Mounts  []string       `json:"mounts"`
		Storage uint64         `json:"disk_bytes"`
	}
	must(t, json.Unmarshal([]byte(n.mustCtl(t, "images", "inspect", id)), &described))
	if described.ID != id || described.Config["os"] != "linux" || len(described.Layers) != 4 || len(described.Mounts) != 1 || described.Storage == 0 {
		t.Errorf("inspect: %+v", described)
	}
	has(t, "tree", n.mustCtl(t, "images", "tree"), "example.test/other:2", "└─ ", "shared by")
	n.mustCtl(t, "images", "unmount", dir)
	must(t, os.Remove(dir))
	n.removeImage(t, id)
	if out, err := n.ctl(t, "images", "inspect", id); err == nil || !strings.Contains(out, "not found") {
		t.Errorf("inspect of an image that is not there: %v, %s", err, out)
	}
}

func imagesChecked(t *testing.T, n *node) {
	p := n.pod(t)
	c := p.run(t, image("whiteout:1"), probe("sleep"))
	has(t, "check", n.mustCtl(t, "images", "check", "--deep"), ": 0 problems")
	files, err := filepath.Glob(n.own.Dir("state", "layers", "*", "fs", "full", "new"))
	must(t, err)
	if len(files) != 1 {
		t.Fatalf("files %v", files)
	}
	must(t, os.Truncate(files[0], 0))
	if out, err := n.ctl(t, "images", "check"); err == nil || !strings.Contains(out, "full/new has size 0, not 4") {
		t.Errorf("check of a damaged layer: %v\n%s", err, out)
	}
	has(t, "repair", n.mustCtl(t, "images", "check", "--repair"), "put into quarantine", "fetched again")
	has(t, "check", n.mustCtl(t, "images", "check", "--deep"), ": 0 problems")
	equal(t, "the container that runs goes on", c.sh(t, "cat /data/kept"), "kept")
	equal(t, "a new container has the file", strings.TrimSpace(p.output(t, image("whiteout:1"), shell("cat /full/new"))), "new")
	// A program that was emptied: the container does not start, the next one does.
	probes, err := filepath.Glob(n.own.Dir("state", "layers", "*", "fs", "probe"))
	must(t, err)
	for _, f := range probes {
		must(t, os.Truncate(f, 0))
	}
	bad := p.create(t, image("whiteout:1"), probe("sleep"))
	if _, err = n.rt.StartContainer(t.Context(), &runtimeapi.StartContainerRequest{ContainerId: bad.id}); err == nil {
		if s := bad.wait(t); s.GetExitCode() == 0 {
			t.Errorf("an empty program ended well: %v", s)
		} else {
			t.Log("an empty program ends with code", s.GetExitCode(), s.GetReason())
		}
	}
	eventually(t, "the image is whole again", func() bool {
		out, err := n.ctl(t, "images", "check", n.ref("whiteout:1"))
		return err == nil && strings.Contains(out, ": 0 problems")
	})
	has(t, "output", p.output(t, image("whiteout:1"), probe("both")), "to stdout")
	n.mustCtl(t, "images", "check", "--repair")
	c.stop(t, 0)
	c.remove(t)
	bad.remove(t)
	n.mustCtl(t, "gc")
	equal(t, "garbage after a collection", n.mustCtl(t, "gc", "--dry-run", "--all"), "")
}

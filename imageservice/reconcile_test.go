package imageservice

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	rt "github.com/berth-dev/berth/imageservice/registrytest"
	"github.com/berth-dev/berth/store"
)

func TestPlanFiles(t *testing.T) {
	a, b := strings.Repeat("a", 64), strings.Repeat("b", 64)
	records := []store.Layer{{ChainID: "sha256:" + a}, {ChainID: "sha256:" + b}}
	for name, c := range map[string]struct {
		records []store.Layer
		view    fileView
		want    []string
	}{
		"all is well":             {records, fileView{Layers: []string{a, b, "empty"}, Whole: []string{a, b}}, nil},
		"a directory is gone":     {records, fileView{Layers: []string{a}, Whole: []string{a}}, []string{"forget layer sha256:" + b}},
		"its record file is gone": {records, fileView{Layers: []string{a, b}, Whole: []string{b}}, []string{"quarantine layer sha256:" + a}},
		"no record, but in use":   {records[:1], fileView{Layers: []string{a, b}, Whole: []string{a, b}, Used: []string{"sha256:" + b}}, []string{"quarantine files layers/" + b}},
		"no record":               {records[:1], fileView{Layers: []string{a, b}, Whole: []string{a, b}}, []string{"delete files layers/" + b}},
		"staged, idle":            {nil, fileView{Staged: []string{"layer-1", "gone-2"}}, []string{"delete files staging/layer-1", "delete files staging/gone-2"}},
		"staged, busy":            {nil, fileView{Layers: []string{b}, Staged: []string{"layer-1"}, Busy: true}, []string{"delete files layers/" + b}},
	} {
		var got []string
		for _, x := range planFiles(c.records, c.view) {
			got = append(got, x.Do+" "+x.Name)
		}
		if d := cmp.Diff(c.want, got); d != "" {
			t.Errorf("%s: %s", name, d)
		}
	}
}

func TestIntegrationReconcileFiles(t *testing.T) {
	needRoot(t)
	reg := rt.New(t, false)
	threeLayers(t, reg, "app", "v1")
	n := newNode(t, nil)
	img, _ := n.db.Image(n.mustPull(t, reg.Host()+"/app:v1"))
	if got, err := n.Reconcile(t.Context(), false); err != nil || len(got) != 0 {
		t.Fatalf("a whole store: %v, %v", got, err)
	}
	stray, staged, lost := filepath.Join(n.cfg.StateDir, "layers", "stray"), filepath.Join(n.staging(), "layer-1"), n.layerDir(img.Layers[2])
	for _, err := range []error{os.Mkdir(stray, 0o755), os.Mkdir(staged, 0o755), os.RemoveAll(lost)} {
		if err != nil {
			t.Fatal(err)
		}
	}
	if got, err := n.Reconcile(t.Context(), true); err != nil || len(got) != 3 {
		t.Errorf("dry: %v, %v", got, err)
	}
	release := n.lease(nil, imageBlobs(img)) // as a pull does
	if got, err := n.Reconcile(t.Context(), false); err != nil || len(got) != 2 {
		t.Errorf("beside a pull: %v, %v", got, err)
	}
	if _, err := os.Stat(staged); err != nil {
		t.Errorf("what a pull may have staged: %v", err)
	}
	release()
	if got, err := n.Reconcile(t.Context(), false); err != nil || len(got) != 1 {
		t.Errorf("after the pull: %v, %v", got, err)
	}
	left, err := names(n.staging())
	if _, statErr := os.Stat(stray); err != nil || len(left) != 0 || statErr == nil {
		t.Errorf("left: %v, %v", left, err)
	}
	if _, err := n.db.Layer(img.Layers[2]); err == nil {
		t.Error("the record of a lost layer is left")
	}
	n.mustPull(t, reg.Host()+"/app:v1")
	if _, err := os.Stat(lost); err != nil {
		t.Errorf("the next pull: %v", err)
	}
}

// What cannot be done is told with its own reason, and stands in the way of
// nothing else.
func TestIntegrationReconcileGoesOn(t *testing.T) {
	needRoot(t)
	reg := rt.New(t, false)
	threeLayers(t, reg, "app", "v1")
	n := newNode(t, nil)
	img, _ := n.db.Image(n.mustPull(t, reg.Host()+"/app:v1"))
	stray := filepath.Join(n.cfg.StateDir, "layers", strings.Repeat("0", 64))
	for _, err := range []error{os.Mkdir(stray, 0o755), os.RemoveAll(n.layerDir(img.Layers[2])), n.db.Close()} {
		if err != nil {
			t.Fatal(err)
		}
	}
	got, err := n.Reconcile(t.Context(), false) // the store takes no change any more
	if err == nil || len(got) != 2 || got[0].Do != forgetLayer || got[0].Err == nil || got[1].Err != nil {
		t.Errorf("%+v, %v", got, err)
	}
	if _, err := os.Stat(stray); err == nil {
		t.Error("what could be done was not")
	}
}

package migrate

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/berth-dev/berth/cmd/berthctl/migrate/adopt"
	"github.com/berth-dev/berth/cri/admin"
)

// TestFree: what Berth has by a name since is newer than what the old store has.
func TestFree(t *testing.T) {
	known := []*admin.ImageDescription{
		{Id: "sha256:new", RepoTags: []string{"r.test/app:1"}, RepoDigests: []string{"r.test/app@sha256:1"}},
		{Id: "sha256:old", RepoTags: []string{"r.test/app:old"}},
	}
	i := adopt.Image{ID: "sha256:old", Names: []string{"r.test/app:1", "r.test/app:old", "r.test/app:other"}}
	names, taken := free(i, known)
	if !slices.Equal(names, []string{"r.test/app:old", "r.test/app:other"}) || !slices.Equal(taken, []string{"r.test/app:1"}) {
		t.Errorf("free %v, taken %v", names, taken)
	}
	if has(known[1], names) || !has(known[1], names[:1]) || has(nil, nil) {
		t.Error("has")
	}
	if has(&admin.ImageDescription{RepoTags: names, Layers: []*admin.ImageLayer{{ChainId: "sha256:x"}}}, names) {
		t.Error("an image without a layer is whole")
	}
}

func TestImageRoot(t *testing.T) {
	dir := t.TempDir()
	for name, tt := range map[string]struct{ from, text, root string }{
		"containerd default": {"containerd", "version = 2\n", "/var/lib/containerd"},
		"containerd":         {"containerd", "version = 2\nroot = \"/data/c\"\n", "/data/c"},
		"crio default":       {"crio", "[crio.image]\n", "/var/lib/containers/storage"},
		"crio":               {"crio", "[crio]\nroot = \"/data/o\"\n", "/data/o"},
	} {
		file := filepath.Join(dir, name)
		if err := os.WriteFile(file, []byte(tt.text), 0o600); err != nil {
			t.Fatal(err)
		}
		s, err := options{from: tt.from}.source()
		if err != nil {
			t.Fatal(err)
		}
		if root, err := s.imageRoot(file); err != nil || root != tt.root {
			t.Errorf("%s: %q, %v, want %q", name, root, err, tt.root)
		}
	}
	for _, from := range []string{"containerd", "crio"} {
		if _, err := run(t, "check", "--images", "--from", from, "--root", dir); err == nil || !strings.Contains(err.Error(), "no such file") {
			t.Errorf("no store of %s: %v", from, err)
		}
	}
}

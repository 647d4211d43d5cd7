package archive

import (
	"archive/tar"
	"bytes"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

func first(i ocispec.Index) (ocispec.Descriptor, error) {
	if len(i.Manifests) == 0 {
		return ocispec.Descriptor{}, errdefs.ErrNotFound
	}
	return i.Manifests[0], nil
}

func pack(files ...string) []byte {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for i := 0; i < len(files); i += 2 {
		h := &tar.Header{Name: files[i], Size: int64(len(files[i+1])), Typeflag: tar.TypeReg, Mode: 0o644}
		if target, ok := strings.CutPrefix(files[i+1], "-> "); ok {
			h.Typeflag, h.Linkname, h.Size = tar.TypeSymlink, target, 0
		}
		_ = w.WriteHeader(h)
		if h.Size > 0 {
			_, _ = io.WriteString(w, files[i+1])
		}
	}
	_ = w.Close()
	return b.Bytes()
}

func TestReadDocker(t *testing.T) {
	raw := pack("c.json", `{"os":"linux"}`, "l1/layer.tar", "one", "l2/layer.tar", "-> ../l1/layer.tar", "../../etc/passwd", "x",
		"manifest.json", `[{"Config":"c.json","RepoTags":["app:1"],"Layers":["l1/layer.tar","l2/layer.tar"]}]`)
	dir := t.TempDir()
	a, err := Read(t.Context(), bytes.NewReader(raw), dir)
	if err != nil {
		t.Fatal(err)
	}
	imgs, err := a.Images(first)
	if err != nil || len(imgs) != 1 || imgs[0].Names[0] != "app:1" || len(imgs[0].Manifest.Layers) != 2 {
		t.Fatalf("%+v, %v", imgs, err)
	}
	f, err := a.Open(imgs[0].Manifest.Layers[1].Digest)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if got, _ := io.ReadAll(f); string(got) != "one" {
		t.Errorf("a linked layer has %q", got)
	}
	if out, _ := filepath.Glob(filepath.Join(dir, "*")); len(out) != 4 {
		t.Errorf("spooled %v", out)
	}
}

func TestReadRefuses(t *testing.T) {
	d := digest.FromString("right")
	blob := "blobs/sha256/" + d.Encoded()
	for name, tt := range map[string]struct {
		raw []byte
		is  func(error) bool
	}{
		"nothing":       {nil, errdefs.IsInvalidArgument},
		"no tar":        {bytes.Repeat([]byte("x"), 2048), errdefs.IsInvalidArgument},
		"cut":           {pack("index.json", strings.Repeat("x", 5000))[:1500], errdefs.IsInvalidArgument},
		"other files":   {pack("a", "b"), errdefs.IsInvalidArgument},
		"no JSON":       {pack("index.json", "x"), errdefs.IsInvalidArgument},
		"missing blob":  {pack("index.json", `{"manifests":[{"digest":"`+d.String()+`"}]}`), errdefs.IsInvalidArgument},
		"wrong blob":    {pack("index.json", `{"manifests":[{"digest":"`+d.String()+`"}]}`, blob, "wrong"), errdefs.IsDataLoss},
		"path digest":   {pack("index.json", `{"manifests":[{"digest":"sha256:../../x"}]}`), errdefs.IsInvalidArgument},
		"missing layer": {pack("manifest.json", `[{"Config":"c","Layers":["l"]}]`), errdefs.IsInvalidArgument},
	} {
		a, err := Read(t.Context(), bytes.NewReader(tt.raw), t.TempDir())
		if err == nil {
			_, err = a.Images(first)
		}
		if !tt.is(err) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func FuzzRead(f *testing.F) {
	f.Add(pack("index.json", `{"manifests":[{"digest":"`+digest.FromString("x").String()+`"}]}`))
	f.Add(pack("manifest.json", `[{"Config":"c","RepoTags":["a"],"Layers":["l"]}]`, "c", "{}", "l", "-> ../c"))
	f.Fuzz(func(t *testing.T, raw []byte) {
		dir, err := os.MkdirTemp(t.TempDir(), "")
		if err != nil {
			t.Fatal(err)
		}
		a, err := Read(t.Context(), bytes.NewReader(raw), dir)
		if err != nil {
			return
		}
		imgs, err := a.Images(first)
		if err != nil {
			return
		}
		for _, img := range imgs {
			if img.Digest.Algorithm().FromBytes(img.Raw) != img.Digest {
				t.Fatal("a manifest has another digest")
			}
		}
	})
}

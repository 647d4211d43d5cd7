package migrate

import (
	"archive/tar"
	"crypto/rand"
	"runtime"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/berth-dev/berth/test/images"
)

// catalog are images of all kinds that the stores tell apart: media types,
// compressions, links, whiteouts, names that are no UTF-8, and an index.
func catalog(t *testing.T) map[string]any {
	t.Helper()
	noise := make([]byte, 200_000)
	_, _ = rand.Read(noise)
	text := func(name, body string) images.File {
		return images.File{Name: name, Mode: 0o644, Body: []byte(body)}
	}
	dir := func(name string) images.File { return images.File{Name: name, Mode: 0o755, Type: tar.TypeDir} }
	base := []images.File{
		dir("bin"), {Name: "bin/tool", Mode: 0o4755, Body: noise, UID: 7, GID: 8}, {Name: "bin/again", Type: tar.TypeLink, Link: "bin/tool"},
		dir("usr"), dir("usr/lib"), {Name: "lib", Type: tar.TypeSymlink, Link: "/usr/lib"}, text("lib/through-a-link", "x\n"),
		dir("data"), text("data/gone", "gone\n"), text("data/none", ""), text("data/\xff\xfe", "no UTF-8\n"),
		{Name: "data/pipe", Mode: 0o600, Type: tar.TypeFifo},
	}
	build := func(docker bool, how images.Compression, above ...images.File) v1.Image {
		s := images.Spec{Docker: docker, Layers: []images.Layer{{Files: base, Compression: how}}}
		if len(above) > 0 {
			s.Layers = append(s.Layers, images.Layer{Files: above, Compression: how})
		}
		img, err := images.Build(s)
		must(t, err)
		return img
	}
	index := mutate.IndexMediaType(empty.Index, types.OCIImageIndex)
	for _, arch := range []string{"ppc64le", runtime.GOARCH, "riscv64"} {
		img, err := images.Build(images.Spec{Arch: arch, Layers: []images.Layer{{Files: base}, {Files: []images.File{text("arch", arch)}}}})
		must(t, err)
		index = mutate.AppendManifests(index, mutate.IndexAddendum{Add: img, Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: arch}}})
	}
	return map[string]any{
		"docker:1":   build(true, images.Gzip),
		"zstd:1":     build(false, images.Zstd, text("note", "zstd\n")),
		"plain:1":    build(false, images.Plain, text("note", "plain\n")),
		"whiteout:1": build(false, images.Gzip, dir("data"), text("data/.wh.gone", ""), dir("usr"), text("usr/.wh..wh..opq", ""), text("usr/new", "new\n")),
		"multi:1":    index,
		"gone:1":     build(false, images.Gzip, text("note", "gone\n")),
		"bad:1":      build(false, images.Gzip, text("marker", "image\n")),
	}
}

// verdicts are what is to become of them.
func verdicts() map[string]string {
	return map[string]string{
		"docker:1": "adopted", "zstd:1": "adopted", "plain:1": "adopted", "whiteout:1": "adopted", "multi:1": "adopted",
		"gone:1": "left", // a layer is not there
		"bad:1":  "left", // a layer has other bytes
	}
}

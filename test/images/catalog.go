package images

import (
	"archive/tar"
	"fmt"
	"maps"
	"slices"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

const passwd = `root:x:0:0:root:/root:/bin/sh
daemon:x:1:1:daemon:/:/bin/false
alice:x:1000:1000:Alice:/home/alice:/bin/sh
`

const group = `root:x:0:
daemon:x:1:
alice:x:1000:
staff:x:50000:alice
`

// busyboxFiles is a root file system with busybox under all its names, as
// hard links: a mask over one of them must not hide the others.
func busyboxFiles(p Parts) []File {
	files := []File{
		dir("bin", 0o755), dir("etc", 0o755), dir("root", 0o700), dir("home", 0o755),
		{Name: "home/alice", Mode: 0o755, Type: tar.TypeDir, UID: 1000, GID: 1000},
		dir("tmp", 0o1777), dir("var", 0o755), dir("var/run", 0o755),
		dir("proc", 0o555), dir("sys", 0o555), dir("dev", 0o755),
		{Name: "etc/passwd", Mode: 0o644, Body: []byte(passwd)},
		{Name: "etc/group", Mode: 0o644, Body: []byte(group)},
		{Name: "bin/busybox", Mode: 0o755, Body: p.Busybox},
	}
	applets := slices.Sorted(slices.Values(p.Applets))
	for _, a := range applets {
		if a != "busybox" {
			files = append(files, File{Name: "bin/" + a, Mode: 0o755, Type: tar.TypeLink, Link: "bin/busybox"})
		}
	}
	return files
}

func dir(name string, mode int64) File { return File{Name: name, Mode: mode, Type: tar.TypeDir} }

func text(name, body string) File { return File{Name: name, Mode: 0o644, Body: []byte(body)} }

const path = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// Catalog returns every image that the suite pulls, by repository and tag.
// Values are v1.Image or v1.ImageIndex.
//
//	busybox:1      a shell; Docker media types, gzip
//	probe:1        busybox and the probe program, two layers, ENTRYPOINT /probe
//	scratch:1      the probe program alone on an empty root
//	zstd:1 plain:1 as probe:1 with other layer compressions
//	whiteout:1     removes a file and empties a directory of the layer below
//	multi:1        an index; only this machine's platform can run
//	foreign:1      an index without this machine's platform
//	user:1         USER alice by name, in group staff
//	nouser:1       USER of a name that /etc/passwd lacks
//	stopsignal:1   STOPSIGNAL SIGUSR1
//	pause:1        for runtimes that need a process to hold a pod's namespaces
//	bad-digest:1 bad-length:1 bad-cut:1  as probe:1, damaged by the registry
//	artifact:1     no image: the files notes.txt and data/numbers
//	linked:1       symlinks in a layer above others: out -> /etc, up -> ../../etc/passwd
//	bench:1 bench-pull:1  as probe:1, for measurements, which pull and remove them
//	cmd:1          CMD only, no ENTRYPOINT; WORKDIR and ENV set
func Catalog(p Parts) (map[string]any, error) {
	b := builder{p: p, out: map[string]any{}}
	base := busyboxFiles(p)
	probe := []File{{Name: "probe", Mode: 0o755, Body: p.Probe}}
	env := []string{path}
	full := v1.Config{Env: env, Entrypoint: []string{"/probe"}, Cmd: []string{"serve"}}
	two := func(c Compression) []Layer { return []Layer{{base, c}, {probe, c}} }

	b.add("busybox:1", Spec{Docker: true, Layers: []Layer{{base, Gzip}}, Config: v1.Config{Env: env, Cmd: []string{"sh"}}})
	b.add("probe:1", Spec{Layers: two(Gzip), Config: full})
	b.add("scratch:1", Spec{Layers: []Layer{{append(probe, dir("tmp", 0o1777)), Gzip}}, Config: full})
	b.add("zstd:1", Spec{Layers: append(two(Zstd), note("zstd")), Config: full})
	b.add("plain:1", Spec{Layers: append(two(Plain), note("plain")), Config: full})
	b.add("whiteout:1", Spec{Config: full, Layers: append(two(Gzip), whiteouts()...)})
	b.add("user:1", Spec{Layers: two(Gzip), Config: v1.Config{Env: env, Entrypoint: []string{"/probe"}, User: "alice"}})
	b.add("nouser:1", Spec{Layers: two(Gzip), Config: v1.Config{Env: env, Entrypoint: []string{"/probe"}, User: "nobody-here"}})
	for _, name := range []string{"bench", "bench-pull"} {
		b.add(name+":1", Spec{Layers: append(two(Gzip), note(name)), Config: full})
	}
	b.add("stopsignal:1", Spec{Layers: two(Gzip), Config: v1.Config{Env: env, Entrypoint: []string{"/probe"}, Cmd: []string{"signals"}, StopSignal: "SIGUSR1"}})
	b.add("pause:1", Spec{Layers: []Layer{{probe, Gzip}}, Config: v1.Config{Entrypoint: []string{"/probe", "sleep"}}})
	b.add("cmd:1", Spec{Layers: two(Gzip), Config: v1.Config{
		Env: append(env, "FROM_IMAGE=yes", "SHARED=image"), Cmd: []string{"/bin/sh", "-c", "echo from image; pwd; env"}, WorkingDir: "/var/run",
	}})
	b.artifact("artifact:1", map[string]string{"notes.txt": "an artifact\n", "data/numbers": "1 2 3\n"})
	b.add("linked:1", Spec{Config: full, Layers: append(two(Gzip), Layer{Files: []File{link("out", "/etc"), link("up", "../../etc/passwd"), text("etc/marker", "image\n")}})})
	b.index("multi:1", hostArch(), Spec{Layers: append(two(Gzip), note("multi")), Config: full})
	for _, name := range []string{BadDigest, BadLength, BadCut} {
		b.add(name+":1", Spec{Layers: append(two(Gzip), note(name)), Config: full})
	}
	b.index("foreign:1", "s390x", Spec{Layers: []Layer{note("foreign")}, Config: full})
	return b.out, b.err
}

func link(name, target string) File { return File{Name: name, Link: target, Type: tar.TypeSymlink} }

func note(s string) Layer { return Layer{Files: []File{text("note", s+"\n")}} }

// whiteouts are a layer with two directories and one that removes from both.
func whiteouts() []Layer {
	return []Layer{
		{Files: []File{
			dir("data", 0o755), text("data/kept", "kept\n"), text("data/gone", "gone\n"),
			dir("full", 0o755), text("full/old", "old\n"),
		}},
		{Files: []File{
			dir("data", 0o755), text("data/.wh.gone", ""),
			dir("full", 0o755), text("full/.wh..wh..opq", ""), text("full/new", "new\n"),
		}},
	}
}

// builder collects images and the first error.
type builder struct {
	p   Parts
	out map[string]any
	err error
}

func (b *builder) add(name string, s Spec) {
	img, err := Build(s)
	if err != nil && b.err == nil {
		b.err = fmt.Errorf("build %s: %w", name, err)
	}
	b.out[name] = img
}

// artifact adds files as an OCI artifact, each a blob of its own.
func (b *builder) artifact(name string, files map[string]string) {
	img := mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), "application/vnd.berth.test.config.v1+json")
	for _, title := range slices.Sorted(maps.Keys(files)) {
		var err error
		img, err = mutate.Append(img, mutate.Addendum{
			Layer:       static.NewLayer([]byte(files[title]), "text/plain"),
			Annotations: map[string]string{"org.opencontainers.image.title": title},
		})
		if err != nil {
			b.err = fmt.Errorf("build %s: %w", name, err)
			return
		}
	}
	b.out[name] = img
}

// index adds an image list with s for arch and a decoy for two others.
func (b *builder) index(name, arch string, s Spec) {
	idx := mutate.IndexMediaType(empty.Index, types.OCIImageIndex)
	decoy := Spec{Layers: []Layer{note("decoy")}}
	for _, e := range []struct {
		arch string
		spec Spec
	}{{"ppc64le", decoy}, {arch, s}, {"riscv64", decoy}} {
		e.spec.Arch = e.arch
		img, err := Build(e.spec)
		if err != nil {
			b.err = fmt.Errorf("build %s for %s: %w", name, e.arch, err)
			return
		}
		idx = mutate.AppendManifests(idx, mutate.IndexAddendum{
			Add:        img,
			Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: e.arch}},
		})
	}
	b.out[name] = idx
}

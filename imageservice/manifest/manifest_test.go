package manifest

import (
	"path"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

const sha = "sha256:0123456789012345678901234567890123456789012345678901234567890123"

func TestParse(t *testing.T) {
	layer := `{"mediaType":"x","digest":"` + sha + `","size":1}`
	for name, tt := range map[string]struct {
		raw, served string
		is          func(error) bool
	}{
		"manifest without a type": {`{"schemaVersion":2,"config":` + layer + `,"layers":[]}`, "", nil},
		"docker":                  {`{"schemaVersion":2,"mediaType":"` + dockerManifest + `","config":` + layer + `,"layers":[` + layer + `]}`, "", nil},
		"docker list":             {`{"schemaVersion":2,"manifests":[` + layer + `]}`, dockerList, nil},
		"schema 1":                {`{"schemaVersion":1}`, "", errdefs.IsNotImplemented},
		"html":                    {`<html>`, "", errdefs.IsInvalidArgument},
		"empty":                   {``, "", errdefs.IsInvalidArgument},
		"nothing known":           {`{"schemaVersion":2}`, "text/plain", errdefs.IsNotImplemented},
		"both":                    {`{"manifests":[],"layers":[]}`, "", errdefs.IsInvalidArgument},
		"path as digest":          {`{"schemaVersion":2,"config":{"digest":"sha256:../../etc","size":1}}`, "", errdefs.IsInvalidArgument},
		"negative size":           {`{"schemaVersion":2,"config":{"digest":"` + sha + `","size":-1}}`, "", errdefs.IsInvalidArgument},
		"too many layers": {`{"schemaVersion":2,"config":` + layer + `,"layers":[` + strings.TrimSuffix(strings.Repeat(layer+",", MaxLayers+1), ",") + `]}`,
			"", errdefs.IsResourceExhausted},
	} {
		_, err := Parse([]byte(tt.raw), tt.served)
		if tt.is == nil && err != nil || tt.is != nil && !tt.is(err) {
			t.Errorf("%s: got %v", name, err)
		}
	}
}

func TestSelect(t *testing.T) {
	at := func(arch, variant string) ocispec.Descriptor {
		return ocispec.Descriptor{ArtifactType: arch + variant, Platform: &ocispec.Platform{OS: "linux", Architecture: arch, Variant: variant}}
	}
	index := ocispec.Index{Manifests: []ocispec.Descriptor{at("amd64", ""), at("arm", "v6"), at("arm", "v7"), at("unknown", "")}}
	got, err := Select(index, platforms.Only(ocispec.Platform{OS: "linux", Architecture: "arm", Variant: "v7"}))
	if err != nil || got.ArtifactType != "armv7" {
		t.Errorf("got %v, %v", got.ArtifactType, err)
	}
	if _, err := Select(index, platforms.Only(ocispec.Platform{OS: "linux", Architecture: "riscv64"})); !errdefs.IsNotFound(err) {
		t.Errorf("got %v", err)
	}
}

func TestParseConfigCountsLayers(t *testing.T) {
	m := ocispec.Manifest{Layers: make([]ocispec.Descriptor, 2)}
	_, err := ParseConfig([]byte(`{"os":"linux","rootfs":{"diff_ids":["`+sha+`"]}}`), m)
	if !errdefs.IsInvalidArgument(err) {
		t.Errorf("got %v", err)
	}
}

func TestArtifact(t *testing.T) {
	blob := func(mt, title string) ocispec.Descriptor {
		d := ocispec.Descriptor{MediaType: mt, Digest: sha}
		if title != "" {
			d.Annotations = map[string]string{ocispec.AnnotationTitle: title}
		}
		return d
	}
	m := ocispec.Manifest{Config: ocispec.Descriptor{MediaType: "application/vnd.oci.empty.v1+json"}, ArtifactType: "application/x.chart", Layers: []ocispec.Descriptor{
		blob("text/plain", "dir/./notes.txt"), blob("text/plain", "../../etc/passwd"), blob("text/plain", ""), blob("text/plain", "/abs"),
		blob("text/plain", strings.Repeat("x", 300)), blob(ocispec.MediaTypeImageLayerGzip, "model"), blob("text/plain", "..."), blob("text/plain", "a\nb"),
	}}
	byDigest := strings.Replace(sha, ":", "-", 1)
	want := []string{"dir/notes.txt", byDigest, byDigest, byDigest, byDigest, "", "...", byDigest}
	img, err := ParseConfig([]byte("{}"), m)
	if err != nil || img.Artifact != "application/x.chart" {
		t.Fatalf("%v, %v", img, err)
	}
	seen := map[string]bool{}
	for i, l := range img.Layers {
		if l.File != want[i] {
			t.Errorf("blob %d becomes %q, want %q", i, l.File, want[i])
		}
		if seen[l.ChainID.String()] {
			t.Errorf("blob %d has the chain ID of another", i)
		}
		seen[l.ChainID.String()] = true
	}
	m.ArtifactType = ""
	if img, err = ParseConfig([]byte("not JSON"), m); err != nil || img.Artifact != m.Config.MediaType {
		t.Errorf("%v, %v", img, err)
	}
	m.Config.MediaType = ocispec.MediaTypeImageConfig
	if _, err = ParseConfig([]byte("{}"), m); !errdefs.IsInvalidArgument(err) {
		t.Errorf("image without diff IDs: %v", err)
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(`{"schemaVersion":2,"config":{"digest":"`+sha+`"},"layers":[]}`), "")
	f.Add([]byte(`{"manifests":[{"digest":"`+sha+`"}]}`), dockerList)
	f.Fuzz(func(t *testing.T, raw []byte, served string) {
		p, err := Parse(raw, served)
		if err == nil && (p.Index == nil) == (p.Manifest == nil) {
			t.Fatal("neither or both")
		}
		if err == nil && p.Index != nil {
			_, _ = Select(*p.Index, platforms.Default())
		}
	})
}

func FuzzParseConfig(f *testing.F) {
	f.Add([]byte(`{"os":"linux","rootfs":{"diff_ids":["` + sha + `"]}}`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		for _, config := range []string{ocispec.MediaTypeImageConfig, "application/x.chart"} {
			m := ocispec.Manifest{Config: ocispec.Descriptor{MediaType: config}, Layers: make([]ocispec.Descriptor, 1)}
			m.Layers[0].Annotations = map[string]string{ocispec.AnnotationTitle: string(raw)}
			m.Layers[0].Digest = sha
			img, err := ParseConfig(raw, m)
			if err != nil {
				continue
			}
			if len(img.Layers) != 1 || img.Layers[0].ChainID.Validate() != nil {
				t.Fatalf("layers %v", img.Layers)
			}
			if f := img.Layers[0].File; f != "" && (!filepath.IsLocal(f) || path.Clean(f) != f) {
				t.Fatalf("file %q", f)
			}
		}
	})
}

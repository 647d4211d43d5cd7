package manifest

import (
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
		img, err := ParseConfig(raw, ocispec.Manifest{Layers: make([]ocispec.Descriptor, 1)})
		if err == nil && len(img.ChainIDs) != 1 {
			t.Fatal("layers and chain IDs differ")
		}
	})
}

package image

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-dev/berth/cmd/berthctl/cli"
	"github.com/berth-dev/berth/cri/admin"
	"github.com/berth-dev/berth/test/golden"
)

var (
	now = time.Unix(1_700_000_000, 0)
	id  = strings.Repeat("0123456789abcdef", 4)
)

func TestImages(t *testing.T) {
	r := &runtimeapi.ListImagesResponse{Images: []*runtimeapi.Image{
		{Id: "sha256:" + id, Size: 1536, RepoTags: []string{"docker.io/library/busybox:1", "example.test/b:2"}, RepoDigests: []string{"docker.io/library/busybox@sha256:" + id}, Pinned: true},
		{Id: "sha256:" + strings.Repeat("f", 64), Size: 5 << 20},
	}}
	golden.Outputs(t, "images", func(output string, out *bytes.Buffer) error {
		a := &cli.App{Output: output}
		return a.Show(out, r, imageTable(a, r.GetImages()))
	})
}

func TestTree(t *testing.T) {
	r := &admin.DescribeImagesResponse{Images: []*admin.ImageDescription{{Id: "sha256:" + id, RepoTags: []string{"r.test/app:1"}, PulledAt: now.Add(-time.Hour).UnixNano(), DiskBytes: 3 << 20,
		Layers: []*admin.ImageLayer{{ChainId: "sha256:" + id, DiffId: "sha256:" + id, Bytes: 1 << 20, Images: 2}, {ChainId: "sha256:" + strings.Repeat("e", 64)}}}}}
	golden.Outputs(t, "tree", func(output string, out *bytes.Buffer) error {
		a := &cli.App{Output: output}
		return a.Show(out, r, cli.Table{Rows: treeRows(a, r.GetImages(), now)})
	})
}

func someLayers() []*admin.LayerUse {
	chain := func(c string) string { return "sha256:" + strings.Repeat(c, 64) }
	layer := func(c, parent string, size uint64) *admin.ImageLayer {
		if parent != "" {
			parent = chain(parent)
		}
		return &admin.ImageLayer{ChainId: chain(c), Parent: parent, Blob: chain("f"), Bytes: size << 20, Inodes: 3, UnpackedAt: now.Add(-time.Hour).UnixNano()}
	}
	return []*admin.LayerUse{
		{Layer: layer("a", "", 10), Images: []string{"sha256:1", "sha256:2"}, Containers: []string{"c1"}},
		{Layer: layer("b", "a", 1), Images: []string{"sha256:1"}},
		{Layer: layer("c", "a", 2), Images: []string{"sha256:2"}, Containers: []string{"c1"}},
		{Layer: layer("d", "b", 4), Images: []string{"sha256:1"}},
		{Layer: layer("e", "0", 8), Orphan: true},
	}
}

func TestLayers(t *testing.T) {
	all := someLayers()
	golden.Outputs(t, "layers", func(output string, out *bytes.Buffer) error {
		a := &cli.App{Output: output}
		return a.Show(out, &admin.ListLayersResponse{Layers: all}, layerTable(a, all, now))
	})
	var b bytes.Buffer
	a := &cli.App{Output: "table"}
	if err := a.Show(&b, nil, cli.Table{Header: "LAYER SIZE IMAGES CONTAINERS", Rows: layerTree(a, all)}); err != nil {
		t.Fatal(err)
	}
	golden.Compare(t, "layer-tree.table", b.String())
	golden.Outputs(t, "usage", func(output string, out *bytes.Buffer) error {
		a := &cli.App{Output: output}
		return a.Show(out, usageOf(all), usageOf(all).table())
	})
}

func TestContent(t *testing.T) {
	r := &admin.ListContentResponse{Blobs: []*admin.Blob{{Digest: "sha256:" + id, Bytes: 1536, Kind: "manifest", Images: []string{"sha256:1"}}, {Digest: "sha256:ff", Kind: "unknown", Orphan: true}}}
	golden.Outputs(t, "content", func(output string, out *bytes.Buffer) error {
		return (&cli.App{Output: output}).Show(out, r, contentTable(r.GetBlobs()))
	})
}

// TestInspected: the configuration is a document and sizes are numbers.
func TestInspected(t *testing.T) {
	b, err := inspected(&admin.ImageDescription{Id: "sha256:" + id, DiskBytes: 5, Config: []byte(`{"os":"linux"}`)})
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	if err := (&cli.App{}).ShowDocument(&out, b); err != nil {
		t.Fatal(err)
	}
	var got struct {
		ID     string            `json:"id"`
		Config map[string]string `json:"config"`
		Bytes  uint64            `json:"disk_bytes"`
	}
	if err := json.Unmarshal(out.Bytes(), &got); err != nil || got.ID != "sha256:"+id || got.Config["os"] != "linux" || got.Bytes != 5 {
		t.Errorf("%v, %+v\n%s", err, got, &out)
	}
}

package image

import (
	"cmp"
	"fmt"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"github.com/berth-dev/berth/cmd/berthctl/cli"
	"github.com/berth-dev/berth/cri/admin"
)

func layers(a *cli.App) *cobra.Command {
	list := func(use, short string, show func(*cobra.Command, []*admin.LayerUse) error) *cobra.Command {
		return imagesAPI(a, use, short, cobra.NoArgs, func(c *cobra.Command, cl admin.ImagesClient, _ []string) error {
			r, err := cl.ListLayers(c.Context(), &admin.ListLayersRequest{})
			if err != nil {
				return err
			}
			return show(c, r.GetLayers())
		})
	}
	return cli.Group("layers", "Unpacked layers of images",
		list("ls", "List layers, the oldest first", func(c *cobra.Command, all []*admin.LayerUse) error {
			return a.Show(c.OutOrStdout(), &admin.ListLayersResponse{Layers: all}, layerTable(a, all, time.Now()))
		}),
		list("orphans", "List layers that nothing needs; `berthctl gc` deletes them", func(c *cobra.Command, all []*admin.LayerUse) error {
			all = slices.DeleteFunc(all, func(u *admin.LayerUse) bool { return !u.GetOrphan() })
			if len(all) == 0 && !a.Structured() {
				return nil
			}
			return a.Show(c.OutOrStdout(), &admin.ListLayersResponse{Layers: all}, layerTable(a, all, time.Now()))
		}),
		list("tree", "Layers on top of those they stand on", func(c *cobra.Command, all []*admin.LayerUse) error {
			return a.Show(c.OutOrStdout(), &admin.ListLayersResponse{Layers: all}, cli.Table{Header: "LAYER SIZE IMAGES CONTAINERS", Rows: layerTree(a, all)})
		}),
		list("usage", "What layers take on disk, and who shares it", func(c *cobra.Command, all []*admin.LayerUse) error {
			u := usageOf(all)
			return a.Show(c.OutOrStdout(), u, u.table())
		}))
}

func layerTable(a *cli.App, all []*admin.LayerUse, now time.Time) cli.Table {
	t := cli.Table{Header: "ID SIZE FILES AGE IMAGES CONTAINERS STATE PARENT BLOB", Wide: 2}
	for _, u := range all {
		l := u.GetLayer()
		state := "used"
		if u.GetOrphan() {
			state = "orphan"
		}
		t.Rows = append(t.Rows, []string{a.ID(l.GetChainId()), cli.Bytes(l.GetBytes()), fmt.Sprint(l.GetInodes()), cli.Age(l.GetUnpackedAt(), now),
			fmt.Sprint(len(u.GetImages())), fmt.Sprint(len(u.GetContainers())), state, l.GetParent(), l.GetBlob()})
	}
	return t
}

// layerTree draws each layer below the one it stands on. A layer whose parent
// is not there begins a tree of its own.
func layerTree(a *cli.App, all []*admin.LayerUse) (rows [][]string) {
	below := map[string][]*admin.LayerUse{}
	known := map[string]bool{"": true}
	for _, u := range all {
		known[u.GetLayer().GetChainId()] = true
	}
	for _, u := range all {
		parent := u.GetLayer().GetParent()
		if !known[parent] {
			parent = ""
		}
		below[parent] = append(below[parent], u)
	}
	var draw func(parent, indent string)
	draw = func(parent, indent string) {
		kids := below[parent]
		for i, u := range kids {
			l := u.GetLayer()
			branch, deeper := cli.Branch(i, len(kids)), "│  "
			if i == len(kids)-1 {
				deeper = "   "
			}
			if parent == "" {
				branch, deeper = "", ""
			}
			rows = append(rows, []string{indent + branch + a.ID(l.GetChainId()), cli.Bytes(l.GetBytes()), fmt.Sprint(len(u.GetImages())), fmt.Sprint(len(u.GetContainers()))})
			draw(l.GetChainId(), indent+deeper)
		}
	}
	draw("", "")
	return rows
}

// usage sums up what layers take.
type usage struct {
	Layers      int        `json:"layers"`
	Bytes       uint64     `json:"bytes"`
	SharedBytes uint64     `json:"sharedBytes"` // of layers that more than one image has
	OrphanBytes uint64     `json:"orphanBytes"` // of layers that nothing needs
	Images      []imageUse `json:"images"`      // the largest first
}

// imageUse is what an image takes.
type imageUse struct {
	ID       string `json:"id"`
	Bytes    uint64 `json:"bytes"`
	OwnBytes uint64 `json:"ownBytes"` // what would be free without it
}

func usageOf(all []*admin.LayerUse) usage {
	u := usage{Layers: len(all), Images: []imageUse{}}
	images := map[string]*imageUse{}
	for _, l := range all {
		n := l.GetLayer().GetBytes()
		u.Bytes += n
		if len(l.GetImages()) > 1 {
			u.SharedBytes += n
		}
		if l.GetOrphan() {
			u.OrphanBytes += n
		}
		for _, id := range l.GetImages() {
			if images[id] == nil {
				images[id] = &imageUse{ID: id}
			}
			images[id].Bytes += n
			if len(l.GetImages()) == 1 {
				images[id].OwnBytes += n
			}
		}
	}
	for _, i := range images {
		u.Images = append(u.Images, *i)
	}
	slices.SortFunc(u.Images, func(x, y imageUse) int { return cmp.Or(cmp.Compare(y.Bytes, x.Bytes), cmp.Compare(x.ID, y.ID)) })
	return u
}

func (u usage) table() cli.Table {
	t := cli.Table{Header: "IMAGE SIZE OWN"}
	for _, i := range u.Images {
		t.Rows = append(t.Rows, []string{cli.Short(i.ID), cli.Bytes(i.Bytes), cli.Bytes(i.OwnBytes)})
	}
	t.Rows = append(t.Rows, []string{"all layers", cli.Bytes(u.Bytes), ""}, []string{"shared", cli.Bytes(u.SharedBytes), ""}, []string{"orphans", cli.Bytes(u.OrphanBytes), ""})
	return t
}

func content(a *cli.App) *cobra.Command {
	ls := imagesAPI(a, "ls", "List blobs that are kept as they were fetched", cobra.NoArgs, func(c *cobra.Command, cl admin.ImagesClient, _ []string) error {
		r, err := cl.ListContent(c.Context(), &admin.ListContentRequest{})
		if err != nil {
			return err
		}
		return a.Show(c.OutOrStdout(), r, contentTable(r.GetBlobs()))
	})
	ls.Long = "List blobs that are kept as they were fetched: manifests and configurations of images, and with image.keep_blobs their\npacked layers."
	return cli.Group("content", "Content as registries have it", ls)
}

func contentTable(all []*admin.Blob) cli.Table {
	t := cli.Table{Header: "DIGEST SIZE KIND IMAGES STATE"}
	for _, b := range all {
		state := "used"
		if b.GetOrphan() {
			state = "orphan"
		}
		t.Rows = append(t.Rows, []string{b.GetDigest(), cli.Bytes(b.GetBytes()), b.GetKind(), fmt.Sprint(len(b.GetImages())), state})
	}
	return t
}

package adopt

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"

	"github.com/berth-dev/berth/imageservice/manifest"
)

// CRI-O's store is that of containers/storage, with the driver overlay:
//
//	overlay-images/images.json, overlay-images/ID/NAME   manifests, configurations
//	overlay-layers/layers.json, overlay-layers/ID.tar-split.gz
//	overlay/ID/diff                                      a layer's files
//
// Packed layers are not kept. A layer's tar is made again of its files and of
// tar-split's notes of all that is not in them.
type containers struct {
	root   string
	images []storedImage
	layers map[string]storedLayer
}

type storedImage struct {
	ID       string   `json:"id"`
	Digest   string   `json:"digest"`
	Names    []string `json:"names"`
	TopLayer string   `json:"layer"`
	BigData  []string `json:"big-data-names"`
}

type storedLayer struct {
	ID         string `json:"id"`
	Parent     string `json:"parent"`
	DiffDigest string `json:"diff-digest"`
}

func openContainers(root string) (Store, error) {
	c := &containers{root: root, layers: map[string]storedLayer{}}
	if err := readJSON(filepath.Join(root, "overlay-images", "images.json"), &c.images); err != nil {
		return nil, fmt.Errorf("CRI-O's store: %w", err)
	}
	var layers []storedLayer
	if err := readJSON(filepath.Join(root, "overlay-layers", "layers.json"), &layers); err != nil {
		return nil, fmt.Errorf("CRI-O's store: %w", err)
	}
	for _, l := range layers {
		c.layers[l.ID] = l
	}
	return c, nil
}

func readJSON(file string, into any) error {
	raw, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(raw, into); err != nil {
		return fmt.Errorf("%s: %w: %w", file, err, errdefs.ErrDataLoss)
	}
	return nil
}

// Close implements Store.
func (c *containers) Close() error { return nil }

// Images implements Store.
func (c *containers) Images() ([]Image, error) {
	var out []Image
	for _, s := range c.images {
		own := stored{c, s}
		var found byTop
		for _, name := range s.Names {
			found.add(name, own.top(name), false)
		}
		out = append(out, found.list(own.fill)...)
	}
	slices.SortFunc(out, func(x, y Image) int { return strings.Compare(x.Names[0], y.Names[0]) })
	return out, nil
}

// stored is one image of the store.
type stored struct {
	*containers
	img storedImage
}

// top is what a name stands for: the digest it says, when the image was pulled by
// that, or the image's own.
func (s stored) top(name string) digest.Digest {
	if _, said, ok := strings.Cut(name, "@"); ok && slices.Contains(s.img.BigData, "manifest-"+said) {
		return digest.Digest(said)
	}
	return digest.Digest(s.img.Digest)
}

// document implements blobs.
func (s stored) document(d digest.Digest) ([]byte, error) {
	names := []string{"manifest-" + d.String(), d.String()}
	if d.String() == s.img.Digest {
		names = append(names, "manifest")
	}
	for _, name := range names {
		raw, err := readDocument(filepath.Join(s.root, "overlay-images", s.img.ID, bigDataFile(name)))
		if !errors.Is(err, fs.ErrNotExist) {
			return raw, err
		}
	}
	return nil, fmt.Errorf("%s is not among what the store keeps of the image", d)
}

// bigDataFile is the file that a piece of an image is kept in.
func bigDataFile(name string) string {
	for _, c := range name {
		if c != '.' && (c < '0' || c > '9') && (c < 'a' || c > 'z') {
			return "=" + base64.StdEncoding.EncodeToString([]byte(name))
		}
	}
	return name
}

// fill finds an image's documents and layers.
func (s stored) fill(img *Image) error {
	wanted, parsed, err := img.resolve(s)
	if err != nil {
		return err
	}
	if parsed.Artifact != "" {
		return fmt.Errorf("it is an artifact (%s)", parsed.Artifact)
	}
	chain, err := s.chain()
	if err != nil {
		return err
	}
	if len(chain) != len(wanted) {
		return fmt.Errorf("the store has %d layers for it, its manifest %d", len(chain), len(wanted))
	}
	for n, id := range chain {
		l := parsed.Layers[n]
		if have := s.layers[id].DiffDigest; have != "" && have != l.DiffID.String() {
			return fmt.Errorf("layer %s of the store has the diff ID %s, the configuration says %s", id, have, l.DiffID)
		}
		size, err := s.tarSize(id)
		if err != nil {
			return fmt.Errorf("layer %s cannot be made again: %w", id, err)
		}
		img.Layers = append(img.Layers, Layer{
			ChainID: l.ChainID, digest: l.DiffID, size: size, open: func() (io.ReadCloser, error) { return s.tar(id), nil },
		})
	}
	return nil
}

// chain lists the layers below and with the topmost, bottom first.
func (s stored) chain() ([]string, error) {
	var out []string
	for id := s.img.TopLayer; id != ""; {
		l, ok := s.layers[id]
		if !ok || !filepath.IsLocal(id) {
			return nil, fmt.Errorf("layer %q is not in layers.json: %w", id, errdefs.ErrDataLoss)
		}
		if out = append(out, id); len(out) > manifest.MaxLayers {
			return nil, fmt.Errorf("more than %d layers: %w", manifest.MaxLayers, errdefs.ErrDataLoss)
		}
		id = l.Parent
	}
	slices.Reverse(out)
	return out, nil
}

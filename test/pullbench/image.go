package main

import (
	"archive/tar"
	"bufio"
	"compress/gzip"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// shape is one layer: how many files of which mean size, and how many big ones.
type shape struct {
	files, meanKiB int
	big, bigMiB    int
}

// shapes are eleven layers of about 2.6 GB and 110,000 files in sum at scale 1: a
// base, packages of small files, and a few big binaries and models.
var shapes = []shape{
	{files: 6000, meanKiB: 12, big: 2, bigMiB: 20}, {files: 20000, meanKiB: 9}, {files: 14000, meanKiB: 14, big: 1, bigMiB: 60},
	{big: 2, bigMiB: 220}, {files: 24000, meanKiB: 7}, {files: 300, meanKiB: 30}, {files: 16000, meanKiB: 16, big: 3, bigMiB: 40},
	{big: 1, bigMiB: 420}, {files: 22000, meanKiB: 10}, {files: 50, meanKiB: 4}, {files: 8000, meanKiB: 20, big: 1, bigMiB: 120},
}

// image is what generate leaves in its directory: blobs by digest and a
// description.
type image struct {
	Manifest digest.Digest
	Layers   []ocispec.Descriptor
	Plain    int64 // bytes of all tars
}

func (i image) packed() (n int64) {
	for _, l := range i.Layers {
		n += l.Size
	}
	return n
}

// generate makes the image in dir, or finds what an earlier run made there.
// The same scale gives the same bytes on every machine.
func generate(dir string, scale float64) (image, error) {
	dir = filepath.Join(dir, fmt.Sprintf("image-%g", scale))
	var img image
	if raw, err := os.ReadFile(filepath.Join(dir, "image.json")); err == nil {
		return img, json.Unmarshal(raw, &img)
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return img, err
	}
	layers := make([]made, len(shapes))
	errs := make([]error, len(shapes))
	var wg sync.WaitGroup
	slots := make(chan struct{}, 2)
	for i, s := range shapes {
		wg.Go(func() {
			slots <- struct{}{}
			defer func() { <-slots }()
			layers[i], errs[i] = makeLayer(dir, i, s, scale)
		})
	}
	wg.Wait()
	c := ocispec.Image{Platform: ocispec.Platform{OS: "linux", Architecture: "amd64"}}
	c.RootFS.Type = "layers"
	m := ocispec.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest}
	for i, l := range layers {
		if errs[i] != nil {
			return img, errs[i]
		}
		c.RootFS.DiffIDs = append(c.RootFS.DiffIDs, l.diffID)
		m.Layers = append(m.Layers, l.desc)
		img.Plain += l.plain
	}
	var err error
	if m.Config, err = putJSON(dir, ocispec.MediaTypeImageConfig, c); err != nil {
		return img, err
	}
	top, err := putJSON(dir, m.MediaType, m)
	if err != nil {
		return img, err
	}
	img.Manifest, img.Layers = top.Digest, m.Layers
	raw, err := json.Marshal(img)
	if err != nil {
		return img, err
	}
	return img, os.WriteFile(filepath.Join(dir, "image.json"), raw, 0o644)
}

func putJSON(dir, mediaType string, v any) (ocispec.Descriptor, error) {
	raw, err := json.Marshal(v)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	d := digest.FromBytes(raw)
	return ocispec.Descriptor{MediaType: mediaType, Digest: d, Size: int64(len(raw))}, os.WriteFile(filepath.Join(dir, d.Encoded()), raw, 0o644)
}

type made struct {
	desc   ocispec.Descriptor
	diffID digest.Digest
	plain  int64
}

func makeLayer(dir string, n int, s shape, scale float64) (made, error) {
	tmp, err := os.CreateTemp(dir, "layer-")
	if err != nil {
		return made{}, err
	}
	defer tmp.Close()
	packedSum, plainSum := sha256.New(), sha256.New()
	buf := bufio.NewWriterSize(io.MultiWriter(tmp, packedSum), 1<<20)
	gz := gzip.NewWriter(buf)
	count := &counting{}
	tw := tar.NewWriter(io.MultiWriter(gz, plainSum, count))
	if err := fill(tw, newContent(uint64(n)), n, s, scale); err != nil {
		return made{}, err
	}
	for _, c := range []func() error{tw.Close, gz.Close, buf.Flush} {
		if err := c(); err != nil {
			return made{}, err
		}
	}
	info, err := tmp.Stat()
	if err != nil {
		return made{}, err
	}
	d := digest.NewDigest(digest.SHA256, packedSum)
	return made{
		desc:   ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayerGzip, Digest: d, Size: info.Size()},
		diffID: digest.NewDigest(digest.SHA256, plainSum), plain: count.n,
	}, os.Rename(tmp.Name(), filepath.Join(dir, d.Encoded()))
}

type counting struct{ n int64 }

func (c *counting) Write(p []byte) (int, error) { c.n += int64(len(p)); return len(p), nil }

func fill(tw *tar.Writer, c *content, n int, s shape, scale float64) error {
	add := func(name string, size int64) error {
		if err := tw.WriteHeader(&tar.Header{Name: name, Mode: 0o644, Size: size, Typeflag: tar.TypeReg}); err != nil {
			return err
		}
		return c.copyTo(tw, size)
	}
	files := int(float64(s.files) * scale)
	for i := range files {
		if i%40 == 0 {
			dir := fmt.Sprintf("usr/lib/part%d/d%d/", n, i/40)
			if err := tw.WriteHeader(&tar.Header{Name: dir, Mode: 0o755, Typeflag: tar.TypeDir}); err != nil {
				return err
			}
		}
		size := int64(c.rnd.ExpFloat64() * float64(s.meanKiB) * 1024)
		if err := add(fmt.Sprintf("usr/lib/part%d/d%d/file-%d.txt", n, i/40, i), min(size, 4<<20)); err != nil {
			return err
		}
	}
	for i := range s.big {
		if err := add(fmt.Sprintf("opt/part%d/big-%d.bin", n, i), int64(float64(s.bigMiB)*scale*(1<<20))); err != nil {
			return err
		}
	}
	return nil
}

// content is a stream of bytes that packs about as well as real images do:
// stretches of text, of records and of noise.
type content struct {
	rnd   *rand.Rand
	words [][]byte
	buf   []byte
}

func newContent(seed uint64) *content {
	c := &content{rnd: rand.New(rand.NewPCG(seed, 7))}
	for range 4000 {
		w := make([]byte, 2+c.rnd.IntN(9))
		for i := range w {
			w[i] = byte('a' + c.rnd.IntN(26))
		}
		c.words = append(c.words, append(w, ' '))
	}
	return c
}

func (c *content) copyTo(w io.Writer, size int64) error {
	for size > 0 {
		if len(c.buf) == 0 {
			c.refill()
		}
		n := min(size, int64(len(c.buf)))
		if _, err := w.Write(c.buf[:n]); err != nil {
			return err
		}
		c.buf, size = c.buf[n:], size-n
	}
	return nil
}

func (c *content) refill() {
	const stretch = 8 << 10
	var b []byte
	switch k := c.rnd.IntN(100); {
	case k < 14:
		for len(b) < stretch {
			v := c.rnd.Uint64()
			b = append(b, byte(v), byte(v>>8), byte(v>>16), byte(v>>24), byte(v>>32), byte(v>>40), byte(v>>48), byte(v>>56))
		}
	case k < 55:
		for len(b) < stretch {
			// Squared: some words are much more frequent than others.
			f := c.rnd.Float64()
			b = append(b, c.words[int(f*f*f*float64(len(c.words)))]...)
		}
	default:
		rec := make([]byte, 24)
		for len(b) < stretch {
			for range 3 {
				rec[c.rnd.IntN(len(rec))] = byte(c.rnd.IntN(64))
			}
			b = append(b, rec...)
		}
	}
	c.buf = b
}

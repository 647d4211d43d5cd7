package imageservice

import (
	"fmt"
	"os"
	"testing"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	rt "github.com/berth-dev/berth/imageservice/registrytest"
	"github.com/berth-dev/berth/store"
)

// BenchmarkPull pulls an image of four layers with 1000 small files and one
// large one each (about 45 MB unpacked), from a registry on loopback.
func BenchmarkPull(b *testing.B) {
	if os.Getuid() != 0 {
		b.Skip("needs root: unpacks layers")
	}
	reg := rt.New(b, false)
	var layers []rt.Layer
	var size int64
	for l := range 4 {
		var files []rt.File
		for i := range 1000 {
			files = append(files, file(fmt.Sprintf("l%d/d%d/f%d", l, i%20, i), noise(3000)))
		}
		plain := rt.Tar(b, append(files, file(fmt.Sprintf("l%d/big", l), noise(8<<20)))...)
		size += int64(len(plain))
		layers = append(layers, rt.Pack(b, plain, "gzip"))
	}
	reg.Push(b, "app", "v1", ocispec.ImageConfig{}, layers...)
	b.SetBytes(size)
	for b.Loop() {
		b.StopTimer()
		dir := b.TempDir()
		db, err := store.Open(store.Config{Dir: dir})
		if err != nil {
			b.Fatal(err)
		}
		s, err := New(Config{StateDir: dir, Platform: "linux/amd64"}, db)
		if err != nil {
			b.Fatal(err)
		}
		n := &node{Service: s}
		b.StartTimer()
		if _, err := n.tryPull(reg.Host()+"/app:v1", nil); err != nil {
			b.Fatal(err)
		}
		b.StopTimer()
		db.Close()
		b.StartTimer()
	}
}

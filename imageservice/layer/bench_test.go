package layer

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"testing"
)

// BenchmarkUnpack unpacks a layer of a thousand files of 4 KiB and one of
// 16 MiB, packed with gzip.
func BenchmarkUnpack(b *testing.B) {
	needRoot(b)
	var packed bytes.Buffer
	gz := gzip.NewWriter(&packed)
	tw := tar.NewWriter(gz)
	size := int64(0)
	add := func(name string, n int) {
		body := bytes.Repeat([]byte(name), n/len(name)+1)[:n]
		if err := tw.WriteHeader(&tar.Header{Name: name, Mode: 0o644, Size: int64(n), Typeflag: tar.TypeReg}); err != nil {
			b.Fatal(err)
		}
		if _, err := tw.Write(body); err != nil {
			b.Fatal(err)
		}
		size += int64(n)
	}
	for i := range 1000 {
		add(fmt.Sprintf("usr/share/d%d/file%d", i/40, i), 4<<10)
	}
	add("usr/lib/big", 16<<20)
	if err := tw.Close(); err != nil {
		b.Fatal(err)
	}
	if err := gz.Close(); err != nil {
		b.Fatal(err)
	}
	dir := b.TempDir()
	b.SetBytes(size)
	b.ReportAllocs()
	n := 0
	for b.Loop() {
		to := filepath.Join(dir, fmt.Sprint(n))
		n++
		if err := os.Mkdir(to, 0o755); err != nil {
			b.Fatal(err)
		}
		r, err := Unpack(context.Background(), bytes.NewReader(packed.Bytes()), Options{Dir: to})
		if err != nil || r.Inodes < 1001 {
			b.Fatalf("%d inodes, %v", r.Inodes, err)
		}
		b.StopTimer()
		if err := os.RemoveAll(to); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
	}
}

package adopt

import (
	"fmt"
	"math/rand"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	"go.etcd.io/bbolt"
	"golang.org/x/sys/unix"
)

// storeOf makes a store of containerd whose names stand for these digests; for
// an empty one the record says nothing.
func storeOf(t *testing.T, names map[string]digest.Digest) (root, file string) {
	t.Helper()
	root = t.TempDir()
	file = filepath.Join(root, metaDB)
	must(t, os.MkdirAll(filepath.Dir(file), 0o755))
	must(t, os.MkdirAll(filepath.Join(root, contentDir, "sha256"), 0o755))
	db, err := bbolt.Open(file, 0o600, &bbolt.Options{NoFreelistSync: true}) // as containerd does
	must(t, err)
	must(t, db.Update(func(tx *bbolt.Tx) error {
		b, err := tx.CreateBucket([]byte("v1"))
		for _, n := range []string{namespace, "images"} {
			must(t, err)
			b, err = b.CreateBucket([]byte(n))
		}
		must(t, err)
		for name, d := range names {
			img, err := b.CreateBucket([]byte(name))
			must(t, err)
			if d == "" {
				continue
			}
			target, err := img.CreateBucket([]byte("target"))
			must(t, err)
			must(t, target.Put([]byte("digest"), []byte(d)))
		}
		return nil
	}))
	must(t, db.Close())
	return root, file
}

// TestDamagedDatabase: whatever a bad disk made of containerd's database, its
// reader says so, or finds what is left.
func TestDamagedDatabase(t *testing.T) {
	names := map[string]digest.Digest{}
	for i := range 200 {
		names[fmt.Sprintf("r.test/app:%d", i)] = digest.FromString(fmt.Sprint(i))
	}
	root, file := storeOf(t, names)
	whole, err := os.ReadFile(file)
	must(t, err)
	const pages = 4 * 4096 // the database begins with two of meta data
	failed := 0
	for seed := range int64(60) {
		raw, r := slices.Clone(whole), rand.New(rand.NewSource(seed))
		if seed%3 == 0 {
			raw = raw[:pages+r.Intn(len(raw)-pages)]
		}
		for range 20 {
			raw[pages/2+r.Intn(len(raw)-pages/2)] = byte(r.Int())
		}
		must(t, os.WriteFile(file, raw, 0o600))
		s, err := Open("containerd", root)
		if err == nil {
			_, err = s.Images()
			must(t, s.Close())
		}
		if err != nil {
			failed++
			if !strings.Contains(err.Error(), file) {
				t.Errorf("%v: does not name %s", err, file)
			}
		}
	}
	if failed == 0 {
		t.Error("no damage was noticed")
	}
}

// TestOneBadRecord: what is wrong with one image is no matter of the others.
func TestOneBadRecord(t *testing.T) {
	pipe := digest.FromString("pipe")
	root, _ := storeOf(t, map[string]digest.Digest{"r.test/a:1": "", "r.test/b:1": pipe, "r.test/c:1": "sha256:../../../../etc/passwd"})
	must(t, unix.Mkfifo(filepath.Join(root, contentDir, "sha256", pipe.Encoded()), 0o600)) // nobody writes to it
	s, err := Open("containerd", root)
	must(t, err)
	defer s.Close()
	images, err := s.Images()
	must(t, err)
	for n, says := range []string{"record is damaged", "is no file", "digest"} {
		if !strings.Contains(images[n].Reason, says) {
			t.Errorf("%v: %q, want %q", images[n].Names, images[n].Reason, says)
		}
	}
}

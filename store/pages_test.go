package store

import (
	"bytes"
	"math/rand"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	bolt "go.etcd.io/bbolt"
)

// page returns the page with that number in a database file.
func page(b []byte, id uint64) []byte { return b[id*uint64(os.Getpagesize()):] }

func metaOf(t *testing.T, b []byte) meta {
	t.Helper()
	m, err := newestMeta(b)
	must(t, err)
	return m
}

// newerMeta is the number of the meta page that counts.
func newerMeta(t *testing.T, b []byte) uint64 {
	t.Helper()
	first, err := readMeta(b, 0)
	must(t, err)
	if metaOf(t, b).tx == first.tx {
		return 0
	}
	return 1
}

// replaceAll replaces bytes wherever they are, in pages that are in use and others.
func replaceAll(t *testing.T, file, from, to string) {
	t.Helper()
	b := slurp(t, file)
	got := bytes.ReplaceAll(b, []byte(from), []byte(to))
	if len(from) != len(to) || bytes.Equal(b, got) {
		t.Fatalf("%q is not in %s", from, file)
	}
	write(t, file, got)
}

// TestPagesOfALivedDatabase looks at databases of many shapes, which bbolt finds whole.
func TestPagesOfALivedDatabase(t *testing.T) {
	t.Run("list of free pages", func(t *testing.T) { livedPages(t, nil) })
	t.Run("no list", func(t *testing.T) { livedPages(t, &bolt.Options{NoFreelistSync: true}) }) // as containerd's
}

func livedPages(t *testing.T, options *bolt.Options) {
	file := filepath.Join(t.TempDir(), "x.db")
	db, err := bolt.Open(file, 0o600, options)
	must(t, err)
	defer db.Close()
	r := rand.New(rand.NewSource(1))
	for round := range 40 {
		must(t, db.Update(func(tx *bolt.Tx) error {
			for _, name := range []string{"few", "many", "long"} {
				b, err := tx.CreateBucketIfNotExists([]byte(name))
				must(t, err)
				inner, err := b.CreateBucketIfNotExists([]byte("~"))
				must(t, err)
				size := map[string]int{"few": 3, "many": 1500, "long": 10}[name]
				for range 1 + r.Intn(size) {
					key := []byte(testID(r.Intn(size)))
					if r.Intn(3) == 0 {
						must(t, b.Delete(key))
						continue
					}
					must(t, b.Put(key, make([]byte, r.Intn(map[string]int{"few": 9, "many": 200, "long": 40000}[name]))))
					must(t, inner.Put(key[60:], key))
				}
			}
			return nil
		}))
		must(t, db.View(func(tx *bolt.Tx) error {
			for err := range tx.Check() {
				if options == nil { // else pages that are free look lost to it
					t.Error(round, err)
				}
			}
			return walk(slurp(t, file))
		}))
	}
	must(t, db.Close())
	must(t, CheckPages(file, time.Second))
}

// TestFlippedBits flips single bits of a database all over, one at a time: each
// time all records are there, whatever else the bit costs.
func TestFlippedBits(t *testing.T) {
	dir, want := lived(t)
	file := filepath.Join(dir, "berth.db")
	whole := slurp(t, file)
	end := int(metaOf(t, whole).end) * os.Getpagesize()
	tried, rebuilt, step := 0, 0, 997
	if s, err := strconv.Atoi(os.Getenv("BERTH_BITS")); err == nil {
		step = s
	}
	for at := 0; at < end*8; at += step {
		tried++
		b := bytes.Clone(whole)
		b[at/8] ^= 1 << (at % 8)
		write(t, file, b)
		db, err := Open(Config{Dir: dir, BackupEvery: time.Hour})
		if err != nil {
			t.Fatalf("bit %d of byte %d: %v", at%8, at/8, err)
		}
		expect(t, db, want)
		if n := len(db.Quarantined()); n > 0 || t.Failed() {
			t.Fatalf("bit %d of byte %d: quarantined %v", at%8, at/8, db.Quarantined())
		}
		must(t, db.bolt.Close())
		must(t, db.lock.release())
		db.bolt = nil
		kept, err := filepath.Glob(file + ".damaged-*")
		must(t, err)
		rebuilt += len(kept)
		for _, k := range kept {
			must(t, os.Remove(k))
		}
	}
	if rebuilt == 0 {
		t.Error("no bit cost the database")
	}
	t.Logf("%d bits, %d of them cost the database", tried, rebuilt)
}

// TestUnreadableIsNotDamaged: somebody else's lock or rights are no reason to rebuild.
func TestUnreadableIsNotDamaged(t *testing.T) {
	dir, _ := lived(t)
	file := filepath.Join(dir, "berth.db")
	before := slurp(t, file)
	other, err := bolt.Open(file, 0o600, nil)
	must(t, err)
	defer other.Close()
	if _, err := Open(Config{Dir: dir, LockTimeout: 20 * time.Millisecond}); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("a database that another program has open: %v", err)
	}
	if kept, _ := filepath.Glob(file + ".damaged-*"); len(kept) > 0 || !bytes.Equal(before, slurp(t, file)) {
		t.Error("it was set aside")
	}
}

// TestDamageUnderTheDaemon damages the database of a process that has it open and
// catches panics, as the daemon does: it ends, and the next start rebuilds it.
func TestDamageUnderTheDaemon(t *testing.T) {
	if dir := os.Getenv("BERTH_TEST_DAMAGE"); dir != "" {
		db, err := Open(Config{Dir: dir, BackupEvery: time.Hour})
		must(t, err)
		defer func() { t.Log("caught:", recover()) }()
		commit := func(n int) error { return db.Commit(t.Context(), Change{PutImages: []Image{image(n)}}) }
		must(t, commit(9))
		f, err := os.OpenFile(db.path, os.O_RDWR, 0)
		must(t, err)
		b := slurp(t, db.path)
		_, err = f.WriteAt([]byte{kindFree}, int64(metaOf(t, b).root)*int64(os.Getpagesize())+8)
		must(t, err)
		t.Log("committed:", commit(10))
		return
	}
	dir, want := lived(t)
	child := exec.Command(os.Args[0], "-test.run=^TestDamageUnderTheDaemon$", "-test.v")
	child.Env = append(os.Environ(), "BERTH_TEST_DAMAGE="+dir)
	if out, err := child.CombinedOutput(); err == nil || !strings.Contains(string(out), "after a panic in a transaction") {
		t.Errorf("it went on: %v\n%s", err, out)
	}
	want.PutImages = append(want.PutImages, image(9))
	expect(t, openTest(t, dir), want)
	if kept, _ := filepath.Glob(filepath.Join(dir, "*.damaged-*")); len(kept) != 1 {
		t.Errorf("set aside: %v", kept)
	}
}

// TestPanicOfACaller: a panic that is not the database's is the caller's.
func TestPanicOfACaller(t *testing.T) {
	db := openTest(t, t.TempDir())
	func() {
		defer func() {
			if recover() != "mine" {
				t.Error("no panic")
			}
		}()
		_ = db.update(func(*bolt.Tx) error { panic("mine") })
	}()
	mustCommit(t, db, Change{PutSandboxes: []Sandbox{sandbox(1)}})
}

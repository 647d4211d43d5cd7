package store

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	bolt "go.etcd.io/bbolt"
)

// lived makes a state directory as a node leaves it: objects with directories
// of their own, a layer, and a container that is only being made.
func lived(t *testing.T) (dir string, want Change) {
	t.Helper()
	dir = t.TempDir()
	layer := Layer{ChainID: "sha256:" + testID(6), DiffID: "sha256:d", UsageBytes: 9, UnpackedAt: epoch}
	want = Change{
		PutSandboxes:  []Sandbox{sandbox(1), sandbox(2)},
		PutContainers: []Container{container(3, 1), container(4, 2)},
		PutImages:     []Image{image(5, "docker.io/library/a:1")},
		PutLayers:     []Layer{layer},
	}
	for _, d := range []string{"sandboxes/" + testID(1), "sandboxes/" + testID(2), "containers/" + testID(3),
		"containers/" + testID(4), "containers/" + testID(9), "layers/" + testID(6), "layers/empty", "containers/other"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	raw, err := json.Marshal(struct{ Layer Layer }{layer})
	if err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(dir, "layers", testID(6), "layer.json"), raw)
	db := openTest(t, dir)
	mustCommit(t, db, Change{PutSandboxes: []Sandbox{sandbox(7)}, PutImages: []Image{image(8)}})
	mustCommit(t, db, want)
	mustCommit(t, db, Change{DeleteSandboxes: []string{testID(7)}, DeleteImages: []string{image(8).ID}})
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	return dir, want
}

func write(t *testing.T, file string, b []byte) {
	t.Helper()
	if err := os.WriteFile(file, b, 0o600); err != nil {
		t.Fatal(err)
	}
}

func slurp(t *testing.T, file string) []byte {
	t.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func expect(t *testing.T, db *DB, want Change) {
	t.Helper()
	d := diff(want.PutSandboxes, db.Sandboxes()) + diff(want.PutContainers, db.Containers()) +
		diff(want.PutImages, db.Images()) + diff(want.PutLayers, db.Layers())
	if d != "" {
		t.Error(d)
	}
}

// TestLostDatabaseIsRebuilt loses the database in every way there is.
func TestLostDatabaseIsRebuilt(t *testing.T) {
	for name, spoil := range map[string]func(t *testing.T, file string){
		"garbage":   func(t *testing.T, file string) { write(t, file, bytes.Repeat([]byte("garbage!"), 4096)) },
		"cut short": func(t *testing.T, file string) { write(t, file, slurp(t, file)[:12288]) },
		"zeroed":    func(t *testing.T, file string) { b := slurp(t, file); clear(b[8192:]); write(t, file, b) },
		"emptied":   func(t *testing.T, file string) { write(t, file, nil) },
		"gone":      func(t *testing.T, file string) { must(t, os.Remove(file)) },
		"half a life": func(t *testing.T, file string) {
			b := slurp(t, file)
			clear(b[len(b)/2:])
			clear(b[:8192])
			write(t, file, b)
		},
		"a new one": func(t *testing.T, file string) {
			must(t, os.Remove(file))
			db, err := bolt.Open(file, 0o600, nil)
			must(t, err)
			must(t, db.Close())
		},
		"a lost bucket": func(t *testing.T, file string) {
			db, err := bolt.Open(file, 0o600, nil)
			must(t, err)
			must(t, db.Update(func(tx *bolt.Tx) error { return tx.DeleteBucket([]byte(bucketNames)) }))
			must(t, db.Close())
		},
		"one page": func(t *testing.T, file string) { write(t, file, slurp(t, file)[:os.Getpagesize()]) },
		"a page less": func(t *testing.T, file string) {
			b := slurp(t, file)
			write(t, file, b[:(metaOf(t, b).end-1)*uint64(os.Getpagesize())])
		},
		"a damaged meta page": func(t *testing.T, file string) { // the other one is of the transaction before
			b := slurp(t, file)
			page(b, newerMeta(t, b))[40] ^= 1
			write(t, file, b)
		},
		"no list of free pages": func(t *testing.T, file string) {
			b := slurp(t, file)
			clear(page(b, metaOf(t, b).freelist)[:64])
			write(t, file, b)
		},
		"a page in use is listed as free": func(t *testing.T, file string) {
			b := slurp(t, file)
			m := metaOf(t, b)
			order.PutUint64(page(b, m.freelist)[16:], m.root)
			write(t, file, b)
		},
		"a page far away": func(t *testing.T, file string) { // reading it ends a program that does not expect it
			b := slurp(t, file)
			root := page(b, metaOf(t, b).root)
			first := 16 + order.Uint32(root[20:]) + order.Uint32(root[24:]) // of the buckets' elements: its value
			order.PutUint64(root[first:], 1<<40)
			write(t, file, b)
		},
		"a page written to another place": func(t *testing.T, file string) {
			b := slurp(t, file)
			copy(page(b, metaOf(t, b).root), bytes.Clone(page(b, metaOf(t, b).freelist)[:os.Getpagesize()]))
			write(t, file, b)
		},
		"a damaged key": func(t *testing.T, file string) {
			replaceAll(t, file, testID(3)+"\x01", testID(0xf3)+"\x01") // the record follows
		},
		"a damaged key of an image": func(t *testing.T, file string) {
			replaceAll(t, file, image(5).ID+"\x01", image(0xf5).ID+"\x01")
		},
		"a damaged name": func(t *testing.T, file string) {
			replaceAll(t, file, "pod1_ns_uid1_0"+testID(1), "pod1_ns_uid1_0"+testID(0xf1))
		},
		"a newer schema that is none": func(t *testing.T, file string) { replaceAll(t, file, "schema1", "schema9") },
		"a damaged name of a bucket":  func(t *testing.T, file string) { replaceAll(t, file, "meta", "mftb") },
	} {
		t.Run(name, func(t *testing.T) {
			dir, want := lived(t)
			file := filepath.Join(dir, "berth.db")
			spoil(t, file)
			spoiled, _ := os.ReadFile(file)
			db := openTest(t, dir)
			expect(t, db, want)
			again := sandbox(1)
			again.ID = testID(11)
			if err := db.Commit(t.Context(), Change{PutSandboxes: []Sandbox{again}}); !errdefs.IsAlreadyExists(err) {
				t.Error("unique names are lost:", err)
			}
			if len(db.Quarantined()) != 0 {
				t.Error(db.Quarantined())
			}
			kept, err := filepath.Glob(file + ".damaged-*")
			must(t, err)
			if (len(kept) == 1) != (len(spoiled) > 0) {
				t.Fatalf("set aside: %v", kept)
			}
			if len(kept) == 1 && !bytes.Equal(slurp(t, kept[0]), spoiled) {
				t.Error("the damaged database was changed")
			}
			db = reopen(t, db, dir)
			expect(t, db, want)
		})
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// TestDamagedKeyOfAnEarlierRecord has records that do not repeat their ID: the
// unique names show it.
func TestDamagedKeyOfAnEarlierRecord(t *testing.T) {
	dir, want := lived(t)
	db := openTest(t, dir)
	must(t, db.bolt.Update(func(tx *bolt.Tx) error {
		for _, c := range want.PutContainers {
			config, err := encodeProto(c.Config)
			must(t, err)
			record, err := sealWith(config, containerJSON{SandboxID: c.SandboxID, Facts: c.Facts})
			must(t, err)
			must(t, tx.Bucket([]byte(bucketContainers)).Put([]byte(c.ID), record))
		}
		return nil
	}))
	db = reopen(t, db, dir)
	expect(t, db, want)
	must(t, db.Close())
	if kept, _ := filepath.Glob(filepath.Join(dir, "*.damaged-*")); len(kept) > 0 {
		t.Error("an earlier version's database was set aside")
	}
	replaceAll(t, filepath.Join(dir, "berth.db"), testID(3)+"\x01", testID(0xf3)+"\x01")
	expect(t, openTest(t, dir), want)
}

// TestRebuildWithBadRecords loses records together with the database: the
// backup serves, and what it lacks is quarantined alone.
func TestRebuildWithBadRecords(t *testing.T) {
	dir, want := lived(t)
	late := container(12, 1) // younger than the backup
	must(t, os.MkdirAll(filepath.Join(dir, "containers", late.ID), 0o700))
	backup := slurp(t, filepath.Join(dir, "berth.db.backup"))
	db := openTest(t, dir)
	mustCommit(t, db, Change{PutContainers: []Container{late}})
	must(t, db.Close())
	write(t, filepath.Join(dir, "berth.db.backup"), backup)
	must(t, os.Remove(filepath.Join(dir, "berth.db")))
	torn := func(path ...string) {
		file := filepath.Join(append([]string{dir}, path...)...)
		write(t, file, slurp(t, file)[:20])
	}
	torn("sandboxes", testID(1), "record")
	torn("containers", late.ID, "record")
	torn("layers", testID(6), "layer.json")
	must(t, os.Remove(filepath.Join(dir, "containers", testID(3), "record")))
	must(t, os.Rename(filepath.Join(dir, "containers", testID(4)), filepath.Join(dir, "gone"))) // removed since the backup
	want.PutContainers = want.PutContainers[:1]
	db = openTest(t, dir)
	expect(t, db, want)
	bad := db.Quarantined()
	if len(bad) != 1 || bad[0].Name() != "containers/"+late.ID || bad[0].Reason == "" || len(bad[0].Data) != 20 {
		t.Errorf("quarantined: %+v", bad)
	}
}

// TestBackupThatIsDamagedIsNotUsed needs a record that only the backup has. The
// daemon starts without it.
func TestBackupThatIsDamagedIsNotUsed(t *testing.T) {
	for name, spoil := range map[string]func(t *testing.T, file string){
		"half a life": func(t *testing.T, file string) { b := slurp(t, file); clear(b[len(b)/2:]); write(t, file, b) },
		"cut short":   func(t *testing.T, file string) { b := slurp(t, file); write(t, file, b[:len(b)/2]) },
		"a page less": func(t *testing.T, file string) { b := slurp(t, file); write(t, file, b[:len(b)-os.Getpagesize()]) },
		"one page":    func(t *testing.T, file string) { write(t, file, slurp(t, file)[:os.Getpagesize()]) },
		"a page far away": func(t *testing.T, file string) {
			b := slurp(t, file)
			root := page(b, metaOf(t, b).root)
			order.PutUint64(root[16+order.Uint32(root[20:])+order.Uint32(root[24:]):], 1<<40)
			write(t, file, b)
		},
		"a damaged record": func(t *testing.T, file string) {
			record, err := sandboxCodec().encode(sandbox(1))
			must(t, err)
			replaceAll(t, file, string(record[:9]), string(record[:8])+"?")
		},
		"another's record": func(t *testing.T, file string) { // a record of 2 where 1 was
			one, err := sandboxCodec().encode(sandbox(1))
			must(t, err)
			two, err := sandboxCodec().encode(sandbox(2))
			must(t, err)
			replaceAll(t, file, string(one), string(two))
		},
		"emptied": func(t *testing.T, file string) { write(t, file, nil) },
		"gone":    func(t *testing.T, file string) { must(t, os.Remove(file)) },
	} {
		t.Run(name, func(t *testing.T) {
			dir, want := lived(t)
			spoil(t, filepath.Join(dir, "berth.db.backup"))
			must(t, os.Remove(filepath.Join(dir, "berth.db")))
			write(t, filepath.Join(dir, "sandboxes", testID(1), "record"), nil)
			db := openTest(t, dir)
			want.PutSandboxes = want.PutSandboxes[1:]
			expect(t, db, want)
			if q := db.Quarantined(); len(q) != 1 || q[0].Name() != "sandboxes/"+testID(1) {
				t.Error(q)
			}
		})
	}
}

// TestBackupIsTakenAfterAChange waits for the one that a change arms, and
// looks whether an idle database makes another.
func TestBackupIsTakenAfterAChange(t *testing.T) {
	dir := t.TempDir()
	db, err := Open(Config{Dir: dir, BackupEvery: time.Millisecond})
	must(t, err)
	file := filepath.Join(dir, "berth.db.backup")
	mustCommit(t, db, Change{PutSandboxes: []Sandbox{sandbox(1)}})
	for end := time.Now().Add(30 * time.Second); ; time.Sleep(time.Millisecond) {
		if _, err := os.Stat(file); err == nil {
			break
		}
		if time.Now().After(end) {
			t.Fatal("no backup")
		}
	}
	must(t, db.Close())
	must(t, readOnly(file, func(tx *bolt.Tx) error {
		if tx.Bucket([]byte(bucketSandboxes)).Get([]byte(testID(1))) == nil {
			t.Error("the backup lacks the change")
		}
		return nil
	}))
	must(t, os.Remove(file))
	db = openTest(t, dir)
	must(t, db.Close())
	if _, err := os.Stat(file); err == nil {
		t.Error("a backup without a change")
	}
}

// TestNewerRecordsAreRefused lets no older Berth rebuild what a newer one wrote.
func TestNewerRecordsAreRefused(t *testing.T) {
	dir, _ := lived(t)
	m := mirror{dir: dir, schema: schemaVersion + 1}
	k := objectKey{bucketSandboxes, testID(1)}
	data, err := m.wrap(k, []byte("?"))
	must(t, err)
	must(t, m.write(k, m.path(k), data))
	file := filepath.Join(dir, "berth.db")
	write(t, file, []byte("garbage"))
	if _, err := Open(Config{Dir: dir}); !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), "run the newer Berth") {
		t.Errorf("got %v", err)
	}
	if string(slurp(t, file)) != "garbage" || !bytes.Equal(slurp(t, m.path(k)), data) {
		t.Error("something was changed")
	}
}

// TestBadRecordIsHealed damages records in the database: the copies in the
// objects' directories take their place.
func TestBadRecordIsHealed(t *testing.T) {
	dir, want := lived(t)
	db := openTest(t, dir)
	must(t, db.bolt.Update(func(tx *bolt.Tx) error {
		return errors.Join(
			tx.Bucket([]byte(bucketContainers)).Put([]byte(testID(3)), []byte("bad")),
			tx.Bucket([]byte(bucketLayers)).Put([]byte("sha256:"+testID(6)), []byte("bad")),
		)
	}))
	must(t, db.Close())
	must(t, os.Remove(filepath.Join(dir, "containers", testID(4), "record"))) // made anew, too
	for range 2 {
		db = openTest(t, dir)
		expect(t, db, want)
		if len(db.Quarantined()) != 0 {
			t.Error(db.Quarantined())
		}
		must(t, db.Close())
	}
	if _, _, err := db.files.read(objectKey{bucketContainers, testID(4)}); err != nil {
		t.Error(err)
	}
}

func TestQuarantine(t *testing.T) {
	dir := t.TempDir()
	db := openTest(t, dir)
	q := func(id string) Quarantined {
		return Quarantined{Bucket: "layers", Key: id, Reason: "lost", FoundAt: epoch}
	}
	mustCommit(t, db, Change{Quarantine: []Quarantined{q("sha256:ab1"), q("sha256:ab2"), q("sha256:c")}})
	mustCommit(t, db, Change{Quarantine: []Quarantined{q("sha256:c")}}) // once
	for _, tc := range []struct {
		name string
		is   func(error) bool
	}{
		{"sha256:ab", errdefs.IsInvalidArgument}, {"", errdefs.IsNotFound}, {"layers/sha256:a", errdefs.IsNotFound},
		{"sha256:ab1", func(err error) bool { return err == nil }},
	} {
		if err := db.DropQuarantined(t.Context(), tc.name); !tc.is(err) {
			t.Errorf("drop %q: %v", tc.name, err)
		}
	}
	db = reopen(t, db, dir)
	mustCommit(t, db, Change{PutLayers: []Layer{{ChainID: "sha256:c"}}}) // is well again
	for range 2 {
		if d := diff([]Quarantined{q("sha256:ab2")}, db.Quarantined()); d != "" {
			t.Error(d)
		}
		db = reopen(t, db, dir)
	}
}

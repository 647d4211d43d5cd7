package store

import (
	"bytes"
	"encoding/json"
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

func TestBackupThatIsDamagedIsNotUsed(t *testing.T) {
	dir, want := lived(t)
	b := slurp(t, filepath.Join(dir, "berth.db.backup"))
	clear(b[len(b)/2:])
	write(t, filepath.Join(dir, "berth.db.backup"), b)
	must(t, os.Remove(filepath.Join(dir, "berth.db")))
	write(t, filepath.Join(dir, "sandboxes", testID(1), "record"), nil)
	db := openTest(t, dir)
	want.PutSandboxes = want.PutSandboxes[1:]
	expect(t, db, want)
	if len(db.Quarantined()) != 1 {
		t.Error(db.Quarantined())
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

// TestBadRecordIsHealed damages a record in the database: the copy in the
// object's directory takes its place.
func TestBadRecordIsHealed(t *testing.T) {
	dir, want := lived(t)
	db := openTest(t, dir)
	must(t, db.bolt.Update(func(tx *bolt.Tx) error {
		return tx.Bucket([]byte(bucketContainers)).Put([]byte(testID(3)), []byte("bad"))
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

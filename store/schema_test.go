package store

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	bolt "go.etcd.io/bbolt"
)

// TestFixtures opens a database of every schema version there has been, as the
// Berth of that time wrote it. Whoever raises schemaVersion adds one.
func TestFixtures(t *testing.T) {
	for v := 1; v <= schemaVersion; v++ {
		t.Run(fmt.Sprint("schema ", v), func(t *testing.T) {
			dir := t.TempDir()
			write(t, filepath.Join(dir, "berth.db"), slurp(t, fmt.Sprintf("testdata/schema%d.db", v)))
			db := openTest(t, dir)
			for range 2 {
				expect(t, db, Change{PutSandboxes: []Sandbox{sandbox(1)}, PutContainers: []Container{container(2, 1)},
					PutImages: []Image{image(3, "r/x:1")}, PutLayers: []Layer{}})
				db = reopen(t, db, dir)
			}
			h, _, err := readSchema(db.bolt)
			must(t, err)
			if h.version != schemaVersion {
				t.Errorf("schema is %d", h.version)
			}
		})
	}
}

// TestMigrationFromFixture lifts testdata/schema1.db, which schema 1 wrote,
// with a migration made for the test.
func TestMigrationFromFixture(t *testing.T) {
	fixture, err := os.ReadFile("testdata/schema1.db")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	file := filepath.Join(dir, "berth.db")
	if err := os.WriteFile(file, fixture, 0o600); err != nil {
		t.Fatal(err)
	}
	fails := schema{version: 3, migrations: []migration{{1, func(tx *bolt.Tx) error { return tx.DeleteBucket([]byte(bucketLayers)) }}}}
	if _, err := open(Config{Dir: dir}, fails); !errdefs.IsFailedPrecondition(err) {
		t.Fatalf("gap in the migrations: %v", err)
	}
	db := openTest(t, dir) // a failed migration leaves the old version, whole
	if d := diff(db.Sandboxes(), []Sandbox{sandbox(1)}) + diff(db.Containers(), []Container{container(2, 1)}) + diff(db.Images(), []Image{image(3, "r/x:1")}); d != "" {
		t.Error(d)
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	rename := migration{1, func(tx *bolt.Tx) error {
		s := sandbox(1)
		s.Handler = "migrated"
		return putRecord(tx, sandboxCodec(), s)
	}}
	write(t, file+".schema-1", fixture[:len(fixture)/2]) // a power cut had left half of the copy
	db, err = open(Config{Dir: dir, Version: "new"}, schema{version: 2, migrations: []migration{rename}})
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	if s, err := db.Sandbox(testID(1)); err != nil || s.Handler != "migrated" {
		t.Errorf("got %q, %v", s.Handler, err)
	}
	must(t, verify(file+".schema-1"))
	must(t, readOnly(file+".schema-1", func(tx *bolt.Tx) error {
		h, err := headerOf(tx)
		if h.version != 1 || tx.Bucket([]byte(bucketSandboxes)).Get([]byte(testID(1))) == nil {
			t.Error("the copy for the way back is not of schema 1:", h)
		}
		return err
	}))
}

// TestNewerSchemaIsRefused gives an older Berth a directory that a newer one
// has worked in: it says so and leaves every byte as it is.
func TestNewerSchemaIsRefused(t *testing.T) {
	dir, _ := lived(t)
	newer := schema{version: schemaVersion + 1, migrations: []migration{{schemaVersion, func(*bolt.Tx) error { return nil }}}}
	db, err := open(Config{Dir: dir, Version: "9.9"}, newer)
	must(t, err)
	must(t, db.Close())
	before := tree(t, dir)
	_, err = Open(Config{Dir: dir})
	want := fmt.Sprintf("schema %d, written by Berth 9.9; this Berth knows up to schema %d", schemaVersion+1, schemaVersion)
	if !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), want) {
		t.Errorf("got %v", err)
	}
	if d := diff(before, tree(t, dir)); d != "" {
		t.Error("something was changed:", d)
	}
}

// tree returns all files below dir, but the lock, whose content is a pid.
func tree(t *testing.T, dir string) map[string]string {
	t.Helper()
	out := map[string]string{}
	must(t, filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.Name() == "lock" {
			return err
		}
		if out[path] = "directory"; !e.IsDir() {
			b, err := os.ReadFile(path)
			out[path] = string(b)
			return err
		}
		return nil
	}))
	return out
}

// TestRecordsOfAnOlderSchemaAreRebuilt loses the database while the copies are
// of the old schema: each is lifted from its own.
func TestRecordsOfAnOlderSchemaAreRebuilt(t *testing.T) {
	dir, want := lived(t)
	must(t, os.Remove(filepath.Join(dir, "berth.db")))
	rename := migration{schemaVersion, func(tx *bolt.Tx) error {
		var all []Sandbox
		c := sandboxCodec()
		must(t, tx.Bucket([]byte(c.bucket)).ForEach(func(k, v []byte) error {
			s, err := c.decode(string(k), v)
			all = append(all, s)
			return err
		}))
		for _, s := range all {
			s.Handler += "+"
			must(t, putRecord(tx, c, s))
		}
		return nil
	}}
	m := mirror{dir: dir, schema: schemaVersion + 1}
	k := objectKey{bucketSandboxes, testID(2)}
	record, err := sandboxCodec().encode(want.PutSandboxes[1])
	must(t, err)
	data, err := m.wrap(k, record) // was written by the newer one
	must(t, err)
	must(t, m.write(k, m.path(k), data))
	db, err := open(Config{Dir: dir}, schema{version: schemaVersion + 1, migrations: []migration{rename}})
	must(t, err)
	defer db.Close()
	want.PutSandboxes[0].Handler += "+"
	expect(t, db, want)
}

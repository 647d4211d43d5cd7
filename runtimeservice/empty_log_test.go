package runtimeservice

import (
	"encoding/json"
	"os"
	"path/filepath"
	"testing"

	"github.com/berth-dev/berth/store"
)

// The log of a creation that failed goes, unless the client has asked again.
func TestEmptyLogOfAnotherStays(t *testing.T) {
	for name, tc := range map[string]struct {
		kind, record, op string // who has the log
		stays            bool
	}{
		"nobody":             {},
		"itself":             {kind: kindCreate, record: "mine", op: "mine"},
		"a container":        {record: "other", stays: true},
		"a creation":         {kind: kindCreate, op: "other", stays: true},
		"one that goes away": {kind: kindRemove, op: "other"},
	} {
		t.Run(name, func(t *testing.T) {
			s, _ := newTestService(t)
			c, path := s.containers, filepath.Join(t.TempDir(), "log")
			if err := os.WriteFile(path, nil, 0o600); err != nil {
				t.Fatal(err)
			}
			if tc.op != "" {
				b, err := json.Marshal(&createState{ID: tc.op, LogPath: path})
				if err != nil {
					t.Fatal(err)
				}
				if err := c.db.BeginOp(t.Context(), store.Op{ID: "op", Kind: tc.kind, Subject: tc.op, Payload: b}); err != nil {
					t.Fatal(err)
				}
			}
			if tc.record != "" {
				rec := store.Container{ID: tc.record, Facts: store.ContainerFacts{LogPath: path}}
				if err := c.db.Commit(t.Context(), store.Change{PutContainers: []store.Container{rec}}); err != nil {
					t.Fatal(err)
				}
			}
			if err := c.removeEmptyLog("mine", path); err != nil {
				t.Fatal(err)
			}
			if _, err := os.Lstat(path); (err == nil) != tc.stays {
				t.Errorf("the log: %v", err)
			}
		})
	}
}

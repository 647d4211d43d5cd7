package store

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func eventPod(id string) Sandbox {
	return Sandbox{ID: id, Config: &runtimeapi.PodSandboxConfig{Metadata: &runtimeapi.PodSandboxMetadata{Name: "n-" + id, Namespace: "ns", Uid: id}}}
}

func eventContainer(id, pod string) Container {
	return Container{ID: id, SandboxID: pod, Config: &runtimeapi.ContainerConfig{Metadata: &runtimeapi.ContainerMetadata{Name: "n-" + id}}}
}

func kindsAfter(t *testing.T, db *DB, after uint64) (kinds []string, last uint64) {
	t.Helper()
	events, _, err := db.Events(after, 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range events {
		if last != 0 && e.Seq != last+1 {
			t.Errorf("event %d follows %d", e.Seq, last)
		}
		kinds, last = append(kinds, e.Kind+" "+e.ID), e.Seq
	}
	return kinds, last
}

func commitAll(t *testing.T, db *DB, changes ...Change) {
	t.Helper()
	for _, c := range changes {
		if err := db.Commit(t.Context(), c); err != nil {
			t.Fatal(err)
		}
	}
}

func TestEventsFollowFacts(t *testing.T) {
	dir := t.TempDir()
	db, err := Open(Config{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	pod, c := eventPod("p"), eventContainer("c", "p")
	started, ended, stopped := c, c, pod
	started.Facts.StartedAt = now
	ended.Facts.StartedAt, ended.Facts.Exit = now, &Exit{Code: 3, Reason: "Error"}
	late := ended
	late.Facts.StartedAt = now.Add(time.Second)
	stopped.Facts.StoppedAt = now
	quick := eventContainer("q", "p")
	quick.Facts.StartedAt, quick.Facts.Exit = now, &Exit{}
	dead := eventContainer("d", "p")
	dead.Facts.Exit = &Exit{}
	deadStarted := dead
	deadStarted.Facts.StartedAt = now
	commitAll(t, db,
		Change{PutSandboxes: []Sandbox{pod}}, Change{PutSandboxes: []Sandbox{pod}},
		Change{PutContainers: []Container{c}}, Change{PutContainers: []Container{started}}, Change{PutContainers: []Container{started}},
		Change{PutContainers: []Container{ended}}, Change{PutContainers: []Container{late}},
		Change{PutContainers: []Container{quick}},
		Change{PutContainers: []Container{dead}}, Change{PutContainers: []Container{deadStarted}},
		Change{PutSandboxes: []Sandbox{stopped}},
		Change{PutImages: []Image{{ID: "sha256:i", RepoTags: []string{"r:t"}}}},
		Change{PutImages: []Image{{ID: "sha256:i", RepoTags: []string{"r:u"}}}},
		Change{DeleteContainers: []string{"c", "q", "d", "never"}, DeleteSandboxes: []string{"p", "p2"}, DeleteImages: []string{"sha256:i", "x"}})
	want := []string{
		"sandbox.created p", "container.created c", "container.started c", "container.stopped c",
		"container.created q", "container.started q", "container.stopped q",
		"container.created d", "container.stopped d", "sandbox.stopped p", "image.pulled sha256:i",
		"container.removed c", "container.removed q", "container.removed d", "sandbox.removed p", "image.removed sha256:i",
	}
	got, last := kindsAfter(t, db, 0)
	if !slices.Equal(got, want) {
		t.Errorf("got  %v\nwant %v", got, want)
	}
	events, _, _ := db.Events(0, 100)
	stop, gone := events[3], events[11]
	if stop.ExitCode != 3 || stop.Reason != "Error" || stop.Name != "n-c" || stop.Namespace != "ns" || stop.Sandbox == nil || gone.Container == nil || gone.Sandbox == nil {
		t.Errorf("%+v\n%+v", stop, gone)
	}
	// What was refused has no event.
	if err := db.Commit(t.Context(), Change{PutSandboxes: []Sandbox{{}}}); err == nil || db.LastEvent() != last {
		t.Error("a refused commit has left an event:", err)
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	if db, err = Open(Config{Dir: dir}); err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	if again, l := kindsAfter(t, db, 0); !slices.Equal(again, want) || l != last {
		t.Errorf("after a restart: %v up to %d, was %d", again, l, last)
	}
	commitAll(t, db, Change{PutSandboxes: []Sandbox{eventPod("z")}})
	if next, l := kindsAfter(t, db, last); !slices.Equal(next, []string{"sandbox.created z"}) || l != last+1 {
		t.Error(next, l)
	}
}

func TestEventsAreBounded(t *testing.T) {
	dir := t.TempDir()
	db, err := Open(Config{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	begin := db.LastEvent()
	for batch := range 3 {
		var c Change
		for i := range keepEvents/2 + 10 {
			c.PutSandboxes = append(c.PutSandboxes, eventPod(fmt.Sprintf("%d-%d", batch, i)))
		}
		commitAll(t, db, c)
	}
	check := func() {
		t.Helper()
		events, _, err := db.Events(0, 1<<20)
		if err != nil || len(events) != keepEvents {
			t.Errorf("%d kept, %v", len(events), err)
		}
		if _, _, err := db.Events(begin, 1); !errdefs.IsOutOfRange(err) {
			t.Error("a gap is not told:", err)
		}
		if _, _, err := db.Events(events[0].Seq-1, 1); err != nil {
			t.Error("no gap, but:", err)
		}
		if _, _, err := db.Events(db.LastEvent()+1, 1); !errdefs.IsOutOfRange(err) {
			t.Error("a number that was never given out:", err)
		}
	}
	check()
	events, _, _ := db.Events(0, 1<<20)
	known := 0
	for i, e := range events {
		if e.Sandbox != nil {
			if known++; i < keepEvents-keepRecords {
				t.Fatal("an old event holds its record")
			}
		}
	}
	if known != keepRecords {
		t.Errorf("%d events know their records, want %d", known, keepRecords)
	}
	last := db.LastEvent()
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	if db, err = Open(Config{Dir: dir}); err != nil {
		t.Fatal(err)
	}
	check()
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	// The database is lost: numbers begin beyond the old ones, and a reader that
	// knows an old one is told.
	if err := os.Remove(filepath.Join(dir, "berth.db")); err != nil {
		t.Fatal(err)
	}
	if db, err = Open(Config{Dir: dir}); err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	if _, _, err := db.Events(last, 1); !errdefs.IsOutOfRange(err) || db.LastEvent() <= last {
		t.Errorf("lost database: %v, last %d was %d", err, db.LastEvent(), last)
	}
}

// Readers that follow at their own pace see every event once and in order.
func TestEventsReadersFollow(t *testing.T) {
	db, err := Open(Config{Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	const writers, each = 4, 20
	begin := db.LastEvent()
	var wg sync.WaitGroup
	for range 3 {
		wg.Go(func() {
			after := begin
			for after < begin+2*writers*each {
				events, more, err := db.Events(after, 7)
				if err != nil {
					t.Error(err)
					return
				}
				for _, e := range events {
					if e.Seq != after+1 {
						t.Errorf("%d after %d", e.Seq, after)
					}
					after = e.Seq
				}
				if len(events) == 0 {
					<-more
				}
			}
		})
	}
	for w := range writers {
		wg.Go(func() {
			for i := range each {
				id := fmt.Sprintf("%d-%d", w, i)
				for _, c := range []Change{{PutSandboxes: []Sandbox{eventPod(id)}}, {DeleteSandboxes: []string{id}}} {
					if err := db.Commit(context.Background(), c); err != nil {
						t.Error(err)
					}
				}
			}
		})
	}
	wg.Wait()
}

package imageservice

import (
	"context"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-dev/berth/store"
)

// A whole ID that no image has is an image that is not there, not a bad
// reference: RemoveImage of it is no error, ImageStatus of it is empty.
func TestUnknownWholeIDIsNotFound(t *testing.T) {
	db, err := store.Open(store.Config{Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = db.Close() }()
	s := &Service{db: db}
	for _, id := range []string{strings.Repeat("0", 64), "sha256:" + strings.Repeat("0", 64)} {
		spec := &runtimeapi.ImageSpec{Image: id}
		if _, err := s.Resolve(context.Background(), spec); !errdefs.IsNotFound(err) {
			t.Errorf("Resolve(%s): %v, want not found", id, err)
		}
		r, err := s.ImageStatus(context.Background(), &runtimeapi.ImageStatusRequest{Image: spec})
		if err != nil || r.GetImage() != nil {
			t.Errorf("ImageStatus(%s) = %v, %v, want an empty answer", id, r, err)
		}
	}
}

// The answer for one image is the same under every name it has.
func TestImageStatusDoesNotDependOnTheName(t *testing.T) {
	db, err := store.Open(store.Config{Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = db.Close() }()
	img := store.Image{ID: "sha256:" + strings.Repeat("a", 64), Config: []byte("{}"), RepoTags: []string{"docker.io/library/a:1", "docker.io/library/a:2"}}
	if err := db.Commit(context.Background(), store.Change{PutImages: []store.Image{img}}); err != nil {
		t.Fatal(err)
	}
	s := &Service{db: db}
	var first string
	for _, name := range []string{"a:1", "docker.io/library/a:2", img.ID, img.ID[7:], img.ID[7:20]} {
		r, err := s.ImageStatus(context.Background(), &runtimeapi.ImageStatusRequest{Image: &runtimeapi.ImageSpec{Image: name}})
		if err != nil || r.GetImage().GetId() != img.ID {
			t.Fatalf("ImageStatus(%s) = %v, %v", name, r, err)
		}
		if got := r.GetImage().String(); first == "" {
			first = got
		} else if got != first {
			t.Errorf("ImageStatus(%s) = %s, want %s", name, got, first)
		}
	}
}

package unixsock

import (
	"context"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
)

func TestListen(t *testing.T) {
	dir := filepath.Join(t.TempDir(), strings.Repeat("long", 40), "run")
	path := filepath.Join(dir, "s.sock")
	l, err := Listen(path, 0o660)
	if err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(path); err != nil || info.Mode() != fs.ModeSocket|0o660 {
		t.Fatalf("mode %v, %v", info.Mode(), err)
	}
	if info, _ := os.Stat(dir); info.Mode().Perm() != DirMode {
		t.Errorf("directory mode %v", info.Mode())
	}
	if _, err := Listen(path, 0o660); !errdefs.IsAlreadyExists(err) {
		t.Errorf("second daemon: %v", err)
	}
	c, err := Dial(context.Background(), path)
	if err != nil {
		t.Fatal(err)
	}
	_ = c.Close()
	if err := l.Close(); err != nil {
		t.Error(err)
	}
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 0 {
		t.Errorf("left in directory: %v, %v", entries, err)
	}
}

func TestListenReplacesStale(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s.sock")
	old, err := Listen(path, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	// A daemon that was killed leaves its socket.
	_ = old.(*listener).UnixListener.Close()
	l, err := Listen(path, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	// The late Close of the old one must not take the new socket away.
	_ = old.Close()
	if _, err := Dial(context.Background(), path); err != nil {
		t.Error(err)
	}
	_ = l.Close()
}

func TestListenKeepsFiles(t *testing.T) {
	path := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(path, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Listen(path, 0o600); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("regular file: %v", err)
	}
	var _ net.Listener = &listener{}
}

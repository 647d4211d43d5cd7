package checkpoint

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/containerd/errdefs"

	"github.com/berth-dev/berth/store/op"
)

// Names in the archive, as checkpointctl reads them.
const (
	configFile  = "config.dump"
	specFile    = "spec.dump"
	statusFile  = "status.dump"
	networkFile = "network.status"
	dumpLog     = "dump.log"
	statsFile   = "stats-dump"
	deletedFile = "deleted.files"
	diffFile    = "rootfs-diff.tar"
	imagesName  = "checkpoint"
)

// ownFile, in the directory of the checkpoint, says which files it has put where
// the client wants them: whatever has become of their names, and whether or not
// the daemon lived to say that it is done.
const ownFile = "archive"

func (m *Maker) archiveStep() op.Step[*state] {
	return op.Step[*state]{
		Name: "archive",
		Do: func(ctx context.Context, s *state) error {
			if err := m.archive(ctx, s); err != nil {
				return fmt.Errorf("write archive %s: %w", s.Location, err)
			}
			return nil
		},
		Undo: func(_ context.Context, s *state) error { return m.removeFiles(s, s.Location) },
	}
}

func (m *Maker) archive(ctx context.Context, s *state) error {
	return m.place(s, s.Location, func(f *os.File) error {
		return fill(ctx, f, m.part(s.ID, s.parts[0].ID), s.parts[0])
	})
}

// place writes a file beside its place, and puts it there complete and as the
// checkpoint's own.
func (m *Maker) place(s *state, path string, write func(f *os.File) error) error {
	if err := os.Remove(s.Temp); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	f, err := os.OpenFile(s.Temp, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	err = write(f)
	if err == nil {
		err = f.Sync()
	}
	own, identErr := identity(f.Stat())
	if err := errors.Join(err, identErr, f.Close()); err != nil {
		return diskError(err)
	}
	if err := m.own(s.ID, own); err != nil {
		return err
	}
	// A link, because a rename would replace what has come there meanwhile.
	if err := os.Link(s.Temp, path); err != nil {
		if errors.Is(err, os.ErrExist) {
			return fmt.Errorf("%w: %w", err, errdefs.ErrAlreadyExists)
		}
		return err
	}
	if err := os.Remove(s.Temp); err != nil {
		return err
	}
	return syncDir(filepath.Dir(path))
}

func diskError(err error) error {
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		return fmt.Errorf("%w: %w", err, errdefs.ErrResourceExhausted)
	}
	return err
}

// identity names a file whatever its path is. The time tells it from a later one
// that was given its number.
func identity(st os.FileInfo, err error) (string, error) {
	if err != nil {
		return "", err
	}
	sys := st.Sys().(*syscall.Stat_t)
	return fmt.Sprintf("%d:%d:%d", sys.Dev, sys.Ino, st.ModTime().UnixNano()), nil
}

// own notes a file of the checkpoint under way.
func (m *Maker) own(id, file string) error {
	f, err := os.OpenFile(filepath.Join(m.work(id), ownFile), os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	_, err = f.WriteString(file + "\n")
	return errors.Join(err, f.Close())
}

// disown removes a file if it is one of the checkpoint under way.
func (m *Maker) disown(id, path string) error {
	noted, err := os.ReadFile(filepath.Join(m.work(id), ownFile))
	if err == nil {
		var is string
		if is, err = identity(os.Lstat(path)); err == nil && slices.Contains(strings.Split(string(noted), "\n"), is) {
			err = os.Remove(path)
		}
	}
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return err
}

// removeFiles removes what the checkpoint has put at these paths, and what it was
// about to put there. Others may have put something there before it or after.
func (m *Maker) removeFiles(s *state, paths ...string) (err error) {
	for _, p := range paths {
		err = errors.Join(err, m.disown(s.ID, p))
	}
	if e := os.Remove(s.Temp); !errors.Is(e, os.ErrNotExist) {
		err = errors.Join(err, e)
	}
	return err
}

// fill writes the archive's content out of the directory with what was captured.
func fill(ctx context.Context, to io.Writer, dir string, c *Container) error {
	out := tar.NewWriter(to)
	for name, b := range map[string][]byte{specFile: c.Spec, networkFile: c.Network} {
		if len(b) == 0 {
			continue
		}
		if err := os.WriteFile(filepath.Join(dir, name), b, 0o600); err != nil {
			return err
		}
	}
	logs := filepath.Join(dir, logsDir)
	for _, f := range []struct{ in, name string }{
		{dir, configFile}, {dir, specFile}, {dir, statusFile}, {dir, networkFile}, {logs, dumpLog}, {logs, statsFile},
		{dir, deletedFile}, {dir, diffFile},
	} {
		err := addFile(ctx, out, filepath.Join(f.in, f.name), f.name)
		if errors.Is(err, os.ErrNotExist) && (f.name == networkFile || f.in == logs) {
			continue // the node's network; a runtime that keeps no log
		}
		if err != nil {
			return err
		}
	}
	images, err := os.ReadDir(filepath.Join(dir, imagesDir))
	if err != nil {
		return err
	}
	if err := out.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: imagesName + "/", Mode: 0o700, ModTime: c.Config.CheckpointedAt}); err != nil {
		return err
	}
	for _, e := range images {
		if !e.Type().IsRegular() {
			continue // links between images of successive dumps, of which there is one
		}
		if err := addFile(ctx, out, filepath.Join(dir, imagesDir, e.Name()), imagesName+"/"+e.Name()); err != nil {
			return err
		}
	}
	return out.Close()
}

func addFile(ctx context.Context, out *tar.Writer, path, name string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return err
	}
	if err := out.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o600, Size: st.Size(), ModTime: st.ModTime()}); err != nil {
		return err
	}
	return copyAll(ctx, out, f)
}

// copyAll copies until the context ends.
func copyAll(ctx context.Context, to io.Writer, from io.Reader) error {
	_, err := io.Copy(to, reader(func(p []byte) (int, error) {
		if err := ctx.Err(); err != nil {
			return 0, err
		}
		return from.Read(p)
	}))
	return err
}

type reader func(p []byte) (int, error)

func (r reader) Read(p []byte) (int, error) { return r(p) }

package checkpoint

import (
	"archive/tar"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// Bounds of what is believed of a checkpoint, which is foreign data.
const (
	maxDocument   = 16 << 20 // bytes of a JSON document
	maxValues     = 200_000  // in one: each takes many times its bytes once it is decoded
	maxDeleted    = 2_000_000
	maxName       = 253     // of a container, as in Kubernetes
	maxImages     = 100_000 // files of CRIU's
	maxContainers = 1000
)

// Source is a pod's checkpoint that is to be restored. Nothing in it is changed.
type Source struct {
	root  *os.Root
	files map[string]string // container -> archive
}

// Open opens the checkpoint that Pod wrote to a directory. Links in it are not followed.
func Open(dir string) (*Source, error) {
	if !filepath.IsAbs(dir) || filepath.Clean(dir) != dir {
		return nil, fmt.Errorf("checkpoint_path %q is not a clean absolute path: %w", dir, errdefs.ErrInvalidArgument)
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, fmt.Errorf("checkpoint_path: %w: %w", err, errdefs.ErrInvalidArgument)
	}
	s := &Source{root: root}
	if s.files, err = s.archives(); err != nil {
		s.Close()
		return nil, fmt.Errorf("checkpoint %s: %s: %w", dir, optionsFile, err)
	}
	return s, nil
}

// Close closes the checkpoint.
func (s *Source) Close() { _ = s.root.Close() } // read only

// Names returns the names of the containers, sorted.
func (s *Source) Names() []string { return slices.Sorted(maps.Keys(s.files)) }

func (s *Source) archives() (map[string]string, error) {
	var o options
	f, err := s.open(optionsFile)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if err := decode(f, &o, maxValues); err != nil {
		return nil, err
	}
	switch {
	case o.Version != 1:
		return nil, invalid("version %d is not known to this Berth", o.Version)
	case len(o.Containers) == 0 || len(o.Containers) > maxContainers:
		return nil, invalid("it is of %d containers", len(o.Containers))
	}
	for name, file := range o.Containers {
		if name == "" || len(name) > maxName || !plain(file) {
			return nil, invalid("container %.200q has the archive %.200q", name, file)
		}
	}
	return o.Containers, nil
}

// plain reports whether a name is one of a file in the directory itself.
func plain(name string) bool {
	return name != "" && name != "." && name != ".." && !strings.ContainsAny(name, "/\x00") && len(name) < 256
}

func invalid(format string, args ...any) error {
	return fmt.Errorf("%w: %w", fmt.Errorf(format, args...), errdefs.ErrInvalidArgument)
}

// open opens a regular file of the checkpoint.
func (s *Source) open(name string) (*os.File, error) {
	st, err := s.root.Lstat(name)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, invalid("%s is missing", name)
	case err != nil:
		return nil, err
	case !st.Mode().IsRegular():
		return nil, invalid("%s is not a regular file", name)
	}
	f, err := s.root.OpenFile(name, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	if again, err := f.Stat(); err != nil || !os.SameFile(st, again) {
		return nil, errors.Join(err, f.Close(), invalid("%s was replaced meanwhile", name))
	}
	return f, nil
}

// decode reads a bounded JSON document.
func decode(r io.Reader, v any, limit int) error {
	b, err := io.ReadAll(io.LimitReader(r, maxDocument+1))
	if err != nil {
		return err
	}
	if len(b) > maxDocument {
		return invalid("it has more than %d bytes", maxDocument)
	}
	if values(b) > limit {
		return invalid("it has more than %d values", limit)
	}
	if err := json.Unmarshal(b, v); err != nil {
		return fmt.Errorf("%.300s: %w", err, errdefs.ErrInvalidArgument)
	}
	return nil
}

// values is about how many values a JSON document has. Pure.
func values(b []byte) (n int) {
	text := false
	for i := 0; i < len(b); i++ {
		switch b[i] {
		case '"':
			text = !text
		case '\\':
			i++ // in a text; elsewhere it is no JSON
		case ',', '{', '[':
			if !text {
				n++
			}
		}
	}
	return n
}

// Shm opens the tar with the pod's shared memory; nil when there is none.
func (s *Source) Shm() (io.ReadCloser, error) {
	if _, err := s.root.Lstat(shmFile); errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	f, err := s.open(shmFile)
	if err != nil {
		return nil, fmt.Errorf("checkpoint: %s: %w", shmFile, err)
	}
	return f, nil
}

// Part is what a checkpoint has of one container, unpacked.
type Part struct {
	Config  Config
	Spec    *specs.Spec
	Deleted []string // absolute paths of the image
	dir     string
}

// Images is the directory with CRIU's images.
func (p *Part) Images() string { return filepath.Join(p.dir, imagesDir) }

// Logs is the directory for what CRIU says when it restores.
func (p *Part) Logs() string { return filepath.Join(p.dir, logsDir) }

// RestoreLog is the file of what CRIU said when it restored a part that was
// unpacked to dir. runc names it.
func RestoreLog(dir string) string { return filepath.Join(dir, logsDir, "restore.log") }

// Unpack unpacks a container's archive into a directory, which is made. What of it
// only tells of the past stays behind.
func (s *Source) Unpack(ctx context.Context, name, dir string) (*Part, error) {
	file := s.files[name]
	p := &Part{dir: dir}
	err := errors.Join(os.Mkdir(dir, 0o700), os.Mkdir(p.Images(), 0o700), os.Mkdir(p.Logs(), 0o700))
	if err == nil {
		err = s.unpack(ctx, file, p)
	}
	if err != nil {
		return nil, fmt.Errorf("checkpoint: %s: %w", file, diskError(err))
	}
	return p, nil
}

func (s *Source) unpack(ctx context.Context, file string, p *Part) error {
	f, err := s.open(file)
	if err != nil {
		return err
	}
	defer f.Close()
	in, err := newArchive(f)
	if err != nil {
		return err
	}
	seen := map[string]bool{}
	for {
		h, err := in.next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return err
		}
		if seen[h.Name] || len(seen) == maxImages {
			return invalid("%.200q is there twice, or there are more than %d files", h.Name, maxImages)
		}
		seen[h.Name] = true
		err = p.entry(ctx, h, in.Reader)
		if errors.Is(err, io.ErrUnexpectedEOF) {
			err = invalid("it was cut short")
		}
		if err != nil {
			return fmt.Errorf("%.200q: %w", h.Name, err)
		}
	}
	for _, must := range []string{configFile, specFile, deletedFile, diffFile, imagesName + "/inventory.img"} {
		if !seen[must] {
			return invalid("%s is missing", must)
		}
	}
	if p.Spec == nil || p.Spec.Process == nil || p.Spec.Root == nil || p.Spec.Linux == nil {
		return invalid("%s is of no Linux container", specFile)
	}
	return nil
}

// archive reads a tar that holds no more than its file: sparse files, which would
// grow when they are unpacked, do not belong in it.
type archive struct {
	*tar.Reader
	room int64
}

func newArchive(f *os.File) (*archive, error) {
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	return &archive{Reader: tar.NewReader(f), room: st.Size()}, nil
}

func (a *archive) next() (*tar.Header, error) {
	h, err := a.Next()
	if errors.Is(err, io.EOF) {
		return nil, io.EOF
	}
	if err != nil {
		return nil, invalid("it is no tar, or was cut short: %w", err)
	}
	if a.room -= h.Size; a.room < 0 {
		return nil, invalid("%.200q is larger than the archive that it is in", h.Name)
	}
	return h, nil
}

// entry takes one entry of an archive.
func (p *Part) entry(ctx context.Context, h *tar.Header, r io.Reader) error {
	switch {
	case h.Typeflag == tar.TypeDir && strings.TrimSuffix(h.Name, "/") == imagesName:
		return nil
	case h.Typeflag != tar.TypeReg:
		return invalid("it is no regular file")
	}
	switch h.Name {
	case configFile:
		return decode(r, &p.Config, maxValues)
	case specFile:
		return decode(r, &p.Spec, maxValues)
	case deletedFile:
		return decode(r, &p.Deleted, maxDeleted)
	case statusFile, networkFile, dumpLog, statsFile:
		return nil
	case diffFile:
		return save(ctx, filepath.Join(p.dir, diffFile), r)
	}
	if image, ok := strings.CutPrefix(h.Name, imagesName+"/"); ok && plain(image) {
		return save(ctx, filepath.Join(p.Images(), image), r)
	}
	return invalid("it does not belong in a checkpoint")
}

// save writes a new file. It need not outlive a power cut: the pod does not.
func save(ctx context.Context, path string, r io.Reader) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	return errors.Join(copyAll(ctx, f, r), f.Close())
}

// whiteout marks a deletion in a layer's tar.
const whiteout = ".wh."

// Layer writes what the container had written and removed as an image's layer.
func (p *Part) Layer(ctx context.Context, to io.Writer) error {
	f, err := os.Open(filepath.Join(p.dir, diffFile))
	if err != nil {
		return err
	}
	defer f.Close()
	in, err := newArchive(f)
	if err != nil {
		return err
	}
	out := tar.NewWriter(to)
	for {
		h, err := in.next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return fmt.Errorf("checkpoint: %s: %w", diffFile, err)
		}
		if strings.HasPrefix(path.Base(h.Name), whiteout) {
			return fmt.Errorf("checkpoint: the container had a file %.200q; it cannot be restored: %w", h.Name, errdefs.ErrNotImplemented)
		}
		if err := out.WriteHeader(h); err != nil {
			return fmt.Errorf("checkpoint: %s: %.200q: %w", diffFile, h.Name, err)
		}
		if err := copyAll(ctx, out, in); err != nil {
			return err
		}
	}
	for _, d := range p.Deleted {
		if !path.IsAbs(d) || path.Clean(d) != d || d == "/" {
			return invalid("checkpoint: %s: %.200q is not a clean absolute path", deletedFile, d)
		}
		dir, base := path.Split(d[1:])
		if err := out.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: dir + whiteout + base, Mode: 0o600}); err != nil {
			return err
		}
	}
	return out.Close()
}

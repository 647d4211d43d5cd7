package checkpoint

import (
	"archive/tar"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/containerd/errdefs"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/berth-dev/berth/cmd/berthctl/cli"
	"github.com/berth-dev/berth/imageservice/content"
	"github.com/berth-dev/berth/imageservice/layer"
)

// maxPodFiles is how many files a pod's checkpoint may have.
const maxPodFiles = 1000

// pulled is what pull tells.
type pulled struct {
	Path   string `json:"path"`
	Digest string `json:"digest"` // of the manifest
	Pod    bool   `json:"pod"`    // a directory
}

func pull(a *cli.App) *cobra.Command {
	var login cli.Login
	limit := int64(64)
	cmd := &cobra.Command{Use: "pull REFERENCE FILE|DIRECTORY", Short: "Pull a checkpoint that was pushed to a registry", Args: cobra.ExactArgs(2),
		RunE: func(c *cobra.Command, args []string) error {
			if limit <= 0 || limit > 1<<20 {
				return fmt.Errorf("--limit %d is not between 1 and %d", limit, 1<<20)
			}
			to, err := filepath.Abs(args[1])
			if err != nil {
				return err
			}
			if err := vacant(to); err != nil {
				return cli.Failed(err, "Remove it, or choose another name.")
			}
			r, err := openRepository(c, a, args[0], &login)
			if err != nil {
				return err
			}
			defer r.Close()
			done, err := r.pull(c.Context(), to, limit<<30)
			if err != nil {
				return registryError(c.Context(), err)
			}
			return a.Show(c.OutOrStdout(), done, cli.Table{Rows: [][]string{{done.Path}}})
		}}
	cmd.Long = "Pull a checkpoint that `berthctl checkpoint push`, buildah or checkpointctl have made an image of: that of a container into a\n" +
		"new file, an archive as it was; that of a pod into a new or empty directory. What comes is verified by its digest, bounded, and\n" +
		"appears as a whole. A pod's checkpoint with anything but plain files in it is refused; of an archive nothing is unpacked.\n\n" +
		loginHelp
	login.Flags(cmd)
	cmd.Flags().Int64Var(&limit, "limit", limit, "the largest that it may be, unpacked, in `GiB`")
	return cmd
}

// vacant checks that nothing is there, or an empty directory.
func vacant(path string) error {
	st, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		_, err = os.Stat(filepath.Dir(path))
		return err
	}
	if err != nil {
		return err
	}
	if !st.IsDir() {
		return fmt.Errorf("%s exists", path)
	}
	entries, err := os.ReadDir(path)
	if err == nil && len(entries) > 0 {
		err = fmt.Errorf("%s is not empty", path)
	}
	return err
}

// pull fetches the image's layer beside its place and puts there what is in it.
func (r *repository) pull(ctx context.Context, to string, limit int64) (out *pulled, err error) {
	m, err := r.Manifest(ctx, r.object, maxDocument)
	if err != nil {
		return nil, err
	}
	desc, err := onlyLayer(m.Raw)
	if err != nil {
		return nil, cli.Failed(fmt.Errorf("%s: %w", m.Digest, err), nextImage)
	}
	if desc.Size > limit {
		return nil, cli.Failed(fmt.Errorf("layer %s has %s: give a larger --limit", desc.Digest, cli.Bytes(uint64(desc.Size))), "")
	}
	work, err := os.MkdirTemp(filepath.Dir(to), ".berth-pull-")
	if err != nil {
		return nil, cli.Failed(err, "")
	}
	defer func() { err = errors.Join(err, os.RemoveAll(work)) }()
	store, err := content.Open(content.Config{Dir: filepath.Join(work, "content")})
	if err != nil {
		return nil, err
	}
	blob, _ := store.Fetch(desc, r.Blob(desc))
	defer blob.Release()
	// Nothing is looked at before all of it is here and is what its digest says.
	if err := blob.Wait(ctx); err != nil {
		return nil, err
	}
	l := pulledLayer{open: func() io.Reader { return blob.Reader(ctx) }, limit: limit}
	pod, err := l.place(work, to)
	if err != nil && ctx.Err() == nil {
		err = cli.Failed(err, nextImage)
	}
	return &pulled{Path: to, Digest: m.Digest.String(), Pod: pod}, err
}

const nextImage = "Only images as `berthctl checkpoint push`, buildah or checkpointctl make them of a checkpoint are taken."

// onlyLayer returns the layer of an image that has one.
func onlyLayer(manifest []byte) (ocispec.Descriptor, error) {
	var m ocispec.Manifest
	if err := json.Unmarshal(manifest, &m); err != nil {
		return ocispec.Descriptor{}, fmt.Errorf("it is no manifest: %w", err)
	}
	if len(m.Layers) != 1 {
		return ocispec.Descriptor{}, fmt.Errorf("it is no image of a checkpoint: that has one layer, not %d", len(m.Layers))
	}
	desc := m.Layers[0]
	if err := desc.Digest.Validate(); err != nil {
		return desc, fmt.Errorf("layer: %w", err)
	}
	if desc.Size <= 0 {
		return desc, fmt.Errorf("layer: its size is %d", desc.Size)
	}
	return desc, nil
}

// pulledLayer is a layer that is what its digest says, and may still be anything.
type pulledLayer struct {
	open  func() io.Reader
	limit int64 // bytes, unpacked
}

// read calls f with the layer's tar.
func (l pulledLayer) read(f func(io.Reader) error) error {
	in, err := layer.Decompress(l.open())
	if err != nil {
		return err
	}
	defer in.Close()
	left := l.limit
	return f(reader(func(p []byte) (int, error) {
		n, err := in.Read(p)
		if left -= int64(n); left < 0 {
			return 0, fmt.Errorf("unpacked it has more than %s: give a larger --limit: %w", cli.Bytes(uint64(l.limit)), errdefs.ErrResourceExhausted)
		}
		return n, err
	}))
}

type reader func([]byte) (int, error)

func (r reader) Read(p []byte) (int, error) { return r(p) }

// place puts the archive of a container, or the files of a pod, where they are to
// be, and says which it was.
func (l pulledLayer) place(work, to string) (pod bool, err error) {
	err = l.read(func(r io.Reader) error { _, err := Read(r); return err })
	if errors.Is(err, errOther) {
		return true, l.placePod(filepath.Join(work, "pod"), to)
	}
	if err != nil {
		return false, err
	}
	temp := filepath.Join(work, "archive")
	if err := l.read(func(r io.Reader) error { return writeFile(temp, r, l.limit) }); err != nil {
		return false, err
	}
	// A link, because a rename would replace what has come there meanwhile.
	return false, os.Link(temp, to)
}

func (l pulledLayer) placePod(temp, to string) error {
	if err := os.Mkdir(temp, 0o700); err != nil {
		return err
	}
	if err := l.read(func(r io.Reader) error { return unpack(r, temp, l.limit) }); err != nil {
		return err
	}
	if _, err := readPod(temp); errors.Is(err, fs.ErrNotExist) {
		return errors.New("it is no checkpoint: neither config.dump of a container nor pod.dump of a pod is in it")
	} else if err != nil {
		return err
	}
	if err := unix.Rename(temp, to); err != nil { // over an empty directory, which os.Rename refuses
		return fmt.Errorf("%s: %w", to, err)
	}
	return nil
}

// unpack writes the files of a pod's checkpoint into a directory that is new.
func unpack(r io.Reader, dir string, limit int64) error {
	in := tar.NewReader(r)
	for n := 0; ; n++ {
		h, err := in.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("it is no tar, or was cut short: %w", err)
		}
		if n == maxPodFiles {
			return fmt.Errorf("it has more than %d files", maxPodFiles)
		}
		name := strings.TrimPrefix(h.Name, "./")
		switch {
		case h.Typeflag == tar.TypeXGlobalHeader, h.Typeflag == tar.TypeDir && (name == "" || name == "."):
			continue
		case h.Typeflag != tar.TypeReg:
			return fmt.Errorf("%q: only plain files are in a pod's checkpoint: %w", h.Name, errdefs.ErrInvalidArgument)
		case name != filepath.Base(name) || strings.HasPrefix(name, ".") || name != cli.Clean(name):
			return fmt.Errorf("%q: that is no file name of a pod's checkpoint: %w", h.Name, errdefs.ErrInvalidArgument)
		case h.Size > limit: // a sparse file is larger than what came
			return fmt.Errorf("%q has %s: give a larger --limit: %w", h.Name, cli.Bytes(uint64(h.Size)), errdefs.ErrResourceExhausted)
		}
		limit -= h.Size
		if err := writeFile(filepath.Join(dir, name), in, h.Size); err != nil {
			return err
		}
	}
}

// writeFile writes a new file durably, of no more than limit bytes.
func writeFile(path string, r io.Reader, limit int64) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = io.Copy(f, io.LimitReader(r, limit))
	if err == nil {
		err = f.Sync()
	}
	return errors.Join(err, f.Close())
}

package checkpoint

import (
	"archive/tar"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"time"

	"github.com/klauspost/compress/gzip"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"
)

// What an image says of the checkpoint in it: in checkpointctl's words, and the
// one by which CRI-O knows an image to restore a container from.
const (
	annotationEngine    = "org.criu.checkpoint.engine.name"
	annotationContainer = "org.criu.checkpoint.container.name"
	annotationPod       = "org.criu.checkpoint.pod.name"
	annotationNamespace = "org.criu.checkpoint.pod.namespace"
	annotationPodUID    = "org.criu.checkpoint.pod.uid"
	annotationRequested = "org.criu.checkpoint.rootfsImageUserRequested"
	annotationImage     = "org.criu.checkpoint.rootfsImageName"
	annotationImageID   = "org.criu.checkpoint.rootfsImageID"
	annotationRuntime   = "org.criu.checkpoint.runtime.name"
	annotationCRIO      = "io.kubernetes.cri-o.annotations.checkpoint.name"
)

// source is a checkpoint on the disk, as the only layer of an image.
type source struct {
	files       []*os.File
	annotations map[string]string
	created     time.Time
	write       func(io.Writer) error // the layer's tar, the same each time
}

func (s *source) close() {
	for _, f := range s.files {
		f.Close()
	}
}

// newSource opens an archive, or the directory of a pod's checkpoint.
func newSource(path string) (*source, error) {
	st, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	s := &source{annotations: map[string]string{annotationEngine: "Berth"}}
	if st.IsDir() {
		err = s.pod(path)
	} else {
		err = s.container(path)
	}
	if err != nil {
		s.close()
		return nil, err
	}
	return s, nil
}

func (s *source) note(name, value string) {
	if value != "" {
		s.annotations[name] = value
	}
}

// container: the archive is the layer.
func (s *source) container(path string) error {
	f, size, err := regular(path, 0)
	if err != nil {
		return err
	}
	s.files = append(s.files, f)
	sum, err := Read(io.NewSectionReader(f, 0, size))
	if err != nil {
		return err
	}
	for name, value := range map[string]string{
		annotationContainer: sum.Name, annotationCRIO: sum.Name, annotationPod: sum.Pod, annotationNamespace: sum.Namespace,
		annotationRequested: sum.Requested, annotationImage: sum.Image, annotationImageID: sum.ImageRef, annotationRuntime: sum.Handler,
	} {
		s.note(name, value)
	}
	s.created = sum.Checkpointed
	s.write = func(w io.Writer) error { return copyExactly(w, f, size) }
	return nil
}

// copyExactly copies so many bytes from the file's start.
func copyExactly(w io.Writer, f *os.File, size int64) error {
	n, err := io.Copy(w, io.NewSectionReader(f, 0, size))
	if err == nil && n < size {
		err = fmt.Errorf("%s has become shorter", f.Name())
	}
	return err
}

// pod: the layer has the directory's files.
func (s *source) pod(dir string) error {
	p, err := readPod(dir)
	if err != nil {
		return err
	}
	meta := p.config.GetMetadata()
	s.note(annotationPod, meta.GetName())
	s.note(annotationNamespace, meta.GetNamespace())
	s.note(annotationPodUID, meta.GetUid())
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	if len(entries) > maxPodFiles {
		return fmt.Errorf("%s: it has more than %d files", dir, maxPodFiles)
	}
	var headers []*tar.Header
	for _, e := range entries {
		f, size, err := regular(filepath.Join(dir, e.Name()), unix.O_NOFOLLOW)
		if err != nil {
			return err
		}
		s.files = append(s.files, f)
		st, err := f.Stat()
		if err != nil {
			return err
		}
		if e.Name() == podFile {
			s.created = st.ModTime()
		}
		headers = append(headers, &tar.Header{Typeflag: tar.TypeReg, Name: e.Name(), Size: size, Mode: 0o600, ModTime: st.ModTime()})
	}
	s.write = func(w io.Writer) error {
		out := tar.NewWriter(w)
		for i, h := range headers {
			if err := out.WriteHeader(h); err != nil {
				return err
			}
			if err := copyExactly(out, s.files[i], h.Size); err != nil {
				return err
			}
		}
		return out.Close()
	}
	return nil
}

// packed writes the layer as it is pushed.
func (s *source) packed(ctx context.Context, w io.Writer) error {
	z, err := gzip.NewWriterLevel(w, gzip.BestSpeed)
	if err != nil {
		return err
	}
	if err := s.write(writer(func(p []byte) (int, error) {
		if err := ctx.Err(); err != nil {
			return 0, err
		}
		return z.Write(p)
	})); err != nil {
		return err
	}
	return z.Close()
}

type writer func([]byte) (int, error)

func (w writer) Write(p []byte) (int, error) { return w(p) }

// part is a piece of an image, to be pushed.
type part struct {
	desc  ocispec.Descriptor
	write func(io.Writer) error
}

func document(mediaType string, v any) (part, error) {
	b, err := json.Marshal(v)
	return part{desc: ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(b), Size: int64(len(b))},
		write: func(w io.Writer) error { _, err := w.Write(b); return err }}, err
}

// image returns layer, configuration and manifest. The layer is packed here
// for its digest, and again when it is pushed: that needs no room on a disk.
func (s *source) image(ctx context.Context) ([]part, error) {
	plain, packed := digest.Canonical.Digester(), digest.Canonical.Digester()
	var size int64
	counted := writer(func(p []byte) (int, error) {
		size += int64(len(p))
		return packed.Hash().Write(p)
	})
	hashed := &source{write: func(w io.Writer) error { return s.write(io.MultiWriter(w, plain.Hash())) }}
	if err := hashed.packed(ctx, counted); err != nil {
		return nil, err
	}
	layer := part{desc: ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayerGzip, Digest: packed.Digest(), Size: size},
		write: func(w io.Writer) error { return s.packed(ctx, w) }}
	created := s.created.UTC()
	config, err := document(ocispec.MediaTypeImageConfig, ocispec.Image{
		Created: &created, Platform: ocispec.Platform{OS: "linux", Architecture: runtime.GOARCH},
		RootFS: ocispec.RootFS{Type: "layers", DiffIDs: []digest.Digest{plain.Digest()}},
	})
	if err != nil {
		return nil, err
	}
	manifest, err := document(ocispec.MediaTypeImageManifest, ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest,
		Config: config.desc, Layers: []ocispec.Descriptor{layer.desc}, Annotations: s.annotations,
	})
	return []part{layer, config, manifest}, err
}

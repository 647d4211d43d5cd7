// Package images makes OCI images out of what the machine has (its static
// busybox and a small Go program) and serves them from a registry in the same
// process, so that tests and the demo need no network.
package images

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// ErrNoBusybox says that the machine has no static busybox.
var ErrNoBusybox = errors.New("no static busybox: install the package busybox-static")

const probePackage = "github.com/berth-dev/berth/test/images/cmd/probe"

// Parts are the bytes that images are made of.
type Parts struct {
	Busybox []byte   // static binary
	Applets []string // names it answers to
	Probe   []byte   // static binary
}

// LoadParts reads busybox and builds the probe program. It must run inside the
// module's tree, because it calls the go tool.
func LoadParts(ctx context.Context) (Parts, error) {
	var p Parts
	path, err := findBusybox()
	if err != nil {
		return p, err
	}
	if p.Busybox, err = os.ReadFile(path); err != nil {
		return p, err
	}
	out, err := exec.CommandContext(ctx, path, "--list").Output()
	if err != nil {
		return p, fmt.Errorf("list applets of %s: %w", path, err)
	}
	p.Applets = strings.Fields(string(out))
	p.Probe, err = buildProbe(ctx)
	return p, err
}

func findBusybox() (string, error) {
	for _, p := range []string{"/bin/busybox", "/usr/bin/busybox"} {
		if _, err := os.Stat(p); err == nil {
			return p, nil
		}
	}
	return "", ErrNoBusybox
}

func buildProbe(ctx context.Context) ([]byte, error) {
	dir, err := os.MkdirTemp("", "berth-probe-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	bin := filepath.Join(dir, "probe")
	cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-ldflags=-s -w", "-o", bin, probePackage)
	// An interrupted go tool may leave its work directory behind: here it goes
	// with ours.
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOTMPDIR="+dir)
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.WaitDelay = 10 * time.Second
	if out, err := cmd.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("build %s: %w: %s", probePackage, err, out)
	}
	return os.ReadFile(bin)
}

// File is one entry of a layer.
type File struct {
	Name string // without a leading slash
	Mode int64
	Body []byte
	Link string // hard link to this name when Type is tar.TypeLink, else symlink target
	Type byte   // tar.TypeReg when zero
	UID  int
	GID  int
}

// Tar frames files as a layer archive. Equal input gives equal bytes.
func Tar(files []File) ([]byte, error) {
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, f := range files {
		h := &tar.Header{Name: f.Name, Mode: f.Mode, Size: int64(len(f.Body)), Typeflag: f.Type, Linkname: f.Link, Uid: f.UID, Gid: f.GID}
		if h.Typeflag == 0 {
			h.Typeflag = tar.TypeReg
		}
		if err := w.WriteHeader(h); err != nil {
			return nil, fmt.Errorf("archive %s: %w", f.Name, err)
		}
		if _, err := io.Copy(w, bytes.NewReader(f.Body)); err != nil {
			return nil, fmt.Errorf("archive %s: %w", f.Name, err)
		}
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	return buf.Bytes(), nil
}

// Spec describes an image to build.
type Spec struct {
	Layers []Layer
	Config v1.Config
	Docker bool   // Docker media types instead of OCI
	Arch   string // "" is this machine's
}

// Build makes an image.
func Build(s Spec) (v1.Image, error) {
	manifest, config := types.OCIManifestSchema1, types.OCIConfigJSON
	if s.Docker {
		manifest, config = types.DockerManifestSchema2, types.DockerConfigJSON
	}
	img := mutate.ConfigMediaType(mutate.MediaType(empty.Image, manifest), config)
	for i, l := range s.Layers {
		layer, err := l.build(s.Docker)
		if err != nil {
			return nil, fmt.Errorf("build layer %d: %w", i, err)
		}
		mt, err := layer.MediaType()
		if err != nil {
			return nil, err
		}
		if img, err = mutate.Append(img, mutate.Addendum{Layer: layer, MediaType: mt}); err != nil {
			return nil, fmt.Errorf("append layer %d: %w", i, err)
		}
	}
	cf, err := img.ConfigFile()
	if err != nil {
		return nil, err
	}
	cf = cf.DeepCopy()
	cf.Config, cf.OS, cf.Architecture = s.Config, "linux", s.Arch
	if s.Arch == "" {
		cf.Architecture = hostArch()
	}
	return mutate.ConfigFile(img, cf)
}

package checkpoint

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/encoding/protowire"

	"github.com/berth-dev/berth/runtimeservice/checkpoint/image"
	"github.com/berth-dev/berth/store"
)

// Filler unpacks what a checkpoint has of files. Both take a tar that may be hostile.
type Filler interface {
	// Fill makes the writable layer of container id, before it is mounted, and
	// puts into it a tar in the form of an image's layer.
	Fill(ctx context.Context, id string, img store.Image, files io.Reader) error
	// Unpack puts the files of a tar into an empty directory.
	Unpack(ctx context.Context, dir string, files io.Reader) error
}

// Parcel is what a container gets of a checkpoint while it is made.
type Parcel struct {
	From  *Source
	Files Filler
	Vet   func(images string, doc *specs.Spec, root string) error // CRIU.Vet
	Part  *Part                                                   // once it is unpacked
}

// Target is the container that is made.
type Target struct {
	ID       string
	Name     string
	Handler  string
	Hostname string
	Image    store.Image
	Dir      string // that the parcel is unpacked to, which does not exist
}

// Unpack unpacks the parcel and makes the container's writable layer.
func (p *Parcel) Unpack(ctx context.Context, t Target) (err error) {
	if p.Part, err = p.From.Unpack(ctx, t.Name, t.Dir); err != nil {
		return err
	}
	was := p.Part.Config
	if was.OCIRuntime != t.Handler {
		return fmt.Errorf("the checkpoint was made under the runtime handler %.100q, not %q: %w", was.OCIRuntime, t.Handler, errdefs.ErrFailedPrecondition)
	}
	if !sameImage(was.RootfsImageRef, t.Image) {
		return fmt.Errorf("the checkpoint is of image %.300q (%.100q), and the container's image is %s: %w",
			was.RootfsImageRef, was.RootfsImage, t.Image.ID, errdefs.ErrFailedPrecondition)
	}
	if err := p.Part.rename(t.Hostname); err != nil {
		return err
	}
	tar, to := io.Pipe()
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = to.CloseWithError(p.Part.Layer(ctx, to)) // never fails
	}()
	err = p.Files.Fill(ctx, t.ID, t.Image, tar)
	_ = tar.Close() // never fails, and ends the other side
	<-done
	return err
}

// sameImage reports whether a reference by digest, or an ID, is the image's.
func sameImage(ref string, img store.Image) bool {
	digest := ref[strings.LastIndexByte(ref, '@')+1:]
	_, digests := img.Names()
	return digest == img.ID || slices.ContainsFunc(digests, func(d string) bool { return d[strings.LastIndexByte(d, '@')+1:] == digest })
}

// criuConfig has CRIU restore connections as closed ones: they were of another
// address, and whoever was at the other end has the old container or has gone.
const criuConfig = "tcp-close\n"

// Fit checks that the processes can go on in the container that a specification
// describes, with no more rights than it gives, and has the runtime restore them
// there. root is where its root file system is mounted.
func (p *Parcel) Fit(doc *specs.Spec, root string) error {
	if err := Fits(p.Part.Spec, doc); err != nil {
		return err
	}
	if err := p.Vet(p.Part.Images(), doc, root); err != nil {
		return err
	}
	// CRIU takes the root as it is.
	if doc.Root.Readonly {
		if err := unix.Mount("", root, "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY, ""); err != nil {
			return fmt.Errorf("make %s read-only: %w", root, err)
		}
	}
	config := filepath.Join(p.Part.dir, "criu.conf")
	if err := os.WriteFile(config, []byte(criuConfig), 0o600); err != nil {
		return err
	}
	if doc.Annotations == nil {
		doc.Annotations = map[string]string{}
	}
	doc.Annotations["org.criu.config"] = config // runc's
	return nil
}

// Vet checks that CRIU's images give the processes no more than a specification
// does, whose root file system is mounted at root, and that this CRIU restores
// what holds them back.
func (c *CRIU) Vet(images string, doc *specs.Spec, root string) error {
	if doc.Process.NoNewPrivileges {
		if err := keepsNoNewPrivs(); err != nil {
			return err
		}
	}
	img, err := image.Read(images)
	if err == nil {
		doc, err = image.Resolve(doc, root)
	}
	if err == nil {
		err = image.Check(img, doc)
	}
	if err == nil {
		err = image.CheckRoot(img, root)
	}
	return err
}

// rename gives the pod's host name to the image of the UTS namespace: CRIU sets
// what it finds there, in the namespace that all containers of the pod share.
func (p *Part) rename(hostname string) error {
	images, err := filepath.Glob(filepath.Join(p.Images(), "utsns-*.img"))
	if err != nil {
		return err
	}
	for _, path := range images {
		b, err := readSmall(path)
		if err == nil {
			b, err = renamed(b, hostname)
		}
		if err == nil {
			err = os.WriteFile(path, b, 0o600)
		}
		if err != nil {
			return fmt.Errorf("checkpoint: %s: %w", filepath.Base(path), err)
		}
	}
	return nil
}

// maxUTS is more than the names of a UTS namespace take, in bytes.
const maxUTS = 64 << 10

func readSmall(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxUTS+1))
	if err == nil && len(b) > maxUTS {
		err = invalid("it has more than %d bytes", maxUTS)
	}
	return b, err
}

// An image of one message: two magic numbers, the message's size, the message.
const imageHeader = 12

var errImage = fmt.Errorf("it is no image of CRIU's: %w", errdefs.ErrInvalidArgument)

// renamed is the image of a UTS namespace with another host name. Pure.
func renamed(image []byte, hostname string) ([]byte, error) {
	if len(image) < imageHeader || int(binary.LittleEndian.Uint32(image[8:])) != len(image)-imageHeader {
		return nil, errImage
	}
	const nodename = 1
	message := protowire.AppendTag(nil, nodename, protowire.BytesType)
	message = protowire.AppendString(message, hostname)
	for rest := image[imageHeader:]; len(rest) > 0; {
		number, _, n := protowire.ConsumeField(rest)
		if n < 0 {
			return nil, errImage
		}
		if number != nodename {
			message = append(message, rest[:n]...)
		}
		rest = rest[n:]
	}
	out := binary.LittleEndian.AppendUint32(slices.Clone(image[:8]), uint32(len(message)))
	return append(out, message...), nil
}

package checkpoint

import (
	"archive/tar"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"path"
	"strings"
	"time"
)

// Limits of what is taken from an archive.
const (
	maxEntries  = 100_000
	maxDocument = 16 << 20 // bytes of one JSON document
	maxNetworks = 64
)

// Summary is what an archive says about itself. All of it is the word of whoever
// wrote it.
type Summary struct {
	Name         string    `json:"name"`
	ID           string    `json:"id"`
	Pod          string    `json:"pod,omitempty"`
	Namespace    string    `json:"namespace,omitempty"`
	Image        string    `json:"image,omitempty"`
	Requested    string    `json:"requestedImage,omitempty"` // as the container's maker named it
	ImageRef     string    `json:"imageRef,omitempty"`
	Handler      string    `json:"handler,omitempty"`
	Created      time.Time `json:"created"`
	Checkpointed time.Time `json:"checkpointed"`
	Addresses    []string  `json:"addresses,omitempty"`
	Size
}

// Size is how much is in an archive.
type Size struct {
	MemoryBytes int64 `json:"memoryBytes"` // of CRIU's pages
	DiffBytes   int64 `json:"diffBytes"`   // of the tar of written files
	Deleted     int   `json:"deleted"`     // paths of the image
	LogBytes    int64 `json:"logBytes"`    // that the container had logged
}

// errOther is a tar that is no checkpoint.
var errOther = errors.New("it is a tar, but no checkpoint of a container: config.dump is missing")

// Read reads an archive. It holds no more in memory than the documents that it decodes.
func Read(r io.Reader) (*Summary, error) { return read(r, maxEntries) }

func read(r io.Reader, entries int) (*Summary, error) {
	s, seen := &Summary{}, map[string]bool{}
	in := tar.NewReader(r)
	for n := 0; ; n++ {
		h, err := in.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, fmt.Errorf("it is no tar, or was cut short: %w", err)
		}
		if n == entries {
			return nil, fmt.Errorf("it has more than %d entries", entries)
		}
		if err := s.entry(h, in, seen); err != nil {
			return nil, fmt.Errorf("%q: %w", h.Name, err)
		}
	}
	if !seen["config.dump"] {
		return nil, errOther
	}
	return s, nil
}

func (s *Summary) entry(h *tar.Header, r io.Reader, seen map[string]bool) error {
	if h.Typeflag != tar.TypeReg {
		return nil
	}
	name := strings.TrimPrefix(h.Name, "./")
	if dir, file := path.Split(name); dir == "checkpoint/" && strings.HasPrefix(file, "pages-") {
		s.MemoryBytes = sum(s.MemoryBytes, h.Size)
		return nil
	}
	read := s.reader(name)
	if read == nil {
		return nil
	}
	if seen[name] {
		return errors.New("it is there twice")
	}
	seen[name] = true
	if name == diffFile {
		s.DiffBytes = h.Size
	} else if h.Size > maxDocument {
		return fmt.Errorf("%d bytes are more than a document may have", h.Size)
	}
	return read(r)
}

const diffFile = "rootfs-diff.tar"

// reader returns what reads an entry; nil for those that are skipped.
func (s *Summary) reader(name string) func(io.Reader) error {
	switch name {
	case "config.dump":
		return s.config
	case "spec.dump":
		return s.spec
	case "status.dump":
		return s.status
	case "network.status":
		return s.network
	case "deleted.files":
		return s.deleted
	case diffFile:
		return func(io.Reader) error { return nil } // its size says it all
	}
	return nil
}

// sum adds sizes that nobody has checked.
func sum(a, b int64) int64 {
	if b < 0 || a > math.MaxInt64-b {
		return math.MaxInt64
	}
	return a + b
}

func decode(r io.Reader, v any) error {
	return json.NewDecoder(io.LimitReader(r, maxDocument)).Decode(v)
}

func (s *Summary) config(r io.Reader) error {
	var c struct {
		ID, Name, RootfsImage, RootfsImageRef, RootfsImageName, Runtime string
		CreatedTime, CheckpointedTime                                   time.Time
	}
	if err := decode(r, &c); err != nil {
		return err
	}
	s.ID, s.Name, s.Requested, s.ImageRef, s.Handler, s.Created, s.Checkpointed = c.ID, c.Name, c.RootfsImage, c.RootfsImageRef, c.Runtime, c.CreatedTime, c.CheckpointedTime
	if s.Image = c.RootfsImageName; s.Image == "" {
		s.Image = c.RootfsImage
	}
	return nil
}

func (s *Summary) spec(r io.Reader) error {
	var d struct{ Annotations map[string]string }
	err := decode(r, &d)
	s.Pod, s.Namespace = d.Annotations["io.kubernetes.cri.sandbox-name"], d.Annotations["io.kubernetes.cri.sandbox-namespace"]
	return err
}

func (s *Summary) status(r io.Reader) error {
	var d struct{ LogBytes int64 }
	err := decode(r, &d)
	s.LogBytes = max(d.LogBytes, 0)
	return err
}

func (s *Summary) network(r io.Reader) error {
	var d struct{ IPs []struct{ Address string } }
	err := decode(r, &d)
	for i, ip := range d.IPs {
		if i < maxNetworks {
			s.Addresses = append(s.Addresses, ip.Address)
		}
	}
	return err
}

func (s *Summary) deleted(r io.Reader) error {
	var d []string
	err := decode(r, &d)
	s.Deleted = len(d)
	return err
}

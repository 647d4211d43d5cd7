// Package imageservice implements the CRI's verbs on images and gives
// containers their root file systems.
//
// On disk, below the state directory:
//
//	content/     blobs by digest: manifests and configurations; layer blobs only
//	             while they are fetched, unless Config.KeepBlobs
//	layers/<chain hex>/fs   one unpacked layer in overlayfs form
//	layers/<chain hex>/layer.json   its record, to rebuild the index from
//	staging/     what is being made or deleted; emptied at start
//	containers/<id>/{upper,work}    writable layers
//
// Order of a pull: unpack in staging, sync the file system, rename into
// layers/, sync that directory, commit the records. Order of a removal: commit
// without the records, rename into staging/, delete. A crash at any point
// leaves at most files without a record, which Recover deletes.
package imageservice

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-dev/berth/imageservice/content"
	"github.com/berth-dev/berth/imageservice/layer"
	"github.com/berth-dev/berth/imageservice/registry"
	"github.com/berth-dev/berth/imageservice/snapshot"
	"github.com/berth-dev/berth/store"
)

// Config is the image side's configuration. Zero values get the defaults.
type Config struct {
	StateDir  string   // required
	HostsDirs []string // registry hosts directories, best first; default /etc/berth/certs.d, /etc/containerd/certs.d
	Platform  string   // "linux/arm64"; default this node's
	Downloads int      // blobs fetched at the same time; default 3
	Unpacks   int      // layers unpacked at the same time; default the number of CPUs
	KeepBlobs bool     // keep compressed layers after unpacking
	// Limits bound one layer; ManifestBytes and ConfigBytes one document (4 and 8 MiB).
	Limits        layer.Limits
	ManifestBytes int64
	ConfigBytes   int64
	// KnownHandler says whether a runtime handler exists; nil accepts all.
	KnownHandler func(string) bool
	// Registry bounds requests; its HostsDirs and Logger are set from here.
	Registry registry.Config
	Logger   *slog.Logger // nil discards
}

// withDefaults checks the configuration and fills it in.
func (c Config) withDefaults() (Config, error) {
	if !filepath.IsAbs(c.StateDir) {
		return c, fmt.Errorf("state directory %q is not absolute: %w", c.StateDir, errdefs.ErrInvalidArgument)
	}
	if c.HostsDirs == nil {
		c.HostsDirs = []string{"/etc/berth/certs.d", "/etc/containerd/certs.d"}
	}
	if c.Unpacks <= 0 {
		c.Unpacks = runtime.NumCPU()
	}
	if c.ManifestBytes <= 0 {
		c.ManifestBytes = 4 << 20
	}
	if c.ConfigBytes <= 0 {
		c.ConfigBytes = 8 << 20
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	c.Registry.HostsDirs, c.Registry.Logger = c.HostsDirs, c.Logger
	return c, nil
}

// Service is the image side of the runtime. All methods are safe for
// concurrent use; requests that concern the same layer share the work.
type Service struct {
	runtimeapi.UnimplementedImageServiceServer

	cfg      Config
	db       *store.DB
	registry *registry.Registry
	blobs    *content.Store
	upper    *snapshot.Store
	platform platforms.MatchComparer
	unpacks  chan struct{} // slots

	commitMu sync.Mutex // read-change-write of image records and renames
	disk     diskUse

	mu   sync.Mutex
	held held
}

// New opens the image side in cfg.StateDir. Call Recover before the first pull.
func New(cfg Config, db *store.DB) (*Service, error) {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return nil, fmt.Errorf("image service: %w", err)
	}
	platform := platforms.DefaultStrict()
	if cfg.Platform != "" {
		p, err := platforms.Parse(cfg.Platform)
		if err != nil {
			return nil, fmt.Errorf("image service: platform %q: %w: %w", cfg.Platform, err, errdefs.ErrInvalidArgument)
		}
		platform = platforms.Only(p)
	}
	var errs []error
	for _, d := range []string{"layers", "staging", "layers/empty"} {
		errs = append(errs, os.MkdirAll(filepath.Join(cfg.StateDir, d), 0o711))
	}
	errs = append(errs, os.Chmod(filepath.Join(cfg.StateDir, "layers/empty"), 0o755))
	blobs, err := content.Open(content.Config{Dir: filepath.Join(cfg.StateDir, "content"), Downloads: cfg.Downloads, Logger: cfg.Logger})
	errs = append(errs, err)
	upper, err := snapshot.Open(filepath.Join(cfg.StateDir, "containers"))
	errs = append(errs, err)
	if err := errors.Join(errs...); err != nil {
		return nil, fmt.Errorf("image service: %w", err)
	}
	return &Service{
		cfg: cfg, db: db, registry: registry.New(cfg.Registry), blobs: blobs, upper: upper, platform: platform,
		unpacks: make(chan struct{}, cfg.Unpacks), held: newHeld(),
	}, nil
}

func (s *Service) layerDir(chain string) string {
	return filepath.Join(s.cfg.StateDir, "layers", digest.Digest(chain).Encoded())
}

func (s *Service) staging() string { return filepath.Join(s.cfg.StateDir, "staging") }

// orphanAge is how long layers of a pull that failed wait for its repetition.
const orphanAge = time.Hour

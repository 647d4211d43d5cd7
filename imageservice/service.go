// Package imageservice implements the CRI's verbs on images and gives
// containers their root file systems.
//
// On disk, below the state directory:
//
//	content/     blobs by digest: manifests and configurations; layer blobs only
//	             while they are fetched, unless Config.KeepBlobs
//	layers/<chain hex>/fs   one unpacked layer in overlayfs form
//	layers/<chain hex>/layer.json   its record, to rebuild the index from
//	layers/<chain hex>/files.gz     its inventory, to check it against
//	quarantine/  damaged layers that containers may still use
//	image-boot.json  which boot wrote here last, and whether it ended in order
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
	"regexp"
	"sync"
	"sync/atomic"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-dev/berth/imageservice/content"
	"github.com/berth-dev/berth/imageservice/layer"
	"github.com/berth-dev/berth/imageservice/registry"
	"github.com/berth-dev/berth/imageservice/signature"
	"github.com/berth-dev/berth/imageservice/snapshot"
	"github.com/berth-dev/berth/store"
)

// Config is the image side's configuration. Zero values get the defaults.
type Config struct {
	StateDir string // required
	Platform string // "linux/arm64"; default this node's
	// Platforms are those of runtime handlers whose images are for another one.
	Platforms map[string]string
	KeepBlobs bool // keep compressed layers after unpacking
	Settings
	// Limits bound one layer; ManifestBytes and ConfigBytes one document (4 and 8 MiB).
	Limits        layer.Limits
	ManifestBytes int64
	ConfigBytes   int64
	// KnownHandler says whether a runtime handler exists; nil accepts all.
	KnownHandler func(string) bool
	// Registry is set from here but for Retries.
	Registry registry.Config
	Logger   *slog.Logger // nil discards
}

// Settings are the part of the configuration that Apply changes.
type Settings struct {
	HostsDirs []string   // registry hosts directories, best first; default /etc/berth/certs.d, /etc/containerd/certs.d
	AuthFiles []string   // docker config.json files with credentials
	Gzip      string     // program that unpacks large gzip layers; "" for our own code
	Pinned    []string   // names of images that are reported as pinned; "*" stands for any text
	Pull      PullLimits // what all pulls take together
}

// withDefaults checks the configuration and fills it in.
func (c Config) withDefaults() (Config, error) {
	if !filepath.IsAbs(c.StateDir) {
		return c, fmt.Errorf("state directory %q is not absolute: %w", c.StateDir, errdefs.ErrInvalidArgument)
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
	c.Registry.Logger = c.Logger
	return c, nil
}

// Service is the image side of the runtime. All methods are safe for
// concurrent use; requests that concern the same layer share the work.
type Service struct {
	runtimeapi.UnimplementedImageServiceServer

	cfg   Config
	db    *store.DB
	blobs *content.Store
	upper *writable
	pulls *pulls
	origin

	commitMu sync.Mutex // read-change-write of image records and renames

	boot boot
	mu   sync.Mutex
	held held
}

// origin says where images are from and which of them are wanted.
type origin struct {
	registry *registry.Registry
	platform platforms.MatchComparer
	others   map[string]string                // runtime handler -> its platform, when that is another one
	policy   atomic.Pointer[signature.Policy] // who must have signed; nil: nobody
	gzip     atomic.Pointer[string]
	pinned   atomic.Pointer[[]*regexp.Regexp]
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
	others, err := otherPlatforms(cfg)
	if err != nil {
		return nil, fmt.Errorf("image service: %w", err)
	}
	var errs []error
	for _, d := range []string{"layers", "staging", "layers/empty"} {
		errs = append(errs, os.MkdirAll(filepath.Join(cfg.StateDir, d), 0o711))
	}
	errs = append(errs, os.Chmod(filepath.Join(cfg.StateDir, "layers/empty"), 0o755))
	blobs, err := content.Open(content.Config{Dir: filepath.Join(cfg.StateDir, "content"), Limits: cfg.Pull.content(), Logger: cfg.Logger})
	errs = append(errs, err)
	bootID, err := readBootID()
	errs = append(errs, err)
	upper, err := snapshot.Open(filepath.Join(cfg.StateDir, "containers"))
	errs = append(errs, err)
	if err := errors.Join(errs...); err != nil {
		return nil, fmt.Errorf("image service: %w", err)
	}
	s := &Service{
		cfg: cfg, db: db, blobs: blobs, upper: &writable{Store: upper},
		origin: origin{registry: registry.New(cfg.Registry), platform: platform, others: others},
		pulls:  newPulls(cfg.Pull), held: newHeld(), boot: boot{id: bootID, recovered: make(chan struct{})},
	}
	s.Apply(cfg.Settings)
	return s, nil
}

// otherPlatforms keeps the handlers' platforms that are not the node's.
func otherPlatforms(cfg Config) (map[string]string, error) {
	own := platforms.DefaultString()
	if p, err := platforms.Parse(cfg.Platform); cfg.Platform != "" && err == nil {
		own = platforms.Format(p)
	}
	out := map[string]string{}
	for handler, name := range cfg.Platforms {
		if name == "" {
			continue
		}
		p, err := platforms.Parse(name)
		if err != nil {
			return nil, fmt.Errorf("platform %q of runtime handler %q: %w: %w", name, handler, err, errdefs.ErrInvalidArgument)
		}
		if f := platforms.Format(p); f != own {
			out[handler] = f
		}
	}
	return out, nil
}

func (s *Service) layerDir(chain string) string {
	return filepath.Join(s.cfg.StateDir, "layers", digest.Digest(chain).Encoded())
}

func (s *Service) staging() string { return filepath.Join(s.cfg.StateDir, "staging") }

// orphanAge is how long layers of a pull that failed wait for its repetition.
const orphanAge = time.Hour

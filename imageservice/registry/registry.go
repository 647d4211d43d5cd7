// Package registry reads manifests and blobs from OCI and Docker v2
// registries: hosts.toml mirrors, credentials, retries and byte ranges.
//
// Which hosts serve a repository, their TLS set-up and the token flow are
// containerd's (core/remotes/docker and its config package); the request loop
// is ours, so that every host tried and why it failed ends up in the error.
package registry

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/containerd/containerd/v2/core/remotes/docker/config"
	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"github.com/pelletier/go-toml/v2"
	"github.com/sirupsen/logrus"
)

// Config says how registries are reached. Zero values get the documented defaults.
type Config struct {
	// HostsDirs are the directories that hold <host>/hosts.toml, best first:
	// the first one that knows the host is used. Read at every pull.
	HostsDirs []string
	// Retries is how often a request that failed for a passing reason is
	// repeated on the same host; default 3.
	Retries int
	// StallTimeout ends a transfer that delivers no byte for so long; default 30 s.
	StallTimeout time.Duration
	// ConnectTimeout bounds connecting to one host; default 10 s.
	ConnectTimeout time.Duration
	// Logger gets the hosts that were tried; nil discards.
	Logger *slog.Logger
}

// Registry opens sessions and remembers which hosts did not answer.
type Registry struct {
	cfg     Config
	breaker breaker
}

// New returns a Registry.
func New(cfg Config) *Registry {
	if cfg.Retries <= 0 {
		cfg.Retries = 3
	}
	if cfg.StallTimeout <= 0 {
		cfg.StallTimeout = 30 * time.Second
	}
	if cfg.ConnectTimeout <= 0 {
		cfg.ConnectTimeout = 10 * time.Second
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	return &Registry{cfg: cfg, breaker: breaker{down: map[string]time.Time{}}}
}

// Session reads one repository with one set of credentials.
type Session struct {
	reg        *Registry
	domain     string
	path       string
	hosts      []docker.RegistryHost
	transports []*http.Transport
	// hasCreds: the caller gave credentials; it only words the errors.
	hasCreds bool
}

// Open reads the host configuration for domain ("docker.io",
// "registry.example:5000") and returns a session on the repository at path.
// Close it to drop its idle connections.
func (r *Registry) Open(ctx context.Context, domain, path string, creds Credentials) (*Session, error) {
	s := &Session{reg: r, domain: domain, path: path, hasCreds: !creds.empty()}
	opts := config.HostOptions{
		HostDir: r.hostDir,
		Credentials: func(host string) (string, string, error) {
			// A host that a redirect leads to may ask, but nobody listed it.
			if !slices.ContainsFunc(s.hosts, func(h docker.RegistryHost) bool { return h.Host == host }) {
				return "", "", nil
			}
			return creds.lookup(host)
		},
		UpdateClient: func(c *http.Client) error {
			if t, ok := c.Transport.(*http.Transport); ok {
				r.tune(t)
				s.transports = append(s.transports, t)
			}
			return nil
		},
	}
	// The library logs by itself, to standard error; what matters comes back
	// to us as errors.
	quiet := logrus.New()
	quiet.SetOutput(io.Discard)
	ctx = log.WithLogger(ctx, &log.Entry{Logger: quiet})
	hosts, err := config.ConfigureHosts(ctx, opts)(domain)
	if err != nil {
		return nil, fmt.Errorf("read registry configuration for %s: %w: %w", domain, err, errdefs.ErrFailedPrecondition)
	}
	for i := range hosts {
		if creds.RegistryToken != "" && creds.mayVolunteer(domain, hosts[i].Host) {
			hosts[i].Authorizer = bearer{token: creds.RegistryToken, host: hosts[i].Host}
		}
	}
	s.hosts = hosts
	return s, nil
}

// Close drops idle connections. Transfers that still run are not cut.
func (s *Session) Close() {
	for _, t := range s.transports {
		t.CloseIdleConnections()
	}
}

// tune bounds connecting, waiting for the first byte and idle connections.
func (r *Registry) tune(t *http.Transport) {
	dialer := &net.Dialer{Timeout: r.cfg.ConnectTimeout, KeepAlive: 30 * time.Second}
	t.DialContext = dialer.DialContext
	t.ResponseHeaderTimeout = r.cfg.StallTimeout
	t.MaxIdleConnsPerHost = 8
	t.IdleConnTimeout = 15 * time.Second
	t.ReadBufferSize = 64 << 10
}

// hostDir finds the directory that configures host. A hosts.toml that does not
// parse is an error: the library would silently go on without it, and so send
// a pull past the mirror the administrator wanted.
func (r *Registry) hostDir(host string) (string, error) {
	for _, root := range r.cfg.HostsDirs {
		dir, err := config.HostDirFromRoot(root)(host)
		if errdefs.IsNotFound(err) {
			continue
		}
		if err != nil {
			return "", err
		}
		file := filepath.Join(dir, "hosts.toml")
		raw, err := os.ReadFile(file)
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return "", err
		}
		if err := CheckHostsFile(raw); err != nil {
			return "", fmt.Errorf("%s: %w", file, err)
		}
		return dir, nil
	}
	return "", errdefs.ErrNotFound
}

// CheckHostsFile reports whether raw is well-formed hosts.toml.
func CheckHostsFile(raw []byte) error {
	var file struct {
		Server string                    `toml:"server"`
		Host   map[string]map[string]any `toml:"host"`
	}
	if err := toml.Unmarshal(raw, &file); err != nil {
		return fmt.Errorf("not valid hosts.toml: %w", err)
	}
	return nil
}

// breaker remembers hosts that did not answer, so that one dead mirror costs
// one time-out and not one per request.
type breaker struct {
	mu   sync.Mutex
	down map[string]time.Time // host -> when to try again
}

// breakerRest is how long a host that did not answer is passed over.
const breakerRest = 30 * time.Second

// order returns hosts with those that are resting moved to the end: they are
// still tried when nothing else serves.
func (b *breaker) order(hosts []docker.RegistryHost) []docker.RegistryHost {
	b.mu.Lock()
	defer b.mu.Unlock()
	now := time.Now()
	var up, resting []docker.RegistryHost
	for _, h := range hosts {
		if b.down[h.Host].After(now) {
			resting = append(resting, h)
		} else {
			up = append(up, h)
		}
	}
	return append(up, resting...)
}

func (b *breaker) fail(host string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.down[host] = time.Now().Add(breakerRest)
}

func (b *breaker) ok(host string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.down, host)
}

// hostsFor returns the hosts with the capability, in the order to try them.
func (s *Session) hostsFor(c docker.HostCapabilities) ([]docker.RegistryHost, error) {
	var hosts []docker.RegistryHost
	for _, h := range s.hosts {
		if h.Capabilities.Has(c) {
			hosts = append(hosts, h)
		}
	}
	if len(hosts) == 0 {
		return nil, fmt.Errorf("hosts.toml for %s leaves no host that may serve this request: %w", s.domain, errdefs.ErrFailedPrecondition)
	}
	return s.reg.breaker.order(hosts), nil
}

// isUpstream reports whether host is the registry the image's name says.
func isUpstream(domain, host string) bool {
	return normalizeHost(domain) == normalizeHost(host)
}

// normalizeHost folds the names Docker Hub goes by and strips scheme and path.
func normalizeHost(h string) string {
	if i := strings.Index(h, "://"); i >= 0 {
		h = h[i+3:]
	}
	h, _, _ = strings.Cut(h, "/")
	switch h = strings.ToLower(h); h {
	case "docker.io", "index.docker.io", "registry-1.docker.io":
		return "docker.io"
	}
	return h
}

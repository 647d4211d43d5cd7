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
	"net/http"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/containerd/containerd/v2/core/remotes/docker/config"
	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"github.com/opencontainers/go-digest"
	"github.com/sirupsen/logrus"
)

// Config says how registries are reached. Zero values get the documented defaults.
type Config struct {
	Files
	// Retries is how often a request that failed for a passing reason is
	// repeated on the last host that is left; default 3.
	Retries int
	Limits  Limits
	// Logger gets the hosts that were tried; nil discards.
	Logger *slog.Logger
}

// Files are where the node's administrator says what there is to know of
// registries. SetFiles changes them.
type Files struct {
	// HostsDirs are the directories that hold <host>/hosts.toml, best first:
	// the first one that knows the host is used. Read at every pull.
	HostsDirs []string
	// AuthFiles are docker config.json files with credentials for pulls that
	// bring none for a host. Read when a host asks.
	AuthFiles []string
}

// Limits bound one host's answers. Zero values get the defaults.
type Limits struct {
	Connect   time.Duration // TCP and TLS, each; default 10 s
	FirstByte time.Duration // from the request to the answer's header; default 30 s
	Stall     time.Duration // without a byte in a body; default 30 s
	MinRate   int64         // bytes per second, over the time of Stall; default none
}

// Stats counts what sessions did since the start.
type Stats struct {
	Requests atomic.Int64 // sent, repetitions included
	Retries  atomic.Int64 // of them repetitions
	Failed   atomic.Int64 // hosts that were tried without success
}

// Registry opens sessions and remembers which hosts did not answer.
type Registry struct {
	cfg     Config
	limit   atomic.Pointer[Limits]
	files   atomic.Pointer[Files]
	stats   Stats
	breaker breaker
}

// New returns a Registry.
func New(cfg Config) *Registry {
	if cfg.Retries <= 0 {
		cfg.Retries = 3
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	r := &Registry{cfg: cfg, breaker: breaker{trial: breakerRest, down: map[string]*outage{}}}
	r.SetLimits(cfg.Limits)
	r.SetFiles(cfg.Files)
	return r
}

// SetFiles changes the files for hosts that are looked up from now on.
func (r *Registry) SetFiles(f Files) { r.files.Store(&f) }

// SetLimits changes the limits for sessions that are opened from now on.
func (r *Registry) SetLimits(l Limits) {
	set := func(v *time.Duration, def time.Duration) {
		if *v <= 0 {
			*v = def
		}
	}
	set(&l.Connect, 10*time.Second)
	set(&l.FirstByte, 30*time.Second)
	set(&l.Stall, 30*time.Second)
	r.limit.Store(&l)
}

func (r *Registry) limits() Limits { return *r.limit.Load() }

// Stats returns the counters, which go on counting.
func (r *Registry) Stats() *Stats { return &r.stats }

// Target says what a session reads, and for whom.
type Target struct {
	Domain string // "docker.io", "registry.example:5000"
	Path   string // the repository
	Creds  Credentials
	Trace  func(Attempt) // nil: nobody listens; called from many goroutines
}

// Attempt is one host that was tried for one object, or passed over.
type Attempt struct {
	Host        string
	Object      string // "manifests/v1", "blobs/sha256:..."
	Credentials string // where they are from, in words
	Took        time.Duration
	Err         error // nil: it answered
}

// Session reads one repository with one set of credentials.
type Session struct {
	reg    *Registry
	domain string
	path   string
	creds  Credentials
	trace  func(Attempt)
	limits Limits

	hosts      []docker.RegistryHost
	extra      extras
	auth       map[string]*authorizer // by host
	transports []*http.Transport
}

// Open reads the host configuration for the target's domain and returns a
// session on its repository. Close it to drop its idle connections.
func (r *Registry) Open(ctx context.Context, t Target) (*Session, error) {
	s := &Session{
		reg: r, domain: t.Domain, path: t.Path, creds: t.Creds, trace: t.Trace, limits: r.limits(), auth: map[string]*authorizer{},
	}
	opts := config.HostOptions{
		HostDir: func(host string) (dir string, err error) {
			dir, s.extra, err = r.hostDir(host)
			return dir, err
		},
		UpdateClient: func(c *http.Client) error {
			if t, ok := c.Transport.(*http.Transport); ok {
				r.tune(t)
				s.transports = append(s.transports, t)
			}
			return nil
		},
	}
	hosts, err := config.ConfigureHosts(quiet(ctx), opts)(t.Domain)
	if err != nil {
		return nil, fmt.Errorf("read registry configuration for %s: %w: %w", t.Domain, err, errdefs.ErrFailedPrecondition)
	}
	s.hosts = hosts
	if err := s.allUsed(); err != nil {
		return nil, err
	}
	for i, h := range hosts {
		tr, ok := h.Client.Transport.(*http.Transport)
		if d := s.extra[h.Host].dial; d > 0 && ok {
			setDial(tr, d)
		}
		a := s.newAuthorizer(h)
		hosts[i].Authorizer, s.auth[h.Host] = nil, a
	}
	return s, nil
}

// quiet keeps the library from logging by itself, to standard error; what
// matters comes back to us as errors.
func quiet(ctx context.Context) context.Context {
	discard := logrus.New()
	discard.SetOutput(io.Discard)
	return log.WithLogger(ctx, &log.Entry{Logger: discard})
}

// allUsed finds hosts that the library passes by: it knows tables with a header
// of their own only, no dotted keys and no inline tables.
func (s *Session) allUsed() error {
	for name := range s.extra {
		if name != "" && !slices.ContainsFunc(s.hosts, func(h docker.RegistryHost) bool { return h.Host == name }) {
			return fmt.Errorf("hosts.toml for %s: host %.100q needs a table with a header of its own, [host.\"https://...\"]: %w",
				s.domain, name, errdefs.ErrFailedPrecondition)
		}
	}
	return nil
}

// Close drops idle connections. Transfers that still run are not cut.
func (s *Session) Close() {
	for _, t := range s.transports {
		t.CloseIdleConnections()
	}
}

// hostsFor returns the hosts with the capability, in the order of the configuration.
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
	return hosts, nil
}

// each calls try for every host that may serve the object until one succeeds;
// last tells it that no other host is left. Hosts that lately did not answer
// come last, and only when the registry itself has not answered. All failures are
// in the error; its kind is that of the registry itself, else of the last host.
func (s *Session) each(ctx context.Context, object string, try func(h docker.RegistryHost, last bool) error) error {
	caps := docker.HostCapabilityPull
	if d, ok := strings.CutPrefix(object, "manifests/"); ok && digest.Digest(d).Validate() != nil {
		caps |= docker.HostCapabilityResolve
	}
	hosts, err := s.hostsFor(caps)
	if err != nil {
		return err
	}
	own := hosts[len(hosts)-1].Host
	up, resting := s.reg.breaker.order(hosts, time.Now())
	hosts = append(up, resting...)
	var verdict error
	var final bool // the registry itself has spoken
	var others []string
	for i, h := range hosts {
		if i >= len(up) && final && !errdefs.IsUnavailable(verdict) {
			s.report(Attempt{Host: h.Host, Object: object, Err: errors.New("passed over: it did not answer lately")})
			break
		}
		start := time.Now()
		err := try(h, i == len(hosts)-1)
		s.report(Attempt{Host: h.Host, Object: object, Credentials: s.auth[h.Host].describe(), Took: time.Since(start), Err: err})
		if err == nil || ctx.Err() != nil {
			return err
		}
		s.reg.stats.Failed.Add(1)
		if i < len(hosts)-1 {
			s.reg.cfg.Logger.Warn("registry host failed", "host", h.Host, "object", object, "error", err)
		}
		if verdict != nil && !final {
			verdict, err = err, verdict
		}
		if verdict == nil {
			verdict = err
		} else {
			others = append(others, err.Error())
		}
		final = final || h.Host == own
	}
	if len(others) > 0 {
		return fmt.Errorf("%w (also tried: %s)", verdict, strings.Join(others, "; "))
	}
	return verdict
}

func (s *Session) report(a Attempt) {
	if s.trace != nil {
		s.trace(a)
	}
}

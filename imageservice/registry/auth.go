package registry

import (
	"context"
	"encoding/base64"
	"fmt"
	"log/slog"
	"strings"
	"sync"

	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/containerd/errdefs"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Credentials is what a client sent along with a pull. It prints as
// "[redacted]" wherever it ends up in a log or an error.
type Credentials struct {
	Username      string
	Password      string
	IdentityToken string // refresh token, traded for an access token
	RegistryToken string // bearer token, sent as it is
	// ServerAddress is the only host the credentials are for; "" means every
	// host that the node's configuration names for the image.
	ServerAddress string
}

// String hides the secrets.
func (Credentials) String() string { return "[redacted]" }

// GoString hides the secrets from %#v.
func (Credentials) GoString() string { return "[redacted]" }

// LogValue hides the secrets from slog.
func (Credentials) LogValue() slog.Value { return slog.StringValue("[redacted]") }

func (c Credentials) empty() bool {
	return c.Username == "" && c.Password == "" && c.IdentityToken == "" && c.RegistryToken == ""
}

// FromCRI reads the CRI's AuthConfig; nil means anonymous. "auth" is base64 of
// "user:password" and is used when username and password are not set.
func FromCRI(a *runtimeapi.AuthConfig) (Credentials, error) {
	c := Credentials{
		Username:      a.GetUsername(),
		Password:      a.GetPassword(),
		IdentityToken: a.GetIdentityToken(),
		RegistryToken: a.GetRegistryToken(),
		ServerAddress: a.GetServerAddress(),
	}
	if a.GetAuth() == "" || c.Username != "" || c.Password != "" {
		return c, nil
	}
	raw, err := base64.StdEncoding.DecodeString(a.GetAuth())
	if err != nil {
		// The text of a base64 error can hold bytes of the secret.
		return Credentials{}, fmt.Errorf("field auth of the credentials is not base64: %w", errdefs.ErrInvalidArgument)
	}
	user, pass, ok := strings.Cut(string(raw), ":")
	if !ok {
		return Credentials{}, fmt.Errorf("field auth of the credentials is not user:password: %w", errdefs.ErrInvalidArgument)
	}
	c.Username, c.Password = user, strings.Trim(pass, "\x00")
	return c, nil
}

// mayAnswer reports whether the credentials answer a challenge of host. As in
// containerd, credentials without a server answer every host that hosts.toml
// lists for the image, mirrors included; with a server, that one only.
func (c Credentials) mayAnswer(host string) bool {
	return c.ServerAddress == "" || isUpstream(c.ServerAddress, host)
}

// mayVolunteer reports whether a token that is sent without a challenge may go
// to host when an image of domain is pulled. A mirror never gets one unasked.
func (c Credentials) mayVolunteer(domain, host string) bool {
	if c.ServerAddress != "" {
		domain = c.ServerAddress
	}
	return isUpstream(domain, host)
}

// sourceRequest is what Attempt calls credentials that came with the pull.
const sourceRequest = "the pull request"

// authorizer answers the challenges of one host. The library's does the token
// flow; this one looks for the credentials when they are first asked for, and
// starts afresh when what it has does no longer do: the library keeps a token
// that was refused, and the failure to get one, as long as it lives.
type authorizer struct {
	s     *Session
	host  docker.RegistryHost
	fresh func(docker.AuthorizerOpt) docker.Authorizer

	mu     sync.Mutex
	inner  docker.Authorizer
	asked  bool // creds, source and err are known
	creds  Credentials
	source string
	err    error
}

func (s *Session) newAuthorizer(host docker.RegistryHost) *authorizer {
	a := &authorizer{s: s, host: host}
	a.fresh = func(opt docker.AuthorizerOpt) docker.Authorizer {
		opts := []docker.AuthorizerOpt{docker.WithAuthClient(host.Client), opt}
		if len(host.Header) > 0 {
			opts = append(opts, docker.WithAuthHeader(host.Header))
		}
		return docker.NewDockerAuthorizer(opts...)
	}
	return a
}

// current returns the library's authorizer and the token to send unasked.
func (a *authorizer) current() (docker.Authorizer, string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.inner == nil {
		a.inner = a.fresh(docker.WithAuthCreds(a.lookup))
	}
	if c := a.s.creds; c.RegistryToken != "" && c.mayVolunteer(a.s.domain, a.host.Host) {
		a.source = sourceRequest
		return a.inner, c.RegistryToken
	}
	if a.asked && a.err == nil {
		return a.inner, a.creds.RegistryToken
	}
	return a.inner, ""
}

// reset drops an authorizer whose tokens are of no use, unless somebody did.
func (a *authorizer) reset(stale docker.Authorizer) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.inner == stale {
		a.inner = nil
	}
}

// find returns the credentials for the host, and remembers them.
func (a *authorizer) find(ctx context.Context) (Credentials, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if !a.asked {
		a.creds, a.source, a.err = a.s.credentials(ctx, a.host.Host)
		a.asked = true
	}
	return a.creds, a.err
}

// lookup answers the token flow: user name and password, or an empty user name
// and a refresh token. A host that a redirect leads to may ask, but nobody
// listed it.
func (a *authorizer) lookup(host string) (string, string, error) {
	if host != a.host.Host {
		return "", "", nil
	}
	c, err := a.find(context.Background())
	if c.IdentityToken != "" && c.Username == "" {
		return "", c.IdentityToken, err
	}
	return c.Username, c.Password, err
}

// has reports whether the host was shown credentials.
func (a *authorizer) has() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.source != ""
}

// failure is why the credentials could not be found.
func (a *authorizer) failure() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.err
}

// describe says in words where the credentials are from.
func (a *authorizer) describe() string {
	a.mu.Lock()
	defer a.mu.Unlock()
	switch {
	case a.source != "":
		return a.source
	case a.asked:
		return "none found"
	}
	return "not asked for any"
}

// credentials decides who answers for host: what came with the request, if it
// is for this host, else the node's files. auth-from in hosts.toml puts
// another registry's name in the place of a mirror's.
func (s *Session) credentials(ctx context.Context, host string) (c Credentials, source string, err error) {
	target, mine := host, s.creds.mayAnswer(host)
	if from := s.extra[host].authFrom; from != "" {
		// Without a server the request's credentials are the image's registry's.
		target, mine = from, s.creds.mayVolunteer(s.domain, from)
	}
	suffix := ""
	if target != host {
		suffix = ", auth-from " + target
	}
	if mine && !s.creds.empty() {
		c := s.creds
		if !c.mayVolunteer(s.domain, target) {
			c.RegistryToken = ""
		}
		if !c.empty() {
			return c, sourceRequest + suffix, nil
		}
	}
	for _, file := range s.reg.files.Load().AuthFiles {
		c, source, err = fromFile(ctx, file, target, s.path)
		if err != nil || !c.empty() {
			return c, source + suffix, err
		}
	}
	return Credentials{}, "", nil
}

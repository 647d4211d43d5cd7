package registry

import (
	"context"
	"encoding/base64"
	"fmt"
	"log/slog"
	"net/http"
	"strings"

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
	// ServerAddress is the host the credentials are for; "" means the
	// registry of the image.
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

// allowed reports whether the credentials may be shown to host when an image
// of domain is pulled: the registry the image names, or exactly the server
// they were issued for. A mirror gets nothing else.
func (c Credentials) allowed(domain, host string) bool {
	if c.ServerAddress != "" {
		return isUpstream(c.ServerAddress, host)
	}
	return isUpstream(domain, host)
}

// lookup returns the credential function of the token flow: user name and
// password, or an empty user name and a refresh token.
func (c Credentials) lookup(domain string) func(string) (string, string, error) {
	return func(host string) (string, string, error) {
		if !c.allowed(domain, host) {
			return "", "", nil
		}
		if c.IdentityToken != "" {
			return "", c.IdentityToken, nil
		}
		return c.Username, c.Password, nil
	}
}

// bearer authorizes with a token the client already has.
type bearer struct{ token, host string }

// Authorize sets the token on requests to the host it is for.
func (b bearer) Authorize(_ context.Context, req *http.Request) error {
	if req.URL.Host == b.host {
		req.Header.Set("Authorization", "Bearer "+b.token)
	}
	return nil
}

// AddResponses has no second way: a refused token is a refused token.
func (b bearer) AddResponses(context.Context, []*http.Response) error {
	return fmt.Errorf("registry token was refused: %w", errdefs.ErrUnauthenticated)
}

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

// lookup answers the token flow for host: user name and password, or an empty
// user name and a refresh token.
func (c Credentials) lookup(host string) (string, string, error) {
	if !c.mayAnswer(host) {
		return "", "", nil
	}
	if c.IdentityToken != "" && c.Username == "" {
		return "", c.IdentityToken, nil
	}
	return c.Username, c.Password, nil
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

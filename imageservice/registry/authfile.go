package registry

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// authFile is docker's config.json, of which Berth reads credentials only.
type authFile struct {
	Auths       map[string]authEntry `json:"auths"`
	CredsStore  string               `json:"credsStore"`
	CredHelpers map[string]string    `json:"credHelpers"`
}

type authEntry struct {
	Username      string `json:"username"`
	Password      string `json:"password"`
	Auth          string `json:"auth"`
	IdentityToken string `json:"identitytoken"`
	RegistryToken string `json:"registrytoken"`
}

// fromFile looks for credentials of a registry, for the repository at path, in
// one config.json: a helper of that registry first, then the file's own
// entries, then the store of all credentials, as docker does. A file that is
// missing has none. source says in words where they are from.
func fromFile(ctx context.Context, file, host, path string) (c Credentials, source string, err error) {
	raw, err := readLimited(file, 1<<20)
	if errors.Is(err, os.ErrNotExist) {
		return Credentials{}, "", nil
	}
	if err != nil {
		return Credentials{}, "", fmt.Errorf("read credentials: %w: %w", err, errdefs.ErrFailedPrecondition)
	}
	var f authFile
	if json.Unmarshal(raw, &f) != nil {
		// The decoder's text can hold bytes of a secret.
		return Credentials{}, "", fmt.Errorf("read credentials: %s is not a docker config.json: %w", file, errdefs.ErrFailedPrecondition)
	}
	for name, helper := range f.CredHelpers {
		if normalizeHost(name) == normalizeHost(host) {
			c, err := askHelper(ctx, helper, name)
			return c, "helper " + helper + " named in " + file, err
		}
	}
	if name, e, ok := f.entry(host, path); ok && e != (authEntry{}) {
		c, err := e.credentials()
		if err != nil {
			return c, "", fmt.Errorf("entry %.100q of %s: %w: %w", name, file, err, errdefs.ErrFailedPrecondition)
		}
		return c, file, nil
	}
	if f.CredsStore == "" {
		return Credentials{}, "", nil
	}
	name := host
	if normalizeHost(host) == "docker.io" {
		name = "https://index.docker.io/v1/"
	}
	if c, err = askHelper(ctx, f.CredsStore, name); c.empty() && err == nil {
		return c, "", nil
	}
	return c, "helper " + f.CredsStore + " named in " + file, err
}

// entry finds the entry of a registry; one for a longer part of the
// repository's path wins.
func (f authFile) entry(host, path string) (name string, e authEntry, ok bool) {
	best := -1
	for k, v := range f.Auths {
		bare := k
		if i := strings.Index(k, "://"); i >= 0 {
			bare = k[i+3:]
		}
		if normalizeHost(bare) != normalizeHost(host) {
			continue
		}
		_, part, _ := strings.Cut(strings.TrimSuffix(bare, "/"), "/")
		if part == "v1" || part == "v2" {
			part = "" // docker's old way to write a registry
		}
		if part != "" && part != path && !strings.HasPrefix(path, part+"/") {
			continue
		}
		if len(part) > best || len(part) == best && k < name {
			best, name, e, ok = len(part), k, v, true
		}
	}
	return name, e, ok
}

func (e authEntry) credentials() (Credentials, error) {
	return FromCRI(&runtimeapi.AuthConfig{
		Username: e.Username, Password: e.Password, Auth: e.Auth, IdentityToken: e.IdentityToken, RegistryToken: e.RegistryToken,
	})
}

const (
	helperTimeout = 20 * time.Second
	helperOutput  = 1 << 20
)

// askHelper runs docker-credential-NAME get. A helper that knows nothing of the
// registry answers with nothing.
func askHelper(ctx context.Context, name, server string) (Credentials, error) {
	if name == "" || strings.ContainsAny(name, "/\x00") {
		return Credentials{}, fmt.Errorf("credential helper %.40q is not a name: %w", name, errdefs.ErrFailedPrecondition)
	}
	ctx, cancel := context.WithTimeout(ctx, helperTimeout)
	defer cancel()
	var out limitedBuffer
	cmd := exec.CommandContext(ctx, "docker-credential-"+name, "get")
	cmd.Stdin, cmd.Stdout, cmd.WaitDelay = strings.NewReader(server), &out, 10*time.Second
	err := cmd.Run()
	if err != nil && strings.Contains(string(out.b), "credentials not found") {
		return Credentials{}, nil
	}
	if err != nil {
		// Its output may hold what it should not say.
		return Credentials{}, fmt.Errorf("credential helper docker-credential-%s for %s: %w: %w", name, server, err, errdefs.ErrFailedPrecondition)
	}
	var got struct{ Username, Secret string }
	if json.Unmarshal(out.b, &got) != nil {
		return Credentials{}, fmt.Errorf("credential helper docker-credential-%s for %s did not answer with JSON: %w", name, server, errdefs.ErrFailedPrecondition)
	}
	if got.Username == "<token>" {
		return Credentials{IdentityToken: got.Secret}, nil
	}
	return Credentials{Username: got.Username, Password: got.Secret}, nil
}

// limitedBuffer keeps the first bytes and refuses more.
type limitedBuffer struct{ b []byte }

// Write implements io.Writer.
func (b *limitedBuffer) Write(p []byte) (int, error) {
	if len(b.b)+len(p) > helperOutput {
		return 0, errors.New("too much output")
	}
	b.b = append(b.b, p...)
	return len(p), nil
}

func readLimited(path string, limit int64) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	raw, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err == nil && int64(len(raw)) > limit {
		err = fmt.Errorf("%s is larger than %d bytes", path, limit)
	}
	return raw, err
}

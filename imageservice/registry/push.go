package registry

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/remotes/docker"
	remoteserrors "github.com/containerd/containerd/v2/core/remotes/errors"
	"github.com/containerd/errdefs"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Push stores a blob or a manifest in the repository, at the first host that
// may take it; a manifest under the tag too, "" for none. What is there already is
// not sent. write writes the content, which has the descriptor's digest and size,
// and is called again when the host wants it from the start.
func (s *Session) Push(ctx context.Context, desc ocispec.Descriptor, tag string, write func(io.Writer) error) error {
	hosts, err := s.hostsFor(docker.HostCapabilityPush)
	if err != nil {
		return err
	}
	host := hosts[0]
	host.Client = s.client(host)
	host.Authorizer = s.auth[host.Host].fresh(docker.WithAuthCreds(s.auth[host.Host].lookup))
	ref := s.domain + "/" + s.path
	if tag != "" {
		ref += ":" + tag
	}
	err = push(quiet(ctx), host, ref, desc, write)
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if err != nil {
		return fmt.Errorf("push %s: %w", desc.Digest, s.pushError(ctx, host.Host, err))
	}
	return nil
}

func push(ctx context.Context, host docker.RegistryHost, ref string, desc ocispec.Descriptor, write func(io.Writer) error) error {
	resolver := docker.NewResolver(docker.ResolverOptions{Hosts: func(string) ([]docker.RegistryHost, error) { return []docker.RegistryHost{host}, nil }})
	pusher, err := resolver.Pusher(ctx, ref)
	if err != nil {
		return err
	}
	to, err := pusher.Push(ctx, desc)
	if errdefs.IsAlreadyExists(err) {
		return nil
	}
	if err != nil {
		return err
	}
	defer to.Close()
	const tries = 3
	for range tries {
		if err = write(to); err == nil {
			err = to.Commit(ctx, desc.Size, desc.Digest)
		}
		if !errors.Is(err, content.ErrReset) { // the host asked for credentials, or anew
			return err
		}
	}
	return err
}

// pushError sorts what the library says.
func (s *Session) pushError(ctx context.Context, host string, err error) error {
	var answer remoteserrors.ErrUnexpectedStatus
	if !errors.As(err, &answer) {
		if errors.Is(err, docker.ErrInvalidAuthorization) {
			return fmt.Errorf("host %s: the repository needs other credentials, or does not exist: %w", host, errdefs.ErrUnauthenticated)
		}
		return transportError(ctx, host, err)
	}
	what := fmt.Sprintf("host %s answered %s%s", host, answer.Status, message(answer.Body))
	switch code := answer.StatusCode; {
	case code == http.StatusUnauthorized:
		return fmt.Errorf("%s: %w", what, errdefs.ErrUnauthenticated)
	case code == http.StatusForbidden:
		return fmt.Errorf("%s: %w", what, errdefs.ErrPermissionDenied)
	case code == http.StatusTooManyRequests, code >= http.StatusInternalServerError:
		return fmt.Errorf("%s: %w", what, errdefs.ErrUnavailable)
	}
	return fmt.Errorf("%s: %w", what, errdefs.ErrFailedPrecondition)
}

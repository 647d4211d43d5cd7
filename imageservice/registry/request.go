package registry

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/containerd/containerd/v2/core/remotes/docker"
	remoteserrors "github.com/containerd/containerd/v2/core/remotes/errors"
	"github.com/containerd/errdefs"

	"github.com/berth-dev/berth/observe"
)

// request is one call to one host.
type request struct {
	method string
	path   string // below the repository: "manifests/latest"
	header http.Header
}

// do sends the request to one host, answers its challenge and repeats it for
// passing failures while last says that no other host is left; else the next
// host is the better try. A response that is not 2xx comes back as an error.
func (s *Session) do(ctx context.Context, host docker.RegistryHost, r request, last bool) (*http.Response, error) {
	for try := 0; ; try++ {
		s.reg.stats.Requests.Add(1)
		resp, err := s.authorized(ctx, host, r)
		var wait time.Duration
		switch {
		case err != nil:
			err = transportError(ctx, host.Host, err)
		case resp.StatusCode < 300:
			s.reg.breaker.ok(host.Host)
			return resp, nil
		default:
			wait = retryAfter(resp)
			err = s.statusError(host.Host, resp)
		}
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		if !errdefs.IsUnavailable(err) {
			if resp != nil {
				s.reg.breaker.ok(host.Host)
			}
			return nil, err
		}
		// Nobody listens: asking again at once is no use.
		if !last || try >= s.reg.cfg.Retries || errors.Is(err, errRefused) {
			if resp == nil || resp.StatusCode >= 500 {
				s.reg.breaker.fail(host.Host, time.Now())
			}
			return nil, err
		}
		if wait == 0 {
			wait = 100 * time.Millisecond << try
		}
		s.reg.stats.Retries.Add(1)
		s.reg.cfg.Logger.Info("registry request will be repeated", "host", host.Host, "try", try+1, "wait", wait, "error", err)
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}

// authorized sends the request and, on 401, again with what the challenge
// asked for. A token that was refused may have run out: it is fetched anew.
func (s *Session) authorized(ctx context.Context, host docker.RegistryHost, r request) (*http.Response, error) {
	ctx = docker.WithScope(ctx, "repository:"+s.path+":pull")
	auth := s.auth[host.Host]
	var seen []*http.Response
	for {
		req, err := s.build(ctx, host, r)
		if err != nil {
			return nil, err
		}
		inner, token := auth.current()
		if token != "" {
			req.Header.Set("Authorization", "Bearer "+token)
		} else if err := inner.Authorize(ctx, req); err != nil {
			auth.reset(inner) // it would remember the failure
			return nil, fmt.Errorf("authorize: %w", err)
		}
		resp, err := s.send(host, req)
		if err != nil {
			return nil, err
		}
		if resp.StatusCode != http.StatusUnauthorized || token != "" || len(seen) >= 2 {
			return resp, nil
		}
		if req.Header.Get("Authorization") != "" {
			auth.reset(inner)
			inner, _ = auth.current()
		}
		seen = append(seen, resp)
		if err := inner.AddResponses(ctx, seen[len(seen)-1:]); err != nil {
			if _, t := auth.current(); t == "" && auth.failure() == nil {
				return resp, nil // the 401 says more than "unsupported scheme"
			}
		}
		drain(resp)
		if err := auth.failure(); err != nil {
			return nil, err
		}
	}
}

// send makes one request; the observer hears of it until the answer's header
// is there. An answer of any status is an answer.
func (s *Session) send(host docker.RegistryHost, req *http.Request) (*http.Response, error) {
	object, _, _ := strings.Cut(strings.TrimPrefix(req.URL.Path, host.Path+"/"+s.path+"/"), "/")
	_, end := observe.Begin(req.Context(), observe.Work{Kind: observe.Registry, Name: req.Method + " " + object})
	resp, err := s.client(host).Do(req)
	end(err)
	return resp, err
}

// client returns the host's client with a redirect rule that keeps headers
// meant for the registry away from other hosts, and from the registry itself
// where anybody on the way could read them.
func (s *Session) client(host docker.RegistryHost) *http.Client {
	c := *host.Client
	c.CheckRedirect = func(req *http.Request, via []*http.Request) error {
		if len(via) >= 10 {
			return fmt.Errorf("redirected more than 10 times: %w", errdefs.ErrFailedPrecondition)
		}
		plain := via[0].URL.Scheme == "https" && req.URL.Scheme != "https"
		if plain || req.URL.Host != via[0].URL.Host {
			for k := range host.Header {
				req.Header.Del(k)
			}
			req.Header.Del("Authorization")
		}
		return nil
	}
	return &c
}

func (s *Session) build(ctx context.Context, host docker.RegistryHost, r request) (*http.Request, error) {
	u := host.Scheme + "://" + host.Host + host.Path + "/" + s.path + "/" + r.path
	if !isUpstream(s.domain, host.Host) {
		u += "?ns=" + url.QueryEscape(s.domain)
	}
	req, err := http.NewRequestWithContext(ctx, r.method, u, nil)
	if err != nil {
		return nil, err
	}
	for k, v := range host.Header {
		req.Header[k] = append([]string(nil), v...)
	}
	for k, v := range r.header {
		req.Header[k] = v
	}
	// A body that was compressed on the way would not match its digest.
	req.Header.Set("Accept-Encoding", "identity")
	req.Header.Set("User-Agent", "berth")
	return req, nil
}

// errRefused marks a host nobody listens on.
var errRefused = errors.New("connection refused")

// transportError turns a failure to talk to host into one of our sentinels.
func transportError(ctx context.Context, host string, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	var ue *url.Error
	if errors.As(err, &ue) {
		err = ue.Err // the URL may carry a token in its query
	}
	switch {
	case errdefs.IsFailedPrecondition(err):
		return fmt.Errorf("host %s: %w", host, err)
	case errors.Is(err, docker.ErrInvalidAuthorization):
		return fmt.Errorf("host %s: %w: %w", host, err, errdefs.ErrUnauthenticated)
	case strings.HasPrefix(err.Error(), "authorize:"):
		return authError(host, err)
	case errors.Is(err, syscall.ECONNREFUSED):
		return fmt.Errorf("host %s: %w (is the registry running, is the port right?): %w", host, errRefused, errdefs.ErrUnavailable)
	}
	return fmt.Errorf("host %s: %w (check name resolution, network, proxy and TLS settings in hosts.toml): %w", host, err, errdefs.ErrUnavailable)
}

// authError sorts what went wrong while a token was fetched.
func authError(host string, err error) error {
	var answer remoteserrors.ErrUnexpectedStatus
	if errors.As(err, &answer) {
		switch answer.StatusCode {
		case http.StatusBadRequest, http.StatusUnauthorized, http.StatusForbidden:
			return fmt.Errorf("host %s: the token server refused the credentials: %w", host, errdefs.ErrUnauthenticated)
		}
	}
	return fmt.Errorf("host %s: fetch a token: %w: %w", host, err, errdefs.ErrUnavailable)
}

// statusError reads what the registry had to say and closes the response.
func (s *Session) statusError(host string, resp *http.Response) error {
	detail := registryMessage(resp)
	drain(resp)
	what := fmt.Sprintf("host %s answered %s%s", host, resp.Status, detail)
	switch code := resp.StatusCode; {
	case code == http.StatusNotFound:
		return fmt.Errorf("%s: %w", what, errdefs.ErrNotFound)
	case code == http.StatusUnauthorized && s.auth[host].has():
		return fmt.Errorf("%s: the credentials were refused: %w", what, errdefs.ErrUnauthenticated)
	case code == http.StatusUnauthorized:
		return fmt.Errorf("%s: the repository needs credentials (imagePullSecrets) or does not exist: %w", what, errdefs.ErrUnauthenticated)
	case code == http.StatusForbidden:
		return fmt.Errorf("%s: %w", what, errdefs.ErrPermissionDenied)
	case code == http.StatusRequestedRangeNotSatisfiable:
		return fmt.Errorf("%s: %w", what, errdefs.ErrOutOfRange)
	case code == http.StatusTooManyRequests, code == http.StatusRequestTimeout, code >= 500:
		return fmt.Errorf("%s: %w", what, errdefs.ErrUnavailable)
	}
	return fmt.Errorf("%s: %w", what, errdefs.ErrFailedPrecondition)
}

// registryMessage returns the first error of the registry's JSON body, if any.
func registryMessage(resp *http.Response) string {
	raw, _ := io.ReadAll(io.LimitReader(resp.Body, 4096))
	return message(raw)
}

func message(raw []byte) string {
	var body struct {
		Errors []struct {
			Code    string `json:"code"`
			Message string `json:"message"`
		} `json:"errors"`
	}
	if json.Unmarshal(raw, &body) != nil || len(body.Errors) == 0 {
		return ""
	}
	return fmt.Sprintf(" (%.40q: %.200q)", body.Errors[0].Code, body.Errors[0].Message)
}

// retryAfter returns how long a 429 or 503 asks to wait, in seconds or until a
// date; at most 30 s.
func retryAfter(resp *http.Response) time.Duration {
	v := resp.Header.Get("Retry-After")
	wait := time.Duration(0)
	if secs, err := strconv.Atoi(v); err == nil {
		wait = time.Duration(min(secs, 30)) * time.Second
	} else if at, err := http.ParseTime(v); err == nil {
		wait = time.Until(at)
	}
	return max(0, min(wait, 30*time.Second))
}

// drain lets the connection be used again if little is left of the body.
func drain(resp *http.Response) {
	_, _ = io.CopyN(io.Discard, resp.Body, 4096)
	_ = resp.Body.Close()
}

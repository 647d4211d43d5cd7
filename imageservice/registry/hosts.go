package registry

import (
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/containerd/containerd/v2/core/remotes/docker/config"
	"github.com/containerd/errdefs"
	"github.com/pelletier/go-toml/v2"
)

// hostDir finds the directory that configures host, and what its hosts.toml
// says beyond the library. A file that does not parse is an error: the library
// would silently go on without it, and so send a pull past the mirror the
// administrator wanted.
func (r *Registry) hostDir(host string) (string, extras, error) {
	for _, root := range r.files.Load().HostsDirs {
		dir, err := config.HostDirFromRoot(root)(host)
		if errdefs.IsNotFound(err) {
			continue
		}
		if err != nil {
			return "", nil, err
		}
		file := filepath.Join(dir, "hosts.toml")
		raw, err := os.ReadFile(file)
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return "", nil, err
		}
		extra, err := parseHostsFile(raw)
		if err != nil {
			return "", nil, fmt.Errorf("%s: %w", file, err)
		}
		return dir, extra, nil
	}
	return "", nil, errdefs.ErrNotFound
}

// hostExtra is what Berth reads of a host's table by itself.
type hostExtra struct {
	// authFrom is the registry whose credentials answer this host.
	authFrom string
	// dial is how long a connect may take; 0: as configured for the node.
	dial time.Duration
}

// extras are the extra settings of all hosts of a file, by host and port.
type extras map[string]hostExtra

// hostTable is a table of hosts.toml as containerd documents it, and auth-from.
type hostTable struct {
	Capabilities []string       `toml:"capabilities"`
	CA           any            `toml:"ca"`
	Client       any            `toml:"client"`
	SkipVerify   *bool          `toml:"skip_verify"`
	Header       map[string]any `toml:"header"`
	OverridePath bool           `toml:"override_path"`
	DialTimeout  string         `toml:"dial_timeout"`
	AuthFrom     string         `toml:"auth-from"`
}

// CheckHostsFile reports whether raw is a hosts.toml that can serve a pull.
func CheckHostsFile(raw []byte) error {
	_, err := parseHostsFile(raw)
	return err
}

func parseHostsFile(raw []byte) (extras, error) {
	var file struct {
		hostTable
		Server string               `toml:"server"`
		Host   map[string]hostTable `toml:"host"`
	}
	if err := toml.Unmarshal(raw, &file); err != nil {
		return nil, fmt.Errorf("not valid hosts.toml: %w", err)
	}
	extra := extras{}
	if err := extra.add(file.Server, file.hostTable); err != nil {
		return nil, err
	}
	// A host that is the server as well is what its own table says.
	for name, t := range file.Host {
		if name == "" {
			return nil, errors.New("not valid hosts.toml: a table [host.\"\"] names no host")
		}
		if err := extra.add(name, t); err != nil {
			return nil, err
		}
	}
	return extra, nil
}

// add checks a table and takes what Berth reads of it.
func (e extras) add(name string, t hostTable) error {
	host, err := hostOf(name)
	if err == nil {
		err = t.check()
	}
	if err != nil {
		return fmt.Errorf("not valid hosts.toml: host %.100q: %w", name, err)
	}
	d, _ := time.ParseDuration(t.DialTimeout) // checked
	e[host] = hostExtra{authFrom: t.AuthFrom, dial: d}
	return nil
}

// hostOf returns host and port of a server as hosts.toml writes it.
func hostOf(server string) (string, error) {
	if server == "" {
		return "", nil
	}
	if !strings.HasPrefix(server, "http") {
		server = "https://" + server
	}
	u, err := url.Parse(server)
	if err != nil {
		return "", errors.New("not a URL") // the library's text repeats a password in it
	}
	if u.Scheme != "http" && u.Scheme != "https" || u.Host == "" {
		return "", errors.New("not an http or https URL")
	}
	return u.Host, nil
}

// check finds what the library would stumble over.
func (t hostTable) check() error {
	for _, c := range t.Capabilities {
		if !slices.Contains([]string{"pull", "resolve", "push", "referrers"}, strings.ToLower(c)) {
			return fmt.Errorf("capability %.40q is unknown; use pull, resolve, push or referrers", c)
		}
	}
	if d, err := time.ParseDuration(t.DialTimeout); t.DialTimeout != "" && (err != nil || d <= 0) {
		return fmt.Errorf("dial_timeout %.40q is not a duration", t.DialTimeout)
	}
	if t.AuthFrom != "" {
		if _, err := hostOf(t.AuthFrom); err != nil {
			return fmt.Errorf("auth-from %.100q: %w", t.AuthFrom, err)
		}
	}
	if !isStrings(t.CA) {
		return errors.New("ca is neither a file nor a list of files")
	}
	if list, ok := t.Client.([]any); ok {
		for _, c := range list {
			if pair, ok := c.([]any); !isStrings(c) || ok && len(pair) != 2 {
				return errors.New("client is neither a file, a list of files nor a list of pairs of certificate and key")
			}
		}
	} else if !isStrings(t.Client) {
		return errors.New("client is neither a file, a list of files nor a list of pairs of certificate and key")
	}
	for k, v := range t.Header {
		if v == nil || !isStrings(v) {
			return fmt.Errorf("header %.40q is neither a string nor a list of strings", k)
		}
	}
	return nil
}

// isStrings reports nothing, a string or a list of strings.
func isStrings(v any) bool {
	switch v := v.(type) {
	case nil, string:
		return true
	case []any:
		return !slices.ContainsFunc(v, func(x any) bool { _, ok := x.(string); return !ok })
	}
	return false
}

// tune bounds connecting, waiting for the first byte and idle connections.
func (r *Registry) tune(t *http.Transport) {
	l := r.limits()
	setDial(t, l.Connect)
	t.TLSHandshakeTimeout = l.Connect
	t.ResponseHeaderTimeout = l.FirstByte
	t.MaxIdleConnsPerHost = 8
	t.IdleConnTimeout = 15 * time.Second
	t.ReadBufferSize = 64 << 10
}

func setDial(t *http.Transport, limit time.Duration) {
	t.DialContext = (&net.Dialer{Timeout: limit, KeepAlive: 30 * time.Second}).DialContext
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

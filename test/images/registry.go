package images

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"io"
	"log"
	"maps"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
)

// Credentials that the registry of the auth variant asks for.
const (
	User     = "skipper"
	Password = "anchors:aweigh"
)

// Host names that WriteHosts points at the served registries.
const (
	HostPlain = "registry.berth.test" // plain HTTP
	HostAuth  = "auth.berth.test"     // plain HTTP, basic authentication
	HostTLS   = "tls.berth.test"      // TLS with a private authority
	HostDead  = "dead.berth.test"     // nothing listens there
)

// Repositories whose layers the registry damages, until it is told to Heal.
const (
	BadDigest = "bad-digest" // a byte is flipped
	BadLength = "bad-length" // the answer is whole, but half as long as it should be
	BadCut    = "bad-cut"    // the connection ends in the middle, again and again
)

// Listen opens a TCP listener on loopback; a test may do so in another
// network namespace.
type Listen func() (net.Listener, error)

// Loopback listens in the caller's network namespace.
func Loopback() (net.Listener, error) { return net.Listen("tcp", "127.0.0.1:0") }

// Registry serves one set of images under several host names.
type Registry struct {
	handler http.Handler
	addrs   map[string]string // host name -> address
	servers []*http.Server
	ca      []byte // PEM
	pulls   atomic.Int64
	healed  atomic.Bool
}

// Serve starts the registries and fills them with the images, which are given
// by repository and tag. With a nil listen they are on loopback.
func Serve(imgs map[string]any, listen Listen) (*Registry, error) {
	if listen == nil {
		listen = Loopback
	}
	r := &Registry{addrs: map[string]string{HostDead: "127.0.0.1:1"}}
	r.handler = registry.New(registry.Logger(log.New(io.Discard, "", 0)))
	if err := r.fill(imgs); err != nil {
		return nil, err
	}
	cert, err := r.certificate()
	if err != nil {
		return nil, err
	}
	broken := r.count(r.breakBlobs(r.handler))
	for host, h := range map[string]http.Handler{HostPlain: broken, HostAuth: basicAuth(broken), HostTLS: broken} {
		l, err := listen()
		if err != nil {
			r.Close()
			return nil, fmt.Errorf("serve %s: %w", host, err)
		}
		r.addrs[host] = l.Addr().String()
		if host == HostTLS {
			l = tls.NewListener(l, &tls.Config{Certificates: []tls.Certificate{cert}})
		}
		s := &http.Server{Handler: h, ReadHeaderTimeout: 30 * time.Second, ErrorLog: log.New(io.Discard, "", 0)}
		r.servers = append(r.servers, s)
		go s.Serve(l)
	}
	return r, nil
}

// fill pushes the images through the handler, without a socket.
func (r *Registry) fill(imgs map[string]any) error {
	for ref, img := range imgs {
		if err := r.Push(ref, img); err != nil {
			return err
		}
	}
	return nil
}

// Push adds one image, which is a v1.Image or a v1.ImageIndex.
func (r *Registry) Push(ref string, img any) error {
	n, err := name.ParseReference("registry.invalid/"+ref, name.Insecure)
	if err != nil {
		return fmt.Errorf("push %s: %w", ref, err)
	}
	opt := remote.WithTransport(inProcess{r.handler})
	switch img := img.(type) {
	case v1.Image:
		err = remote.Write(n, img, opt)
	case v1.ImageIndex:
		err = remote.WriteIndex(n, img, opt)
	default:
		err = fmt.Errorf("not an image: %T", img)
	}
	if err != nil {
		return fmt.Errorf("push %s: %w", ref, err)
	}
	return nil
}

// Addr returns where a host name is served.
func (r *Registry) Addr(host string) string { return r.addrs[host] }

// Pulls returns how many blobs have been asked for.
func (r *Registry) Pulls() int64 { return r.pulls.Load() }

// Heal makes the damaged repositories serve what they should.
func (r *Registry) Heal() { r.healed.Store(true) }

// Close stops serving.
func (r *Registry) Close() error {
	for _, s := range r.servers {
		s.Close()
	}
	return nil
}

// WriteHosts writes a hosts.toml for every host name below dir.
func (r *Registry) WriteHosts(dir string) error {
	for host, addr := range r.addrs {
		d := filepath.Join(dir, host)
		if err := os.MkdirAll(d, 0o755); err != nil {
			return err
		}
		scheme, extra := "http", ""
		if host == HostTLS {
			ca := filepath.Join(d, "ca.crt")
			if err := os.WriteFile(ca, r.ca, 0o644); err != nil {
				return err
			}
			scheme, extra = "https", fmt.Sprintf("  ca = %q\n", ca)
		}
		url := scheme + "://" + addr
		body := fmt.Sprintf("server = %q\n\n[host.%q]\n  capabilities = [\"pull\", \"resolve\"]\n%s", url, url, extra)
		if err := os.WriteFile(filepath.Join(d, "hosts.toml"), []byte(body), 0o644); err != nil {
			return err
		}
	}
	return nil
}

func (r *Registry) count(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		if strings.Contains(q.URL.Path, "/blobs/") {
			r.pulls.Add(1)
		}
		h.ServeHTTP(w, q)
	})
}

// breakBlobs damages the layers of the Bad repositories.
func (r *Registry) breakBlobs(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		repo, _, _ := strings.Cut(strings.TrimPrefix(q.URL.Path, "/v2/"), "/")
		bad := strings.HasPrefix(repo, "bad-") && strings.Contains(q.URL.Path, "/blobs/")
		if !bad || q.Method != http.MethodGet || r.healed.Load() {
			h.ServeHTTP(w, q)
			return
		}
		rec := &recorder{header: http.Header{}, code: http.StatusOK}
		h.ServeHTTP(rec, q)
		body := bytes.Clone(rec.body.Bytes())
		maps.Copy(w.Header(), rec.header)
		// Configurations are left alone: it is the layers that are broken.
		if bytes.HasPrefix(body, []byte("{")) || len(body) == 0 {
			w.WriteHeader(rec.code)
			w.Write(body)
			return
		}
		switch repo {
		case BadDigest:
			body[len(body)/2] ^= 0xff
		case BadLength:
			body = body[:len(body)/2]
			w.Header().Set("Content-Length", strconv.Itoa(len(body)))
		case BadCut:
			body = body[:len(body)/2]
			if q.Header.Get("Range") != "" {
				body = nil
			}
			w.Header().Set("Content-Length", rec.header.Get("Content-Length"))
		}
		w.WriteHeader(rec.code)
		w.Write(body)
	})
}

func basicAuth(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		user, password, ok := q.BasicAuth()
		if !ok || user != User || password != Password {
			w.Header().Set("WWW-Authenticate", `Basic realm="berth test"`)
			http.Error(w, `{"errors":[{"code":"UNAUTHORIZED","message":"authentication required"}]}`, http.StatusUnauthorized)
			return
		}
		h.ServeHTTP(w, q)
	})
}

// certificate makes a self-signed authority that is its own server certificate.
func (r *Registry) certificate() (tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return tls.Certificate{}, err
	}
	t := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "berth test"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		IsCA: true, BasicConstraintsValid: true,
		KeyUsage:    x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, DNSNames: []string{HostTLS},
	}
	der, err := x509.CreateCertificate(rand.Reader, t, t, &key.PublicKey, key)
	if err != nil {
		return tls.Certificate{}, err
	}
	r.ca = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, nil
}

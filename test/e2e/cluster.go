package e2e

import (
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/berth-dev/berth/test/harness"
)

// Addresses of the cluster: documentation and benchmark ranges, on networks
// that end in the namespaces.
const (
	controlAddr  = "198.51.100.1"
	serviceCIDR  = "198.18.0.0/20"
	firstService = "198.18.0.1"
	podCIDR      = "203.0.113.0/24"
	server       = "https://" + controlAddr + ":6443"
)

// cluster is a control plane and its nodes.
type cluster struct {
	dir   string // files of the cluster
	bin   string // programs of Kubernetes
	progs harness.Programs
	ca    *authority
	space *harness.Space // of the control plane and the first node
	plane []*process
	nodes []*node
}

// newCluster starts a control plane. The caller owes a close.
func newCluster(ctx context.Context, bin string, progs harness.Programs) (_ *cluster, err error) {
	c := &cluster{bin: bin, progs: progs}
	if c.dir, err = os.MkdirTemp("", "berth-e2e-"); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, c.close())
		}
	}()
	if c.space, err = harness.NewSpace(); err != nil {
		return nil, err
	}
	if err := c.lan(ctx); err != nil {
		return nil, err
	}
	if err := c.certificates(); err != nil {
		return nil, err
	}
	return c, c.startPlane(ctx)
}

// lan makes the bridge that stands for the machines' network.
func (c *cluster) lan(ctx context.Context) error {
	return run(ctx, c.space, `ip link add lan0 type bridge
ip addr add `+controlAddr+`/24 dev lan0
ip link set lan0 up
ip route add default dev lan0
sysctl -qw net.ipv4.ip_forward=1
mount -t tmpfs -o mode=755 tmpfs /var/log
mkdir -p /var/log/containers`)
}

func (c *cluster) certificates() (err error) {
	if c.ca, err = newAuthority(filepath.Join(c.dir, "pki")); err != nil {
		return err
	}
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		return err
	}
	sa := pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(key)})
	if err := os.WriteFile(c.ca.path("sa.key"), sa, 0o600); err != nil {
		return err
	}
	return errors.Join(
		c.ca.issue("apiserver", subject{name: "kube-apiserver", hosts: []string{controlAddr, firstService, "127.0.0.1", "kubernetes.default.svc"}}),
		c.ca.issue("to-kubelet", subject{name: "kube-apiserver", groups: []string{"system:masters"}}),
		c.ca.kubeconfig("admin", server, subject{name: "admin", groups: []string{"system:masters"}}),
		c.ca.kubeconfig("controller-manager", server, subject{name: "system:kube-controller-manager"}),
		c.ca.kubeconfig("scheduler", server, subject{name: "system:kube-scheduler"}),
		c.ca.kubeconfig("proxy", server, subject{name: "system:kube-proxy"}),
	)
}

// startPlane starts etcd and the three daemons of the control plane, and waits
// until the API server is ready.
func (c *cluster) startPlane(ctx context.Context) error {
	pki := c.ca.path
	c.plane = []*process{
		c.process("etcd", "data-dir", filepath.Join(c.dir, "etcd"), "unsafe-no-fsync", "true", "log-level", "warn",
			"listen-peer-urls", "http://127.0.0.1:2380"),
		c.process("kube-apiserver", "etcd-servers", "http://127.0.0.1:2379",
			"advertise-address", controlAddr, "service-cluster-ip-range", serviceCIDR, "allow-privileged", "true",
			"client-ca-file", pki("ca.crt"), "tls-cert-file", pki("apiserver.crt"), "tls-private-key-file", pki("apiserver.key"),
			"service-account-key-file", pki("sa.key"), "service-account-signing-key-file", pki("sa.key"),
			"service-account-issuer", "https://kubernetes.default.svc",
			"authorization-mode", "Node,RBAC", "enable-admission-plugins", "NodeRestriction",
			"kubelet-client-certificate", pki("to-kubelet.crt"), "kubelet-client-key", pki("to-kubelet.key"),
			"kubelet-preferred-address-types", "InternalIP", "cert-dir", c.dir),
		c.process("kube-controller-manager", "kubeconfig", pki("controller-manager.kubeconfig"), "leader-elect", "false",
			"service-account-private-key-file", pki("sa.key"), "root-ca-file", pki("ca.crt"),
			"use-service-account-credentials", "true", "node-monitor-grace-period", "15s", "cert-dir", c.dir),
		c.process("kube-scheduler", "kubeconfig", pki("scheduler.kubeconfig"), "leader-elect", "false", "cert-dir", c.dir),
	}
	for _, p := range c.plane {
		if err := p.start(); err != nil {
			return err
		}
	}
	err := until(ctx, 2*time.Minute, func(ctx context.Context) error {
		_, err := c.kubectl(ctx, "", "get", "--raw", "/readyz")
		return err
	})
	if err != nil {
		return fmt.Errorf("API server: %w\n%s", err, c.plane[1].tail(20))
	}
	// Pods may be made once the controller manager has made the account they run as.
	return until(ctx, time.Minute, func(ctx context.Context) error {
		_, err := c.kubectl(ctx, "", "get", "serviceaccount", "default")
		return err
	})
}

func (c *cluster) process(name string, flags ...string) *process {
	return &process{name: name, space: c.space, argv: argv(filepath.Join(c.bin, name), flags...), log: filepath.Join(c.dir, name+".log")}
}

// kubectl runs kubectl as the administrator, with input on its stdin, and
// returns what it printed.
func (c *cluster) kubectl(ctx context.Context, input string, args ...string) (string, error) {
	cmd := c.kubectlCommand(ctx, args...)
	cmd.Stdin = strings.NewReader(input)
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return string(out), fmt.Errorf("kubectl %s: %w: %s", strings.Join(args, " "), err, strings.TrimSpace(stderr.String()))
	}
	return string(out), nil
}

func (c *cluster) kubectlCommand(ctx context.Context, args ...string) *exec.Cmd {
	base := []string{"--kubeconfig", c.ca.path("admin.kubeconfig"), "--cache-dir", filepath.Join(c.dir, "cache")}
	cmd := c.space.Command(ctx, filepath.Join(c.bin, "kubectl"), append(base, args...)...)
	cmd.WaitDelay = 5 * time.Second
	return cmd
}

// close ends all programs and removes what they left; pods should be gone.
func (c *cluster) close() error {
	var errs []error
	for _, n := range c.nodes {
		errs = append(errs, n.close())
	}
	for i := range c.plane {
		errs = append(errs, c.plane[len(c.plane)-1-i].end(syscall.SIGKILL))
	}
	if c.space != nil {
		errs = append(errs, c.space.Close())
	}
	return errors.Join(append(errs, os.RemoveAll(c.dir))...)
}

// run runs a shell script inside the namespaces; its first failure ends it.
func run(ctx context.Context, s *harness.Space, script string) error {
	out, err := s.Command(ctx, "sh", "-ec", script).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%w: %s\n%s", err, out, script)
	}
	return nil
}

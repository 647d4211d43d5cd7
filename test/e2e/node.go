package e2e

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-dev/berth/test/harness"
	"github.com/berth-dev/berth/test/images"
)

// node is a kubelet and a kube-proxy with a berthd below, in namespaces of
// their own.
type node struct {
	c       *cluster
	name    string
	addr    string // on the machines' network
	pods    string // subnet of its pods
	cgroup  string // of all its pods, below the root of each hierarchy
	apart   bool   // it has namespaces of its own
	berth   *harness.Node
	kubelet *process
	proxy   *process
}

// nodeConfig says what a node is made from.
type nodeConfig struct {
	name, addr, pods string
	space            *harness.Space // nil: one of its own
	kubelet          string         // lines added to the kubelet's configuration
	berth            string         // lines of berthd's configuration
	reg              *images.Registry
}

// addNode makes a node, starts what runs on it and waits until it is Ready.
func (c *cluster) addNode(ctx context.Context, cfg nodeConfig) (*node, error) {
	n := &node{c: c, name: cfg.name, addr: cfg.addr, pods: cfg.pods}
	var err error
	n.berth, err = harness.New(harness.Config{Programs: c.progs, Space: cfg.space, TOML: cfg.berth})
	if err != nil {
		return nil, err
	}
	c.nodes = append(c.nodes, n)
	n.cgroup = "/" + filepath.Base(n.berth.Dir())
	n.apart = cfg.space == nil
	if err := n.prepare(cfg); err != nil {
		return nil, err
	}
	return n, n.boot(ctx)
}

// boot starts what runs on the node, and waits until that is Ready.
func (n *node) boot(ctx context.Context) error {
	if n.apart {
		if err := n.connect(ctx); err != nil {
			return err
		}
	}
	if err := n.berth.Start(ctx); err != nil {
		return err
	}
	for _, p := range []*process{n.kubelet, n.proxy} {
		p.space = n.berth.Space()
		if err := p.start(); err != nil {
			return err
		}
	}
	return n.waitReady(ctx)
}

// connect joins the node's own network namespace to the machines' network, and
// makes the other machine send it what is for its pods.
func (n *node) connect(ctx context.Context) error {
	port := "lan-" + n.name
	return errors.Join(
		run(ctx, n.c.space, fmt.Sprintf(`ip link add %[1]s type veth peer name lan1 netns %[2]s
ip link set %[1]s master lan0 up
ip route replace %[3]s via %[4]s`, port, n.berth.Space().NetNS(), n.pods, n.addr)),
		run(ctx, n.berth.Space(), fmt.Sprintf(`ip addr add %s/24 dev lan1
ip link set lan1 up
ip route add default via %s
sysctl -qw net.ipv4.ip_forward=1
mount -t tmpfs -o mode=755 tmpfs /var/log
mkdir -p /var/log/containers`, n.addr, controlAddr)))
}

// die takes the power from a node with namespaces of its own: nothing that ran
// there runs any more, what was not on its disk is gone. boot starts it again.
func (n *node) die(ctx context.Context) error {
	errs := []error{n.kubelet.end(syscall.SIGKILL), n.proxy.end(syscall.SIGKILL), n.berth.Kill()}
	for _, pid := range n.berth.Shims() {
		_ = syscall.Kill(pid, syscall.SIGKILL)
	}
	errs = append(errs, until(ctx, time.Minute, func(context.Context) error { return n.killAll() }))
	for _, h := range hierarchies() {
		errs = append(errs, removeCgroups(filepath.Join(h, n.cgroup)))
	}
	return errors.Join(append(errs, n.berth.Reboot(ctx), n.makeCgroups())...)
}

// killAll kills what runs in the cgroup of the node's pods, and fails as long as
// anything does.
func (n *node) killAll() error {
	left := 0
	for _, h := range hierarchies() {
		_ = filepath.WalkDir(filepath.Join(h, n.cgroup), func(path string, e fs.DirEntry, err error) error {
			if err != nil || e.Name() != "cgroup.procs" {
				return nil //nolint:nilerr // a group that has gone in the meantime
			}
			b, _ := os.ReadFile(path)
			for _, f := range strings.Fields(string(b)) {
				pid, _ := strconv.Atoi(f)
				_ = syscall.Kill(pid, syscall.SIGKILL)
				left++
			}
			return nil
		})
	}
	if left > 0 {
		return fmt.Errorf("%d processes of %s are left", left, n.name)
	}
	return nil
}

// hasImage asks the node's runtime.
func (n *node) hasImage(ctx context.Context, ref string) (bool, error) {
	conn, err := n.berth.Conn()
	if err != nil {
		return false, err
	}
	r, err := runtimeapi.NewImageServiceClient(conn).ImageStatus(ctx, &runtimeapi.ImageStatusRequest{Image: &runtimeapi.ImageSpec{Image: ref}})
	return r.GetImage() != nil, err
}

func (n *node) prepare(cfg nodeConfig) error {
	bridge := harness.Bridge{Subnet: n.pods}
	if err := harness.WriteConflist(n.berth.Dir("cni"), n.berth.Dir("ipam"), bridge); err != nil {
		return err
	}
	if err := cfg.reg.WriteHosts(n.berth.HostsDir()); err != nil {
		return err
	}
	if err := n.makeCgroups(); err != nil {
		return err
	}
	for _, d := range []string{"manifests", "kubelet", "podlogs", "plugins"} {
		if err := os.MkdirAll(n.berth.Dir(d), 0o755); err != nil {
			return err
		}
	}
	ca, id := n.c.ca, subject{name: "system:node:" + n.name, groups: []string{"system:nodes"}}
	if err := ca.kubeconfig(n.name, server, id); err != nil {
		return err
	}
	files := map[string]string{
		"kubelet.yaml": n.kubeletConfig(cfg.kubelet),
		"proxy.yaml":   n.proxyConfig(),
		"resolv.conf":  "nameserver 198.18.0.10\nsearch test\n",
	}
	for name, text := range files {
		if err := os.WriteFile(n.berth.Dir(name), []byte(text), 0o600); err != nil {
			return err
		}
	}
	n.kubelet = n.process("kubelet", "config", n.berth.Dir("kubelet.yaml"), "kubeconfig", ca.path(n.name+".kubeconfig"),
		"hostname-override", n.name, "node-ip", n.addr, "root-dir", n.berth.Dir("kubelet"), "cert-dir", n.berth.Dir("kubelet", "pki"))
	n.proxy = n.process("kube-proxy", "config", n.berth.Dir("proxy.yaml"))
	return nil
}

func (n *node) process(name string, flags ...string) *process {
	return &process{name: name, space: n.berth.Space(), argv: argv(filepath.Join(n.c.bin, name), flags...), log: n.berth.Dir(name + ".log")}
}

func (n *node) kubeletConfig(more string) string {
	if !strings.Contains(more, "evictionHard:") {
		more += "\nevictionHard: {memory.available: 50Mi, nodefs.available: 1%, imagefs.available: 1%}"
	}
	return fmt.Sprintf(`apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
containerRuntimeEndpoint: %q
address: %s
failCgroupV1: false
cgroupDriver: cgroupfs
cgroupRoot: %s
oomScoreAdj: 0
failSwapOn: false
staticPodPath: %q
podLogsDir: %q
volumePluginDir: %q
resolvConf: %q
authentication: {anonymous: {enabled: false}, x509: {clientCAFile: %q}}
serializeImagePulls: false
registryPullQPS: 0
nodeStatusUpdateFrequency: 3s
containerLogMaxSize: 1Mi
containerLogMaxFiles: 3
containerLogMonitorInterval: 3s
evictionPressureTransitionPeriod: 1s
clusterDNS: [198.18.0.10]
clusterDomain: cluster.local
allowedUnsafeSysctls: [net.core.somaxconn]
%s`, n.berth.Endpoint(), n.addr, n.cgroup, n.berth.Dir("manifests"), n.berth.Dir("podlogs"), n.berth.Dir("plugins"),
		n.berth.Dir("resolv.conf"), n.c.ca.path("ca.crt"), more)
}

func (n *node) proxyConfig() string {
	return fmt.Sprintf(`apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
clientConnection: {kubeconfig: %q}
mode: nftables
clusterCIDR: %s
hostnameOverride: %s
conntrack: {maxPerCore: 0, min: 0, tcpCloseWaitTimeout: 0s, tcpEstablishedTimeout: 0s}
`, n.c.ca.path("proxy.kubeconfig"), podCIDR, n.name)
}

// hierarchies are the mounted cgroup hierarchies: one on v2.
func hierarchies() []string {
	if _, err := os.Stat("/sys/fs/cgroup/cgroup.controllers"); err == nil {
		return []string{"/sys/fs/cgroup"}
	}
	all, _ := filepath.Glob("/sys/fs/cgroup/*/tasks")
	for i, path := range all {
		all[i] = filepath.Dir(path)
	}
	return all
}

// makeCgroups makes the cgroup that the kubelet puts all pods into. On v1 the
// cpuset of a new cgroup is empty, and nothing could run in it.
func (n *node) makeCgroups() error {
	for _, h := range hierarchies() {
		dir := filepath.Join(h, n.cgroup)
		if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, os.ErrExist) {
			return err
		}
		for _, f := range []string{"cpuset.cpus", "cpuset.mems"} {
			all, err := os.ReadFile(filepath.Join(h, f))
			if err != nil {
				continue
			}
			if err := os.WriteFile(filepath.Join(dir, f), all, 0o600); err != nil {
				return err
			}
		}
	}
	return nil
}

// waitReady waits until the API server holds the node for ready.
func (n *node) waitReady(ctx context.Context) error {
	err := until(ctx, 2*time.Minute, func(ctx context.Context) error {
		out, err := n.c.kubectl(ctx, "", "get", "node", n.name, "-o", "jsonpath={.status.conditions[?(@.type=='Ready')]}")
		if err == nil && !strings.Contains(out, `"status":"True"`) {
			err = errors.New(out)
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("node %s is not ready: %w\n%s\n%s", n.name, err, n.kubelet.tail(20), n.berth.LogTail())
	}
	return nil
}

// close ends the node's programs and removes what they made.
func (n *node) close() error {
	errs := []error{n.kubelet.end(syscall.SIGTERM), n.proxy.end(syscall.SIGTERM)}
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	// The kubelet mounts its directory onto itself and leaves it so.
	script := fmt.Sprintf(`for m in $(awk '$5 ~ "^%s/kubelet" {print $5}' /proc/self/mountinfo | sort -r); do umount -l "$m" || true; done`, n.berth.Dir())
	errs = append(errs, run(ctx, n.berth.Space(), script), n.berth.Close())
	for _, h := range hierarchies() {
		errs = append(errs, removeCgroups(filepath.Join(h, n.cgroup)))
	}
	return errors.Join(errs...)
}

// removeCgroups removes a cgroup with all below it.
func removeCgroups(dir string) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, e := range entries {
		if e.IsDir() {
			if err := removeCgroups(filepath.Join(dir, e.Name())); err != nil {
				return err
			}
		}
	}
	return os.Remove(dir)
}

// reconfigure restarts the kubelet with lines added to its configuration.
func (n *node) reconfigure(lines string) error {
	if err := n.kubelet.end(syscall.SIGTERM); err != nil {
		return err
	}
	if err := os.WriteFile(n.berth.Dir("kubelet.yaml"), []byte(n.kubeletConfig(lines)), 0o600); err != nil {
		return err
	}
	return n.kubelet.start()
}

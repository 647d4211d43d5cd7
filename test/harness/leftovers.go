package harness

import (
	"context"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// idSet remembers IDs of pods and containers.
type idSet struct {
	mu  sync.Mutex
	ids []string
}

// record is a grpc.UnaryClientInterceptor.
//
//nolint:revive // argument-limit: the signature is gRPC's
func (s *idSet) record(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, invoke grpc.UnaryInvoker, opts ...grpc.CallOption) error {
	err := invoke(ctx, method, req, reply, cc, opts...)
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	switch r := reply.(type) {
	case *runtimeapi.RunPodSandboxResponse:
		s.ids = append(s.ids, r.GetPodSandboxId())
	case *runtimeapi.CreateContainerResponse:
		s.ids = append(s.ids, r.GetContainerId())
	}
	return nil
}

func (s *idSet) all() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.ids)
}

// Leftovers lists, in words, everything of removed pods that still exists:
// mounts, pinned namespaces, cgroups, processes, interfaces, packet filter
// rules, leases and files. All pods must have been removed.
func (n *Node) Leftovers(ctx context.Context) []string {
	var out []string
	for _, check := range []func(context.Context) []string{n.mounts, n.files, n.cgroups, n.processes, n.links, n.rules, n.leases} {
		out = append(out, check(ctx)...)
	}
	return out
}

// WaitLeftovers returns what is left after half a minute of grace: what the
// kernel takes away by itself needs a moment.
func (n *Node) WaitLeftovers(ctx context.Context) (left []string) {
	for range 300 {
		if left = n.Leftovers(ctx); len(left) == 0 {
			return nil
		}
		time.Sleep(100 * time.Millisecond)
	}
	return left
}

func (n *Node) mounts(context.Context) []string {
	b, err := os.ReadFile(n.cfg.Space.proc("mountinfo"))
	if err != nil {
		return []string{err.Error()}
	}
	var out []string
	for line := range strings.Lines(string(b)) {
		if f := strings.Fields(line); len(f) > 4 && strings.HasPrefix(f[4], n.dir+"/") && !n.standing(f[4]) {
			out = append(out, "mount "+f[4])
		}
	}
	return out
}

// standing says whether a mount may outlive the pods: the ones that the daemon
// makes for its own directories.
func (n *Node) standing(target string) bool {
	return slices.Contains([]string{n.Dir("run"), n.Dir("run", "ns"), n.Dir("state")}, target)
}

// files looks into the directories that have one entry per pod or container.
func (n *Node) files(context.Context) []string {
	var out []string
	for _, d := range []string{"run/ns", "run/sandboxes", "run/containers", "run/runc", "state/sandboxes", "state/containers", "state/staging", "state/cni/results", "state/cni/intents"} {
		entries, _ := os.ReadDir(n.Dir(d))
		for _, e := range entries {
			out = append(out, "file "+n.Dir(d, e.Name()))
		}
	}
	return out
}

func (n *Node) cgroups(context.Context) []string {
	ids := n.ids.all()
	var out []string
	filepath.WalkDir("/sys/fs/cgroup", func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.IsDir() {
			return nil
		}
		for _, id := range ids {
			if strings.Contains(d.Name(), id) {
				out = append(out, "cgroup "+path)
				return fs.SkipDir
			}
		}
		return nil
	})
	return out
}

// processes looks for processes other than the daemon that name the node's
// directory or a container, or run in a container's cgroup.
func (n *Node) processes(context.Context) []string {
	ids, self := n.ids.all(), fmt.Sprint(n.PID())
	pids, _ := filepath.Glob("/proc/[0-9]*")
	var out []string
	for _, p := range pids {
		if filepath.Base(p) == self {
			continue
		}
		cmdline, _ := os.ReadFile(p + "/cmdline")
		cg, _ := os.ReadFile(p + "/cgroup")
		words := strings.ReplaceAll(string(cmdline), "\x00", " ")
		named := strings.Contains(words, n.dir+"/") || slices.ContainsFunc(ids, func(id string) bool {
			return strings.Contains(words, id) || strings.Contains(string(cg), id)
		})
		if named {
			out = append(out, fmt.Sprintf("process %s: %s", filepath.Base(p), words))
		}
	}
	return out
}

func (n *Node) links(ctx context.Context) []string {
	if n.cfg.Space.anchor == nil {
		return nil
	}
	b, err := n.cfg.Space.Command(ctx, "ip", "-o", "link", "show", "type", "veth").CombinedOutput()
	if err != nil {
		return []string{fmt.Sprintf("ip link: %v: %s", err, b)}
	}
	var out []string
	for line := range strings.Lines(string(b)) {
		out = append(out, "interface "+strings.TrimSpace(line))
	}
	return out
}

// rules looks for the chains that plugins make per pod.
func (n *Node) rules(ctx context.Context) []string {
	if n.cfg.Space.anchor == nil {
		return nil
	}
	b, err := n.cfg.Space.Command(ctx, "iptables-save", "-t", "nat").CombinedOutput()
	if err != nil {
		return []string{fmt.Sprintf("iptables-save: %v: %s", err, b)}
	}
	var out []string
	for line := range strings.Lines(string(b)) {
		if strings.HasPrefix(line, ":CNI-DN-") || strings.HasPrefix(line, ":CNI-SN-") || (strings.HasPrefix(line, ":CNI-") && len(strings.Fields(line)[0]) > 25) {
			out = append(out, "iptables chain "+strings.Fields(line)[0][1:])
		}
	}
	return out
}

// leases looks for addresses that host-local still holds.
func (n *Node) leases(context.Context) []string {
	entries, _ := os.ReadDir(n.Dir("ipam", "berth-test"))
	var out []string
	for _, e := range entries {
		if e.Name() != "lock" && !strings.HasPrefix(e.Name(), "last_reserved_ip") {
			out = append(out, "address lease "+e.Name())
		}
	}
	return out
}

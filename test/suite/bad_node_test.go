package suite

import (
	"context"
	"os"
	"path/filepath"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-dev/berth/test/harness"
)

func badNodeStories() []story {
	return []story{
		{name: "name/taken", tell: takenNames},
		{name: "name/client gives up and repeats", berth: true, tell: clientTimeout},
		{name: "mount/missing host path", berth: true, tell: missingHostPath},
		{name: "network/no configuration yet", berth: true, alone: true, tell: noNetworkYet},
		{name: "network/failing plugin", berth: true, alone: true, tell: failingPlugin},
		{name: "network/hanging plugin", berth: true, alone: true, tell: hangingPlugin},
		{name: "node/runc goes and comes back", berth: true, alone: true, tell: runcMissing},
	}
}

// tryPod asks for a pod that the story expects to fail.
func (n *node) tryPod(t *testing.T, ctx context.Context, c *runtimeapi.PodSandboxConfig) (string, error) {
	t.Helper()
	r, err := n.rt.RunPodSandbox(ctx, &runtimeapi.RunPodSandboxRequest{Config: c})
	return r.GetPodSandboxId(), err
}

func (p *pod) tryCreate(t *testing.T, c *runtimeapi.ContainerConfig) (string, error) {
	t.Helper()
	r, err := p.n.rt.CreateContainer(t.Context(), &runtimeapi.CreateContainerRequest{PodSandboxId: p.id, Config: c, SandboxConfig: p.config})
	return r.GetContainerId(), err
}

// takenNames asks for other things under names that are in use, and again when
// they are free.
func takenNames(t *testing.T, n *node) {
	pc := n.podConfig(t)
	first := n.podOf(t, pc)
	pc.Hostname = "another"
	_, err := n.tryPod(t, t.Context(), pc)
	// containerd says FailedPrecondition: "name is reserved".
	wantCode(t, "pod with a taken name", err, codes.AlreadyExists, codes.FailedPrecondition)
	c := first.create(t, probe("sleep"))
	cc := first.containerConfig(t, probe("exit", "0"))
	cc.Metadata = c.config.Metadata
	_, err = first.tryCreate(t, cc)
	wantCode(t, "container with a taken name", err, codes.AlreadyExists, codes.FailedPrecondition)
	c.remove(t)
	_, err = first.tryCreate(t, cc)
	must(t, err)
	first.remove(t)
	n.podOf(t, pc)
}

// clientTimeout gives up at a random moment of each creation and repeats it.
func clientTimeout(t *testing.T, n *node) {
	for _, patience := range []time.Duration{0, 5, 20, 80} {
		pc := n.podConfig(t)
		ctx, cancel := context.WithTimeout(t.Context(), patience*time.Millisecond)
		n.tryPod(t, ctx, pc)
		cancel()
		p := n.podOf(t, pc)
		r, err := n.rt.ListPodSandbox(t.Context(), &runtimeapi.ListPodSandboxRequest{})
		must(t, err)
		same := 0
		for _, s := range r.GetItems() {
			if s.GetMetadata().GetUid() == pc.Metadata.Uid {
				same++
			}
		}
		equal(t, "pods after a repeated call", same, 1)

		cc := p.containerConfig(t, probe("exit", "0"))
		ctx, cancel = context.WithTimeout(t.Context(), patience*time.Millisecond)
		n.rt.CreateContainer(ctx, &runtimeapi.CreateContainerRequest{PodSandboxId: p.id, Config: cc, SandboxConfig: p.config})
		cancel()
		id, err := p.tryCreate(t, cc)
		must(t, err)
		l, err := n.rt.ListContainers(t.Context(), &runtimeapi.ListContainersRequest{Filter: &runtimeapi.ContainerFilter{PodSandboxId: p.id}})
		must(t, err)
		equal(t, "containers after a repeated call", len(l.GetContainers()), 1)
		c := &container{p: p, id: id, config: cc}
		c.start(t)
		equal(t, "exit code", c.wait(t).GetExitCode(), 0)
	}
}

// missingHostPath: where containerd makes a directory, Berth refuses, because
// what the path should have been is anyone's guess.
func missingHostPath(t *testing.T, n *node) {
	p := n.pod(t)
	missing := filepath.Join(t.TempDir(), "comes", "later")
	cc := p.containerConfig(t, shell("ls -d /mnt"), func(c *runtimeapi.ContainerConfig) {
		c.Mounts = []*runtimeapi.Mount{{HostPath: missing, ContainerPath: "/mnt"}}
	})
	_, err := p.tryCreate(t, cc)
	wantCode(t, "missing host path", err, codes.InvalidArgument, codes.NotFound, codes.FailedPrecondition)
	if err != nil {
		has(t, "message", err.Error(), missing)
	}
	must(t, os.MkdirAll(missing, 0o755))
	_, err = p.tryCreate(t, cc)
	must(t, err)
}

// networkReady is the node's NetworkReady condition.
func (n *node) networkReady(t *testing.T) bool {
	t.Helper()
	r, err := n.rt.Status(t.Context(), &runtimeapi.StatusRequest{})
	must(t, err)
	for _, c := range r.GetStatus().GetConditions() {
		if c.GetType() == runtimeapi.NetworkReady {
			return c.GetStatus()
		}
	}
	return false
}

func noNetworkYet(t *testing.T, n *node) {
	s := n.spare(t, harness.Config{}, func(own *harness.Node) {
		must(t, os.RemoveAll(own.Dir("cni")))
		must(t, os.Mkdir(own.Dir("cni"), 0o755))
	}, nil)
	equal(t, "network ready", s.networkReady(t), false)
	pc := s.podConfig(t)
	_, err := s.tryPod(t, t.Context(), pc)
	wantCode(t, "pod without a network", err, codes.Unavailable)
	if err != nil {
		has(t, "message", err.Error(), s.own.Dir("cni"))
	}
	s.clean(t)
	host := s.pod(t, namespaces(&runtimeapi.NamespaceOption{Network: runtimeapi.NamespaceMode_NODE, Pid: runtimeapi.NamespaceMode_CONTAINER}))
	equal(t, "state of a pod on the node's network", host.status(t).GetState(), runtimeapi.PodSandboxState_SANDBOX_READY)
	must(t, harness.WriteConflist(s.own.Dir("cni"), s.own.Dir("ipam"), harness.Bridge{}))
	eventually(t, "the network is ready", func() bool { return s.networkReady(t) })
	p := s.podOf(t, pc)
	if p.status(t).GetNetwork().GetIp() == "" {
		t.Error("the pod has no address")
	}
}

// withPlugin is a node whose network ends with a plugin that runs the script add
// in ADD while the file exists whose path is returned.
func withPlugin(t *testing.T, n *node, add string) (*node, string) {
	dir := t.TempDir()
	must(t, os.WriteFile(filepath.Join(dir, "broken"), nil, 0o644))
	s := n.withScripts(t, dir, "10s", `if [ -e `+dir+`/broken ]; then `+add+`; fi`, ":")
	return s, filepath.Join(dir, "broken")
}

// withScripts is a node whose network ends with a plugin in dir that runs a
// script in ADD and one in DEL; patience is the time-out of both.
func (n *node) withScripts(t *testing.T, dir, patience, add, del string) *node {
	script := `#!/bin/sh
case $CNI_COMMAND in
VERSION) echo '{"cniVersion":"1.0.0","supportedVersions":["0.4.0","1.0.0"]}' ;;
ADD) ` + add + `
     sed 's/.*"prevResult"://; s/,"type":"story"}$//' ;;
DEL) ` + del + ` ;;
esac
`
	must(t, os.WriteFile(filepath.Join(dir, "story"), []byte(script), 0o755))
	return n.spare(t, harness.Config{Args: []string{"--cni-bin-dir", dir}, TOML: "[cni]\ntimeout = \"" + patience + "\"\n"}, func(own *harness.Node) {
		must(t, harness.WriteConflist(own.Dir("cni"), own.Dir("ipam"), harness.Bridge{Then: "story"}))
	}, nil)
}

func failingPlugin(t *testing.T, n *node) {
	s, broken := withPlugin(t, n, `echo '{"cniVersion":"1.0.0","code":100,"msg":"no luck today"}'; exit 1`)
	pc := s.podConfig(t)
	_, err := s.tryPod(t, t.Context(), pc)
	if err == nil {
		t.Fatal("a pod runs whose network failed")
	}
	has(t, "message", err.Error(), "no luck today")
	s.clean(t)
	must(t, os.Remove(broken))
	s.podOf(t, pc)
}

// hangingPlugin waits for the time-out of the plugin.
func hangingPlugin(t *testing.T, n *node) {
	s, broken := withPlugin(t, n, "sleep 4000")
	pc := s.podConfig(t)
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	_, err := s.tryPod(t, ctx, pc)
	wantCode(t, "pod, for an impatient client", err, codes.DeadlineExceeded)
	ctx, cancel = context.WithTimeout(t.Context(), patience)
	defer cancel()
	_, err = s.tryPod(t, ctx, pc)
	wantCode(t, "pod", err, codes.Unavailable)
	must(t, ctx.Err())
	s.clean(t)
	must(t, os.Remove(broken))
	s.podOf(t, pc)
}

func runcMissing(t *testing.T, n *node) {
	programs, err := harness.Find(*binDir)
	must(t, err)
	runc := filepath.Join(t.TempDir(), "runc")
	must(t, os.Symlink(programs.Runc, runc))
	s := n.spare(t, harness.Config{TOML: "[runtime.handlers.runc]\npath = \"" + runc + "\"\n"}, nil, nil)
	p := s.pod(t)
	cc := p.containerConfig(t, probe("exit", "0"))
	must(t, os.Remove(runc))
	_, err = p.tryCreate(t, cc)
	if err == nil {
		t.Fatal("a container was made without runc")
	}
	has(t, "message", err.Error(), runc)
	must(t, os.Symlink(programs.Runc, runc))
	id, err := p.tryCreate(t, cc)
	must(t, err)
	c := &container{p: p, id: id, config: cc}
	c.start(t)
	equal(t, "exit code", c.wait(t).GetExitCode(), 0)
}

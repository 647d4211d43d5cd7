package suite

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	criu "github.com/berth-dev/berth/runtimeservice/checkpoint/image"
)

// allowed reads the images in an archive as a restore does, and returns what is
// wrong with them for the archive's own specification.
func allowed(t *testing.T, archive map[string][]byte) error {
	t.Helper()
	dir := t.TempDir()
	for name, b := range archive {
		if name, ok := strings.CutPrefix(name, "checkpoint/"); ok {
			must(t, os.WriteFile(filepath.Join(dir, name), b, 0o600))
		}
	}
	img, err := criu.Read(dir)
	must(t, err)
	var spec specs.Spec
	must(t, json.Unmarshal(archive["spec.dump"], &spec))
	return criu.Check(img, &spec)
}

// checkpointImages: what CRIU writes of containers of many kinds is what the
// checks of a restore take for theirs.
func checkpointImages(t *testing.T, n *node) {
	n.criu(t)
	masked := security(func(s *runtimeapi.LinuxContainerSecurityContext) {
		s.MaskedPaths = []string{"/proc/asound", "/proc/acpi", "/proc/interrupts", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/timer_list",
			"/proc/timer_stats", "/proc/sched_debug", "/proc/scsi", "/sys/firmware", "/sys/devices/virtual/powercap"}
		s.ReadonlyPaths = []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"}
	})
	const script = "i=0; while :; do i=$((i+1)); echo $i; sleep 0.1; done"
	volume := t.TempDir()
	for _, c := range []struct {
		name  string
		pod   func(*runtimeapi.PodSandboxConfig)
		edits []edit
		want  string // part of the refusal
	}{
		{name: "as the kubelet has it", edits: []edit{masked, shell(script), security(func(s *runtimeapi.LinuxContainerSecurityContext) {
			s.Seccomp = &runtimeapi.SecurityProfile{ProfileType: profileDefault}
			s.RunAsUser = &runtimeapi.Int64Value{Value: 1000}
			s.Capabilities = &runtimeapi.Capability{DropCapabilities: []string{"ALL"}}
		})}},
		{name: "threads with a filter", edits: []edit{masked, shell("GODEBUG=multipathtcp=0,containermaxprocs=0 /probe echo 0.0.0.0:8090 & " + script),
			security(func(s *runtimeapi.LinuxContainerSecurityContext) {
				s.Seccomp = &runtimeapi.SecurityProfile{ProfileType: profileDefault}
			})}},
		{name: "files", edits: []edit{shell("mkdir /d; exec 3>/d/gone 4</proc/self/status 5<>/dev/zero 6</v/f; rm /d/gone; mkfifo /d/fifo; exec 7<>/d/fifo; sleep 10000 | cat & " + script),
			func(c *runtimeapi.ContainerConfig) {
				must(t, os.WriteFile(filepath.Join(volume, "f"), []byte("x"), 0o644))
				c.Mounts = []*runtimeapi.Mount{{HostPath: volume, ContainerPath: "/v", Readonly: true}}
			}}},
		{name: "read-only root", edits: []edit{shell(script), security(func(s *runtimeapi.LinuxContainerSecurityContext) { s.ReadonlyRootfs = true })}},
		{name: "terminal", edits: []edit{shell(script), func(c *runtimeapi.ContainerConfig) { c.Tty, c.Stdin = true, true }}},
		{name: "no new privileges", edits: []edit{shell(script), security(func(s *runtimeapi.LinuxContainerSecurityContext) { s.NoNewPrivs = true })}, want: "no_new_privs"},
		{name: "the node's network", pod: namespaces(&runtimeapi.NamespaceOption{Network: runtimeapi.NamespaceMode_NODE, Pid: runtimeapi.NamespaceMode_CONTAINER}), edits: []edit{shell(script)}},
		{name: "processes of the pod", pod: namespaces(&runtimeapi.NamespaceOption{Pid: runtimeapi.NamespaceMode_POD}), edits: []edit{shell(script)}},
		{name: "privileged", pod: privilegedPod, edits: []edit{shell(script), security(func(s *runtimeapi.LinuxContainerSecurityContext) { s.Privileged = true })}},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := n.pod(t)
			if c.pod != nil {
				p = n.pod(t, c.pod)
			}
			made := p.run(t, c.edits...)
			made.waitLog(t, "3")
			file := filepath.Join(t.TempDir(), "c.tar")
			must(t, made.checkpoint(t.Context(), file, 100))
			err := allowed(t, readArchive(t, file))
			if c.want == "" {
				must(t, err)
			} else if err != nil { // CRIU may be newer
				has(t, "refusal", err.Error(), c.want)
			}
		})
	}
}

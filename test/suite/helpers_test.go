package suite

import (
	"context"
	"crypto/rand"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// patience bounds every wait; it is long because machines are slow and shared.
const patience = 60 * time.Second

func (n *node) ref(name string) string { return *imagePrefix + "/" + name }

// pull makes sure of an image and returns its reference.
func (n *node) pull(t *testing.T, name string) string {
	t.Helper()
	_, err := n.im.PullImage(t.Context(), &runtimeapi.PullImageRequest{Image: &runtimeapi.ImageSpec{Image: n.ref(name)}})
	must(t, err)
	return n.ref(name)
}

// pod is a running sandbox that the test removes at its end.
type pod struct {
	n      *node
	id     string
	config *runtimeapi.PodSandboxConfig
}

func (n *node) podConfig(t *testing.T) *runtimeapi.PodSandboxConfig {
	return &runtimeapi.PodSandboxConfig{
		Metadata:     &runtimeapi.PodSandboxMetadata{Name: "pod-" + strings.ToLower(rand.Text()[:8]), Namespace: "suite", Uid: rand.Text()},
		LogDirectory: t.TempDir(),
		Labels:       map[string]string{"suite": "yes"},
		Linux:        &runtimeapi.LinuxPodSandboxConfig{SecurityContext: &runtimeapi.LinuxSandboxSecurityContext{NamespaceOptions: &runtimeapi.NamespaceOption{Pid: runtimeapi.NamespaceMode_CONTAINER}}},
	}
}

func (n *node) pod(t *testing.T, edits ...func(*runtimeapi.PodSandboxConfig)) *pod {
	t.Helper()
	c := n.podConfig(t)
	for _, e := range edits {
		e(c)
	}
	return n.podOf(t, c)
}

// podOf runs a pod of exactly this configuration.
func (n *node) podOf(t *testing.T, c *runtimeapi.PodSandboxConfig) *pod {
	t.Helper()
	r, err := n.rt.RunPodSandbox(t.Context(), &runtimeapi.RunPodSandboxRequest{Config: c})
	must(t, err)
	p := &pod{n: n, id: r.GetPodSandboxId(), config: c}
	t.Cleanup(func() { p.remove(t) })
	return p
}

func (p *pod) remove(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if _, err := p.n.rt.StopPodSandbox(ctx, &runtimeapi.StopPodSandboxRequest{PodSandboxId: p.id}); err != nil {
		t.Errorf("stop pod: %v", err)
	}
	if _, err := p.n.rt.RemovePodSandbox(ctx, &runtimeapi.RemovePodSandboxRequest{PodSandboxId: p.id}); err != nil {
		t.Errorf("remove pod: %v", err)
	}
}

func (p *pod) status(t *testing.T) *runtimeapi.PodSandboxStatus {
	t.Helper()
	r, err := p.n.rt.PodSandboxStatus(t.Context(), &runtimeapi.PodSandboxStatusRequest{PodSandboxId: p.id})
	must(t, err)
	return r.GetStatus()
}

// container belongs to a pod and goes with it.
type container struct {
	p      *pod
	id     string
	config *runtimeapi.ContainerConfig
}

type edit func(*runtimeapi.ContainerConfig)

// probe asks for the probe program with arguments.
func probe(args ...string) edit { return func(c *runtimeapi.ContainerConfig) { c.Args = args } }

// shell asks for a shell script instead of the image's entry point.
func shell(script string) edit {
	return func(c *runtimeapi.ContainerConfig) { c.Command = []string{"/bin/sh", "-c", script} }
}

func image(name string) edit {
	return func(c *runtimeapi.ContainerConfig) { c.Image = &runtimeapi.ImageSpec{Image: name} }
}

// security edits the security context.
func security(f func(*runtimeapi.LinuxContainerSecurityContext)) edit {
	return func(c *runtimeapi.ContainerConfig) { f(c.Linux.SecurityContext) }
}

func (p *pod) containerConfig(t *testing.T, edits ...edit) *runtimeapi.ContainerConfig {
	t.Helper()
	name := "c-" + strings.ToLower(rand.Text()[:8])
	c := &runtimeapi.ContainerConfig{
		Metadata: &runtimeapi.ContainerMetadata{Name: name},
		Image:    &runtimeapi.ImageSpec{Image: "probe:1"},
		LogPath:  name + ".log",
		Linux: &runtimeapi.LinuxContainerConfig{
			Resources: &runtimeapi.LinuxContainerResources{},
			SecurityContext: &runtimeapi.LinuxContainerSecurityContext{
				NamespaceOptions: p.config.GetLinux().GetSecurityContext().GetNamespaceOptions(),
				MaskedPaths:      []string{"/proc/kcore", "/sys/firmware"},
				ReadonlyPaths:    []string{"/proc/sys"},
			},
		},
	}
	for _, e := range edits {
		e(c)
	}
	c.Image.Image = p.n.pull(t, c.Image.Image)
	return c
}

func (p *pod) create(t *testing.T, edits ...edit) *container {
	t.Helper()
	c := p.containerConfig(t, edits...)
	r, err := p.n.rt.CreateContainer(t.Context(), &runtimeapi.CreateContainerRequest{PodSandboxId: p.id, Config: c, SandboxConfig: p.config})
	must(t, err)
	return &container{p: p, id: r.GetContainerId(), config: c}
}

func (p *pod) run(t *testing.T, edits ...edit) *container {
	t.Helper()
	c := p.create(t, edits...)
	c.start(t)
	return c
}

// output runs a container to its end and returns its output.
func (p *pod) output(t *testing.T, edits ...edit) string {
	t.Helper()
	c := p.run(t, edits...)
	c.wait(t)
	return c.text(t)
}

func (c *container) start(t *testing.T) {
	t.Helper()
	_, err := c.p.n.rt.StartContainer(t.Context(), &runtimeapi.StartContainerRequest{ContainerId: c.id})
	must(t, err)
}

func (c *container) stop(t *testing.T, grace int64) {
	t.Helper()
	_, err := c.p.n.rt.StopContainer(t.Context(), &runtimeapi.StopContainerRequest{ContainerId: c.id, Timeout: grace})
	must(t, err)
}

// stopsWhen begins a stop with a long grace, and kills once the log has want.
func (c *container) stopsWhen(t *testing.T, want string) {
	t.Helper()
	stopped := make(chan error, 1)
	go func() {
		_, err := c.p.n.rt.StopContainer(t.Context(), &runtimeapi.StopContainerRequest{ContainerId: c.id, Timeout: 600})
		stopped <- err
	}()
	c.waitLog(t, want)
	c.stop(t, 0)
	must(t, <-stopped)
}

// endsWhen makes a container say its last words and end with 42 once the file
// exists whose path is returned.
func endsWhen(t *testing.T) (e edit, file string) {
	t.Helper()
	dir := t.TempDir()
	return func(c *runtimeapi.ContainerConfig) {
		shell("until [ -e /node/go ]; do sleep 0.05; done; echo last words; exit 42")(c)
		c.Mounts = append(c.Mounts, &runtimeapi.Mount{HostPath: dir, ContainerPath: "/node"})
	}, filepath.Join(dir, "go")
}

func (c *container) remove(t *testing.T) {
	t.Helper()
	_, err := c.p.n.rt.RemoveContainer(t.Context(), &runtimeapi.RemoveContainerRequest{ContainerId: c.id})
	must(t, err)
}

func (c *container) status(t *testing.T) *runtimeapi.ContainerStatus {
	t.Helper()
	r, err := c.p.n.rt.ContainerStatus(t.Context(), &runtimeapi.ContainerStatusRequest{ContainerId: c.id})
	must(t, err)
	return r.GetStatus()
}

// wait returns the status once the container has ended.
func (c *container) wait(t *testing.T) (s *runtimeapi.ContainerStatus) {
	t.Helper()
	eventually(t, "container ends", func() bool {
		s = c.status(t)
		return s.GetState() == runtimeapi.ContainerState_CONTAINER_EXITED
	})
	return s
}

func (c *container) exec(t *testing.T, cmd ...string) *runtimeapi.ExecSyncResponse {
	t.Helper()
	r, err := c.p.n.rt.ExecSync(t.Context(), &runtimeapi.ExecSyncRequest{ContainerId: c.id, Cmd: cmd, Timeout: 60})
	must(t, err)
	return r
}

// sh is the output of a shell script that must succeed.
func (c *container) sh(t *testing.T, script string) string {
	t.Helper()
	r := c.exec(t, "/bin/sh", "-c", script)
	if r.GetExitCode() != 0 {
		t.Fatalf("%s: status %d, stderr %q", script, r.GetExitCode(), r.GetStderr())
	}
	return strings.TrimSpace(string(r.GetStdout()))
}

func (c *container) logFile() string { return filepath.Join(c.p.config.LogDirectory, c.config.LogPath) }

// line is one entry of a CRI log.
type line struct {
	at             time.Time
	stream, tag, s string
}

// log parses the log strictly.
func (c *container) log(t *testing.T) (out []line) {
	t.Helper()
	var b []byte
	eventually(t, "the log ends with a whole line", func() bool { // one may be on its way
		var err error
		b, err = os.ReadFile(c.logFile())
		must(t, err)
		return len(b) == 0 || b[len(b)-1] == '\n'
	})
	for l := range strings.Lines(string(b)) {
		f := strings.SplitN(strings.TrimSuffix(l, "\n"), " ", 4)
		if len(f) != 4 || (f[2] != "F" && f[2] != "P") || (f[1] != "stdout" && f[1] != "stderr") {
			t.Fatalf("not a CRI log line: %q", l)
		}
		at, err := time.Parse(time.RFC3339Nano, f[0])
		must(t, err)
		out = append(out, line{at, f[1], f[2], f[3]})
	}
	return out
}

// text is the log's content: partial entries joined.
func (c *container) text(t *testing.T) string {
	t.Helper()
	var b strings.Builder
	for _, l := range c.log(t) {
		b.WriteString(l.s)
		if l.tag == "F" {
			b.WriteByte('\n')
		}
	}
	return b.String()
}

func (c *container) waitLog(t *testing.T, want string) {
	t.Helper()
	eventually(t, "log has "+want, func() bool {
		_, err := os.Stat(c.logFile())
		return err == nil && strings.Contains(c.text(t), want)
	})
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	if !poll(ok) {
		t.Fatalf("after %v: not true that %s", patience, what)
	}
}

// poll asks until the answer is yes, or patience ends.
func poll(ok func() bool) bool {
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		if ok() {
			return true
		}
	}
	return false
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// wantCode checks a gRPC status code.
func wantCode(t *testing.T, what string, err error, want ...codes.Code) {
	t.Helper()
	for _, c := range want {
		if status.Code(err) == c {
			return
		}
	}
	t.Errorf("%s: got %v (%v), want %v", what, status.Code(err), err, want)
}

func has(t *testing.T, what, got string, want ...string) {
	t.Helper()
	for _, w := range want {
		if !strings.Contains(got, w) {
			t.Errorf("%s: %q is missing in %q", what, w, got)
		}
	}
}

func equal[T comparable](t *testing.T, what string, got, want T) {
	t.Helper()
	if got != want {
		t.Errorf("%s: got %v, want %v", what, got, want)
	}
}

package powercut

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-dev/berth/test/harness"
	"github.com/berth-dev/berth/test/images"
)

// A machine whose power goes: its disk of state, and one with the facts that
// its earlier lives had told.
const (
	stateDisk = "/dev/vdc"
	factsDisk = "/dev/vdd"
	nodeDir   = "/var/tmp/berth-node"
)

// imageCount is how many images there are, which share one layer.
const imageCount = 24

// TestIntegrationNode is one life of a node that a power cut ends, in the
// virtual machine (make vm RUN=powercut). First it looks whether all that an
// earlier life was told is there, and nothing half made; then it pulls images and
// runs pods until there is no power.
func TestIntegrationNode(t *testing.T) {
	line, err := os.ReadFile("/proc/cmdline")
	must(t, err)
	if !bytes.Contains(line, []byte("berth.life=")) {
		t.Skip("needs a machine that loses its power: make vm RUN=powercut")
	}
	n := openNode(t)
	n.check(t)
	if t.Failed() {
		return
	}
	if bytes.Contains(line, []byte("berth.last=true")) {
		return
	}
	// The machine's owner takes this for the verdict on this life.
	fmt.Println("BERTH-VM case found_all_as_it_should_be 0")
	fmt.Println("BERTH-VM work")
	n.work(t)
}

// cutNode is the node and what its earlier lives were told of it.
type cutNode struct {
	own    *harness.Node
	rt     runtimeapi.RuntimeServiceClient
	im     runtimeapi.ImageServiceClient
	ctl    string
	images map[string]string // reference to ID; pulled
	pods   map[string]bool
	boxes  map[string]string // container to its exit code, "" while it had none
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func openNode(t *testing.T) *cutNode {
	programs, err := harness.Find("")
	must(t, err)
	own, err := harness.New(harness.Config{Programs: programs, Dir: nodeDir})
	must(t, err)
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("end of the daemon's log:\n%s", own.LogTail())
		}
	})
	out, err := own.Space().Command(t.Context(), "mount", "-t", "ext4", stateDisk, own.Dir("state")).CombinedOutput()
	if err != nil {
		t.Fatalf("mount: %v: %s", err, out)
	}
	catalog, err := manyImages(t.Context())
	must(t, err)
	reg, err := images.Serve(catalog, harness.ListenIn(own.Space().NetNS()))
	must(t, err)
	t.Cleanup(func() { reg.Close() })
	must(t, reg.WriteHosts(own.HostsDir()))
	must(t, own.Start(t.Context()))
	conn, err := own.Conn()
	must(t, err)
	n := &cutNode{own: own, rt: runtimeapi.NewRuntimeServiceClient(conn), im: runtimeapi.NewImageServiceClient(conn),
		ctl: filepath.Join(programs.Bin, "berthctl"), images: map[string]string{}, pods: map[string]bool{}, boxes: map[string]string{}}
	n.readFacts(t)
	return n
}

// manyImages have one layer in common and one of small files of their own. They
// are the same in each life.
func manyImages(ctx context.Context) (map[string]any, error) {
	parts, err := images.LoadParts(ctx)
	if err != nil {
		return nil, err
	}
	common := images.Layer{Files: []images.File{{Name: "probe", Mode: 0o755, Body: parts.Probe}}}
	out := map[string]any{}
	for i := range imageCount {
		var own images.Layer
		for k := range 100 {
			body := strings.Repeat(fmt.Sprintf("file %d of image %d\n", k, i), 1+k*5)
			own.Files = append(own.Files, images.File{Name: fmt.Sprintf("data-%d", k), Mode: 0o644, Body: []byte(body)})
		}
		img, err := images.Build(images.Spec{Layers: []images.Layer{common, own}, Config: v1.Config{Entrypoint: []string{"/probe"}}})
		if err != nil {
			return nil, err
		}
		out[fmt.Sprintf("cut-%d:1", i)] = img
	}
	return out, nil
}

func ref(i int) string { return fmt.Sprintf("%s/cut-%d:1", images.HostPlain, i%imageCount) }

// say tells the machine's owner a fact. He has it only if the power is still
// there, so all that he has was told before.
func say(words ...string) { fmt.Println("BERTH-VM fact " + strings.Join(words, " ")) }

// readFacts: what somebody was about to remove may be there or not.
func (n *cutNode) readFacts(t *testing.T) {
	b, err := os.ReadFile(factsDisk)
	must(t, err)
	for l := range strings.Lines(string(bytes.TrimRight(b, "\x00"))) {
		f := append(strings.Fields(l), "", "")
		switch f[0] {
		case "pulled":
			n.images[f[1]] = f[2]
		case "unpull":
			delete(n.images, f[1])
		case "pod":
			n.pods[f[1]] = true
		case "unpod":
			delete(n.pods, f[1])
		case "created":
			n.boxes[f[1]] = ""
		case "exited":
			n.boxes[f[1]] = f[2]
		case "uncreate":
			delete(n.boxes, f[1])
		}
	}
	fmt.Printf("BERTH-VM known of before: %d images, %d pods, %d containers\n", len(n.images), len(n.pods), len(n.boxes))
}

// check compares the node with the facts, then takes all pods away.
func (n *cutNode) check(t *testing.T) {
	ctx := t.Context()
	for image, id := range n.images {
		r, err := n.im.ImageStatus(ctx, &runtimeapi.ImageStatusRequest{Image: &runtimeapi.ImageSpec{Image: image}})
		if err != nil || r.GetImage().GetId() != id {
			t.Errorf("image %s was pulled as %s: %v, %v", image, id, r.GetImage().GetId(), err)
		}
	}
	out, err := n.own.Space().Command(ctx, n.ctl, "--address", n.own.Dir("run", "berth.sock"), "--admin-address", n.own.Dir("run", "admin.sock"), "images", "check", "--deep").CombinedOutput()
	if err != nil {
		t.Errorf("berthctl images check --deep: %v\n%s", err, out)
	}
	n.checkPods(t)
	n.runPod(t, 0, func(...string) {}) // all works again
	n.removeAll(t)
	if left := n.own.WaitLeftovers(ctx); len(left) > 0 {
		t.Errorf("left behind: %q", left)
	}
}

func (n *cutNode) checkPods(t *testing.T) {
	pods, err := n.rt.ListPodSandbox(t.Context(), &runtimeapi.ListPodSandboxRequest{})
	must(t, err)
	seen := map[string]bool{}
	for _, p := range pods.GetItems() {
		seen[p.GetId()] = true
		if p.GetState() != runtimeapi.PodSandboxState_SANDBOX_NOTREADY {
			t.Errorf("pod %s is %v after a power cut", p.GetId(), p.GetState())
		}
	}
	for id := range n.pods {
		if !seen[id] {
			t.Errorf("pod %s is gone", id)
		}
	}
	for id, code := range n.boxes {
		r, err := n.rt.ContainerStatus(t.Context(), &runtimeapi.ContainerStatusRequest{ContainerId: id})
		if err != nil {
			t.Errorf("container %s is gone: %v", id, err)
			continue
		}
		s := r.GetStatus()
		if s.GetState() != runtimeapi.ContainerState_CONTAINER_EXITED {
			t.Errorf("container %s is %v after a power cut", id, s.GetState())
		}
		if got := fmt.Sprint(s.GetExitCode()); code != "" && got != code {
			t.Errorf("container %s ended with code %s, now it is %s", id, code, got)
		}
	}
}

func (n *cutNode) removeAll(t *testing.T) {
	pods, err := n.rt.ListPodSandbox(t.Context(), &runtimeapi.ListPodSandboxRequest{})
	must(t, err)
	for id := range n.boxes {
		say("uncreate", id)
	}
	for _, p := range pods.GetItems() {
		say("unpod", p.GetId())
		n.removePod(t, p.GetId())
	}
	left, err := n.rt.ListContainers(t.Context(), &runtimeapi.ListContainersRequest{})
	must(t, err)
	if len(left.GetContainers()) > 0 {
		t.Errorf("containers without pods: %v", left.GetContainers())
	}
}

func (n *cutNode) removePod(t *testing.T, id string) {
	_, err := n.rt.StopPodSandbox(t.Context(), &runtimeapi.StopPodSandboxRequest{PodSandboxId: id})
	if err == nil {
		_, err = n.rt.RemovePodSandbox(t.Context(), &runtimeapi.RemovePodSandboxRequest{PodSandboxId: id})
	}
	if err != nil {
		t.Errorf("remove pod %s: %v", id, err)
	}
}

// work pulls, removes and runs in several lines at a time. Nobody is there to
// see it end.
func (n *cutNode) work(t *testing.T) {
	end := time.Now().Add(2 * time.Minute)
	var all sync.WaitGroup
	for lane := range 3 {
		all.Go(func() {
			for i := lane; time.Now().Before(end) && !t.Failed(); i += 3 {
				switch lane {
				case 0:
					n.pull(t, i, say)
					if i > 6 && i%2 == 0 {
						say("unpull", ref(i))
						if _, err := n.im.RemoveImage(t.Context(), &runtimeapi.RemoveImageRequest{Image: &runtimeapi.ImageSpec{Image: ref(i)}}); err != nil {
							t.Errorf("remove image: %v", err)
						}
					}
				default:
					n.runPod(t, i, say)
				}
			}
		})
	}
	all.Wait()
	t.Error("the power did not go")
}

func (n *cutNode) pull(t *testing.T, i int, say func(...string)) {
	r, err := n.im.PullImage(t.Context(), &runtimeapi.PullImageRequest{Image: &runtimeapi.ImageSpec{Image: ref(i)}})
	if err != nil {
		t.Errorf("pull %s: %v", ref(i), err)
		return
	}
	say("pulled", ref(i), r.GetImageRef())
}

// runPod runs a pod with a container that goes on and one that ends. Every
// third pod is removed again. The image is never removed.
func (n *cutNode) runPod(t *testing.T, i int, say func(...string)) {
	ctx := t.Context()
	const image = 1
	n.pull(t, image, func(...string) {})
	name := fmt.Sprintf("pod-%d-%d", i, time.Now().UnixNano())
	cfg := &runtimeapi.PodSandboxConfig{
		Metadata:     &runtimeapi.PodSandboxMetadata{Name: name, Namespace: "cut", Uid: name},
		LogDirectory: n.own.Dir("logs", name),
		Linux:        &runtimeapi.LinuxPodSandboxConfig{},
	}
	r, err := n.rt.RunPodSandbox(ctx, &runtimeapi.RunPodSandboxRequest{Config: cfg})
	if err != nil {
		t.Errorf("run pod: %v", err)
		return
	}
	say("pod", r.GetPodSandboxId())
	var made []string
	for k, args := range [][]string{{"sleep"}, {"exit", "7"}} {
		c, err := n.rt.CreateContainer(ctx, &runtimeapi.CreateContainerRequest{PodSandboxId: r.GetPodSandboxId(), SandboxConfig: cfg, Config: &runtimeapi.ContainerConfig{
			Metadata: &runtimeapi.ContainerMetadata{Name: fmt.Sprint("c", k)}, Image: &runtimeapi.ImageSpec{Image: ref(image)}, Args: args,
			LogPath: fmt.Sprint(k, ".log"), Linux: &runtimeapi.LinuxContainerConfig{},
		}})
		if err != nil {
			t.Errorf("create container: %v", err)
			return
		}
		id := c.GetContainerId()
		made = append(made, id)
		say("created", id)
		if _, err := n.rt.StartContainer(ctx, &runtimeapi.StartContainerRequest{ContainerId: id}); err != nil {
			t.Errorf("start container: %v", err)
			return
		}
		if k == 1 {
			n.waitExit(t, id, say)
		}
	}
	if i%3 == 0 {
		for _, id := range made {
			say("uncreate", id)
		}
		say("unpod", r.GetPodSandboxId())
		n.removePod(t, r.GetPodSandboxId())
	}
}

func (n *cutNode) waitExit(t *testing.T, id string, say func(...string)) {
	for end := time.Now().Add(time.Minute); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		r, err := n.rt.ContainerStatus(t.Context(), &runtimeapi.ContainerStatusRequest{ContainerId: id})
		if err != nil {
			t.Errorf("status of a container: %v", err)
			return
		}
		if s := r.GetStatus(); s.GetState() == runtimeapi.ContainerState_CONTAINER_EXITED {
			if s.GetExitCode() != 7 {
				t.Errorf("a container ended with %d, want 7: %s", s.GetExitCode(), s.GetMessage())
			}
			say("exited", id, fmt.Sprint(s.GetExitCode()))
			return
		}
	}
	t.Errorf("container %s does not end", id)
}

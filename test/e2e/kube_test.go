package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-dev/berth/test/images"
)

// image is the reference of an image of the catalog.
func image(name string) string { return images.HostPlain + "/" + name + ":1" }

// kube is what a case works with: kubectl in a Kubernetes namespace of its
// own. What fails ends the case.
type kube struct {
	*world
	t  *testing.T
	ns string
}

func (w *world) kube(t *testing.T) *kube {
	t.Helper()
	k := &kube{world: w, t: t, ns: fmt.Sprintf("case-%d", time.Now().UnixNano())}
	k.run("create", "namespace", k.ns)
	// A pod is refused until its namespace has its service account.
	k.eventually(30*time.Second, func(ctx context.Context) error {
		_, err := k.try(ctx, "get", "serviceaccount", "default")
		return err
	})
	return k
}

// end removes the namespace with all that is in it. When the case has failed
// it first says how its pods are.
func (k *kube) end() {
	k.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
	defer cancel()
	if k.t.Failed() {
		pods, _ := k.try(ctx, "get", "pods", "-o", "wide")
		events, _ := k.try(ctx, "get", "events", "--sort-by=.lastTimestamp")
		k.t.Logf("pods:\n%s\nevents:\n%s", pods, events)
	}
	if _, err := k.kubectl(ctx, "", "delete", "namespace", k.ns, "--timeout=150s"); err != nil {
		k.t.Error(err)
	}
}

// try runs kubectl in the case's namespace.
func (k *kube) try(ctx context.Context, args ...string) (string, error) {
	return k.kubectl(ctx, "", append([]string{"--namespace", k.ns}, args...)...)
}

// run is try that must succeed within a minute.
func (k *kube) run(args ...string) string {
	k.t.Helper()
	return k.feed("", args...)
}

// feed is run with input on stdin.
func (k *kube) feed(input string, args ...string) string {
	k.t.Helper()
	ctx, cancel := context.WithTimeout(k.t.Context(), time.Minute)
	defer cancel()
	out, err := k.kubectl(ctx, input, append([]string{"--namespace", k.ns}, args...)...)
	if err != nil {
		k.t.Fatal(err)
	}
	return out
}

// apply makes the objects of a YAML text. IMAGE/name stands for an image of
// the catalog.
func (k *kube) apply(yaml string) {
	k.t.Helper()
	words := strings.NewReplacer("IMAGE/probe", image("probe"), "IMAGE/busybox", image("busybox"), "IMAGE/user", image("user"))
	k.feed(words.Replace(yaml), "apply", "-f", "-")
}

// pod makes a pod with one container called c from the rest of its
// specification, in YAML indented as in the list of containers, then the rest
// of the pod's specification.
func (k *kube) pod(name, container, rest string) {
	k.t.Helper()
	k.apply(podText(name, container, rest))
}

func podText(name, container, rest string) string {
	return "apiVersion: v1\nkind: Pod\nmetadata: {name: " + name + ", labels: {app: " + name + "}}\nspec:\n  terminationGracePeriodSeconds: 5\n" +
		indent(rest, 2) + "  containers:\n  - name: c\n    imagePullPolicy: IfNotPresent\n" + indent(container, 4)
}

func indent(text string, by int) string {
	var b strings.Builder
	for line := range strings.Lines(strings.TrimSpace(text)) {
		b.WriteString(strings.Repeat(" ", by) + line)
	}
	if b.Len() > 0 {
		b.WriteByte('\n')
	}
	return b.String()
}

// eventually calls f until it returns nil, or fails the case.
func (k *kube) eventually(d time.Duration, f func(context.Context) error) {
	k.t.Helper()
	if err := until(k.t.Context(), d, f); err != nil {
		k.t.Fatal(err)
	}
}

// get returns a field of an object as JSONPath prints it.
func (k *kube) get(object, path string) string {
	k.t.Helper()
	return k.run("get", object, "-o", "jsonpath="+path)
}

// becomes waits until a field of an object has the value.
func (k *kube) becomes(object, path, want string) {
	k.t.Helper()
	k.eventually(90*time.Second, func(ctx context.Context) error {
		got, err := k.try(ctx, "get", object, "-o", "jsonpath="+path)
		if err == nil && got != want {
			err = fmt.Errorf("%s of %s is %q, want %q", path, object, got, want)
		}
		return err
	})
}

// ready waits until the pods are ready.
func (k *kube) ready(pods ...string) {
	k.t.Helper()
	for _, p := range pods {
		k.becomes("pod/"+p, "{.status.conditions[?(@.type=='Ready')].status}", "True")
	}
}

// phase waits until the pod is in the phase.
func (k *kube) phase(pod, want string) {
	k.t.Helper()
	k.becomes("pod/"+pod, "{.status.phase}", want)
}

// sh runs a shell line in a pod's container c and returns its output.
func (k *kube) sh(pod, line string) string {
	k.t.Helper()
	return strings.TrimSpace(k.run("exec", pod, "-c", "c", "--", "sh", "-c", line))
}

// says checks what a shell line in the pod prints.
func (k *kube) says(pod, line, want string) {
	k.t.Helper()
	if got := k.sh(pod, line); got != want {
		k.t.Fatalf("in %s, %s: %q, want %q", pod, line, got, want)
	}
}

// containerState is the part of a pod's status that shows what a container did.
type containerState struct {
	Name         string
	ContainerID  string
	RestartCount int
	ImageID      string
	State        struct {
		Running    *struct{ StartedAt string }
		Terminated *struct {
			Reason   string
			ExitCode int
			Signal   int
			Message  string
		}
	}
	LastState struct {
		Terminated *struct {
			Reason   string
			ExitCode int
		}
	}
}

// containers returns the states of a pod's containers by name, all kinds.
func (k *kube) containers(pod string) map[string]containerState {
	k.t.Helper()
	var p struct {
		Status struct {
			ContainerStatuses, InitContainerStatuses, EphemeralContainerStatuses []containerState
		}
	}
	if err := json.Unmarshal([]byte(k.run("get", "pod", pod, "-o", "json")), &p); err != nil {
		k.t.Fatal(err)
	}
	out := map[string]containerState{}
	for _, list := range [][]containerState{p.Status.InitContainerStatuses, p.Status.ContainerStatuses, p.Status.EphemeralContainerStatuses} {
		for _, s := range list {
			out[s.Name] = s
		}
	}
	return out
}

// fetch asks a web server from the node's network.
func (k *kube) fetch(addr string) (string, error) {
	ctx, cancel := context.WithTimeout(k.t.Context(), 10*time.Second)
	defer cancel()
	out, err := k.space.Command(ctx, "busybox", "wget", "-q", "-O", "-", "http://"+addr).CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("fetch %s: %w: %s", addr, err, out)
	}
	return string(out), nil
}

// serves waits until the server answers with something that contains want.
func (k *kube) serves(addr, want string) {
	k.t.Helper()
	k.eventually(time.Minute, func(context.Context) error {
		got, err := k.fetch(addr)
		if err == nil && !strings.Contains(got, want) {
			err = fmt.Errorf("%s serves %q, want %q", addr, got, want)
		}
		return err
	})
}

// noPods fails as long as a runtime has pods.
func noPods(ctx context.Context, conn *grpc.ClientConn) error {
	r, err := runtimeapi.NewRuntimeServiceClient(conn).ListPodSandbox(ctx, &runtimeapi.ListPodSandboxRequest{})
	if err == nil && len(r.GetItems()) > 0 {
		err = errors.New("pods are left: " + r.GetItems()[0].GetMetadata().GetName())
	}
	return err
}

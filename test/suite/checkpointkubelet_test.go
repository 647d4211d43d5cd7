package suite

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-dev/berth/test/harness"
)

// slowly bounds what a kubelet does on an emulated machine.
const slowly = 10 * patience

// kubelet is a kubelet without a cluster, on the suite's node.
type kubelet struct {
	n    *node
	dir  string
	life *harness.Process
}

const kubeletConfig = `apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
containerRuntimeEndpoint: %q
address: 127.0.0.1
authentication: {anonymous: {enabled: true}, webhook: {enabled: false}}
authorization: {mode: AlwaysAllow}
cgroupDriver: cgroupfs
failSwapOn: false
failCgroupV1: false
oomScoreAdj: 0
evictionHard: {memory.available: 1Mi}
staticPodPath: %[2]s/manifests
podLogsDir: %[2]s/podlogs
volumePluginDir: %[2]s/plugins
resolvConf: %[2]s/resolv.conf
runtimeRequestTimeout: 10m
`

const staticPod = `apiVersion: v1
kind: Pod
metadata: {name: counter, namespace: suite}
spec:
  containers:
  - name: main
    image: %q
    imagePullPolicy: Never
    command: [/bin/sh, -c, %q]
`

// startKubelet runs a kubelet whose only pod has one container, that counts.
func (n *node) startKubelet(t *testing.T) *kubelet {
	t.Helper()
	programs, err := harness.Find(*binDir)
	must(t, err)
	program := filepath.Join(programs.Bin, "k8s", "kubelet")
	if _, err := os.Stat(program); err != nil {
		t.Skip("no kubelet here: hack/setup k8s builds one into bin/k8s")
	}
	k := &kubelet{n: n, dir: n.own.Dir("kubelet")}
	for _, d := range []string{"manifests", "podlogs", "plugins", "root"} {
		must(t, os.MkdirAll(filepath.Join(k.dir, d), 0o755))
	}
	for name, text := range map[string]string{
		"kubelet.yaml":           fmt.Sprintf(kubeletConfig, n.own.Endpoint(), k.dir),
		"resolv.conf":            "nameserver 127.0.0.1\n",
		"manifests/counter.yaml": fmt.Sprintf(staticPod, n.pull(t, "probe:1"), counter),
	} {
		must(t, os.WriteFile(filepath.Join(k.dir, name), []byte(text), 0o600))
	}
	log, err := os.Create(filepath.Join(k.dir, "log"))
	must(t, err)
	defer log.Close()
	cmd := n.own.Space().Command(context.Background(), program, "--config", filepath.Join(k.dir, "kubelet.yaml"), "--hostname-override", "alone",
		"--root-dir", filepath.Join(k.dir, "root"), "--cert-dir", filepath.Join(k.dir, "pki"))
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	k.life, err = harness.Launch("kubelet", cmd)
	must(t, err)
	t.Cleanup(func() { k.end(t) })
	return k
}

// end stops the kubelet and removes what it has made.
func (k *kubelet) end(t *testing.T) {
	if err := k.life.End(syscall.SIGTERM); err != nil {
		t.Error(err)
	}
	if t.Failed() {
		b, _ := os.ReadFile(filepath.Join(k.dir, "log"))
		t.Logf("end of the kubelet's log:\n%s", b[max(0, len(b)-8000):])
	}
	r, err := k.n.rt.ListPodSandbox(context.Background(), &runtimeapi.ListPodSandboxRequest{})
	must(t, err)
	for _, p := range r.GetItems() {
		if p.GetLabels()["io.kubernetes.pod.namespace"] == "suite" {
			(&pod{n: k.n, id: p.GetId()}).remove(t)
		}
	}
	// The kubelet mounts its directory onto itself and leaves it so; and its cgroups.
	script := fmt.Sprintf(`for m in $(awk '$5 ~ "^%s" {print $5}' /proc/self/mountinfo | sort -r); do umount -l "$m" || true; done
find /sys/fs/cgroup/kubepods -depth -type d -exec rmdir {} + 2>/dev/null || true`, k.dir)
	if out, err := k.n.own.Space().Command(context.Background(), "/bin/sh", "-c", script).CombinedOutput(); err != nil {
		t.Errorf("%v: %s", err, out)
	}
}

// counts returns the container once it has logged a number, and its log.
func (k *kubelet) counts(t *testing.T) (id, log string) {
	t.Helper()
	running := func() bool {
		r, err := k.n.rt.ListContainers(t.Context(), &runtimeapi.ListContainersRequest{Filter: &runtimeapi.ContainerFilter{
			LabelSelector: map[string]string{"io.kubernetes.pod.namespace": "suite", "io.kubernetes.container.name": "main"},
			State:         &runtimeapi.ContainerStateValue{State: runtimeapi.ContainerState_CONTAINER_RUNNING},
		}})
		must(t, err)
		if len(r.GetContainers()) == 0 {
			return false
		}
		id = r.GetContainers()[0].GetId()
		s, err := k.n.rt.ContainerStatus(t.Context(), &runtimeapi.ContainerStatusRequest{ContainerId: id})
		must(t, err)
		log = s.GetStatus().GetLogPath()
		b, _ := os.ReadFile(log)
		return strings.Contains(string(b), " 3\n")
	}
	for end := time.Now().Add(slowly); time.Now().Before(end); time.Sleep(100 * time.Millisecond) {
		select {
		case <-k.life.Done():
			t.Fatal("the kubelet has ended")
		default:
		}
		if running() {
			return id, log
		}
	}
	t.Fatalf("after %v: the static pod does not run", slowly)
	return "", ""
}

// post asks the kubelet's own endpoint.
func (k *kubelet) post(t *testing.T, path string) (status int, body []byte) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), slowly)
	defer cancel()
	client := http.Client{Transport: &http.Transport{
		TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, // it has signed its certificate itself
		DialContext: func(context.Context, string, string) (net.Conn, error) {
			return harness.DialIn(k.n.netns, "127.0.0.1:10250")
		},
	}}
	defer client.CloseIdleConnections()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "https://127.0.0.1:10250"+path, nil)
	must(t, err)
	resp, err := client.Do(req)
	must(t, err)
	defer resp.Body.Close()
	body, err = io.ReadAll(resp.Body)
	must(t, err)
	return resp.StatusCode, body
}

// checkpointKubelet: the kubelet's checkpoint endpoint makes an archive where the
// kubelet keeps them, and the container goes on.
func checkpointKubelet(t *testing.T, n *node) {
	n.criu(t)
	k := n.startKubelet(t)
	id, log := k.counts(t)
	status, body := k.post(t, "/checkpoint/suite/counter-alone/main?timeout=300")
	if status != http.StatusOK {
		t.Fatalf("status %d: %s", status, body)
	}
	var made struct{ Items []string }
	must(t, json.Unmarshal(body, &made))
	if len(made.Items) != 1 || filepath.Dir(made.Items[0]) != filepath.Join(k.dir, "root", "checkpoints") {
		t.Fatalf("it answers %s", body)
	}
	got := readArchive(t, made.Items[0])
	has(t, "config.dump", string(got["config.dump"]), id)
	has(t, "CRIU's log", string(got["dump.log"]), "Dumping finished successfully")
	out, err := exec.CommandContext(t.Context(), filepath.Join(n.ctlProgram(t), "berthctl"), "checkpoint", "inspect", made.Items[0]).CombinedOutput()
	must(t, err)
	has(t, "inspect", string(out), id, "suite/counter-alone", "main")
	size := func() int64 { st, err := os.Stat(log); must(t, err); return st.Size() }
	before := size()
	eventually(t, "the container goes on", func() bool { return size() > before })
	status, body = k.post(t, "/checkpoint/suite/counter-alone/none")
	equal(t, "status for a container that there is not: "+string(body), status, http.StatusNotFound)
}

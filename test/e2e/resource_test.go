package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func resourceCases() []testCase {
	return []testCase{
		{name: "limits and OOM kill", tell: tellOOM},
		{name: "in-place resize", tell: tellResize},
		{name: "pod-level resources", tell: tellPodResources},
		{name: "statistics of the kubelet's summary", tell: tellSummary},
	}
}

// v2 says whether the node has cgroup v2 only.
func v2() bool { return len(hierarchies()) == 1 }

// cgroupFile is the shell line that prints a container's limit from inside.
func cgroupFile(v1, v2name string) string {
	if v2() {
		return "cat /sys/fs/cgroup/" + v2name
	}
	return "cat /sys/fs/cgroup/" + v1
}

func tellOOM(t *testing.T, k *kube) {
	k.pod("eat", "image: IMAGE/probe\nargs: [eat, '200']\nresources: {limits: {memory: 48Mi}}", "restartPolicy: Never")
	k.phase("eat", "Failed")
	if s := k.containers("eat")["c"].State.Terminated; s.Reason != "OOMKilled" || s.ExitCode != 137 {
		t.Errorf("ended with %+v, want OOMKilled, 137", *s)
	}
	k.pod("p", "image: IMAGE/busybox\ncommand: [sleep, '1000']\nresources: {limits: {memory: 48Mi, cpu: 250m}}", "")
	k.ready("p")
	k.says("p", cgroupFile("memory/memory.limit_in_bytes", "memory.max"), fmt.Sprint(48<<20))
}

func tellResize(_ *testing.T, k *kube) {
	k.pod("p", `image: IMAGE/busybox
command: [sleep, '1000']
resources: {requests: {cpu: 100m, memory: 32Mi}, limits: {cpu: 200m, memory: 64Mi}}`, "")
	k.ready("p")
	before := k.containers("p")["c"].ContainerID
	k.run("patch", "pod", "p", "--subresource=resize", "-p", `{"spec":{"containers":[{"name":"c","resources":{"requests":{"cpu":"150m","memory":"48Mi"},"limits":{"cpu":"300m","memory":"96Mi"}}}]}}`)
	k.becomes("pod/p", "{.status.containerStatuses[0].resources.limits.memory}", "96Mi")
	k.becomes("pod/p", "{.status.containerStatuses[0].resources.limits.cpu}", "300m")
	k.says("p", cgroupFile("memory/memory.limit_in_bytes", "memory.max"), fmt.Sprint(96<<20))
	if after := k.containers("p")["c"]; after.ContainerID != before || after.RestartCount != 0 {
		k.t.Fatalf("the container was made anew: %+v", after)
	}
}

func tellPodResources(t *testing.T, k *kube) {
	k.pod("p", "image: IMAGE/busybox\ncommand: [sleep, '1000']", "resources: {requests: {cpu: 100m, memory: 64Mi}, limits: {cpu: 200m, memory: 64Mi}}")
	k.ready("p")
	uid := k.get("pod/p", "{.metadata.uid}")
	file := "memory/kubepods/*/pod" + uid + "/memory.limit_in_bytes"
	if v2() {
		file = "kubepods/*/pod" + uid + "/memory.max"
	}
	dir, name, _ := strings.Cut(file, "/")
	found, _ := filepath.Glob(filepath.Join("/sys/fs/cgroup", dir, k.n.cgroup, name))
	if len(found) != 1 {
		t.Fatalf("cgroups of the pod: %q", found)
	}
	if b, err := os.ReadFile(found[0]); err != nil || strings.TrimSpace(string(b)) != fmt.Sprint(64<<20) {
		t.Errorf("%s is %q, %v", found[0], b, err)
	}
}

// summary is the part of the kubelet's statistics that comes from the runtime.
type summary struct {
	Pods []struct {
		PodRef     struct{ Name, Namespace string }
		Containers []struct {
			Name   string
			CPU    struct{ UsageCoreNanoSeconds uint64 }
			Memory struct{ WorkingSetBytes uint64 }
			Rootfs struct{ UsedBytes *uint64 }
			Logs   struct{ UsedBytes *uint64 }
		}
		Network struct{ RxBytes uint64 }
	}
	Node struct {
		Runtime struct {
			ImageFs     struct{ UsedBytes uint64 }
			ContainerFs struct{ UsedBytes uint64 }
		}
	}
}

func tellSummary(_ *testing.T, k *kube) {
	k.pod("p", "image: IMAGE/busybox\ncommand: [sh, -c, 'head -c 1m /dev/zero >/file; i=0; while [ $i -lt 300000 ]; do i=$((i+1)); done; sleep 1000']", "")
	k.ready("p")
	k.eventually(90*time.Second, func(ctx context.Context) error {
		out, err := k.kubectl(ctx, "", "get", "--raw", "/api/v1/nodes/node-1/proxy/stats/summary")
		if err != nil {
			return err
		}
		var s summary
		if err := json.Unmarshal([]byte(out), &s); err != nil {
			return err
		}
		if s.Node.Runtime.ImageFs.UsedBytes == 0 {
			return errors.New("the image file system has no bytes")
		}
		for _, p := range s.Pods {
			if p.PodRef.Name != "p" || p.PodRef.Namespace != k.ns || len(p.Containers) != 1 {
				continue
			}
			c := p.Containers[0]
			if c.CPU.UsageCoreNanoSeconds == 0 || c.Memory.WorkingSetBytes == 0 || c.Rootfs.UsedBytes == nil || *c.Rootfs.UsedBytes < 1<<20 || c.Logs.UsedBytes == nil {
				return fmt.Errorf("incomplete: %+v", c)
			}
			return nil
		}
		return errors.New("the pod is not in the summary")
	})
}

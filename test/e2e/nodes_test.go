package e2e

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"
)

func nodesCases() []testCase {
	return []testCase{
		{name: "two nodes; one dies, its pods move; it boots again", slow: true, tell: tellTwoNodes},
		{name: "disk pressure, image collection", slow: true, tell: tellPressure},
	}
}

func tellTwoNodes(t *testing.T, k *kube) {
	ctx := t.Context()
	n, err := k.addNode(ctx, nodeConfig{name: "node-2", addr: "198.51.100.2", pods: "203.0.113.128/25", reg: k.reg})
	if err != nil {
		t.Fatal(err)
	}
	for _, node := range []string{"node-1", "node-2"} {
		k.pod("on-"+node, "image: IMAGE/probe", "nodeName: "+node)
		k.pod("at-"+node, "image: IMAGE/busybox\ncommand: [sleep, '1000']", "nodeName: "+node)
	}
	k.run("cordon", "node-1")
	k.apply(moving)
	k.ready("on-node-1", "on-node-2", "at-node-1", "at-node-2")
	k.becomes("deployment/moving", "{.status.readyReplicas}", "1")
	k.run("uncordon", "node-1")
	k.reach("at-node-1", "on-node-2")
	k.reach("at-node-2", "on-node-1")
	k.onNode("node-2", "moving")

	// The power goes. A pod that tolerates it for five seconds is replaced on the other node.
	before := k.containers("on-node-2")["c"]
	if err := n.die(ctx); err != nil {
		t.Fatal(err)
	}
	k.becomes("node/node-2", "{.status.conditions[?(@.type=='Ready')].status}", "Unknown")
	k.onNode("node-1", "moving")

	if err := n.boot(ctx); err != nil {
		t.Fatal(err)
	}
	k.eventually(2*time.Minute, func(context.Context) error {
		c := k.containers("on-node-2")["c"]
		if c.RestartCount == 0 || c.State.Running == nil || c.ContainerID == before.ContainerID {
			return fmt.Errorf("container after the reboot: %+v", c)
		}
		return nil
	})
	k.ready("on-node-2", "at-node-2")
	k.reach("at-node-1", "on-node-2")
	k.reach("at-node-2", "on-node-1")
	if log := k.run("logs", "--previous", "on-node-2"); log == "" {
		t.Error("the log of before the reboot is lost")
	}
	if s := k.containers("on-node-2")["c"].LastState.Terminated; s == nil || s.ExitCode != 255 {
		t.Errorf("the container of before the reboot ended as %+v, want code 255", s)
	}
	k.run("delete", "deployment/moving", "pod/on-node-2", "pod/at-node-2", "--timeout=60s")
	k.eventually(time.Minute, func(ctx context.Context) error {
		conn, err := n.berth.Conn()
		if err != nil {
			return err
		}
		return noPods(ctx, conn)
	})
	k.run("delete", "node", "node-2")
	k.nodes = k.nodes[:len(k.nodes)-1]
	if err := n.close(); err != nil {
		t.Error(err)
	}
}

// moving is a Deployment of one pod that leaves a node which is gone for five seconds.
const moving = `apiVersion: apps/v1
kind: Deployment
metadata: {name: moving}
spec:
  selector: {matchLabels: {app: moving}}
  template:
    metadata: {labels: {app: moving}}
    spec:
      terminationGracePeriodSeconds: 1
      tolerations:
      - {key: node.kubernetes.io/unreachable, operator: Exists, effect: NoExecute, tolerationSeconds: 5}
      - {key: node.kubernetes.io/not-ready, operator: Exists, effect: NoExecute, tolerationSeconds: 5}
      containers: [{name: c, image: IMAGE/probe, imagePullPolicy: IfNotPresent}]
`

// reach checks that one pod reaches the web server of another by its address.
func (k *kube) reach(from, to string) {
	k.t.Helper()
	k.eventually(time.Minute, func(ctx context.Context) error {
		ip, err := k.try(ctx, "get", "pod/"+to, "-o", "jsonpath={.status.podIP}")
		if err != nil {
			return err
		}
		got, err := k.try(ctx, "exec", from, "--", "wget", "-q", "-O", "-", "http://"+ip+"/hostname")
		if err == nil && strings.TrimSpace(got) != to {
			err = fmt.Errorf("at %s answers %q, want %q", ip, got, to)
		}
		return err
	})
}

// onNode waits until a ready pod of the app runs on the node.
func (k *kube) onNode(node, app string) {
	k.t.Helper()
	k.eventually(2*time.Minute, func(ctx context.Context) error {
		out, err := k.try(ctx, "get", "pods", "-l", "app="+app, "--field-selector", "spec.nodeName="+node,
			"-o", "jsonpath={.items[*].status.conditions[?(@.type=='Ready')].status}")
		if err == nil && !strings.Contains(out, "True") {
			err = errors.New("no ready pod of " + app + " on " + node)
		}
		return err
	})
}

// tellPressure: the kubelet learns from the runtime's figures that the disk is
// too full. It has unused images removed and evicts; afterwards all is as before.
func tellPressure(t *testing.T, k *kube) {
	k.pod("brief", "image: IMAGE/user\nargs: [sleep]", "")
	k.pod("stays", "image: IMAGE/probe", "")
	k.ready("brief", "stays")
	k.run("delete", "pod/brief", "--timeout=60s")
	if !k.hasImage("user") {
		t.Fatal("the image of a pod that ran is not there")
	}
	restore := func() {
		if err := k.n.reconfigure(""); err != nil {
			t.Error(err)
		}
	}
	defer restore()
	condition := "{.status.conditions[?(@.type=='DiskPressure')].status}"
	if err := k.n.reconfigure("imageMinimumGCAge: 1s\nevictionHard: {memory.available: 50Mi, nodefs.available: 1%, imagefs.available: 99%}"); err != nil {
		t.Fatal(err)
	}
	k.becomes("node/node-1", condition, "True")
	k.eventually(time.Minute, func(ctx context.Context) error {
		out, err := k.try(ctx, "get", "events", "--field-selector", "involvedObject.name=stays,reason=Evicted", "-o", "name")
		if err == nil && out == "" {
			err = errors.New("the pod that stays is not evicted")
		}
		return err
	})
	k.eventually(time.Minute, func(context.Context) error {
		if k.hasImage("user") {
			return errors.New("an image that nobody uses is still there")
		}
		return nil
	})
	restore()
	k.becomes("node/node-1", condition, "False")
	k.pod("after", "image: IMAGE/user\nargs: [sleep]", "")
	k.ready("after")
}

// hasImage asks the runtime of the first node for an image of the catalog.
func (k *kube) hasImage(name string) bool {
	k.t.Helper()
	has, err := k.n.hasImage(k.t.Context(), image(name))
	if err != nil {
		k.t.Fatal(err)
	}
	return has
}

package e2e

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func networkCases() []testCase {
	return []testCase{
		{name: "pods reach each other, host ports", tell: tellNetwork},
		{name: "the registry goes away and comes back", tell: tellRegistryAway},
		{name: "no CNI configuration, then one", tell: tellLateCNI},
	}
}

func tellNetwork(_ *testing.T, k *kube) {
	k.pod("web", "image: IMAGE/probe\nports: [{containerPort: 80, hostPort: 18080}]", "")
	k.pod("client", "image: IMAGE/busybox\ncommand: [sleep, '1000']", "")
	k.ready("web", "client")
	ip := k.get("pod/web", "{.status.podIP}")
	k.says("client", "wget -q -O - http://"+ip+"/hostname", "web")
	k.says("client", "wget -q -O - http://"+controlAddr+":18080/hostname", "web")
	k.serves(controlAddr+":18080/hostname", "web")
	k.says("client", "cat /etc/resolv.conf | head -1", "search "+k.ns+".svc.cluster.local svc.cluster.local cluster.local test")
}

// tellRegistryAway asks for an image that is not there, then points the node
// at the registry again.
func tellRegistryAway(t *testing.T, k *kube) {
	hosts := filepath.Join(k.n.berth.HostsDir(), "registry.berth.test")
	if err := os.Rename(hosts, hosts+".away"); err != nil {
		t.Fatal(err)
	}
	k.pod("p", "image: IMAGE/user\nargs: [sleep]\nimagePullPolicy: Always", "")
	k.eventually(time.Minute, func(ctx context.Context) error {
		out, err := k.try(ctx, "get", "pod/p", "-o", "jsonpath={.status.containerStatuses[0].state.waiting}")
		if err == nil && !strings.Contains(out, "registry.berth.test") {
			err = errors.New(out)
		}
		return err
	})
	if err := os.Rename(hosts+".away", hosts); err != nil {
		t.Fatal(err)
	}
	k.ready("p")
}

// tellLateCNI is what every cluster goes through: the node is there before its
// network is.
func tellLateCNI(t *testing.T, k *kube) {
	list := k.n.berth.Dir("cni", "10-berth-test.conflist")
	if err := os.Rename(list, list+".away"); err != nil {
		t.Fatal(err)
	}
	k.becomes("node/node-1", "{.status.conditions[?(@.type=='Ready')].status}", "False")
	if err := os.Rename(list+".away", list); err != nil {
		t.Fatal(err)
	}
	k.becomes("node/node-1", "{.status.conditions[?(@.type=='Ready')].status}", "True")
	k.pod("p", "image: IMAGE/probe\nargs: [sleep]", "")
	k.ready("p")
}

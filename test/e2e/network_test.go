package e2e

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/berth-dev/berth/test/harness"
	"github.com/berth-dev/berth/test/images"
)

func networkCases() []testCase {
	return []testCase{
		{name: "pods reach each other, host ports", tell: tellNetwork},
		{name: "the registry goes away and comes back", tell: tellRegistryAway},
		{name: "no CNI configuration, then one", tell: tellLateCNI},
		{name: "CNI configuration replaced under running pods", tell: tellOtherCNI},
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

// tellRegistryAway asks for an image while nobody listens where the registry is,
// then points the node at the registry again. Name resolution has no part in it:
// how long that takes to fail is a matter of the machine's resolver.
func tellRegistryAway(t *testing.T, k *kube) {
	file := func(host string) string { return filepath.Join(k.n.berth.HostsDir(), host, "hosts.toml") }
	dead, err := os.ReadFile(file(images.HostDead))
	if err != nil {
		t.Fatal(err)
	}
	is, was := file(images.HostPlain), file(images.HostPlain)+".away"
	if err := os.Rename(is, was); err != nil {
		t.Fatal(err)
	}
	back := sync.OnceValue(func() error { return os.Rename(was, is) })
	defer func() {
		if err := back(); err != nil { // or every other case would miss the registry
			t.Error(err)
		}
	}()
	if err := os.WriteFile(is, dead, 0o600); err != nil {
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
	if err := back(); err != nil {
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

// tellOtherCNI: pods keep the network they were attached to, over a restart of
// the daemon too, and leave it as they came; new ones get the new network.
func tellOtherCNI(t *testing.T, k *kube) {
	write := func(b harness.Bridge) {
		if err := harness.WriteConflist(k.n.berth.Dir("cni"), k.n.berth.Dir("ipam"), b); err != nil {
			t.Error(err)
		}
	}
	k.pod("old-web", "image: IMAGE/probe", "")
	k.pod("old", "image: IMAGE/busybox\ncommand: [sleep, '1000']", "")
	k.ready("old-web", "old")
	write(harness.Bridge{Name: "berth1", Subnet: "192.0.2.0/24"})
	defer write(harness.Bridge{Subnet: k.n.pods})
	var web string
	k.eventually(2*time.Minute, func(context.Context) error {
		web = fmt.Sprintf("new-%d", time.Now().UnixNano())
		k.pod(web, "image: IMAGE/probe", "")
		k.ready(web)
		if ip := k.get("pod/"+web, "{.status.podIP}"); !strings.HasPrefix(ip, "192.0.2.") {
			return fmt.Errorf("a new pod still has the address %s", ip)
		}
		return nil
	})
	k.pod("new", "image: IMAGE/busybox\ncommand: [sleep, '1000']", "")
	k.ready("new")
	for _, restart := range []bool{false, true} {
		if restart {
			if err := errors.Join(k.n.berth.Kill(), k.n.berth.Start(t.Context())); err != nil {
				t.Fatal(err)
			}
		}
		k.reach("old", "old-web")
		k.reach("old", web)
		k.reach("new", "old-web")
	}
	ip := k.get("pod/old", "{.status.podIP}")
	lease := k.n.berth.Dir("ipam", "berth-test", ip)
	if _, err := os.Stat(lease); err != nil {
		t.Errorf("the lease of a running pod: %v", err)
	}
	k.run("delete", "pod/old", "pod/old-web", "--timeout=60s")
	k.eventually(time.Minute, func(context.Context) error {
		if _, err := os.Stat(lease); !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("%s is kept by a pod that has gone: %w", lease, errors.Join(err))
		}
		return nil
	})
}

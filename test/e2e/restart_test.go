package e2e

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"strings"
	"syscall"
	"testing"
	"time"
)

func restartCases() []testCase {
	return []testCase{
		{name: "kubelet restart, berthd kill -9, both, no container restarted", tell: tellRestarts},
		{name: "evented PLEG", tell: func(t *testing.T, k *kube) { tellKubeletWith(t, k, "featureGates: {EventedPLEG: true}") }},
		{name: "statistics from the CRI alone", tell: func(t *testing.T, k *kube) {
			tellKubeletWith(t, k, "featureGates: {PodAndContainerStatsFromCRI: true}")
		}},
		{name: "API server away", tell: tellServerAway},
	}
}

func tellRestarts(t *testing.T, k *kube) {
	for _, name := range []string{"a", "b", "d"} {
		k.pod(name, "image: IMAGE/probe\nreadinessProbe: {httpGet: {path: /healthz, port: 80}, periodSeconds: 1}", "")
	}
	k.ready("a", "b", "d")
	before := k.ids("a", "b", "d")
	ctx := t.Context()
	berthd := func() error { return errors.Join(k.n.berth.Kill(), k.n.berth.Start(ctx)) }
	kubelet := func() error { return errors.Join(k.n.kubelet.end(syscall.SIGKILL), k.n.kubelet.start()) }
	both := func() error {
		return errors.Join(k.n.kubelet.end(syscall.SIGKILL), k.n.berth.Kill(), k.n.berth.Start(ctx), k.n.kubelet.start())
	}
	for name, restart := range map[string]func() error{"berthd": berthd, "kubelet": kubelet, "both": both} {
		if err := restart(); err != nil {
			t.Fatal(err)
		}
		// A pod made afterwards shows that the whole node works again.
		k.pod("after-"+name, "image: IMAGE/probe\nargs: [sleep]", "")
		k.ready("after-"+name, "a", "b", "d")
		if after := k.ids("a", "b", "d"); !maps.Equal(before, after) {
			t.Errorf("after a restart of %s: %v, before: %v", name, after, before)
		}
		k.says("a", "hostname", "a")
	}
}

// ids are the container IDs and restart counts of pods.
func (k *kube) ids(pods ...string) map[string]string {
	k.t.Helper()
	out := map[string]string{}
	for _, p := range pods {
		c := k.containers(p)["c"]
		out[p] = fmt.Sprint(c.ContainerID, " ", c.RestartCount)
	}
	return out
}

// tellKubeletWith runs the kubelet with another configuration for a while.
func tellKubeletWith(t *testing.T, k *kube, lines string) {
	if err := k.n.reconfigure(lines); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := k.n.reconfigure(""); err != nil {
			t.Error(err)
		}
	}()
	k.pod("p", "image: IMAGE/busybox\ncommand: [sh, -c, 'sleep 2; exit 1']", "")
	k.pod("q", "image: IMAGE/probe", "")
	k.ready("q")
	k.eventually(time.Minute, func(context.Context) error {
		if k.containers("p")["c"].RestartCount == 0 {
			return errors.New("not restarted")
		}
		return nil
	})
	if strings.Contains(lines, "FromCRI") {
		k.eventually(time.Minute, func(ctx context.Context) error {
			out, err := k.kubectl(ctx, "", "get", "--raw", "/api/v1/nodes/node-1/proxy/metrics/cadvisor")
			if err == nil && !strings.Contains(out, `container_memory_working_set_bytes{`) {
				err = errors.New("no container metrics")
			}
			return err
		})
	}
}

// tellServerAway: pods go on, and what happened meanwhile is caught up on.
func tellServerAway(t *testing.T, k *kube) {
	k.pod("p", "image: IMAGE/busybox\ncommand: [sh, -c, 'while [ ! -e /tmp/end ]; do sleep 0.2; done; exit 5']", "restartPolicy: Never")
	k.ready("p")
	k.sh("p", "(sleep 3; touch /tmp/end) </dev/null >/dev/null 2>&1 &")
	api := k.plane[1]
	if err := api.end(syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	time.Sleep(5 * time.Second)
	if err := api.start(); err != nil {
		t.Fatal(err)
	}
	k.eventually(time.Minute, func(ctx context.Context) error {
		_, err := k.kubectl(ctx, "", "get", "--raw", "/readyz")
		return err
	})
	k.phase("p", "Failed")
	if s := k.containers("p")["c"].State.Terminated; s.ExitCode != 5 {
		t.Errorf("ended with %d, want 5", s.ExitCode)
	}
}

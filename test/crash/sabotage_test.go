package crash

import (
	"context"
	"strings"
	"syscall"
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// sabotage is one way a program that Berth calls dies.
type sabotage struct{ program, verb, how string }

func (s sabotage) String() string { return s.program + " " + s.verb + " " + s.how }

// some returns all, or in a bounded run n of them.
func some[T any](t *testing.T, n int, all []T) []T {
	t.Helper()
	if full() || len(all) <= n {
		return all
	}
	newRand(t).Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
	return all[:n]
}

func sabotages(programs, verbs []string) (out []sabotage) {
	for _, p := range programs {
		for _, v := range verbs {
			out = append(out, sabotage{p, v, "before"}, sabotage{p, v, "after"})
		}
	}
	return out
}

// TestIntegrationPluginCrash kills CNI plugins before and after they have done
// their work: a call may fail, its repetition succeeds, and nothing is left.
func TestIntegrationPluginCrash(t *testing.T) {
	n := openWith(t, "[network]\nbuiltin = []\n") // programs, which can die
	n.pull()
	for _, s := range some(t, 2, sabotages([]string{"bridge", "portmap"}, []string{"ADD", "DEL"})) {
		t.Log(s)
		p := n.newPod(runtimeapi.NamespaceMode_CONTAINER)
		if s.verb == "ADD" {
			n.sabotage(s.program, s.verb, s.how)
			if _, err := n.rt.RunPodSandbox(t.Context(), &runtimeapi.RunPodSandboxRequest{Config: p.config}); err == nil {
				t.Errorf("%v: a sandbox runs although its network plugin died", s)
			}
			n.clean(p.cgroup)
		}
		p.run()
		if s.verb == "DEL" {
			n.sabotage(s.program, s.verb, s.how)
			// The daemon may try again by itself, so both answers are right.
			_, _ = n.rt.StopPodSandbox(t.Context(), &runtimeapi.StopPodSandboxRequest{PodSandboxId: p.id})
		}
		n.sabotage(s.program, s.verb, "")
		p.stop()
		p.remove()
		n.clean(p.cgroup)
	}
}

// TestIntegrationRuntimeCrash kills runc before and after it has done its work.
func TestIntegrationRuntimeCrash(t *testing.T) {
	n := open(t)
	n.pull()
	for _, s := range some(t, 2, sabotages([]string{"runc"}, []string{"create", "start", "delete"})) {
		t.Log(s)
		p := n.newPod(runtimeapi.NamespaceMode_CONTAINER)
		p.run()
		n.sabotage(s.program, s.verb, s.how)
		name := "first"
		if s.verb == "create" {
			_, err := n.rt.CreateContainer(t.Context(), &runtimeapi.CreateContainerRequest{PodSandboxId: p.id, SandboxConfig: p.config,
				Config: &runtimeapi.ContainerConfig{Metadata: &runtimeapi.ContainerMetadata{Name: name},
					Image: &runtimeapi.ImageSpec{Image: testImage}, Command: []string{"/bin/true"}}})
			if err == nil {
				t.Errorf("%v: a container exists although its creation died", s)
			}
		}
		c := p.create(name, counting)
		_, err := n.rt.StartContainer(t.Context(), &runtimeapi.StartContainerRequest{ContainerId: c.id})
		if (err != nil) != (s.verb == "start") {
			t.Errorf("%v: start: %v", s, err)
		}
		if s.verb == "start" {
			c.ends(128, "StartError")
		} else {
			// Before it has set its trap, init ignores the signal.
			n.eventually("the container writes", func() bool { return len(c.log()) > 0 })
			c.stop(20)
			c.ends(7, "Error")
		}
		c.remove()
		n.sabotage(s.program, s.verb, "")
		p.stop()
		p.remove()
		n.clean(p.cgroup)
	}
}

// TestIntegrationShimKilled kills shims at random moments, with and without a
// daemon that watches: the container ends, with an honest status.
func TestIntegrationShimKilled(t *testing.T) {
	n := open(t)
	n.pull()
	r := newRand(t)
	rounds := 4
	if full() {
		rounds = 40
	}
	p := n.newPod(runtimeapi.NamespaceMode_POD)
	p.run()
	for i := range rounds {
		watched, started := i%2 == 0, i%4 < 2
		c := p.create("c", counting)
		if started {
			c.start()
		}
		time.Sleep(time.Duration(r.IntN(200)) * time.Millisecond)
		if !watched {
			must(t, n.h.Kill())
		}
		pid := n.h.Shims()[c.id]
		if pid == 0 {
			t.Fatal("the container has no shim")
		}
		if r.IntN(2) == 0 && watched && started {
			go n.rt.StopContainer(context.WithoutCancel(t.Context()), &runtimeapi.StopContainerRequest{ContainerId: c.id, Timeout: 10})
			time.Sleep(time.Duration(r.IntN(50)) * time.Millisecond)
		}
		_ = syscall.Kill(pid, syscall.SIGKILL) // it may have ended by the stop
		if !watched {
			n.restart()
		}
		n.eventually("container ends", func() bool { return c.status().GetState() == exited })
		if s := c.status(); s.GetReason() != "ContainerStatusUnknown" && s.GetExitCode() != 7 {
			t.Errorf("round %d: container without a shim is %v", i, s)
		}
		c.counted(last(c.log())...)
		c.remove()
		must(t, removeLog(c))
	}
	p.stop()
	p.remove()
	n.clean(p.cgroup)
}

// last is the message of a container that was stopped in time, if it came.
func last(log []string) []string {
	if len(log) > 0 && !strings.HasPrefix(log[len(log)-1], "line ") {
		return log[len(log)-1:]
	}
	return nil
}

// TestIntegrationRandomKill kills the daemon at random moments, which also hits
// what lies between fault points.
func TestIntegrationRandomKill(t *testing.T) {
	n := open(t)
	r := newRand(t)
	rounds := 1
	if full() {
		rounds = 60
	}
	for range rounds {
		after := time.Duration(r.IntN(1200)) * time.Millisecond
		done := make(chan error, 1)
		time.AfterFunc(after, func() { done <- n.h.Kill() })
		n.workload(runtimeapi.NamespaceMode(r.IntN(2)))
		must(t, <-done)
		if n.h.Ended(0) {
			n.restart()
		}
		if t.Failed() {
			t.Fatalf("killed after %v", after)
		}
	}
	t.Logf("random kills: %d, of these %d during a call", rounds, n.lives)
}

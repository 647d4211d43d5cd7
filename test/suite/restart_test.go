package suite

import (
	"encoding/json"
	"os"
	"os/exec"
	"strconv"
	"testing"

	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func restartStories() []story {
	return []story{
		{name: "restart/killed daemon", owned: true, tell: killDaemon},
		{name: "restart/pod that loses its holder", owned: true, tell: loseHolder},
		{name: "restart/orderly", owned: true, tell: stopDaemon},
		{name: "restart/systemd reads its units anew", owned: true, tell: reloadUnits},
	}
}

// killDaemon kills the daemon while one container writes, one ends and one
// waits, and finds all three as they should be.
func killDaemon(t *testing.T, n *node) {
	p := n.pod(t)
	waits := p.run(t, probe("sleep"))
	ending, file := endsWhen(t)
	ends := p.run(t, ending)
	writes := p.run(t, shell("i=0; while [ $i -lt 3000 ]; do echo line $i; i=$((i+1)); done; sleep 1; echo done; sleep 1000"))
	created := p.create(t, probe("exit", "6"))
	ip := p.status(t).GetNetwork().GetIp()
	waits.waitLog(t, "ready")
	must(t, n.own.Kill())
	must(t, os.WriteFile(file, nil, 0o600))
	eventually(t, "the container ends without a daemon", func() bool { return len(ends.log(t)) == 1 })
	must(t, n.own.Start(t.Context()))

	equal(t, "pod", p.status(t).GetState(), runtimeapi.PodSandboxState_SANDBOX_READY)
	equal(t, "address", p.status(t).GetNetwork().GetIp(), ip)
	equal(t, "state", waits.status(t).GetState(), runtimeapi.ContainerState_CONTAINER_RUNNING)
	s := ends.wait(t)
	equal(t, "exit code", s.GetExitCode(), 42)
	equal(t, "reason", s.GetReason(), "Error")
	writes.waitLog(t, "done")
	equal(t, "lines", len(writes.log(t)), 3001)
	equal(t, "exec after the restart", waits.sh(t, "echo ahoy"), "ahoy")
	created.start(t)
	equal(t, "exit code of one created before", created.wait(t).GetExitCode(), 6)
	waits.stop(t, 30)
	equal(t, "exit code of one stopped after", waits.wait(t).GetExitCode(), 0)
}

// loseHolder kills the first process of a shared PID namespace, and with it all
// others of the pod: the pod is shown as not ready, by the daemon that made it
// and by the next one.
func loseHolder(t *testing.T, n *node) {
	for _, restart := range []bool{false, true} {
		p := n.pod(t, namespaces(&runtimeapi.NamespaceOption{Pid: runtimeapi.NamespaceMode_POD}))
		c := p.run(t, probe("sleep"))
		if restart {
			must(t, n.own.Kill())
			must(t, n.own.Start(t.Context()))
		}
		r, err := n.rt.PodSandboxStatus(t.Context(), &runtimeapi.PodSandboxStatusRequest{PodSandboxId: p.id, Verbose: true})
		must(t, err)
		var info struct{ PID int }
		must(t, json.Unmarshal([]byte(r.GetInfo()["info"]), &info))
		must(t, unix.Kill(info.PID, unix.SIGKILL))
		eventually(t, "the pod is not ready", func() bool {
			return p.status(t).GetState() == runtimeapi.PodSandboxState_SANDBOX_NOTREADY
		})
		equal(t, "exit code of its container", c.wait(t).GetExitCode(), 137)
	}
}

func stopDaemon(t *testing.T, n *node) {
	p := n.pod(t)
	c := p.run(t, probe("sleep"))
	for range 3 {
		must(t, n.own.Stop())
		must(t, n.own.Start(t.Context()))
	}
	equal(t, "state", c.status(t).GetState(), runtimeapi.ContainerState_CONTAINER_RUNNING)
	equal(t, "exec", c.sh(t, "echo ahoy"), "ahoy")
}

// reloadUnits: systemd knows the limits that it was told of, and puts what it
// knows into effect again when it likes.
func reloadUnits(t *testing.T, n *node) {
	if *unit == "" {
		t.Skip("systemd does not run the daemon: make vm RUN=systemd")
	}
	c := n.pod(t).run(t, probe("sleep"), limits(func(r *runtimeapi.LinuxContainerResources) { r.MemoryLimitInBytes, r.CpuShares = 64<<20, 512 }))
	must(t, c.update(t, &runtimeapi.LinuxContainerResources{MemoryLimitInBytes: 96 << 20, CpuQuota: 20000, CpuPeriod: 50000, CpusetCpus: "0"}))
	for _, verb := range [][]string{{"daemon-reload"}, {"reload", *unit}, {"daemon-reexec"}, {"restart", *unit}} {
		out, err := exec.Command("systemctl", verb...).CombinedOutput()
		if err != nil {
			t.Fatalf("systemctl %s: %v: %s", verb, err, out)
		}
		equal(t, verb[0]+": memory", c.control(t, "", "memory.max"), strconv.Itoa(96<<20))
		equal(t, verb[0]+": processors", c.control(t, "", "cpu.max"), "20000 50000")
		equal(t, verb[0]+": set of processors", c.control(t, "", "cpuset.cpus"), "0")
	}
	equal(t, "state", c.status(t).GetState(), runtimeapi.ContainerState_CONTAINER_RUNNING)
}

package suite

import (
	"bytes"
	"context"
	"os"
	"strconv"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func clockStories() []story {
	return []story{{name: "clock/jump", berth: true, tell: clockJump}}
}

// clockJump sets the machine's clock under running containers, as a node without
// a battery does when it first hears of the time: forth, and back.
func clockJump(t *testing.T, n *node) {
	line, err := os.ReadFile("/proc/cmdline")
	must(t, err)
	if !bytes.Contains(line, []byte("berth.clock=jump")) {
		t.Skip("sets the machine's clock: make vm RUN=clock")
	}
	real, began := time.Now().Round(0), time.Now()
	set := func(shift time.Duration) {
		ts := unix.NsecToTimespec(real.Add(time.Since(began) + shift).UnixNano())
		must(t, unix.ClockSettime(unix.CLOCK_REALTIME, &ts))
	}
	defer set(0)
	p := n.pod(t)
	beat := p.run(t, image("busybox:1"), shell("i=0; while :; do echo $i; i=$((i+1)); sleep 0.1; done"))
	beat.waitLog(t, "\n3\n")
	for _, shift := range []time.Duration{72 * time.Hour, -72 * time.Hour, 0} {
		before := beat.status(t)
		set(shift)
		t.Logf("it is %s now", time.Now().Format(time.RFC3339))
		lines := len(beat.log(t))
		eventually(t, "the container goes on writing", func() bool { return len(beat.log(t)) > lines+5 })
		if s := beat.status(t); s.GetState() != runtimeapi.ContainerState_CONTAINER_RUNNING || s.GetStartedAt() != before.GetStartedAt() {
			t.Errorf("the container is %v, was %v", s, before)
		}
		clockVerbs(t, p, beat)
		if n.own != nil { // what is written down before a jump is read after it
			must(t, n.own.Kill())
			must(t, n.own.Start(t.Context()))
			equal(t, "state after the daemon's death", beat.status(t).GetState(), runtimeapi.ContainerState_CONTAINER_RUNNING)
		}
	}
	// Nothing of the log is lost or told twice.
	for i, l := range beat.log(t) {
		equal(t, "line", l.s, strconv.Itoa(i))
	}
}

// clockVerbs are those that have to do with time: grace, time-outs, rates, and a
// life from its beginning to its end.
func clockVerbs(t *testing.T, p *pod, beat *container) {
	deaf := p.run(t, probe("deaf"))
	deaf.waitLog(t, "deaf")
	start := time.Now()
	deaf.stop(t, 1)
	if took := time.Since(start); took < time.Second || took > patience {
		t.Errorf("a stop with a grace of 1 s took %v", took)
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	_, err := p.n.rt.ExecSync(ctx, &runtimeapi.ExecSyncRequest{ContainerId: beat.id, Cmd: []string{"sleep", "1000"}, Timeout: 1})
	wantCode(t, "exec with a time-out", err, codes.DeadlineExceeded)
	s := p.run(t, image("busybox:1"), shell("exit 3")).wait(t)
	equal(t, "exit code", s.GetExitCode(), 3)
	if s.GetCreatedAt() > s.GetStartedAt() || s.GetStartedAt() > s.GetFinishedAt() {
		t.Errorf("a life without a jump in it: created %d, started %d, finished %d", s.GetCreatedAt(), s.GetStartedAt(), s.GetFinishedAt())
	}
	beat.stats(t)
	time.Sleep(500 * time.Millisecond)
	if rate := beat.stats(t).GetCpu().GetUsageNanoCores().GetValue(); rate > 64e9 {
		t.Errorf("it is said to use %d nano cores", rate)
	}
}

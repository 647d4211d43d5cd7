package bench

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os/exec"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-dev/berth/cmd/berthctl/cli"
	"github.com/berth-dev/berth/cri/unixsock"
)

// settle is how long processes get to end and to free memory before it is
// weighed, if the plan's time of rest is not shorter.
const settle = 2 * time.Second

func (b *bench) settle(ctx context.Context) error { return sleep(ctx, min(settle, b.plan.Idle)) }

// wave is the pods of a round, which live at the same time.
type wave struct {
	b         *bench
	workers   int
	pods      []livePod
	rec       recorder
	pss       uint64 // of the daemon, in KiB, before the pods
	own       uint64 // what of it is not of files
	available uint64 // MemAvailable, likewise
}

// up makes the pods and runs the commands in them.
func (w *wave) up(ctx context.Context, rates *Rates) error {
	if err := w.b.settle(ctx); err != nil {
		return err
	}
	w.pss, w.own, w.available = pss(procRoot, w.b.daemon), grown(procRoot, w.b.daemon), kib(filepath.Join(procRoot, "meminfo"), "MemAvailable:")
	_, begun, err := w.used(ctx)
	if err != nil {
		return err
	}
	n := len(w.pods)
	took, err := spread(ctx, n, w.workers, func(ctx context.Context, i int) (err error) {
		w.pods[i], err = w.b.up(ctx, &w.rec)
		return err
	})
	if err != nil {
		return err
	}
	_, upped, err := w.used(ctx)
	if err != nil {
		return err
	}
	rates.UpPerSecond = perSecond(n, took)
	rates.CPUPerUp = millis((upped - begun) / time.Duration(n))
	execs := n * w.b.plan.Execs
	if execs == 0 {
		return nil
	}
	if _, err := spread(ctx, execs, w.workers, func(ctx context.Context, i int) error { return w.b.exec(ctx, &w.rec, w.pods[i%n]) }); err != nil {
		return err
	}
	_, done, err := w.used(ctx)
	rates.CPUPerExec = millis((done - upped) / time.Duration(execs))
	return err
}

func (w *wave) down(ctx context.Context, rates *Rates) error {
	took, err := spread(ctx, len(w.pods), w.workers, func(ctx context.Context, i int) error { return w.b.down(ctx, &w.rec, w.pods[i]) })
	rates.DownPerSecond = perSecond(len(w.pods), took)
	return err
}

// used is the runtime's processes, without those of the containers, and the
// CPU time of all of them.
func (w *wave) used(ctx context.Context) (runtime []int, sum time.Duration, err error) {
	// First: what comes after is the measurement's own work.
	all, err := processes(procRoot)
	if err != nil {
		return nil, 0, cli.Failed(err, "")
	}
	var inits []int
	for _, p := range w.pods {
		if p.container == "" {
			continue
		}
		info, err := w.b.info(ctx, p.container)
		if err != nil {
			return nil, 0, err
		}
		inits = append(inits, info.PID)
	}
	if _, ok := all[w.b.daemon]; !ok {
		return nil, 0, failed("the daemon, process %d, is gone: it ended during the measurement, or is another process than the one that listens (see --pid)", w.b.daemon)
	}
	return family(all, w.b.before, w.b.daemon, inits, false), cpu(all, family(all, w.b.before, w.b.daemon, inits, true)), nil
}

// held finds what the running pods cost.
func (w *wave) held(ctx context.Context, socket string) (*Held, error) {
	if err := w.b.settle(ctx); err != nil {
		return nil, err
	}
	procs, _, err := w.used(ctx)
	if err != nil {
		return nil, err
	}
	h := &Held{Pods: len(w.pods), DaemonBefore: w.pss, DaemonAfter: pss(procRoot, w.b.daemon), OtherProcesses: len(procs) - 1}
	h.Others = pss(procRoot, procs...) - h.DaemonAfter
	n := float64(h.Pods)
	h.PSSPerPod = round3((float64(grown(procRoot, w.b.daemon)) + float64(h.Others) - float64(w.own)) / n)
	h.AvailablePerPod = round3((float64(w.available) - float64(kib(filepath.Join(procRoot, "meminfo"), "MemAvailable:"))) / n)
	if err := w.idle(ctx, h, procs); err != nil {
		return nil, err
	}
	return h, w.restart(ctx, socket, h)
}

// idle finds what the runtime's processes do while nobody asks for anything.
func (w *wave) idle(ctx context.Context, h *Held, procs []int) error {
	if w.b.plan.Idle == 0 {
		return nil
	}
	w.b.say("%v of rest with %d pods", w.b.plan.Idle, h.Pods)
	before, err := processes(procRoot)
	if err != nil {
		return cli.Failed(err, "")
	}
	begun, at := cpu(before, procs), time.Now()
	if err := sleep(ctx, w.b.plan.Idle); err != nil {
		return err
	}
	after, err := processes(procRoot)
	if err != nil {
		return cli.Failed(err, "")
	}
	took := time.Since(at)
	h.IdleSeconds = round3(took.Seconds())
	h.IdleCPUPercent = round3(100 * float64(cpu(after, procs)-begun) / float64(took))
	return nil
}

// restart runs the command that restarts the daemon, and waits until it
// answers and lists all that runs.
func (w *wave) restart(ctx context.Context, socket string, h *Held) error {
	if w.b.local.Restart == "" {
		return nil
	}
	w.b.say("restart of the daemon with %d pods", h.Pods)
	old, begun := w.b.daemon, time.Now()
	if out, err := exec.CommandContext(ctx, "sh", "-c", w.b.local.Restart).CombinedOutput(); err != nil {
		return failed("restart the daemon with %q: %w: %s", w.b.local.Restart, err, out)
	}
	for {
		pid, n, err := w.listed(ctx, socket)
		if err == nil && pid == old { // it has not ended yet
			err = fmt.Errorf("process %d still serves", old)
		}
		if err == nil && h.RestartFirst == 0 {
			h.RestartFirst = millis(time.Since(begun))
		}
		if err == nil && n == len(w.pods) {
			h.RestartAll = millis(time.Since(begun))
			w.b.daemon = pid
			return nil
		}
		if time.Since(begun) > restartWait {
			return failed("%v after %q the daemon lists %d of %d containers (%v): read its log", restartWait, w.b.local.Restart, n, len(w.pods), err)
		}
		if err := sleep(ctx, 2*time.Millisecond); err != nil {
			return err
		}
	}
}

// restartWait bounds how long a daemon that was restarted is waited for.
const restartWait = 2 * time.Minute

// listed is the daemon's process and the number of this run's containers that
// run, over a connection of its own: one that has failed waits before it tries again.
func (w *wave) listed(ctx context.Context, socket string) (pid, n int, err error) {
	if pid, err = peer(ctx, socket); err != nil {
		return 0, 0, err
	}
	conn, err := cli.Dial(socket)
	if err != nil {
		return 0, 0, err
	}
	defer func() { _ = conn.Close() }()
	r, err := runtimeapi.NewRuntimeServiceClient(conn).ListContainers(ctx, &runtimeapi.ListContainersRequest{Filter: &runtimeapi.ContainerFilter{
		LabelSelector: map[string]string{label: w.b.run}, State: &runtimeapi.ContainerStateValue{State: runtimeapi.ContainerState_CONTAINER_RUNNING},
	}})
	return pid, len(r.GetContainers()), err
}

// peer is the process that listens on a socket.
func peer(ctx context.Context, socket string) (int, error) {
	conn, err := unixsock.Dial(ctx, socket)
	if err != nil {
		return 0, cli.Failed(fmt.Errorf("find the process behind %s: %w", socket, err), "")
	}
	defer conn.Close()
	raw, err := conn.(*net.UnixConn).SyscallConn()
	if err != nil {
		return 0, cli.Failed(err, "")
	}
	var cred *unix.Ucred
	var cerr error
	err = raw.Control(func(fd uintptr) { cred, cerr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) })
	if err = errors.Join(err, cerr); err != nil {
		return 0, cli.Failed(fmt.Errorf("find the process behind %s: %w", socket, err), "")
	}
	if cred.Pid <= 1 {
		return 0, failed("the socket %s was made by process %d, which is not the daemon: name that with --pid", socket, cred.Pid)
	}
	return int(cred.Pid), nil
}

func sleep(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}

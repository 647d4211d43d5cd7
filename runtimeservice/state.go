package runtimeservice

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-dev/berth/shim"
	"github.com/berth-dev/berth/store"
)

// Reasons of ends, as the kubelet and its users know them.
const (
	reasonCompleted  = "Completed"
	reasonError      = "Error"
	reasonOOM        = "OOMKilled"
	reasonStartError = "StartError"
	reasonUnknown    = "ContainerStatusUnknown"
)

// Exit codes that Berth gives when the container could not.
const (
	codeStartError = 128
	codeUnknown    = 255
)

// containerState derives a container's state from its facts:
//
//	            StartContainer             exit
//	CREATED ----------------------> RUNNING ----> EXITED
//	   |    start failed, killed, node rebooted     ^
//	   +--------------------------------------------+
//
// A container of an earlier boot is not running, whatever was written.
func containerState(c store.Container, bootID string) runtimeapi.ContainerState {
	switch {
	case c.Facts.Exit != nil:
		return runtimeapi.ContainerState_CONTAINER_EXITED
	case c.Facts.BootID != bootID:
		return runtimeapi.ContainerState_CONTAINER_EXITED
	case !c.Facts.StartedAt.IsZero():
		return runtimeapi.ContainerState_CONTAINER_RUNNING
	}
	return runtimeapi.ContainerState_CONTAINER_CREATED
}

// sandboxState derives a sandbox's state: Ready from RunPodSandbox until
// StopPodSandbox or the end of the boot.
func sandboxState(s store.Sandbox, bootID string) runtimeapi.PodSandboxState {
	if !s.Facts.StoppedAt.IsZero() || s.Facts.BootID != bootID {
		return runtimeapi.PodSandboxState_SANDBOX_NOTREADY
	}
	return runtimeapi.PodSandboxState_SANDBOX_READY
}

// canCreate says whether a container may be made in the sandbox.
func canCreate(s store.Sandbox, bootID string) error {
	if sandboxState(s, bootID) != runtimeapi.PodSandboxState_SANDBOX_READY {
		return fmt.Errorf("sandbox %s is not ready; run a new one: %w", s.ID, errdefs.ErrFailedPrecondition)
	}
	return nil
}

// canStart says whether the container may be started.
func canStart(c store.Container, s store.Sandbox, bootID string) error {
	if st := containerState(c, bootID); st != runtimeapi.ContainerState_CONTAINER_CREATED {
		return fmt.Errorf("container is %s, only a created one can be started: %w", stateName(st), errdefs.ErrFailedPrecondition)
	}
	return canCreate(s, bootID)
}

// mustRun says whether the container is running, for calls that need it.
func mustRun(c store.Container, bootID string) error {
	if st := containerState(c, bootID); st != runtimeapi.ContainerState_CONTAINER_RUNNING {
		return fmt.Errorf("container is %s, not running: %w", stateName(st), errdefs.ErrFailedPrecondition)
	}
	return nil
}

// starting reports whether the runtime is still at the start of a container, which
// the shim tells as running meanwhile.
func starting(st shim.State) bool {
	return st.Phase == shim.PhaseRunning && st.Busy.Command == "start"
}

func stateName(s runtimeapi.ContainerState) string {
	return strings.ToLower(strings.TrimPrefix(s.String(), "CONTAINER_"))
}

// exitFacts turns a shim's report into the recorded end.
func exitFacts(e shim.Exit, now time.Time) *store.Exit {
	x := &store.Exit{Code: e.Code, Signal: e.Signal, OOMKilled: e.OOMKilled, FinishedAt: e.At}
	if x.FinishedAt.IsZero() {
		x.FinishedAt = now
	}
	switch {
	case e.Lost:
		x.Code, x.Reason = codeUnknown, reasonUnknown
		x.Message = "the container's shim ended without an exit record; its exit code is not known"
	case e.OOMKilled:
		x.Reason = reasonOOM
	case e.Code == 0:
		x.Reason = reasonCompleted
	default:
		x.Reason = reasonError
	}
	return x
}

// endOfBoot is when a container of a former boot had ended at the latest: when
// this one began, as far as the clock can be trusted.
func endOfBoot(f store.ContainerFacts, now time.Time) time.Time {
	var info unix.Sysinfo_t
	if err := unix.Sysinfo(&info); err != nil {
		return now
	}
	booted := now.Add(-time.Duration(info.Uptime) * time.Second)
	if booted.Before(f.CreatedAt) || booted.Before(f.StartedAt) {
		return now
	}
	return booted
}

// rebootExit is the end of a container that a reboot of the node took.
func rebootExit(now time.Time) *store.Exit {
	return &store.Exit{Code: codeUnknown, FinishedAt: now, Reason: reasonUnknown,
		Message: "the node rebooted; the container ended with it and its exit code is not known"}
}

// startErrorExit is the end of a container whose start failed.
func startErrorExit(err error, now time.Time) *store.Exit {
	return &store.Exit{Code: codeStartError, FinishedAt: now, Reason: reasonStartError, Message: err.Error()}
}

// stopSignal decides the name of the signal that asks a container to end: that
// of the configuration, else the image's, else SIGTERM.
func stopSignal(asked runtimeapi.Signal, image string) (string, error) {
	if asked != runtimeapi.Signal_SIGNAL_RUNTIME_DEFAULT {
		name, ok := runtimeapi.Signal_name[int32(asked)]
		if !ok {
			return "", fmt.Errorf("stop_signal %d is unknown: %w", asked, errdefs.ErrInvalidArgument)
		}
		name = strings.TrimPrefix(name, "SIGNAL_")
		return strings.NewReplacer("PLUS", "+", "MINUS", "-").Replace(name), nil
	}
	if image == "" {
		return "SIGTERM", nil
	}
	name := strings.ToUpper(image)
	if n, err := strconv.Atoi(name); err == nil {
		if name = unix.SignalName(syscall.Signal(n)); name == "" {
			name = realtimeName(n)
		}
	}
	if name != "" && !strings.HasPrefix(name, "SIG") {
		name = "SIG" + name
	}
	if _, err := signalNumber(name); err != nil {
		return "", fmt.Errorf("image's stop signal %q: %w", image, err)
	}
	return name, nil
}

// The kernel's real-time signals as libc hands them to programs.
const sigRTMin, sigRTMax = 34, 64

// realtimeName names the real-time signal n; "" when n is none.
func realtimeName(n int) string {
	switch {
	case n < sigRTMin || n > sigRTMax:
		return ""
	case n == sigRTMax:
		return "SIGRTMAX"
	case n == sigRTMin:
		return "SIGRTMIN"
	case n <= sigRTMin+15:
		return fmt.Sprintf("SIGRTMIN+%d", n-sigRTMin)
	}
	return fmt.Sprintf("SIGRTMAX-%d", sigRTMax-n)
}

// signalNumber returns the number of a signal name such as SIGTERM or
// SIGRTMIN+3.
func signalNumber(name string) (syscall.Signal, error) {
	switch name {
	case "SIGRTMIN":
		return sigRTMin, nil
	case "SIGRTMAX":
		return sigRTMax, nil
	case "SIGCLD":
		return syscall.SIGCHLD, nil
	case "SIGIOT":
		return syscall.SIGABRT, nil
	case "SIGPOLL":
		return syscall.SIGIO, nil
	}
	if n := unix.SignalNum(name); n != 0 {
		return n, nil
	}
	if d, ok := strings.CutPrefix(name, "SIGRTMIN+"); ok {
		if n, err := strconv.Atoi(d); err == nil && n > 0 && sigRTMin+n <= sigRTMax {
			return syscall.Signal(sigRTMin + n), nil
		}
	}
	if d, ok := strings.CutPrefix(name, "SIGRTMAX-"); ok {
		if n, err := strconv.Atoi(d); err == nil && n > 0 && sigRTMax-n >= sigRTMin {
			return syscall.Signal(sigRTMax - n), nil
		}
	}
	return 0, fmt.Errorf("signal %q is unknown: %w", name, errdefs.ErrInvalidArgument)
}

// criSignal is the CRI's value for a signal name; the default when it has none.
func criSignal(name string) runtimeapi.Signal {
	name = strings.NewReplacer("+", "PLUS", "-", "MINUS").Replace(name)
	return runtimeapi.Signal(runtimeapi.Signal_value["SIGNAL_"+name])
}

func handlerNames(m map[string]Handler) string {
	return strings.Join(slices.Sorted(maps.Keys(m)), ", ")
}

// stamp is a time as the CRI counts it: nanoseconds, 0 for never.
func stamp(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixNano()
}

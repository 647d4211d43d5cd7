// Package supervise is what runs inside berth-shim. It uses one thread for its
// own work, an epoll loop, and neither os, net, fmt nor encoding/json, because
// there is one such process per container and its memory counts.
//
// Modes, by the first argument:
//
//	launch    (by the daemon) starts "run" in a session of its own and ends at
//	          once, so that the shim belongs to init. Working directory: the
//	          container's run-time directory. Descriptor 3: a SOCK_SEQPACKET
//	          socket to the daemon, the shim's first connection.
//	run       supervises one container; started by launch only.
//	cleanup   RUNTIME ROOT SYSTEMD(0|1) ID: removes what a dead shim left of
//	          the container, in the container's run-time directory. Prints
//	          what it could not do on the standard error; status 1 then.
//	holder    PID 1 of a shared PID namespace: reaps whatever it inherits,
//	          ignores every signal but SIGTERM and SIGKILL, and exits on these
//	          (the status has no meaning). It writes nothing, needs nothing,
//	          holds no descriptor but /dev/null, sits in "/" and in its own
//	          session. Whoever launches it passes the clone flags, and pins the
//	          namespace before the holder may be killed.
//	version   prints the newest protocol version.
package supervise

import (
	"runtime"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/berth-dev/berth/shim/wire"
)

// Main runs the mode that the command line names and ends the process.
func Main() {
	runtime.GOMAXPROCS(1)
	args := arguments()
	mode := ""
	if len(args) > 1 {
		mode = args[1]
	}
	switch mode {
	case "holder":
		hold()
	case "launch":
		syscall.Exit(launch(args))
	case "run":
		syscall.Exit(run())
	case "cleanup":
		syscall.Exit(cleanup(args[2:]))
	case "version":
		say(1, strconv.Itoa(wire.Version))
		syscall.Exit(0)
	}
	say(2, "usage: berth-shim launch|holder|cleanup RUNTIME ROOT SYSTEMD ID|version")
	syscall.Exit(2)
}

// arguments reads the command line; package os would cost more.
func arguments() []string {
	b, err := readFile("/proc/self/cmdline")
	if err != nil {
		return nil
	}
	return strings.Split(strings.TrimSuffix(string(b), "\x00"), "\x00")
}

func say(fd int, text string) { _, _ = unix.Write(fd, []byte(text+"\n")) }

// launch starts the real shim. Its parent ends, so init adopts the shim: the
// daemon has no zombie to reap and its death means nothing.
func launch(args []string) int {
	null, err := openFile("/dev/null", unix.O_RDWR, 0)
	if err != nil {
		say(2, "open /dev/null: "+err.Error())
		return 1
	}
	exe := args[0] // gives the process its name
	if !strings.HasPrefix(exe, "/") {
		exe = "/proc/self/exe"
	}
	argv := append([]string{args[0], "run"}, args[2:]...)
	_, err = syscall.ForkExec(exe, argv, &syscall.ProcAttr{
		Env:   syscall.Environ(),
		Files: []uintptr{uintptr(null), uintptr(null), 2, 3},
		Sys:   &syscall.SysProcAttr{Setsid: true},
	})
	if err != nil {
		say(2, "start shim: "+err.Error())
		return 1
	}
	return 0
}

// sigaction is the kernel's struct, of which only the handler is used.
type sigaction struct {
	handler, flags, restorer uintptr
	mask                     uint64
}

// hold is the holder. Ignoring SIGCHLD makes the kernel reap for it; ignoring
// is done by system call because package os/signal keeps a thread.
func hold() {
	_, _ = unix.Setsid()
	_ = unix.Chdir("/")
	if null, err := unix.Open("/dev/null", unix.O_RDWR, 0); err == nil {
		for fd := range 3 {
			_ = unix.Dup2(null, fd)
		}
		_ = unix.CloseRange(3, ^uint(0), 0)
	}
	for sig := uintptr(1); sig <= 64; sig++ {
		switch unix.Signal(sig) {
		case unix.SIGTERM, unix.SIGKILL, unix.SIGSTOP, unix.SIGURG:
			continue // SIGURG is the Go scheduler's
		}
		act := sigaction{handler: 1}
		_ = rtSigaction(sig, &act)
	}
	for {
		_ = unix.Pause()
	}
}

// Package supervise is what runs inside berth-shim. It uses one thread for its
// own work, an epoll loop, and neither os, net, fmt nor encoding/json, because
// there is one such process per container and its memory counts.
//
// Modes, by the first argument:
//
//	run       [ID] (by the daemon, in a session of its own) supervises one
//	          container. Working directory: the container's run-time
//	          directory. Descriptor 3: a SOCK_SEQPACKET socket to the daemon,
//	          the shim's first connection. The daemon reaps it, or init when
//	          that has gone: its death means nothing.
//	launch    [ID] starts "run" and ends at once. Earlier daemons do it so, and
//	          one may still be running when an upgrade installs this program.
//	cleanup   RUNTIME ROOT SYSTEMD(0|1) ID: removes what a dead shim left of
//	          the container, in the container's run-time directory. Prints
//	          what it could not do on the standard error; status 1 then.
//	holder    [ID] PID 1 of a shared PID namespace: reaps whatever it inherits,
//	          ignores every signal but SIGKILL and, from outside the namespace,
//	          SIGTERM, and exits on these (the status has no meaning). Whoever
//	          launches it passes the clone flag for the PID namespace, pins
//	          that before the holder may be killed, and lets no other process
//	          into it before the holder is confined: it then writes one zero
//	          byte to descriptor 3 and closes it; other bytes say what failed.
//	          Confined, it is nobody without capabilities, in an empty root.
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
	if _, ok := syscall.Getenv(confined); ok {
		holdOn()
	}
	args := arguments()
	mode := ""
	if len(args) > 1 {
		mode = args[1]
	}
	switch mode {
	case "holder":
		hold(args)
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
	say(2, "usage: berth-shim run|launch [ID]|holder [ID]|cleanup RUNTIME ROOT SYSTEMD ID|version")
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

// launch starts the real shim. Its parent ends, so init adopts the shim.
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

// Command probe is the test image's only program: a web server and a set of
// small behaviours (exit codes, signals, memory, fast output, credentials)
// that tests ask a container for. It is static, so that it runs on an empty
// root file system.
package main

import (
	"bufio"
	"fmt"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"syscall"
	"time"
)

const usage = `usage: probe COMMAND
  serve [PORT]       web server: / /env /hostname /healthz (default port 80)
  sleep [SECONDS]    print "ready" and wait (for ever); SIGTERM and SIGINT end it with status 0
  deaf               wait for ever; SIGTERM is ignored
  signals            print the name of every signal, for ever
  exit N             end with status N
  lines N [BYTES]    print N numbered lines as fast as possible
  number BURST MS CODE [FILE]  print numbered lines, BURST every MS, till SIGTERM or FILE; end with CODE
  await FILE COMMAND [ARG...]  wait for a file, print "go" and go on as another command
  echo ADDRESS       TCP server: sends back what it got when the client has closed its half
  early ADDRESS      TCP server: says "bye", closes its half, and prints how much it got
  partial            print a line in two halves, then one without an end
  eat MIB            touch that much memory, then sleep
  ids                print credentials from /proc/self/status
  keyctl             try a system call that the default seccomp profile blocks
  cat                copy stdin to stdout
  both               print one line on stdout and one on stderr`

func main() {
	args := os.Args[1:]
	if len(args) == 0 {
		args = []string{"serve"}
	}
	if err := run(args[0], args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "probe:", err)
		os.Exit(1)
	}
}

func run(command string, args []string) error {
	commands := map[string]func([]string) error{
		"serve": serve, "sleep": sleep, "deaf": deaf, "signals": signals,
		"exit": exit, "lines": lines, "partial": partial, "eat": eat,
		"ids": ids, "keyctl": keyctl, "cat": cat, "both": both, "number": number, "await": await,
		"echo": echo, "early": early,
	}
	f, ok := commands[command]
	if !ok {
		return fmt.Errorf("unknown command %q\n%s", command, usage)
	}
	return f(args)
}

// integer returns argument i, or def when it is not given.
func integer(args []string, i, def int) (int, error) {
	if i >= len(args) {
		return def, nil
	}
	return strconv.Atoi(args[i])
}

func sleep(args []string) error {
	n, err := integer(args, 0, 1<<31-1)
	if err != nil {
		return err
	}
	ch := make(chan os.Signal, 1)
	signal.Notify(ch, syscall.SIGTERM, syscall.SIGINT)
	fmt.Println("ready")
	select {
	case <-ch:
	case <-time.After(time.Duration(n) * time.Second):
	}
	return nil
}

func deaf([]string) error {
	signal.Ignore(syscall.SIGTERM)
	fmt.Println("deaf")
	for {
		time.Sleep(time.Hour)
	}
}

// signals prints what arrives and never ends by itself; SIGURG is left out
// because the Go run-time sends it to itself.
func signals([]string) error {
	ch := make(chan os.Signal, 64)
	signal.Notify(ch)
	fmt.Println("ready")
	for s := range ch {
		n, ok := s.(syscall.Signal)
		if !ok || n == syscall.SIGURG {
			continue
		}
		fmt.Printf("signal %d %s\n", n, s)
	}
	return nil
}

func exit(args []string) error {
	n, err := integer(args, 0, 0)
	if err != nil {
		return err
	}
	os.Exit(n)
	return nil
}

func lines(args []string) error {
	n, err := integer(args, 0, 1)
	if err != nil {
		return err
	}
	size, err := integer(args, 1, 64)
	if err != nil {
		return err
	}
	w := bufio.NewWriterSize(os.Stdout, 1<<16)
	pad := strings.Repeat("x", size)
	for i := range n {
		if _, err := fmt.Fprintf(w, "%09d %s\n", i, pad); err != nil {
			return err
		}
	}
	return w.Flush()
}

// partial writes a line in two pieces with a pause, and ends without a newline.
func partial([]string) error {
	fmt.Print("first half, ")
	time.Sleep(50 * time.Millisecond)
	fmt.Print("second half\nno end")
	return nil
}

func eat(args []string) error {
	n, err := integer(args, 0, 1)
	if err != nil {
		return err
	}
	held := make([][]byte, 0, n)
	for range n {
		b := make([]byte, 1<<20)
		for i := 0; i < len(b); i += 4096 {
			b[i] = 1
		}
		held = append(held, b)
	}
	fmt.Println("ate", len(held), "MiB")
	return sleep(nil)
}

func ids([]string) error {
	b, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(b)) {
		key, value, _ := strings.Cut(line, ":")
		switch key {
		case "Uid", "Gid", "Groups", "CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb", "NoNewPrivs", "Seccomp":
			fmt.Printf("%s: %s\n", key, strings.Join(strings.Fields(value), " "))
		}
	}
	return nil
}

// keyctl asks for the session keyring, which the default seccomp profile
// forbids whatever capabilities the process has, and the kernel allows.
func keyctl([]string) error {
	const getKeyringID, sessionKeyring = 0, ^uintptr(2) // -3
	if _, _, errno := syscall.RawSyscall(syscall.SYS_KEYCTL, getKeyringID, sessionKeyring, 1); errno == syscall.EPERM {
		fmt.Println("blocked")
		return nil
	}
	fmt.Println("allowed")
	return nil
}

func cat([]string) error {
	buf := make([]byte, 32<<10)
	for {
		n, err := os.Stdin.Read(buf)
		if n > 0 {
			if _, werr := os.Stdout.Write(buf[:n]); werr != nil {
				return werr
			}
		}
		if err != nil {
			return nil
		}
	}
}

func both([]string) error {
	fmt.Fprintln(os.Stdout, "to stdout")
	fmt.Fprintln(os.Stderr, "to stderr")
	return nil
}

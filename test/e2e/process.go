package e2e

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/berth-dev/berth/test/harness"
)

// process is a program of the cluster that can be killed and started again.
type process struct {
	name  string
	space *harness.Space
	argv  []string
	log   string
	life  *harness.Process // nil: it does not run
}

// start runs the program inside the namespaces, with its output in the log.
func (p *process) start() error {
	log, err := os.OpenFile(p.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	cmd := p.space.Command(context.Background(), p.argv[0], p.argv[1:]...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.Dir = filepath.Dir(p.log)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	p.life, err = harness.Launch(p.name, cmd)
	return err
}

// end sends the signal and waits for the program to be gone.
func (p *process) end(sig syscall.Signal) error {
	if p == nil || p.life == nil {
		return nil
	}
	life := p.life
	p.life = nil
	return life.End(sig)
}

// tail returns the last lines of the program's log.
func (p *process) tail(lines int) string {
	b, err := os.ReadFile(p.log)
	if err != nil {
		return err.Error()
	}
	all := bytes.SplitAfter(b, []byte("\n"))
	return p.name + ":\n" + string(bytes.Join(all[max(0, len(all)-lines-1):], nil))
}

// argv joins a program and its flags, given as alternating names and values.
func argv(program string, flags ...string) []string {
	out := []string{program}
	for pair := range slices.Chunk(flags, 2) {
		out = append(out, "--"+strings.Join(pair, "="))
	}
	return out
}

// until calls f until it returns nil, and returns its last error when d is over.
func until(ctx context.Context, d time.Duration, f func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, d)
	defer cancel()
	var last error
	for {
		err := f(ctx)
		if err == nil {
			return nil
		}
		// The deadline interrupts the last call: what it says is not the reason.
		if ctx.Err() == nil || last == nil {
			last = err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("not within %s: %w", d, last)
		case <-time.After(250 * time.Millisecond):
		}
	}
}

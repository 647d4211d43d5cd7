package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

func main() {
	names := flag.String("run", "", "groups to run, by commas; empty: all")
	cache := flag.String("cache", "bin/vm", "directory for what is made once")
	list := flag.Bool("list", false, "list the groups")
	flag.Parse()
	if *list {
		for _, g := range groups() {
			fmt.Printf("%-10s %s\n", g.name, g.about)
		}
		return
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, *names, *cache); err != nil {
		fmt.Fprintln(os.Stderr, "vm:", err)
		stop()
		os.Exit(1)
	}
}

func run(ctx context.Context, names, cache string) error {
	gs, err := choose(names)
	if err != nil {
		return err
	}
	module, err := moduleRoot(ctx)
	if err != nil {
		return err
	}
	if cache, err = filepath.Abs(cache); err != nil {
		return err
	}
	began := time.Now()
	root := exec.CommandContext(ctx, filepath.Join(module, "test/vm/mkroot"), cache)
	root.Stdout, root.Stderr = os.Stdout, os.Stderr
	if err := root.Run(); err != nil {
		return fmt.Errorf("make the root: %w", err)
	}
	disk, err := payload(ctx, module, cache, gs)
	if err != nil {
		return fmt.Errorf("make the disk of programs: %w", err)
	}
	defer os.Remove(disk)
	fmt.Printf("vm: disks are ready after %v\n", time.Since(began).Round(time.Second))
	total := map[string]int{}
	var bad []string
	for _, g := range gs {
		run := g.run
		if g.cuts > 0 {
			run = g.powerCuts
		}
		r, wrong := run(ctx, cache, disk)
		for state, n := range r.counts {
			total[state] += n
		}
		if wrong != "" {
			bad = append(bad, g.name+": "+wrong)
		}
	}
	fmt.Printf("vm: %d passed, %d failed, %d skipped, in %v\n", total["PASS"], total["FAIL"], total["SKIP"], time.Since(began).Round(time.Second))
	if len(bad) > 0 {
		return errors.New("FAILED: " + strings.Join(bad, "; "))
	}
	return nil
}

// run boots a machine for the group and prints a line for each case.
func (g group) run(ctx context.Context, cache, disk string) (*report, string) {
	r := newReport()
	fmt.Printf("vm: %s: %s\n", g.name, g.about)
	began := time.Now()
	log, err := os.Create(filepath.Join(cache, g.name+".log"))
	if err != nil {
		return r, err.Error()
	}
	defer log.Close()
	ctx, cancel := context.WithTimeout(ctx, g.limit)
	defer cancel()
	m, err := start(ctx, boot{cache: cache, payload: disk, group: g.name, extra: g.boot, console: filepath.Join(cache, g.name+".console")})
	if err != nil {
		return r, err.Error()
	}
	var said []string // by the unit that runs now
	for line := range m.lines {
		fmt.Fprintln(log, line)
		unit := r.unit
		v, text := r.line(line)
		if text != "" {
			fmt.Println("vm:", text)
		}
		if v != nil {
			fmt.Println(v)
		}
		said = append(said, line)
		if unit != "" && r.unit == "" {
			if r.failed {
				fmt.Printf("----- what %s said -----\n%s\n-----\n", unit, strings.Join(tail(said, 300), "\n"))
			}
			said = nil
		}
	}
	wrong := r.end()
	if !r.finished {
		fmt.Printf("----- the last lines -----\n%s\n----- and of the console, %s -----\n", strings.Join(tail(said, 100), "\n"), filepath.Join(cache, g.name+".console"))
		console, _ := os.ReadFile(filepath.Join(cache, g.name+".console"))
		fmt.Println(strings.Join(tail(strings.Split(string(console), "\n"), 40), "\n"))
	}
	fmt.Printf("vm: %s: %d passed, %d failed, %d skipped, in %v\n", g.name, r.counts["PASS"], r.counts["FAIL"], r.counts["SKIP"], time.Since(began).Round(time.Second))
	return r, wrong
}

// tail leaves out what tells nothing, and returns the last n lines.
func tail(lines []string, n int) []string {
	var out []string
	for _, l := range lines {
		if !strings.HasPrefix(l, "=== ") && !strings.Contains(l, "--- PASS") {
			out = append(out, l)
		}
	}
	return out[max(0, len(out)-n):]
}

func moduleRoot(ctx context.Context) (string, error) {
	out, err := exec.CommandContext(ctx, "go", "env", "GOMOD").Output()
	if err != nil {
		return "", fmt.Errorf("find the module: %w", err)
	}
	return filepath.Dir(strings.TrimSpace(string(out))), nil
}

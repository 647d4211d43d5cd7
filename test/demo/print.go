package main

import (
	"context"
	"fmt"
	"os"
	"time"
)

// printer writes one aligned line a step, and what it found below; colours
// only on a terminal.
type printer struct {
	bold, dim, green, red, off string
	n                          int
	begun                      time.Time
}

func newPrinter() *printer {
	p := &printer{begun: time.Now()}
	if fi, err := os.Stdout.Stat(); err == nil && fi.Mode()&os.ModeCharDevice != 0 && os.Getenv("NO_COLOR") == "" {
		p.bold, p.dim, p.green, p.red, p.off = "\x1b[1m", "\x1b[2m", "\x1b[32m", "\x1b[31m", "\x1b[0m"
	}
	return p
}

func (p *printer) title(s string) { fmt.Printf("\n%s%s%s\n\n", p.bold, s, p.off) }

func (p *printer) step(ctx context.Context, name string, do func(context.Context) ([]string, error)) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	p.n++
	begun := time.Now()
	lines, err := do(ctx)
	mark, colour := "ok", p.green
	if err != nil {
		mark, colour = "FAILED", p.red
	}
	fmt.Printf("%2d  %-58s %s%s%s %7d ms\n", p.n, name, colour, mark, p.off, time.Since(begun).Milliseconds())
	if err != nil {
		return err
	}
	for _, l := range lines {
		fmt.Printf("      %s%s%s\n", p.dim, l, p.off)
	}
	return nil
}

func (p *printer) end() {
	fmt.Printf("\n%sDone in %.1f s; the machine is as it was.%s\n\n", p.bold, time.Since(p.begun).Seconds(), p.off)
}

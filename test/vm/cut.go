package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// factsSize is that of the disk on which a machine reads what its earlier lives
// were told.
const factsSize = 1 << 20

// power is a machine that loses it: one disk of state, one life after the other.
type power struct {
	g     group
	boot  boot
	log   *os.File
	facts strings.Builder // what the machine said it was told, in order
	total *report
}

// powerCuts runs the group's tests again and again on the same disk. Each life
// says first, as a case, whether it found all as it should be, then works until
// it is killed. The last one only looks.
func (g group) powerCuts(ctx context.Context, cache, disk string) (*report, string) {
	p := &power{g: g, total: newReport()}
	state, facts := filepath.Join(cache, "state.ext4"), filepath.Join(cache, "facts")
	p.boot = boot{cache: cache, payload: disk, group: g.name, console: filepath.Join(cache, g.name+".console"), disks: []string{state, facts}}
	fmt.Printf("vm: %s: %s\n", g.name, g.about)
	began := time.Now()
	var err error
	if p.log, err = os.Create(filepath.Join(cache, g.name+".log")); err != nil {
		return p.total, err.Error()
	}
	defer p.log.Close()
	defer os.Remove(state)
	defer os.Remove(facts)
	_ = os.Remove(state)
	if err := command(ctx, "", "mke2fs", "-q", "-t", "ext4", state, "1G"); err != nil {
		return p.total, err.Error()
	}
	ctx, cancel := context.WithTimeout(ctx, g.limit)
	defer cancel()
	wrong := ""
	for life := 1; life <= g.cuts+1 && wrong == ""; life++ {
		blocks := make([]byte, factsSize)
		if copy(blocks, p.facts.String()) == factsSize {
			return p.total, "the machine was told more than its disk takes"
		}
		if err := os.WriteFile(facts, blocks, 0o644); err != nil {
			return p.total, err.Error()
		}
		wrong = p.life(ctx, life)
	}
	fmt.Printf("vm: %s: %d passed, %d failed, in %v\n", g.name, p.total.counts["PASS"], p.total.counts["FAIL"], time.Since(began).Round(time.Second))
	return p.total, wrong
}

// life boots the machine and, unless it is the last time, cuts its power at
// some moment of its work. It returns what is wrong.
func (p *power) life(ctx context.Context, n int) string {
	last := n == p.g.cuts+1
	ctx, cut := context.WithCancel(ctx)
	defer cut()
	b := p.boot
	b.extra = fmt.Sprintf("berth.life=%d berth.last=%t", n, last)
	m, err := start(ctx, b)
	if err != nil {
		return err.Error()
	}
	r := newReport()
	var said []string
	working := false
	for line := range m.lines {
		fmt.Fprintln(p.log, line)
		said = append(said, line)
		text, fact := strings.CutPrefix(line, "BERTH-VM fact ")
		switch {
		case fact:
			p.facts.WriteString(text + "\n")
			continue
		case line == "BERTH-VM work":
			working = true
			after := time.Duration(rand.Int64N(int64(15 * time.Second)))
			fmt.Printf("vm: the power goes in %v\n", after.Round(time.Millisecond))
			time.AfterFunc(after, cut)
			continue
		}
		if v, text := r.line(line); v != nil {
			fmt.Println(v)
		} else if text != "" {
			fmt.Println("vm:", text)
		}
	}
	for state, count := range r.counts {
		p.total.counts[state] += count
	}
	wrong := ""
	switch {
	case last:
		wrong = r.end()
	case r.counts["FAIL"] > 0 || r.counts["PASS"] == 0:
		wrong = fmt.Sprintf("life %d did not find all as it should be", n)
	case !working || ctx.Err() == nil:
		wrong = fmt.Sprintf("life %d ended by itself", n)
	}
	if wrong != "" {
		fmt.Printf("----- the last lines -----\n%s\n-----\n", strings.Join(tail(said, 300), "\n"))
	}
	return wrong
}

package main

import (
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/berth-dev/berth/test/images/numbered"
)

// number writes numbered lines, burst of them at a time with a pause between,
// until SIGTERM or until a file is there. It measures its own writes: what it
// says last, on stderr, is how many lines it wrote and how long the slowest
// write took.
func number(args []string) error {
	var n [3]int
	for i := range n {
		var err error
		if n[i], err = integer(args, i, []int{10, 100, 0}[i]); err != nil {
			return err
		}
	}
	stop := ""
	if len(args) > 3 {
		stop = args[3]
	}
	ch := make(chan os.Signal, 1)
	signal.Notify(ch, syscall.SIGTERM)
	var line []byte
	var seq uint64
	var longest time.Duration
	for done := false; !done; {
		for range n[0] {
			line = numbered.Append(line[:0], seq)
			at := time.Now()
			if _, err := os.Stdout.Write(line); err != nil {
				return err
			}
			longest = max(longest, time.Since(at))
			seq++
		}
		select {
		case <-ch:
			done = true
		case <-time.After(time.Duration(n[1]) * time.Millisecond):
			_, err := os.Stat(stop)
			done = stop != "" && err == nil
		}
	}
	fmt.Fprintf(os.Stderr, "lines %d longest %d\n", seq, longest)
	os.Exit(n[2])
	return nil
}

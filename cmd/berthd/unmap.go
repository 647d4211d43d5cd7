package main

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// unmapFirst is when unmapProgram is called first, after what serves the start
// alone has run, and unmapPause the time between two calls: what has not been used
// for so long does not count as resident.
const (
	unmapFirst = 10 * time.Second
	unmapPause = time.Minute
)

// unmapIdle keeps what is mapped of the program to what is in use.
func (n *node) unmapIdle(ctx context.Context) {
	timer := time.NewTimer(unmapFirst)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		}
		timer.Reset(unmapPause)
		if err := unmapProgram(); err != nil {
			n.log.Debug("what is not used of the program stays mapped", "error", err)
			return
		}
	}
}

// unmapProgram has the kernel forget which pages of this program's file are
// mapped, which are two thirds of the daemon's resident memory; the kernel maps
// 15 neighbours with each page that is used, and most serve the start alone. They stay in
// the page cache, where those in use are found again, at some microseconds each. No
// data is lost: nobody can write to these mappings.
func unmapProgram() error {
	maps, err := os.ReadFile("/proc/self/maps")
	if err != nil {
		return err
	}
	exe, err := os.Readlink("/proc/self/exe")
	if err != nil {
		return err
	}
	for _, s := range programSpans(string(maps), exe) {
		if _, _, errno := unix.Syscall(unix.SYS_MADVISE, s.from, s.to-s.from, unix.MADV_DONTNEED); errno != 0 {
			return fmt.Errorf("madvise: %w", errno)
		}
	}
	return nil
}

// span is a part of the address space.
type span struct{ from, to uintptr }

// programSpans finds where a file is mapped so that nobody can write to it, in
// the format of proc_pid_maps(5); a file that was replaced counts too. Pure.
func programSpans(maps, file string) (out []span) {
	for line := range strings.Lines(maps) {
		f := strings.Fields(line)
		if len(f) < 6 || strings.Join(f[5:], " ") != file || f[1] != "r--p" && f[1] != "r-xp" {
			continue
		}
		from, to, _ := strings.Cut(f[0], "-")
		a, err := strconv.ParseUint(from, 16, 64)
		b, err2 := strconv.ParseUint(to, 16, 64)
		if err == nil && err2 == nil {
			out = append(out, span{uintptr(a), uintptr(b)})
		}
	}
	return out
}

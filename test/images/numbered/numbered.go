// Package numbered makes lines of which each tells its place and its content,
// so that one that is lost, doubled, cut or changed on its way is known.
package numbered

import (
	"bytes"
	"fmt"
)

// digits is the width of the number that a line begins with.
const digits = 10

// Append appends line seq with its newline. Lines hold every byte but the
// newline, some are empty but for their number, and some are longer than the
// 16 KiB at which runtimes split an entry of a log.
func Append(dst []byte, seq uint64) []byte {
	dst = fmt.Appendf(dst, "%0*d ", digits, seq)
	x := seq*0x9e3779b97f4a7c15 + 1
	n := int(x>>40) % 120
	switch {
	case seq%13 == 0:
		n = 0
	case seq%97 == 0:
		n = 20000
	}
	for range n {
		x ^= x << 13
		x ^= x >> 7
		x ^= x << 17
		b := byte(x >> 32)
		if b == '\n' {
			b = 0
		}
		dst = append(dst, b)
	}
	return append(dst, '\n')
}

// Checker reads lines from a stream that may begin anywhere.
type Checker struct {
	Lines int // whole lines seen
	next  uint64
	known bool // next is
	rest  []byte
	err   error
}

// From returns a Checker of a stream whose first byte is the first of line seq.
func From(seq uint64) *Checker { return &Checker{next: seq, known: true} }

// Inside returns a Checker of a stream that begins in the middle of a line.
func Inside() *Checker { return &Checker{} }

// Write takes the next bytes. It never fails: see Err.
func (c *Checker) Write(p []byte) (int, error) {
	c.rest = append(c.rest, p...)
	for c.err == nil {
		end := bytes.IndexByte(c.rest, '\n')
		if end < 0 {
			break
		}
		c.line(c.rest[:end+1])
		c.rest = c.rest[end+1:]
	}
	return len(p), nil
}

func (c *Checker) line(b []byte) {
	if !c.known {
		// The end of a line that was cut tells nothing; the next has the number.
		c.known, c.next = true, ^uint64(0)
		return
	}
	if c.next == ^uint64(0) {
		if _, err := fmt.Sscanf(string(b[:min(digits, len(b))]), "%d", &c.next); err != nil {
			c.err = fmt.Errorf("no number in line %.40q", b)
			return
		}
	}
	if want := Append(nil, c.next); !bytes.Equal(b, want) {
		c.err = fmt.Errorf("after %d good lines: line of %d bytes %.40q, want %d bytes %.40q", c.Lines, len(b), b, len(want), want)
		return
	}
	c.next++
	c.Lines++
}

// Next is the number of the line that would come next.
func (c *Checker) Next() uint64 { return c.next }

// Rest is what came after the last newline.
func (c *Checker) Rest() []byte { return c.rest }

// Err is the first thing that was wrong.
func (c *Checker) Err() error { return c.err }

// Package crilog frames container output in the log format of the CRI: one
// record a line, "<time> <stream> <tag> <content>", where the tag is F for the
// end of a line and P for a part of one that is too long to be kept whole.
// It is pure: bytes in, bytes out; no clock, no file. Content is not looked at
// but for newlines, so it is safe for binary output.
package crilog

import (
	"bytes"
	"time"
)

// Names of the streams in a record.
const (
	Stdout = "stdout"
	Stderr = "stderr"
)

// DefaultPartial is how many bytes of content a record holds at most when
// nothing else is asked for. The kubelet's and the peers' value.
const DefaultPartial = 16 << 10

// stampLayout has always nine digits: records stay in order when sorted.
const stampLayout = "2006-01-02T15:04:05.000000000Z07:00"

// AppendStamp appends a time as records carry it, in UTC.
func AppendStamp(dst []byte, t time.Time) []byte { return t.UTC().AppendFormat(dst, stampLayout) }

// Framer frames one stream. A line without its newline is held back, up to
// the size of a part, until the rest comes or Flush is called.
type Framer struct {
	stream string
	limit  int
	held   []byte
}

// NewFramer returns a framer for a stream. limit is the most content in one
// record; 0 or less means DefaultPartial.
func NewFramer(stream string, limit int) *Framer {
	if limit <= 0 {
		limit = DefaultPartial
	}
	return &Framer{stream: stream, limit: limit}
}

// Held returns how many bytes are held back.
func (f *Framer) Held() int { return len(f.held) }

// Append appends the records that data completes. stamp is the time at which
// data was read, as AppendStamp makes it.
func (f *Framer) Append(dst, stamp, data []byte) []byte {
	for len(data) > 0 {
		end := bytes.IndexByte(data, '\n')
		line, full := data, false
		if end >= 0 {
			line, full = data[:end], true
		}
		for len(f.held)+len(line) > f.limit {
			n := f.limit - len(f.held)
			dst = f.record(dst, stamp, 'P', line[:n])
			line = line[n:]
		}
		if !full {
			f.held = append(f.held, line...)
			return dst
		}
		dst = f.record(dst, stamp, 'F', line)
		data = data[end+1:]
	}
	return dst
}

// Flush appends what is held back as the end of a line. It is for the end of
// the stream.
func (f *Framer) Flush(dst, stamp []byte) []byte {
	if len(f.held) == 0 {
		return dst
	}
	return f.record(dst, stamp, 'F', nil)
}

// record writes what is held and more as one record.
func (f *Framer) record(dst, stamp []byte, tag byte, more []byte) []byte {
	dst = append(dst, stamp...)
	dst = append(dst, ' ')
	dst = append(dst, f.stream...)
	dst = append(dst, ' ', tag, ' ')
	dst = append(dst, f.held...)
	dst = append(dst, more...)
	if len(f.held) > 0 {
		f.held = f.held[:0]
		if cap(f.held) > 1024 {
			f.held = nil // a quiet stream keeps no large buffer
		}
	}
	return append(dst, '\n')
}

// Whole returns how many of the first n bytes of records end with a record:
// after a short write, the rest of the last record has to be taken back.
func Whole(records []byte, n int) int {
	return bytes.LastIndexByte(records[:n], '\n') + 1
}

// Gate drops records of one stream that a limit does not let through. A line
// of which a part has passed is closed by an empty end, and what follows of it
// is dropped: no reader may take the next line for the rest of a cut one.
type Gate struct {
	begun bool // a part of a line has passed, its end has not
	skip  bool // the rest of the present line is dropped
}

// Begun reports whether the last record that passed was a part of a line.
func (g *Gate) Begun() bool { return g.begun }

// Keep drops what does not fit room bytes, in place. It returns what is left
// and how many bytes and records are not; the end of a line that is cut is kept
// whether it fits or not.
func (g *Gate) Keep(records []byte, room int64) (kept []byte, bytesLost, lost int64) {
	kept = records[:0]
	for len(records) > 0 {
		n := bytes.IndexByte(records, '\n') + 1
		if n == 0 {
			n = len(records)
		}
		r := records[:n]
		records = records[n:]
		tag := tagAt(r)
		if tag < 0 {
			continue // not a record
		}
		end := r[tag] == 'F'
		if !g.skip && int64(len(kept)+n) <= room {
			kept = append(kept, r...)
			g.begun = !end
			continue
		}
		lost++
		bytesLost += int64(n)
		if g.begun {
			kept = append(kept, r[:tag]...)
			kept = append(kept, 'F', ' ', '\n')
			g.begun = false
		}
		g.skip = !end
	}
	return kept, bytesLost, lost
}

// tagAt returns where the tag of a record is; -1: it is none.
func tagAt(r []byte) int {
	at := 0
	for range 2 {
		n := bytes.IndexByte(r[at:], ' ')
		if n < 0 {
			return -1
		}
		at += n + 1
	}
	if at+2 >= len(r) || r[at+1] != ' ' {
		return -1
	}
	return at
}

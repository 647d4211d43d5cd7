package supervise

import (
	"strconv"

	"github.com/berth-dev/berth/shim/wire"
)

// A container may save up what it did not write for a second, and never less
// than this: else a record could be longer than anything it may ever write.
const (
	minBurst = 64 << 10
	maxRate  = 1 << 33 // keeps the products below within 64 bits
	second   = int64(1e9)
)

// limiter is the arithmetic of wire.LogLimits. It has no clock: callers tell
// the monotonic time in ns.
type limiter struct {
	wire.LogLimits
	burst  int64
	tokens int64 // bytes that may be written; below 0 the container waits
	at     int64 // when tokens was right
	size   int64 // of the file
	full   bool  // the file is; stays so until a new one comes
}

// newLimiter takes limits and the longest record.
func newLimiter(l wire.LogLimits, record int64) limiter {
	l.Rate = min(l.Rate, maxRate)
	burst := max(l.Rate, minBurst, record)
	return limiter{LogLimits: l, burst: burst, tokens: burst}
}

// drops reports whether output may be dropped, waits whether the container may
// be made to wait.
func (l *limiter) drops() bool { return !l.Block && (l.Rate > 0 || l.FileBytes > 0) }
func (l *limiter) waits() bool { return l.Block && (l.Rate > 0 || l.FileBytes > 0) }

func (l *limiter) refill(t int64) {
	if l.Rate <= 0 {
		return
	}
	d := max(t-l.at, 0)
	more := min(d/second, 1<<20)*l.Rate + d%second*l.Rate/second
	if more == 0 {
		return // too early: the time that passed is not forgotten
	}
	l.tokens, l.at = min(l.tokens+more, l.burst), t
}

// room is how many bytes may be written now; file: because of the file.
func (l *limiter) room(t int64) (n int64, file bool) {
	l.refill(t)
	n = 1 << 62
	if l.Rate > 0 {
		n = max(l.tokens, 0)
	}
	if l.FileBytes <= 0 {
		return n, false
	}
	left := max(l.FileBytes-l.size, 0)
	if l.full {
		left = 0
	}
	return min(n, left), left <= n
}

// wrote accounts for n bytes.
func (l *limiter) wrote(n int64) {
	l.size += n
	if l.Rate > 0 {
		l.tokens -= n
	}
}

// forever is the answer of pause when only a new file helps.
const forever = int64(-1)

// pause is how long the container has to wait now, in ms: 0, or forever.
func (l *limiter) pause(t int64) int64 {
	if !l.waits() {
		return 0
	}
	if l.FileBytes > 0 && l.size >= l.FileBytes {
		return forever
	}
	l.refill(t)
	if l.Rate <= 0 || l.tokens >= 0 {
		return 0
	}
	// Ten days are as good as any longer time, and fit.
	return min(-l.tokens/l.Rate, 864000)*1000 + (-l.tokens%l.Rate*1000+l.Rate-1)/l.Rate
}

// text names the limits.
func (l *limiter) text() string {
	rate, file := decimal(l.Rate)+" bytes a second", decimal(l.FileBytes)+" bytes a file"
	switch {
	case l.FileBytes <= 0:
		return rate
	case l.Rate <= 0:
		return file
	}
	return rate + " and " + file
}

func decimal(n int64) string { return strconv.FormatInt(n, 10) }

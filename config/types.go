package config

import (
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"
)

const (
	defaultPluginTime = 5 * time.Second
	defaultConnect    = 10 * time.Second
	defaultFirstByte  = 30 * time.Second
	defaultCNITimeout = 30 * time.Second
	defaultPullIdle   = time.Minute
	defaultSignatures = time.Minute
	defaultStreamIdle = 4 * time.Hour
)

// Duration is a span of time, written as "90s" or "4h".
type Duration time.Duration

// UnmarshalText reads the form of time.ParseDuration.
func (d *Duration) UnmarshalText(b []byte) error {
	v, err := time.ParseDuration(string(b))
	if err != nil {
		return fmt.Errorf("%q is not a duration; write for example \"90s\" or \"4h\"", b)
	}
	*d = Duration(v)
	return nil
}

// MarshalText writes the shortest exact form.
func (d Duration) MarshalText() ([]byte, error) { return []byte(d.String()), nil }

// String returns "4h" rather than "4h0m0s".
func (d Duration) String() string {
	s := time.Duration(d).String()
	if strings.HasSuffix(s, "m0s") {
		s = strings.TrimSuffix(s, "0s")
	}
	if strings.HasSuffix(s, "h0m") {
		s = strings.TrimSuffix(s, "0m")
	}
	return s
}

// Size is a number of bytes, written as "16MiB", "4KiB" or plain "4096".
type Size int64

// sizeUnit returns the factor of a unit, largest first by index.
func sizeUnits() []struct {
	name string
	n    int64
} {
	return []struct {
		name string
		n    int64
	}{{"TiB", 1 << 40}, {"GiB", 1 << 30}, {"MiB", 1 << 20}, {"KiB", 1 << 10}, {"B", 1}}
}

// UnmarshalText reads a whole number and an optional binary unit.
func (s *Size) UnmarshalText(b []byte) error {
	text, factor := strings.TrimSpace(string(b)), int64(1)
	for _, u := range sizeUnits() {
		if rest, ok := strings.CutSuffix(text, u.name); ok {
			text, factor = strings.TrimSpace(rest), u.n
			break
		}
	}
	n, err := strconv.ParseInt(text, 10, 64)
	if err != nil || n < 0 || n > math.MaxInt64/factor {
		return fmt.Errorf("%q is not a size; write for example \"16MiB\"", b)
	}
	*s = Size(n * factor)
	return nil
}

// MarshalText writes the largest unit that divides the number.
func (s Size) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// String returns for example "16MiB".
func (s Size) String() string {
	for _, u := range sizeUnits() {
		if s != 0 && int64(s)%u.n == 0 {
			return strconv.FormatInt(int64(s)/u.n, 10) + u.name
		}
	}
	return strconv.FormatInt(int64(s), 10)
}

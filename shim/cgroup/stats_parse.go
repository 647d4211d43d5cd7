package cgroup

import "bytes"

func trimLine(b []byte) []byte {
	if i := bytes.IndexByte(b, '\n'); i >= 0 {
		b = b[:i]
	}
	return b
}

// parseUint takes decimal digits only.
func parseUint(b []byte) (n uint64, ok bool) {
	for _, c := range b {
		if c < '0' || c > '9' {
			return 0, false
		}
		d := uint64(c - '0')
		if n > (1<<64-1-d)/10 {
			return 0, false
		}
		n = n*10 + d
	}
	return n, len(b) > 0
}

// eachLine calls f for every line that is not empty.
func eachLine(text []byte, f func(line []byte)) {
	for len(text) > 0 {
		line, rest, _ := bytes.Cut(text, []byte{'\n'})
		if len(line) > 0 {
			f(line)
		}
		text = rest
	}
}

// eachPair calls f for every "key number" line; others are skipped.
func eachPair(text []byte, f func(key []byte, v uint64)) {
	eachLine(text, func(line []byte) {
		key, val, _ := bytes.Cut(line, []byte{' '})
		if v, ok := parseUint(val); ok {
			f(key, v)
		}
	})
}

// eachField calls f for every word of a line.
func eachField(line []byte, f func(i int, word []byte)) {
	for i := 0; len(line) > 0; {
		word, rest, _ := bytes.Cut(line, []byte{' '})
		if len(word) > 0 {
			f(i, word)
			i++
		}
		line = rest
	}
}

// parsePressure reads "some avg10=0.00 avg60=0.00 avg300=0.00 total=0" lines.
func parsePressure(text []byte) (p Pressure, ok bool) {
	eachLine(text, func(line []byte) {
		var to *Stall
		eachField(line, func(i int, word []byte) {
			switch {
			case i == 0 && string(word) == "some":
				to, ok = &p.Some, true
			case i == 0 && string(word) == "full":
				to = &p.Full
			case to != nil:
				to.set(word)
			}
		})
	})
	return p, ok
}

func (s *Stall) set(word []byte) {
	key, val, _ := bytes.Cut(word, []byte{'='})
	switch string(key) {
	case "avg10":
		s.Avg10 = parsePercent(val)
	case "avg60":
		s.Avg60 = parsePercent(val)
	case "avg300":
		s.Avg300 = parsePercent(val)
	case "total":
		s.TotalMicros, _ = parseUint(val)
	}
}

// parsePercent reads the kernel's two decimals: "12.34"; 0 for junk.
func parsePercent(b []byte) float64 {
	whole, frac, _ := bytes.Cut(b, []byte{'.'})
	w, ok := parseUint(whole)
	if !ok {
		return 0
	}
	f, ok := parseUint(frac)
	if !ok || len(frac) != 2 {
		return float64(w)
	}
	// One division of whole numbers: 0.29 comes out as the literal does.
	return float64(w*100+f) / 100
}

// parseDevice reads "major:minor".
func parseDevice(b []byte) (major, minor uint32, ok bool) {
	x, y, _ := bytes.Cut(b, []byte{':'})
	a, ok1 := parseUint(x)
	c, ok2 := parseUint(y)
	if !ok1 || !ok2 || a > 1<<32-1 || c > 1<<32-1 {
		return 0, 0, false
	}
	return uint32(a), uint32(c), true
}

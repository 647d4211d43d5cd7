package powercut

import "math/rand/v2"

// sector is what a disk writes whole or not at all.
const sector = 512

// loss is what became of the writes after the last flush.
type loss int

// What a power cut may leave of writes that were not flushed.
const (
	keepAll  loss = iota // the cache was written out
	keepNone             // all of it was lost
	keepSome             // each sector for itself
)

// cut returns the disk after a power cut behind the first n events. Pure, but
// for the dice.
func cut(base []byte, log []event, n int, how loss, dice *rand.Rand) []byte {
	out := append([]byte(nil), base...)
	flushed := 0
	for i, e := range log[:n] {
		if e.flush {
			flushed = i
		}
	}
	for i, e := range log[:n] {
		if e.data == nil {
			continue
		}
		if i < flushed || how == keepAll {
			copy(out[e.off:], e.data)
			continue
		}
		if how == keepNone {
			continue
		}
		for at := 0; at < len(e.data); at += sector {
			if dice.IntN(2) == 0 {
				copy(out[e.off+int64(at):], e.data[at:min(at+sector, len(e.data))])
			}
		}
	}
	return out
}

// notes returns the remarks made before the first n events ended.
func notes(log []event, n int) map[string]bool {
	out := map[string]bool{}
	for _, e := range log[:n] {
		if e.note != "" {
			out[e.note] = true
		}
	}
	return out
}

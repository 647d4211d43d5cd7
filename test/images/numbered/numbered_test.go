package numbered

import (
	"bytes"
	"testing"
)

func text(from, to uint64) (out []byte) {
	for i := from; i < to; i++ {
		out = Append(out, i)
	}
	return out
}

func TestChecker(t *testing.T) {
	good := text(0, 500)
	second := len(text(0, 1))
	for name, tc := range map[string]struct {
		c    *Checker
		in   []byte
		bad  bool
		next uint64
	}{
		"whole":        {From(0), good, false, 500},
		"from later":   {From(200), text(200, 300), false, 300},
		"from inside":  {Inside(), good[3:], false, 500},
		"lost line":    {From(0), append(text(0, 9), text(10, 20)...), true, 9},
		"doubled line": {From(0), append(text(0, 9), text(8, 20)...), true, 9},
		"lost byte":    {From(0), append(bytes.Clone(good[:second+20]), good[second+21:]...), true, 1},
		"doubled byte": {From(0), append(bytes.Clone(good[:second+20]), good[second+19:]...), true, 1},
		"lost inside":  {Inside(), append(text(0, 9), text(10, 20)...), true, 9},
	} {
		for _, step := range []int{1, 7, 4096, len(tc.in)} {
			c := *tc.c
			for in := tc.in; len(in) > 0; {
				n := min(step, len(in))
				c.Write(in[:n])
				in = in[n:]
			}
			if (c.Err() != nil) != tc.bad || c.Next() != tc.next {
				t.Errorf("%s, %d bytes a time: next %d, %v", name, step, c.Next(), c.Err())
			}
		}
	}
	c := From(0)
	c.Write(append(text(0, 3), "tail"...))
	if c.Err() != nil || string(c.Rest()) != "tail" || c.Lines != 3 {
		t.Error(c.Err(), c.Rest(), c.Lines)
	}
	split := 0
	for i := range uint64(500) {
		if len(Append(nil, i)) > 16<<10 {
			split++
		}
	}
	if split == 0 {
		t.Error("no line is long enough to be split")
	}
}

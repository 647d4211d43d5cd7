package crilog

import (
	"bytes"
	"strings"
	"testing"
	"time"
)

var stamp = AppendStamp(nil, time.Date(2026, 1, 2, 3, 4, 5, 600, time.FixedZone("x", 3600)))

func TestStamp(t *testing.T) {
	if string(stamp) != "2026-01-02T02:04:05.000000600Z" {
		t.Errorf("%s", stamp)
	}
	if _, err := time.Parse(time.RFC3339Nano, string(stamp)); err != nil {
		t.Error(err)
	}
}

func TestAppend(t *testing.T) {
	for _, tc := range []struct {
		name string
		in   []string // "" flushes
		want string   // without stamps
	}{
		{"line", []string{"hello\n"}, "F hello\n"},
		{"two lines, one read", []string{"a\nb\n"}, "F a\nF b\n"},
		{"one line, two reads", []string{"ab", "cd\n"}, "F abcd\n"},
		{"empty line", []string{"\n\n"}, "F \nF \n"},
		{"exactly the limit", []string{"12345678\n"}, "F 12345678\n"},
		{"limit, then newline", []string{"12345678", "\n"}, "F 12345678\n"},
		{"one more", []string{"123456789\n"}, "P 12345678\nF 9\n"},
		{"long", []string{strings.Repeat("x", 20) + "\n"}, "P xxxxxxxx\nP xxxxxxxx\nF xxxx\n"},
		{"long in bits", []string{"xxxxx", "yyyyy", "z\n"}, "P xxxxxyyy\nF yyz\n"},
		{"no newline at the end", []string{"tail", ""}, "F tail\n"},
		{"nothing at the end", []string{"a\n", ""}, "F a\n"},
		{"binary", []string{"\x00\xff\r\x1b\n"}, "F \x00\xff\r\x1b\n"},
		{"held", []string{"12345678"}, ""},
	} {
		f := NewFramer(Stdout, 8)
		var out []byte
		for _, s := range tc.in {
			if s == "" {
				out = f.Flush(out, stamp)
				continue
			}
			out = f.Append(out, stamp, []byte(s))
		}
		got := strings.ReplaceAll(string(out), string(stamp)+" stdout ", "")
		if got != tc.want {
			t.Errorf("%s: %q, want %q", tc.name, got, tc.want)
		}
	}
}

func TestWhole(t *testing.T) {
	for n, want := range []int{0, 0, 0, 3, 3, 3, 6} {
		if got := Whole([]byte("ab\ncd\n"), n); got != want {
			t.Errorf("%d: %d, want %d", n, got, want)
		}
	}
}

// FuzzFramer checks that the content comes back whole however it was cut.
func FuzzFramer(f *testing.F) {
	f.Add([]byte("a\nbb\n\nccc"), 3, 2)
	f.Add([]byte("\x00\n\n"), 1, 1)
	f.Fuzz(func(t *testing.T, data []byte, limit, cut int) {
		if limit < 1 || limit > 1<<16 || cut < 1 {
			return
		}
		fr := NewFramer(Stderr, limit)
		var out []byte
		for rest := data; len(rest) > 0; {
			n := min(cut, len(rest))
			out = fr.Append(out, stamp, rest[:n])
			rest = rest[n:]
		}
		out = fr.Flush(out, stamp)
		prefix := string(stamp) + " stderr "
		var back []byte
		for _, l := range bytes.SplitAfter(out, []byte("\n")) {
			if len(l) == 0 {
				continue
			}
			s, ok := strings.CutPrefix(string(l), prefix)
			if !ok || len(s) < 3 || len(s)-3 > limit {
				t.Fatalf("record %q", l)
			}
			back = append(back, s[2:len(s)-1]...)
			if s[0] == 'F' {
				back = append(back, '\n')
			}
		}
		want := data
		if len(want) > 0 && want[len(want)-1] != '\n' {
			want = append(bytes.Clone(want), '\n')
		}
		if !bytes.Equal(back, want) {
			t.Fatalf("%q came back as %q", want, back)
		}
	})
}

func BenchmarkFramer(b *testing.B) {
	data := bytes.Repeat([]byte(strings.Repeat("x", 99)+"\n"), 640)
	f := NewFramer(Stdout, 0)
	dst := make([]byte, 0, 1<<18)
	b.SetBytes(int64(len(data)))
	b.ReportAllocs()
	for b.Loop() {
		dst = f.Append(dst[:0], stamp, data)
	}
}

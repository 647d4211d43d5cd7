package sandbox

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

const netDev = `Inter-|   Receive                                                |  Transmit
 face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed
    lo:     100       2    0    0    0     0          0         0      100       2    0    0    0     0       0          0
  net1: 18446744073709551615 5 6 7 0 0 0 0 8 9 10 11 0 0 0 0
  eth0:    1234      12    1    2    0     0          0         3     5678      34    4    5    0     0       0          0
 short: 1 2 3
  junk: a b c d e f g h i j k l m n o p
`

func TestParseNetDev(t *testing.T) {
	want := []Interface{
		{"eth0", Traffic{1234, 12, 1, 2}, Traffic{5678, 34, 4, 5}},
		{"net1", Traffic{1<<64 - 1, 5, 6, 7}, Traffic{8, 9, 10, 11}},
	}
	if d := cmp.Diff(want, parseNetDev(netDev)); d != "" {
		t.Error(d)
	}
	if got := parseNetDev(""); got != nil {
		t.Error(got)
	}
}

func FuzzParseNetDev(f *testing.F) {
	f.Add(netDev)
	f.Add(":::\n")
	f.Fuzz(func(t *testing.T, text string) {
		for _, in := range parseNetDev(text) {
			if in.Name == "" || in.Name == "lo" || strings.TrimSpace(in.Name) != in.Name {
				t.Errorf("name %q", in.Name)
			}
		}
	})
}

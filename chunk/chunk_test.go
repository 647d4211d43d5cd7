package chunk

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

func TestSend(t *testing.T) {
	sized := func(sizes ...int) (all []*wrapperspb.StringValue) {
		for _, n := range sizes {
			all = append(all, wrapperspb.String(strings.Repeat("x", n)))
		}
		return all
	}
	for name, tt := range map[string]struct {
		sizes []int
		want  []int // items of each part
	}{
		"none":               {nil, nil},
		"one":                {[]int{3}, []int{1}},
		"empty ones":         {make([]int, 2*Items+1), []int{Items, Items, 1}},
		"a full part":        {make([]int, Items), []int{Items}},
		"by bytes":           {[]int{Bytes / 2, Bytes / 3, Bytes / 3, 1}, []int{2, 2}},
		"one is too large":   {[]int{1, 2 * Bytes, 1}, []int{1, 1, 1}},
		"the first is large": {[]int{2 * Bytes, 1, 1}, []int{1, 2}},
	} {
		t.Run(name, func(t *testing.T) {
			all := sized(tt.sizes...)
			var got []int
			var flat []*wrapperspb.StringValue
			if err := Send(slices.Values(all), func(part []*wrapperspb.StringValue) error {
				got, flat = append(got, len(part)), append(flat, part...)
				return nil
			}); err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(tt.want, got); d != "" || !slices.Equal(all, flat) {
				t.Errorf("parts:\n%s\n%d of %d items", d, len(flat), len(all))
			}
		})
	}
}

func TestSendStops(t *testing.T) {
	gone, taken := errors.New("client has gone"), 0
	err := Send(func(yield func(*wrapperspb.StringValue) bool) {
		for range 10 * Items {
			if taken++; !yield(wrapperspb.String("")) {
				return
			}
		}
	}, func([]*wrapperspb.StringValue) error { return gone })
	if !errors.Is(err, gone) || taken != Items+1 {
		t.Errorf("%d items taken, %v", taken, err)
	}
}

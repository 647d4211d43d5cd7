package bench

import (
	"bytes"
	_ "embed"
	"fmt"
	"html/template"
	"math"
	"slices"
	"strings"

	"github.com/berth-dev/berth/cmd/berthctl/cli"
)

//go:embed report.html
var page string

// chart is horizontal bars in groups, each group with a bar for each result.
type chart struct {
	Title  string
	Groups []group
}

type group struct {
	name string
	bars []bar
}

// bar is a value, how far its 99th percentile reaches, and where the floor is;
// the latter two are left out when they are 0.
type bar struct {
	value, p99, floor float64
	known             bool
}

// Sizes of a drawing, in its own units.
const (
	left, right = 210.0, 90.0 // room for names and numbers
	plotWidth   = 560.0
	barHeight   = 14.0
	gap         = 8.0 // between groups
)

// shape is one element of a drawing.
type shape struct {
	Kind           string // name, bar, whisker, floor or number
	X, Y, W, H     float64
	Series         int
	Text           string
	X2, MidY, EndY float64
}

// Width and Height are the size of the drawing.
func (c chart) Width() float64 { return left + plotWidth + right }

// Height depends on the number of bars.
func (c chart) Height() (h float64) {
	for _, g := range c.Groups {
		h += barHeight*float64(len(g.bars)) + gap
	}
	return h + gap
}

// Shapes places everything. The longest bar or whisker fills the width.
func (c chart) Shapes() (out []shape) {
	most := 0.0
	for _, g := range c.Groups {
		for _, b := range g.bars {
			most = max(most, b.value, b.p99, b.floor)
		}
	}
	if most == 0 {
		most = 1
	}
	at := func(v float64) float64 { return math.Round(10*max(v, 0)/most*plotWidth) / 10 }
	y := gap
	for _, g := range c.Groups {
		out = append(out, shape{Kind: "name", X: left - 8, Y: y + barHeight*float64(len(g.bars))/2 + 4, Text: g.name})
		for i, b := range g.bars {
			s := shape{X: left, Y: y, H: barHeight - 2, W: at(b.value), Series: i % 6, MidY: y + barHeight/2 - 1, EndY: y + barHeight - 2}
			y += barHeight
			if !b.known {
				continue
			}
			s.Kind = "bar"
			out = append(out, s)
			if b.p99 > b.value {
				s.Kind, s.X, s.X2 = "whisker", left+at(b.value), left+at(b.p99)
				out = append(out, s)
			}
			if b.floor > 0 {
				s.Kind, s.X = "floor", left+at(b.floor)
				out = append(out, s)
			}
			s.Kind, s.Text = "number", number(b.value, true)
			s.X, s.Y = left+at(max(b.value, b.p99))+6, s.EndY-1
			out = append(out, s)
		}
		y += gap
	}
	return out
}

// charts are one for each concurrency, and those of what is not about calls.
func charts(all []Result) (out []chart) {
	for _, at := range concurrencies(all) {
		var slow, fast chart
		for i, name := range names() {
			c := &fast
			if i < slices.Index(names(), "ListPodSandbox") {
				c = &slow
			}
			g := group{name: name}
			for _, r := range all {
				s, ok := call(r, at, name)
				g.bars = append(g.bars, bar{value: s.P50, p99: s.P99, floor: floorP50(r, at, name), known: ok})
			}
			if slices.ContainsFunc(g.bars, func(b bar) bool { return b.known }) {
				c.Groups = append(c.Groups, g)
			}
		}
		slow.Title = fmt.Sprintf("Pods and commands, %d at once: milliseconds, median; the thin line ends at the 99th percentile, the mark is the OCI runtime alone", at)
		fast.Title = fmt.Sprintf("Lists and states, %d at once: milliseconds", at)
		out = append(out, slow, fast)
	}
	for _, kind := range []struct{ title, prefix string }{
		{"Pods in a second", "pods "}, {"CPU time: milliseconds", "CPU ms"}, {"Memory: MiB", "MiB"}, {"CPU at rest: percent", "%"},
		{"Start, pulls and the machine: milliseconds", "ms of "}, {"Restart: milliseconds", "ms from"},
	} {
		out = append(out, figureChart(all, kind.title, kind.prefix))
	}
	return slices.DeleteFunc(out, func(c chart) bool { return len(c.Groups) == 0 })
}

func floorP50(r Result, at int, name string) float64 {
	for _, round := range r.Rounds {
		if round.Concurrency == at {
			return round.Floor[floorOf(name)].P50
		}
	}
	return 0
}

// figureChart draws the figures whose names begin so. A floor's figure follows
// the one it belongs to, and becomes its mark.
func figureChart(all []Result, title, prefix string) chart {
	c := chart{Title: title}
	place := map[string]int{}
	for i, r := range all {
		above := -1
		for _, f := range figures(r) {
			if strings.HasPrefix(f.name, " ") {
				if above >= 0 {
					c.Groups[above].bars[i].floor = f.value
				}
				continue
			}
			if above = -1; !strings.HasPrefix(f.name, prefix) {
				continue
			}
			n, found := place[f.name]
			if !found {
				n = len(c.Groups)
				place[f.name] = n
				c.Groups = append(c.Groups, group{name: f.name, bars: make([]bar, len(all))})
			}
			c.Groups[n].bars[i] = bar{value: f.value, known: true}
			above = n
		}
	}
	return c
}

// report is a page that needs nothing from anywhere else.
func report(all []Result) ([]byte, error) {
	t, err := template.New("report").Parse(page)
	if err != nil {
		return nil, err
	}
	type run struct {
		Series        int
		Name, Version string
		Result
		Line string
	}
	var runs []run
	for i, name := range labels(all) {
		runs = append(runs, run{Series: i % 6, Name: name, Version: all[i].Runtime.Version, Result: all[i], Line: strings.Join(all[i].Command, " ")})
	}
	var out bytes.Buffer
	err = t.Execute(&out, struct {
		Runs   []run
		Charts []chart
		Tables []cli.Table
		Heads  [][]string
	}{runs, charts(all), []cli.Table{callTable(all), figureTable(all)}, [][]string{strings.Fields(callTable(all).Header), strings.Fields(figureTable(all).Header)}})
	return out.Bytes(), err
}

package bench

import (
	"math"
	"slices"
	"sync"
	"time"
)

// Stats sums up what a call took, in milliseconds.
type Stats struct {
	Count   int       `json:"count"`
	Mean    float64   `json:"mean"`
	Min     float64   `json:"min"`
	P50     float64   `json:"p50"`
	P90     float64   `json:"p90"`
	P99     float64   `json:"p99"`
	Max     float64   `json:"max"`
	Samples []float64 `json:"samples"` // sorted
}

// summarize makes Stats of durations, which it does not change. Of none all
// figures are 0.
func summarize(all []time.Duration) Stats {
	s := Stats{Count: len(all), Samples: make([]float64, len(all))}
	if s.Count == 0 {
		return s
	}
	var sum float64
	for i, d := range all {
		s.Samples[i] = millis(d)
		sum += s.Samples[i]
	}
	slices.Sort(s.Samples)
	s.Mean = round3(sum / float64(s.Count))
	s.Min, s.Max = s.Samples[0], s.Samples[s.Count-1]
	s.P50, s.P90, s.P99 = percentile(s.Samples, 50), percentile(s.Samples, 90), percentile(s.Samples, 99)
	return s
}

// percentile is the smallest value that at least p percent of the sorted
// values do not exceed (nearest rank), so it is always one that was measured.
func percentile(sorted []float64, p float64) float64 {
	if len(sorted) == 0 {
		return 0
	}
	rank := int(math.Ceil(p / 100 * float64(len(sorted))))
	return sorted[min(max(rank, 1), len(sorted))-1]
}

// slope is by how much y changes in one x, over the line of least squares.
func slope(x, y []float64) float64 {
	n := float64(len(x))
	var sx, sy, sxx, sxy float64
	for i := range x {
		sx, sy, sxx, sxy = sx+x[i], sy+y[i], sxx+x[i]*x[i], sxy+x[i]*y[i]
	}
	d := n*sxx - sx*sx
	if d == 0 {
		return 0
	}
	return (n*sxy - sx*sy) / d
}

func millis(d time.Duration) float64 { return round3(float64(d) / float64(time.Millisecond)) }

func round3(f float64) float64 { return math.Round(f*1000) / 1000 }

// recorder gathers what calls took, by their names. Any goroutine may add.
type recorder struct {
	mu  sync.Mutex
	all map[string][]time.Duration
}

// time runs f and records what it took, unless it fails.
func (r *recorder) time(name string, f func() error) error {
	begun := time.Now()
	if err := f(); err != nil {
		return err
	}
	r.add(name, time.Since(begun))
	return nil
}

func (r *recorder) add(name string, d time.Duration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.all == nil {
		r.all = map[string][]time.Duration{}
	}
	r.all[name] = append(r.all[name], d)
}

func (r *recorder) stats() map[string]Stats {
	r.mu.Lock()
	defer r.mu.Unlock()
	out := map[string]Stats{}
	for name, all := range r.all {
		out[name] = summarize(all)
	}
	return out
}

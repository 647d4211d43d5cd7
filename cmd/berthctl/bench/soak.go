package bench

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/berth-dev/berth/cri/admin"
)

// soak makes and removes waves of pods for as long as the plan says, and looks
// at the daemon between them.
func (b *bench) soak(ctx context.Context) (*Soak, error) {
	s := &Soak{}
	begun := time.Now()
	b.say("waves of %d pods for %v", b.plan.Pods, b.local.Soak)
	for at := time.Duration(0); at < b.local.Soak; at = time.Since(begun) {
		pods := make([]livePod, b.plan.Pods)
		workers := b.plan.Concurrency[0]
		_, err := spread(ctx, len(pods), workers, func(ctx context.Context, i int) (err error) {
			if pods[i], err = b.up(ctx, &recorder{}); err != nil {
				return err
			}
			for range b.plan.Execs {
				if err := b.exec(ctx, &recorder{}, pods[i]); err != nil {
					return err
				}
			}
			return b.down(ctx, &recorder{}, pods[i])
		})
		if err != nil {
			return nil, err
		}
		s.Pods += len(pods)
		if err := b.settle(ctx); err != nil {
			return nil, err
		}
		sample, err := b.sample(ctx)
		if err != nil {
			return nil, err
		}
		sample.Second = round3(time.Since(begun).Seconds())
		s.Samples = append(s.Samples, sample)
	}
	s.Seconds = round3(time.Since(begun).Seconds())
	return s, nil
}

func (b *bench) sample(ctx context.Context) (Sample, error) {
	dir := filepath.Join(procRoot, strconv.Itoa(b.daemon))
	fds, err := os.ReadDir(filepath.Join(dir, "fd"))
	if err != nil {
		return Sample{}, failed("look at the daemon: %w", err)
	}
	threads, err := os.ReadDir(filepath.Join(dir, "task"))
	if err != nil {
		return Sample{}, failed("look at the daemon: %w", err)
	}
	return Sample{PSS: pss(procRoot, b.daemon), Descriptors: len(fds), Threads: len(threads), Goroutines: b.goroutines(ctx)}, nil
}

// goroutines asks Berth's admin socket; of other runtimes they are not known.
func (b *bench) goroutines(ctx context.Context) int {
	if b.admin == nil {
		return 0
	}
	r, err := b.admin.Metrics(ctx, &admin.MetricsRequest{})
	if err != nil {
		return 0
	}
	return gauge(string(r.GetText()), "go_goroutines")
}

// gauge is the value of a metric without labels; 0 when there is none.
func gauge(text, name string) int {
	for line := range strings.Lines(text) {
		var n int
		if _, err := fmt.Sscanf(line, name+" %d", &n); err == nil {
			return n
		}
	}
	return 0
}

// drift is how a figure of the samples changes: first, last, and by how much
// in an hour over the line through all. The first wave warms up and does not
// count where there are others.
func (s Soak) drift(of func(Sample) float64) (first, last, perHour float64) {
	samples := s.Samples
	if len(samples) > 2 {
		samples = samples[1:]
	}
	if len(samples) == 0 {
		return 0, 0, 0
	}
	var x, y []float64
	for _, k := range samples {
		x, y = append(x, k.Second/3600), append(y, of(k))
	}
	return y[0], y[len(y)-1], slope(x, y)
}

// Command pullbench measures a pull with its unpacking, from a registry on
// loopback, against the floor `curl | gzip -dc | tar x` two layers at a time,
// and against containerd and CRI-O when their programs are given. All in one
// run, on one image that it makes itself (about 1 GB packed, 11 layers).
//
//	go run ./test/pullbench -bin bin -containerd DIR -crio DIR -rounds 3
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/berth-dev/berth/test/harness"
	"github.com/berth-dev/berth/test/peers"
)

// bench is one run of the program.
type bench struct {
	dir      string // image and scratch
	bin      string
	ctrd     string
	crio     string
	toml     string
	img      image
	place    *peers.Place
	space    *harness.Space
	addr     string
	programs harness.Programs
}

// figure is one measured pull.
type figure struct {
	Who     string
	Wall    time.Duration
	CPU     time.Duration // of the client and its children
	PeakMiB float64       // most resident memory of the daemon
	AnonMiB float64       // most anonymous memory of the daemon, sampled
	Note    string
}

func main() {
	b := &bench{}
	flag.StringVar(&b.bin, "bin", "bin", "directory of berthd, berth-shim, runc and cni/")
	flag.StringVar(&b.ctrd, "containerd", "", "directory of containerd; empty: leave it out")
	flag.StringVar(&b.crio, "crio", "", "directory of crio, conmon and pinns; empty: leave it out")
	flag.StringVar(&b.dir, "dir", "/var/tmp/pullbench", "scratch directory; the image stays there for the next run")
	flag.StringVar(&b.toml, "config", "", "configuration file of berthd, for trials")
	rounds := flag.Int("rounds", 1, "times each is measured, in turn; the medians are printed")
	scale := flag.Float64("scale", 1, "size of the image; 1 is about 1 GB packed")
	only := flag.String("only", "floor,berth,creates,containerd,cri-o", "what to measure")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := b.run(ctx, *rounds, *scale, strings.Split(*only, ",")); err != nil {
		fmt.Fprintln(os.Stderr, "pullbench:", err)
		os.Exit(1)
	}
}

func (b *bench) run(ctx context.Context, rounds int, scale float64, only []string) (err error) {
	if b.programs, err = harness.Find(b.bin); err != nil {
		return err
	}
	if missing := b.programs.Missing(true); len(missing) > 0 {
		return fmt.Errorf("this machine lacks:\n  - %s", strings.Join(missing, "\n  - "))
	}
	if b.img, err = generate(b.dir, scale); err != nil {
		return err
	}
	fmt.Printf("image: %d layers, %d MB packed, %d MB unpacked\n", len(b.img.Layers), b.img.packed()/1e6, b.img.Plain/1e6)
	if b.place, err = peers.NewPlace(ctx, b.dir); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.place.Close()) }()
	if b.space, err = harness.NewSpace(); err != nil {
		return err
	}
	defer b.space.Close()
	l, err := harness.ListenIn(b.space.NetNS())()
	if err != nil {
		return err
	}
	b.addr = l.Addr().String()
	defer serveImage(l, filepath.Join(b.dir, fmt.Sprintf("image-%g", scale)), b.img).Close()
	got := map[string][]figure{}
	var order []string
	for range rounds {
		for _, c := range []struct {
			name, dir string // of the programs
			do        func(context.Context) (figure, error)
		}{{"floor", b.bin, b.floor}, {"berth", b.bin, b.over("berth", b.bin, peers.Berth)}, {"creates", b.bin, b.creates},
			{"containerd", b.ctrd, b.over("containerd", b.ctrd, peers.Containerd)}, {"cri-o", b.crio, b.over("cri-o", b.crio, peers.CRIO)}} {
			if !slices.Contains(only, c.name) || c.dir == "" {
				continue
			}
			dropCaches()
			f, err := c.do(ctx)
			if err != nil {
				return fmt.Errorf("%s: %w", c.name, err)
			}
			f.print()
			if got[f.Who] == nil {
				order = append(order, f.Who)
			}
			got[f.Who] = append(got[f.Who], f)
		}
	}
	fmt.Println("medians:")
	for _, who := range order {
		m := median(got[who])
		if floor := got["floor"]; floor != nil {
			m.Note = strings.TrimSuffix(fmt.Sprintf("%.2f times the floor's clock; %s", m.Wall.Seconds()/median(floor).Wall.Seconds(), m.Note), "; ")
		}
		m.print()
	}
	return nil
}

func (f figure) print() {
	fmt.Printf("%-22s wall %6.1f s  cpu %6.1f s  peak %5.0f MiB (anonymous %4.0f)  %s\n", f.Who, f.Wall.Seconds(), f.CPU.Seconds(), f.PeakMiB, f.AnonMiB, f.Note)
}

// median takes the median of each figure by itself.
func median(all []figure) figure {
	m := all[len(all)/2]
	pick := func(value func(figure) float64) float64 {
		var v []float64
		for _, f := range all {
			v = append(v, value(f))
		}
		slices.Sort(v)
		return v[len(v)/2]
	}
	m.Wall = time.Duration(pick(func(f figure) float64 { return float64(f.Wall) }))
	m.CPU = time.Duration(pick(func(f figure) float64 { return float64(f.CPU) }))
	m.PeakMiB = pick(func(f figure) float64 { return f.PeakMiB })
	m.AnonMiB = pick(func(f figure) float64 { return f.AnonMiB })
	return m
}

// dropCaches writes back what the run before left, so that it is not billed to
// this one. Clean pages stay: the registry serves from memory for everybody.
func dropCaches() { syscall.Sync() }

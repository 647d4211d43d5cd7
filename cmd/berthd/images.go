package main

import (
	"context"
	"fmt"
	"os/exec"
	"sync"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-dev/berth/config"
	"github.com/berth-dev/berth/cri"
	"github.com/berth-dev/berth/cri/admin"
	"github.com/berth-dev/berth/imageservice"
	"github.com/berth-dev/berth/imageservice/registry"
	"github.com/berth-dev/berth/imageservice/signature"
)

// imageSettings translates what a reload may change about images.
func imageSettings(c config.Image) imageservice.Settings {
	return imageservice.Settings{
		HostsDirs: c.RegistryDirs, AuthFiles: c.AuthFiles, Gzip: gzipProgram(c), Pinned: c.Pinned, Pull: pullLimits(c),
	}
}

func pullLimits(c config.Image) imageservice.PullLimits {
	return imageservice.PullLimits{
		Downloads: c.MaxDownloads, Connections: c.MaxConnections, PerBlob: c.LayerConnections,
		Unpacks: c.UnpackWorkers, Rate: int64(c.MaxBandwidth),
		Host: registry.Limits{
			Connect: time.Duration(c.ConnectTimeout), FirstByte: time.Duration(c.FirstByteTimeout),
			Stall: time.Duration(c.PullTimeout), MinRate: int64(c.MinRate),
		},
	}
}

// gzipProgram finds the program that unpacks large gzip layers; "" for our own code.
func gzipProgram(c config.Image) string {
	if c.Gzip != "auto" {
		return ""
	}
	path, err := exec.LookPath("igzip")
	if err != nil {
		return ""
	}
	return path
}

// handlerPlatforms are the platforms of runtime handlers, pods that name none included.
func handlerPlatforms(c config.Runtime) map[string]string {
	out := map[string]string{"": c.Handlers[c.Default].Platform}
	for name, h := range c.Handlers {
		out[name] = h.Platform
	}
	return out
}

// signatures reads the signature policy and tries whether it can be enforced;
// nil when it is off.
func signatures(c config.Signatures) (*signature.Policy, error) {
	out := signature.Config{Reject: c.Default == "reject", Timeout: time.Duration(c.Timeout), Rules: map[string]signature.Rule{}}
	for prefix, r := range c.Rules {
		out.Rules[prefix] = signature.Rule{
			Keys: r.Keys, TrustedRoot: r.TrustedRoot, Issuer: r.Issuer, Identities: r.Identities, Unsigned: r.Unsigned,
		}
	}
	program, missing := findProgram("berth-verify")
	out.Program = program
	policy, err := signature.Load(out)
	if err != nil || policy == nil {
		return nil, err
	}
	if missing != nil {
		return nil, fmt.Errorf("image.signatures: berth-verify is neither beside berthd nor in PATH; install it: %w", missing)
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Duration(c.Timeout))
	defer cancel()
	return policy, policy.Try(ctx)
}

// progressPause is how often a watcher hears of a pull.
const progressPause = 200 * time.Millisecond

// PullImage pulls an image for the admin API.
func (n *node) PullImage(ctx context.Context, r *admin.PullImageRequest, send func(*admin.PullImageEvent) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	ref, err := imageservice.ParseRef(r.GetImage())
	if err != nil {
		return cri.Status(err)
	}
	var tried attempts
	req := &runtimeapi.PullImageRequest{Image: &runtimeapi.ImageSpec{Image: r.GetImage(), RuntimeHandler: r.GetRuntimeHandler()}}
	if r.GetUsername() != "" || r.GetPassword() != "" {
		req.Auth = &runtimeapi.AuthConfig{Username: r.GetUsername(), Password: r.GetPassword()}
	}
	type result struct {
		ref string
		err error
	}
	done := make(chan result, 1)
	go func() {
		got, err := n.images.PullImage(imageservice.WithTrace(ctx, tried.add), req)
		done <- result{got.GetImageRef(), err}
	}()
	tick := time.NewTicker(progressPause)
	defer tick.Stop()
	var speed speeds
	for {
		var end *result
		select {
		case res := <-done:
			end = &res
		case <-tick.C:
		}
		ev := &admin.PullImageEvent{Attempts: tried.take()}
		for _, p := range n.images.Pulls() {
			if p.Ref == ref.String() {
				ev.Progress = speed.message(p, time.Now())
			}
		}
		if end != nil {
			ev.ImageRef = end.ref
		}
		if err := send(ev); err != nil {
			return err
		}
		if end != nil {
			return cri.Status(end.err)
		}
	}
}

// WatchPulls tells the admin API of all pulls.
func (n *node) WatchPulls(ctx context.Context, send func(*admin.WatchPullsResponse) error) error {
	tick := time.NewTicker(progressPause)
	defer tick.Stop()
	var speed speeds
	for {
		r := &admin.WatchPullsResponse{}
		for _, p := range n.images.Pulls() {
			r.Pulls = append(r.Pulls, speed.message(p, time.Now()))
		}
		if err := send(r); err != nil {
			return err
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return cri.Status(context.Cause(ctx))
		}
	}
}

// attempts collects the hosts that were tried.
type attempts struct {
	mu  sync.Mutex
	all []*admin.PullAttempt
}

func (a *attempts) add(t registry.Attempt) {
	m := &admin.PullAttempt{Host: t.Host, Object: t.Object, Credentials: t.Credentials, Took: int64(t.Took)}
	if t.Err != nil {
		m.Error = t.Err.Error()
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.all = append(a.all, m)
}

func (a *attempts) take() []*admin.PullAttempt {
	a.mu.Lock()
	defer a.mu.Unlock()
	all := a.all
	a.all = nil
	return all
}

// speeds remembers what a watcher saw a moment ago.
type speeds map[string]seen

type seen struct {
	at   time.Time
	have int64
	rate int64
}

func (s *speeds) message(p imageservice.PullProgress, now time.Time) *admin.PullProgress {
	if *s == nil {
		*s = speeds{}
	}
	m := &admin.PullProgress{Image: p.Ref, StartedAt: p.Started.UnixNano()}
	for _, l := range p.Layers {
		key := p.Ref + " " + l.Digest.String()
		old, known := (*s)[key]
		if span := now.Sub(old.at); !known {
			old = seen{at: now, have: l.Have}
		} else if span >= time.Second || l.Phase != imageservice.PhaseDownload {
			old = seen{at: now, have: l.Have, rate: int64(float64(l.Have-old.have) / max(span.Seconds(), 0.001))}
		}
		(*s)[key] = old
		lm := &admin.LayerProgress{Digest: l.Digest.String(), Size: l.Size, Have: l.Have, Unpacked: l.Plain, Phase: l.Phase}
		if l.Phase == imageservice.PhaseDownload {
			lm.BytesPerSecond = max(old.rate, 0)
		}
		m.Layers = append(m.Layers, lm)
	}
	return m
}

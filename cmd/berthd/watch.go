package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"time"

	"google.golang.org/grpc"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-dev/berth/config"
	"github.com/berth-dev/berth/cri/unixsock"
	"github.com/berth-dev/berth/observe"
	"github.com/berth-dev/berth/observe/metrics"
	"github.com/berth-dev/berth/observe/timeline"
	"github.com/berth-dev/berth/observe/tracing"
	"github.com/berth-dev/berth/store"
)

// watch is what the daemon is watched with.
type watch struct {
	observer observe.Observer
	metrics  *metrics.Metrics
	timeline *timeline.Recorder
	traces   *tracing.Tracer // nil: off
	listener net.Listener    // for metrics; nil: none
	http     *http.Server
}

func (p *parts) buildWatch(c config.Config, _ *slog.Logger) (err error) {
	w := &watch{timeline: timeline.New(timeline.Config{Pods: c.Explain.Pods, PodOf: p.podOf, NameOf: p.nameOf})}
	p.watch = w
	if w.metrics, err = metrics.New(metrics.Config{Version: config.Version, Figures: p.figures(c.Paths.Root)}); err != nil {
		return err
	}
	all := []observe.Observer{w.metrics, w.timeline}
	if c.Tracing.Endpoint != "" {
		w.traces, err = tracing.New(context.Background(), tracing.Config{
			Endpoint: c.Tracing.Endpoint, TLS: c.Tracing.TLS, Percent: c.Tracing.Percent, Version: config.Version,
		})
		if err != nil {
			return err
		}
		all = append(all, w.traces)
	}
	w.observer = observe.Join(all...)
	return w.listen(c.Metrics.Address)
}

// listen takes the address for metrics, so that one that is taken fails the start.
func (w *watch) listen(address string) (err error) {
	if address == "" {
		return nil
	}
	if path, unix := strings.CutPrefix(address, "unix://"); unix {
		w.listener, err = unixsock.Listen(path, 0o660)
	} else {
		w.listener, err = net.Listen("tcp", address)
	}
	if err != nil {
		return fmt.Errorf("listen for metrics (metrics.address): %w", err)
	}
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", w.metrics.Handler())
	w.http = &http.Server{Handler: mux, ReadHeaderTimeout: 10 * time.Second, WriteTimeout: time.Minute, MaxHeaderBytes: 16 << 10}
	return nil
}

// serve answers until close.
func (w *watch) serve() error {
	if w.http == nil {
		return nil
	}
	if err := w.http.Serve(w.listener); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve metrics: %w", err)
	}
	return nil
}

func (w *watch) close(ctx context.Context) error {
	var errs []error
	if w.http != nil {
		errs = append(errs, w.http.Close(), ignoreClosed(w.listener.Close()))
	}
	if w.traces != nil {
		ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
		defer cancel()
		_ = w.traces.Close(ctx) // a receiver that is not there costs spans, and nothing else
	}
	return errors.Join(errs...)
}

// ignoreClosed: the server has closed it already, if it ever served.
func ignoreClosed(err error) error {
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}

// edgeOptions are what traces need of the gRPC server.
func (w *watch) edgeOptions() []grpc.ServerOption {
	if w.traces == nil {
		return nil
	}
	return []grpc.ServerOption{w.traces.ServerOption()}
}

// about says which pod and object a request is about. Only requests that change
// something count; the timeline of a pod is made of them.
func (p *parts) about(request any) (pod, object string) {
	switch r := request.(type) {
	case *runtimeapi.CreateContainerRequest:
		return p.fullPod(r.GetPodSandboxId()), ""
	case *runtimeapi.StopPodSandboxRequest:
		return p.fullPod(r.GetPodSandboxId()), ""
	case *runtimeapi.RemovePodSandboxRequest:
		return p.fullPod(r.GetPodSandboxId()), ""
	case *runtimeapi.PullImageRequest:
		if r.GetSandboxConfig().GetMetadata() != nil {
			s, _ := p.db.SandboxByName(store.SandboxName(store.Sandbox{Config: r.GetSandboxConfig()}))
			pod = s.ID
		}
		return pod, r.GetImage().GetImage()
	case *runtimeapi.StartContainerRequest:
		return p.podAndContainer(r.GetContainerId())
	case *runtimeapi.StopContainerRequest:
		return p.podAndContainer(r.GetContainerId())
	case *runtimeapi.RemoveContainerRequest:
		return p.podAndContainer(r.GetContainerId())
	case *runtimeapi.UpdateContainerResourcesRequest:
		return p.podAndContainer(r.GetContainerId())
	}
	return "", ""
}

func (p *parts) fullPod(id string) string {
	s, _ := p.db.Sandbox(id) // an error leaves the ID empty
	return s.ID
}

func (p *parts) podAndContainer(id string) (pod, container string) {
	c, _ := p.db.Container(id)
	return c.SandboxID, c.ID
}

// podOf finds the pod of work that does not name it.
func (p *parts) podOf(w observe.Work) string {
	switch {
	case w.Pod != "":
		return w.Pod
	case w.Kind == observe.Verb || w.Kind == observe.Recovery:
		if strings.HasPrefix(w.Name, "sandbox.") {
			return w.Object
		}
		if c, err := p.db.Container(w.Object); err == nil && c.ID == w.Object {
			return c.SandboxID
		}
	}
	return ""
}

func (p *parts) nameOf(pod string) (namespace, name string) {
	s, _ := p.db.Sandbox(pod)
	m := s.Config.GetMetadata()
	return m.GetNamespace(), m.GetName()
}

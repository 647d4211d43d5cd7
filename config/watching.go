package config

import (
	"net"
	"net/netip"
	"path"
	"strings"
)

// Watching are the sections about watching the daemon.
type Watching struct {
	Metrics Metrics `toml:"metrics" doc:"Metrics for Prometheus, over HTTP. docs/metrics.md lists them; berthctl metrics shows them without a listener."`
	Tracing Tracing `toml:"tracing" doc:"Traces for OpenTelemetry."`
	Explain Explain `toml:"explain" doc:"What berthctl explain remembers."`
}

// Metrics is the listener for Prometheus.
type Metrics struct {
	Address     string `toml:"address" doc:"Where GET /metrics is served: a loopback address with port, such as 127.0.0.1:9466, or unix:///PATH. Empty: nowhere."`
	AllowRemote bool   `toml:"allow_remote" doc:"Let address be reachable from elsewhere. Whoever reaches it learns what runs on the node; there is no login."`
}

// Tracing is the exporter of spans.
type Tracing struct {
	Endpoint string `toml:"endpoint" doc:"HOST:PORT of an OTLP receiver over gRPC. Empty: no traces."`
	TLS      bool   `toml:"tls" doc:"Speak TLS with the receiver, checked against the system's certificates."`
	Percent  int    `toml:"percent" doc:"Calls of a hundred that are traced when the client has not decided. A client that traces a call, as the kubelet can, is always followed."`
}

// Explain bounds what is remembered of pods.
type Explain struct {
	Pods int `toml:"pods" doc:"Pods whose starts and stops are remembered, the latest. 0: none."`
}

func defaultWatching() Watching {
	return Watching{Tracing: Tracing{Percent: 100}, Explain: Explain{Pods: 64}}
}

func (c Config) validateWatching(bad badFunc) {
	if a := c.Metrics.Address; a != "" {
		if reason := metricsAddress(a, c.Metrics.AllowRemote); reason != "" {
			bad("metrics.address", "%q %s", a, reason)
		}
	}
	if e := c.Tracing.Endpoint; e != "" {
		if host, port, err := net.SplitHostPort(e); err != nil || host == "" || port == "" || strings.Contains(e, "/") {
			bad("tracing.endpoint", "%q is not HOST:PORT, such as 127.0.0.1:4317", e)
		}
	}
	if p := c.Tracing.Percent; p < 0 || p > 100 {
		bad("tracing.percent", "%d is out of range; use 0 to 100", p)
	}
	if p := c.Explain.Pods; p < 0 || p > 10_000 {
		bad("explain.pods", "%d is out of range; use 0 to 10000", p)
	}
}

// metricsAddress says what is wrong with an address; "": nothing.
func metricsAddress(a string, remote bool) string {
	if p, unix := strings.CutPrefix(a, "unix://"); unix {
		if !path.IsAbs(p) {
			return "must be an absolute path behind unix://"
		}
		return ""
	}
	at, err := netip.ParseAddrPort(a)
	switch {
	case err != nil:
		return "is neither an IP address with port, such as 127.0.0.1:9466, nor unix:///PATH"
	case !at.Addr().IsLoopback() && !remote:
		return "is not a loopback address; set metrics.allow_remote if others may read the metrics"
	}
	return ""
}

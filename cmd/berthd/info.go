package main

import (
	"context"
	"os"
	"reflect"
	"slices"
	"strings"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-dev/berth/config"
	"github.com/berth-dev/berth/cri/admin"
)

var _ admin.Source = (*node)(nil)

// settings returns what is in force.
func (n *node) settings() settings {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.now
}

// Info describes the daemon for the admin API.
func (n *node) Info(ctx context.Context) (*admin.InfoResponse, error) {
	st := n.settings()
	status, err := n.runtime.Status(ctx, &runtimeapi.StatusRequest{})
	if err != nil {
		return nil, err
	}
	driver := "cgroupfs"
	if n.systemd {
		driver = "systemd"
	}
	return &admin.InfoResponse{
		Version: config.Version, Pid: int64(os.Getpid()), StartedAt: n.started.UnixNano(),
		ConfigSource: st.source, Root: st.cfg.Paths.Root, Run: st.cfg.Paths.Run,
		CgroupDriver: driver, StreamingUrl: n.streams.BaseURL(),
		Handlers: handlers(st.cfg, status.GetRuntimeHandlers()),
		Counts: &admin.Counts{
			Sandboxes: int64(len(n.db.Sandboxes())), Containers: int64(len(n.db.Containers())),
			Images: int64(len(n.db.Images())), Layers: int64(len(n.db.Layers())),
			Operations: int64(len(n.db.Ops())), DatabaseBytes: databaseSize(st.cfg.Paths.Root),
		},
	}, nil
}

// handlers joins the configuration with the features that the CRI reports.
func handlers(c config.Config, reported []*runtimeapi.RuntimeHandler) []*admin.Handler {
	features := map[string][]string{}
	for _, h := range reported {
		features[h.GetName()] = featureNames(h.GetFeatures())
	}
	var out []*admin.Handler
	for name := range c.Runtime.Handlers {
		out = append(out, &admin.Handler{
			Name: name, Default: name == c.Runtime.Default, Path: c.RuntimePath(name),
			Root: c.RuntimeRoot(name), Features: features[name],
		})
	}
	slices.SortFunc(out, func(a, b *admin.Handler) int { return strings.Compare(a.GetName(), b.GetName()) })
	return out
}

// featureNames lists the features that are on, by their protobuf names.
func featureNames(f *runtimeapi.RuntimeHandlerFeatures) []string {
	if f == nil {
		return nil
	}
	var names []string
	fields := f.ProtoReflect().Descriptor().Fields()
	for i := range fields.Len() {
		fd := fields.Get(i)
		if v := f.ProtoReflect().Get(fd); reflect.TypeOf(v.Interface()) == reflect.TypeFor[bool]() && v.Bool() {
			names = append(names, string(fd.Name()))
		}
	}
	return names
}

// Operations lists the unfinished journal entries for the admin API.
func (n *node) Operations() []*admin.Operation {
	var out []*admin.Operation
	for _, o := range n.db.Ops() {
		out = append(out, &admin.Operation{Id: o.ID, Kind: o.Kind, Subject: o.Subject, StartedAt: o.StartedAt.UnixNano()})
	}
	return out
}

// Config returns the configuration in force for the admin API.
func (n *node) Config() *admin.ConfigResponse {
	st := n.settings()
	return &admin.ConfigResponse{Toml: config.Dump(st.cfg), Source: st.source}
}

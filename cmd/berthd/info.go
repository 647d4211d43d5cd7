package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
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
	out := &admin.InfoResponse{
		Version: config.Version, Pid: int64(os.Getpid()), StartedAt: n.started.UnixNano(),
		ConfigSource: st.source, Root: st.cfg.Paths.Root, Run: st.cfg.Paths.Run,
		CgroupDriver: driver, StreamingUrl: n.streams.BaseURL(),
		Handlers: handlers(st.cfg, status.GetRuntimeHandlers()),
		Counts: &admin.Counts{
			Sandboxes: int64(len(n.db.Sandboxes())), Containers: int64(len(n.db.Containers())),
			Images: int64(len(n.db.Images())), Layers: int64(len(n.db.Layers())),
			Operations: int64(len(n.db.Ops())), DatabaseBytes: databaseSize(st.cfg.Paths.Root),
		},
		BuiltinPlugins: st.cfg.Network.Builtin, NriPlugins: int64(n.plugins.Connected()),
	}
	for _, s := range n.network.Status(ctx).Networks {
		file := s.File
		if file != "" {
			file = filepath.Join(s.Dir, file)
		}
		out.Networks = append(out.Networks, &admin.Network{Name: s.Network, File: file, Ready: s.Ready, Reason: s.Reason, Handlers: s.Handlers})
	}
	out.Storage, err = n.storage(ctx, st.cfg.Paths.Root)
	return out, err
}

// storage describes the file system that holds images and writable layers.
func (n *node) storage(ctx context.Context, root string) (*admin.Storage, error) {
	var fs unix.Statfs_t
	if err := unix.Statfs(root, &fs); err != nil {
		return nil, fmt.Errorf("look at the file system of %s: %w", root, err)
	}
	use, err := n.images.ImageFsInfo(ctx, &runtimeapi.ImageFsInfoRequest{})
	if err != nil {
		return nil, err
	}
	out := &admin.Storage{Driver: "overlayfs", SizeBytes: int64(fs.Blocks) * fs.Bsize, FreeBytes: int64(fs.Bavail) * fs.Bsize}
	for _, u := range use.GetImageFilesystems() {
		out.ImageBytes += int64(u.GetUsedBytes().GetValue())
	}
	if mounts, err := os.ReadFile("/proc/self/mountinfo"); err == nil {
		out.Filesystem = fileSystemOf(string(mounts), root)
	}
	return out, nil
}

// fileSystemOf is the type of the mount that a path is on. Pure.
func fileSystemOf(mountinfo, path string) (kind string) {
	longest := -1
	for line := range strings.Lines(mountinfo) {
		where, what, ok := strings.Cut(line, " - ")
		fields := strings.Fields(where)
		if !ok || len(fields) < 5 {
			continue
		}
		at := strings.TrimSuffix(strings.ReplaceAll(fields[4], `\040`, " "), "/")
		if (path == at || strings.HasPrefix(path, at+"/")) && len(at) >= longest { // of several the last is on top
			longest, kind = len(at), strings.Fields(what)[0]
		}
	}
	return kind
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

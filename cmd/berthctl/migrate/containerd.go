package migrate

import (
	"fmt"
	"maps"
	"slices"

	"github.com/containerd/errdefs"
)

// containerdPlugins are the plugins whose settings Berth has a use for, under the
// names that rules know them by: versions 2, 3 and 4 of the file divide them otherwise.
var containerdPlugins = map[string]string{
	"cri":                                      "cri",
	"io.containerd.grpc.v1.cri":                "cri",
	"io.containerd.cri.v1.runtime":             "cri",
	"io.containerd.cri.v1.images":              "cri",
	"io.containerd.metrics.v1.grpc-prometheus": "metrics",
	"io.containerd.nri.v1.nri":                 "nri",
	"io.containerd.server.v1.debug":            "debug",
	"io.containerd.server.v1.grpc":             "grpc",
	"io.containerd.server.v1.grpc-tcp":         "grpc-tcp",
	"io.containerd.server.v1.metrics":          "metrics",
	"io.containerd.server.v1.ttrpc":            "ttrpc",
	"io.containerd.tracing.processor.v1.otlp":  "otlp",
	"io.containerd.service.v1.tasks-service":   "tasks",
	"io.containerd.transfer.v1.local":          "transfer",
}

// runcV2 is the one shim of containerd that Berth stands in for.
const runcV2 = "io.containerd.runc.v2"

// mergeContainerd adds a file to what was read before it; doc is nil for the
// first. Each file has a version of its own, so plugins get their short names
// before they meet. Files that are imported need not name one.
func mergeContainerd(file string, doc, below map[string]any) (map[string]any, error) {
	v, named := below["version"].(int64)
	switch {
	case doc == nil && v < 2, named && v < 2:
		said := fmt.Sprintf("version %d", v)
		if !named {
			said = "without a version, which means version 1,"
		}
		return nil, fmt.Errorf("%s: %s of containerd's configuration is too old; make it newer with `containerd config migrate`: %w", file, said, errdefs.ErrInvalidArgument)
	case v > 4:
		return nil, fmt.Errorf("%s: version %d of containerd's configuration is newer than this berthctl: %w", file, v, errdefs.ErrNotImplemented)
	}
	plain, others := map[string]any{}, map[string]any{}
	for k, v := range below {
		if k != "plugins" && k != "version" {
			plain[k] = v
		}
	}
	plugins, _ := below["plugins"].(map[string]any)
	for _, name := range slices.Sorted(maps.Keys(plugins)) {
		set, _ := plugins[name].(map[string]any)
		if short := containerdPlugins[name]; short != "" {
			plain[short] = merged(plain[short], set)
		} else {
			others[name] = set
		}
	}
	if len(others) > 0 {
		plain["plugins"] = others
	}
	return merged(doc, plain), nil
}

// fromContainerd translates containerd's configuration, as mergeContainerd makes it. Pure.
func fromContainerd(doc map[string]any) (Report, error) {
	others, _ := doc["plugins"].(map[string]any)
	doc = maps.Clone(doc)
	delete(doc, "plugins")
	rows, handlers := containerdHandlers(doc)
	rows = append(rows, translate(flatten(doc, nil), containerdRules, handlers)...)
	for _, name := range slices.Sorted(maps.Keys(others)) {
		below, _ := others[name].(map[string]any)
		if set := flatten(below, nil); len(set) > 0 {
			rows = append(rows, Row{Key: "plugins." + name, Value: fmt.Sprintf("(%d keys)", len(set)), Verdict: needless, Note: "a part of containerd that Berth does not have"})
		}
	}
	return Report{"containerd", handlers, rows}, nil
}

// containerdHandlers takes out the handlers that are no OCI runtimes, and names
// the others.
func containerdHandlers(doc map[string]any) (rows []Row, handlers []string) {
	cri, _ := doc["cri"].(map[string]any)
	containerd, _ := cri["containerd"].(map[string]any)
	all, _ := containerd["runtimes"].(map[string]any)
	for _, name := range slices.Sorted(maps.Keys(all)) {
		h, _ := all[name].(map[string]any)
		kind, _ := h["runtime_type"].(string)
		if kind == "" || kind == runcV2 {
			handlers = append(handlers, name)
			if options, _ := h["options"].(map[string]any); name != "runc" && empty(options["BinaryName"]) {
				rows = append(rows, Row{Key: "cri.containerd.runtimes." + name + ".options.BinaryName", Value: `""`, Verdict: lost,
					Note: "containerd runs runc then, Berth a program of the handler's name: set the handler's path"})
			}
			continue
		}
		delete(all, name)
		rows = append(rows, Row{Key: "cri.containerd.runtimes." + name, Value: show(kind), Verdict: lost,
			Note: "Berth runs OCI runtimes with its own shim; pods whose RuntimeClass names this handler are refused"})
	}
	// containerd has runc without being told.
	if _, named := all["runc"]; !named {
		handlers = append(handlers, "runc")
	}
	return rows, handlers
}

// merged adds b to a, deeply; b wins.
func merged(a any, b map[string]any) map[string]any {
	out, _ := a.(map[string]any)
	out = maps.Clone(out)
	if out == nil {
		out = map[string]any{}
	}
	for k, v := range b {
		if below, ok := v.(map[string]any); ok {
			out[k] = merged(out[k], below)
		} else {
			out[k] = v
		}
	}
	return out
}

// noSnapshotter judges the snapshotter.
func noSnapshotter(v any) (any, string) {
	if v == "overlayfs" || v == "" {
		return nil, ""
	}
	return nil, "Berth has overlayfs only; images of lazy snapshotters are pulled whole"
}

// seccompUnset is what containers get that name no profile.
func seccompUnset(v any) (any, string) {
	switch s := fmt.Sprint(v); {
	case s == "":
		return nil, ""
	case s == "runtime/default", s == "docker/default":
		return true, ""
	}
	return nil, "name the profile in the pods: Berth knows only its default for those that name none"
}

// levels are containerd's and CRI-O's log levels.
var levels = choice(map[string]any{"": "info", "trace": "debug", "debug": "debug", "info": "info", "warn": "warn", "warning": "warn", "error": "error", "fatal": "error", "panic": "error"})

const (
	ownPaths  = "Berth keeps to its own directories; containers and images are not shared"
	onDemand  = "Berth reads figures when they are asked for"
	noPause   = "Berth has no pause container"
	inSystemd = "set in berth.service"
	byItself  = "Berth does so by itself"
	perHost   = "write HOST/hosts.toml below one of image.registry_hosts_dirs"
	withCrypt = "Berth does not decrypt images"
	ownShim   = "containers have berth-shim"
	perPull   = "name a docker config.json in image.auth_files"
	handler   = "cri.containerd.runtimes.*."
	ours      = "runtime.handlers.*."
)

// containerdRules are what becomes of containerd's keys; those of the plugins in
// containerdPlugins begin with the short names.
var containerdRules = slices.Concat([]rule{
	{theirs: "root", note: ownPaths},
	{theirs: "state", note: ownPaths},
	{theirs: "temp", note: ownPaths},
	{theirs: "imports", note: "the files it names are read too"},
	{theirs: "required_plugins", note: "a part of containerd that Berth does not have"},
	{theirs: "disabled_plugins", note: "a part of containerd that Berth does not have"},
	{theirs: "oom_score", note: inSystemd},
	{theirs: "grpc.address", note: "the kubelet's containerRuntimeEndpoint becomes Berth's socket, unix:///run/berth/berth.sock"},
	{theirs: "grpc.tcp_address", note: "Berth serves unix sockets only", lost: true},
	{theirs: "grpc.max_recv_message_size", note: "16 MiB, and streaming lists beyond"},
	{theirs: "grpc.max_send_message_size", note: "16 MiB, and streaming lists beyond"},
	{theirs: "grpc.uid", note: "the socket belongs to root", lost: true},
	{theirs: "grpc.gid", note: "the socket belongs to root", lost: true},
	{theirs: "grpc-tcp.*", note: "Berth serves unix sockets only", lost: true},
	{theirs: "ttrpc.address", note: ownShim},
	{theirs: "timeouts.*", note: ownShim},
	{theirs: "stream_processors.*.*", note: withCrypt},
	{theirs: "proxy_plugins.*.*", note: "Berth has none of containerd's plugins", lost: true},
	{theirs: "debug.level", ours: "log.level", value: levels},
	{theirs: "debug.format", ours: "log.format", value: choice(map[string]any{"text": "text", "json": "json", "": "text"})},
	{theirs: "debug.address", note: "`berthctl pprof` has profiles"},
	{theirs: "metrics.address", ours: "metrics.address", value: filled, note: "other names, see docs/metrics.md; set metrics.allow_remote for an address that is not loopback"},
	{theirs: "metrics.grpc_histogram", note: byItself},
	{theirs: "cgroup.path", note: inSystemd},
	{theirs: "otlp.endpoint", ours: "tracing.endpoint", value: filled, note: "HOST:PORT of OTLP over gRPC"},
	{theirs: "otlp.insecure", ours: "tracing.tls", value: not},
	{theirs: "otlp.protocol", note: "OTLP over gRPC only"},
	{theirs: "transfer.max_concurrent_downloads", ours: "image.max_downloads", value: filled, note: "of the whole node, not of each image"},
	{theirs: "transfer.max_concurrent_unpacks", ours: "image.unpack_workers", value: filled},
	{theirs: "transfer.*", note: byItself},
	{theirs: "tasks.blockio_config_file", ours: "container.blockio_classes", value: filled},
	{theirs: "tasks.rdt_config_file", ours: "container.rdt_classes", value: filled},
	{theirs: "nri.disable", ours: "nri.enable", value: not},
	{theirs: "nri.disable_connections", ours: "nri.disable_connections"},
	{theirs: "nri.plugin_config_path", ours: "nri.plugin_config_path", value: filled},
	{theirs: "nri.plugin_path", ours: "nri.plugin_path", value: filled},
	{theirs: "nri.plugin_registration_timeout", ours: "nri.plugin_registration_timeout", value: filled},
	{theirs: "nri.plugin_request_timeout", ours: "nri.plugin_request_timeout", value: filled},
	{theirs: "nri.socket_path", ours: "nri.socket_path", value: filled},
}, containerdCRI, containerdImages, containerdRuntimes)

// containerdCRI are the keys of pods and containers.
var containerdCRI = []rule{
	{theirs: "cri.stream_server_address", ours: "streaming.address", value: filled},
	{theirs: "cri.stream_server_port", ours: "streaming.port", value: number},
	{theirs: "cri.stream_idle_timeout", ours: "streaming.idle_timeout", value: filled},
	{theirs: "cri.enable_tls_streaming", note: "on when streaming.tls_cert is set"},
	{theirs: "cri.x509_key_pair_streaming.tls_cert_file", ours: "streaming.tls_cert", value: filled},
	{theirs: "cri.x509_key_pair_streaming.tls_key_file", ours: "streaming.tls_key", value: filled},
	{theirs: "cri.disable_tcp_service", note: "exec, attach and port-forward need the streaming server"},
	{theirs: "cri.enable_selinux", ours: "container.selinux"},
	{theirs: "cri.selinux_category_range", ours: nothing, value: only(int64(1024), "categories are chosen from all 1024")},
	{theirs: "cri.disable_apparmor", ours: "container.apparmor", value: not},
	{theirs: "cri.restrict_oom_score_adj", ours: "container.restrict_oom_score_adj", value: choice(map[string]any{"true": "true", "false": "auto"})},
	{theirs: "cri.max_container_log_line_size", ours: "container.max_log_line", value: func(v any) (any, string) {
		if n, ok := v.(int64); ok && n <= 0 {
			return nil, "lines are always split somewhere; the default is 16KiB"
		}
		return text(v)
	}},
	{theirs: "cri.unset_seccomp_profile", ours: "runtime.handlers.**.seccomp_default", value: seccompUnset},
	{theirs: "cri.device_ownership_from_security_context", ours: "runtime.handlers.**.device_ownership_from_security_context"},
	{theirs: "cri.enable_cdi", ours: "container.cdi_spec_dirs", value: func(v any) (any, string) {
		if v == false {
			return []any{}, ""
		}
		return nil, ""
	}},
	{theirs: "cri.cdi_spec_dirs", ours: "container.cdi_spec_dirs", value: filled},
	{theirs: "cri.cni.bin_dir", ours: "cni.bin_dirs", value: list},
	{theirs: "cri.cni.bin_dirs", ours: "cni.bin_dirs", value: filled},
	{theirs: "cri.cni.conf_dir", ours: "cni.conf_dir", value: filled},
	{theirs: "cri.cni.conf_template", ours: "cni.conf_template", value: filled},
	{theirs: "cri.cni.max_conf_num", note: "the first configuration by name is used"},
	{theirs: "cri.cni.ip_pref", note: "the first address that the network gives is the pod's", lost: true},
	{theirs: "cri.cni.setup_serially", note: byItself},
	{theirs: "cri.cni.use_internal_loopback", note: byItself},
	{theirs: "cri.systemd_cgroup", ours: "cgroup.driver", value: choice(map[string]any{"true": "systemd", "false": "auto"})},
	{theirs: "cri.stats_collect_period", note: onDemand},
	{theirs: "cri.stats_retention_period", note: onDemand},
	{theirs: "cri.sandbox_image", note: noPause},
	{theirs: "cri.pinned_images.sandbox", note: noPause},
	{theirs: "cri.netns_mounts_under_state_dir", note: "namespaces are pinned below paths.run"},
	{theirs: "cri.enable_unprivileged_ports", ours: nothing, value: only(true, "on by default: see container.default_sysctls")},
	{theirs: "cri.enable_unprivileged_icmp", ours: nothing, value: only(true, "on by default: see container.default_sysctls")},
	{theirs: "cri.ignore_image_defined_volumes", note: "Berth makes no volumes of an image's VOLUME: what is written there is in the writable layer"},
	{theirs: "cri.disable_cgroup", note: "Berth needs cgroups", lost: true},
	{theirs: "cri.disable_proc_mount", note: "the CRI says which paths of /proc are masked"},
	{theirs: "cri.disable_hugetlb_controller", note: byItself},
	{theirs: "cri.tolerate_missing_hugetlb_controller", note: byItself},
	{theirs: "cri.drain_exec_sync_io_timeout", note: "ExecSync waits two seconds for what a left child holds open"},
	{theirs: "cri.enable_criu", note: "Berth makes checkpoints of containers wherever criu works; there is nothing to turn on"},
	{theirs: "cri.ignore_deprecation_warnings", note: "there are none"},
}

// containerdImages are the keys of images and registries.
var containerdImages = []rule{
	{theirs: "cri.max_concurrent_downloads", ours: "image.max_downloads", note: "of the whole node, not of each image"},
	{theirs: "cri.concurrent_layer_fetch_buffer", note: byItself},
	{theirs: "cri.max_concurrent_unpacks", ours: "image.unpack_workers"},
	{theirs: "cri.image_pull_progress_timeout", ours: "image.pull_idle_timeout", value: filled},
	{theirs: "cri.image_pull_with_sync_fs", note: byItself},
	{theirs: "cri.use_local_image_pull", note: byItself},
	{theirs: "cri.snapshotter", ours: nothing, value: noSnapshotter},
	{theirs: "cri.containerd.snapshotter", ours: nothing, value: noSnapshotter},
	{theirs: "cri.disable_snapshot_annotations", note: "there are no snapshotters"},
	{theirs: "cri.containerd.disable_snapshot_annotations", note: "there are no snapshotters"},
	{theirs: "cri.discard_unpacked_layers", ours: "image.keep_blobs", value: not},
	{theirs: "cri.containerd.discard_unpacked_layers", ours: "image.keep_blobs", value: not},
	{theirs: "cri.image_decryption.key_model", note: withCrypt},
	{theirs: "cri.registry.config_path", ours: "image.registry_hosts_dirs", value: split, note: "the files stay as they are"},
	{theirs: "cri.registry.mirrors.*.endpoint", note: perHost, lost: true},
	{theirs: "cri.registry.configs.*.auth.username", note: perPull, lost: true},
	{theirs: "cri.registry.configs.*.auth.password", note: perPull, lost: true},
	{theirs: "cri.registry.configs.*.auth.auth", note: perPull, lost: true},
	{theirs: "cri.registry.configs.*.auth.identitytoken", note: perPull, lost: true},
	{theirs: "cri.registry.auths.*.*", note: perPull, lost: true},
	{theirs: "cri.registry.headers.*", note: perHost, lost: true},
	{theirs: "cri.runtime_platforms.*.*", note: "images are of the node's own platform", lost: true},
	{theirs: "cri.registry.configs.*.tls.ca_file", note: perHost, lost: true},
	{theirs: "cri.registry.configs.*.tls.cert_file", note: perHost, lost: true},
	{theirs: "cri.registry.configs.*.tls.key_file", note: perHost, lost: true},
	{theirs: "cri.registry.configs.*.tls.insecure_skip_verify", note: perHost, lost: true},
}

// containerdRuntimes are the keys of handlers.
var containerdRuntimes = []rule{
	{theirs: "cri.containerd.default_runtime_name", ours: "runtime.default", value: filled},
	{theirs: "cri.containerd.ignore_blockio_not_enabled_errors", note: "a pod that asks for a class is refused when there is none"},
	{theirs: "cri.containerd.ignore_rdt_not_enabled_errors", note: "a pod that asks for a class is refused when there is none"},
	{theirs: handler + "runtime_type", note: ownShim},
	{theirs: handler + "runtime_path", note: ownShim},
	{theirs: handler + "sandbox_mode", note: noPause},
	{theirs: handler + "disable_pause_image_pull", note: noPause},
	{theirs: handler + "sandboxer", note: noPause},
	{theirs: handler + "io_type", note: ownShim},
	{theirs: handler + "snapshotter", ours: nothing, value: noSnapshotter},
	{theirs: handler + "cni_max_conf_num", note: "the first configuration by name is used"},
	{theirs: handler + "cni_conf_dir", ours: ours + "cni_conf_dir", value: filled},
	{theirs: handler + "base_runtime_spec", ours: ours + "base_spec", value: filled, note: "only what neither client nor image decides is taken from it"},
	{theirs: handler + "pod_annotations", ours: ours + "pod_annotations", value: filled},
	{theirs: handler + "container_annotations", ours: ours + "container_annotations", value: filled},
	{theirs: handler + "privileged_without_host_devices", ours: ours + "privileged_without_host_devices"},
	{theirs: handler + "privileged_without_host_devices_all_devices_allowed", ours: ours + "privileged_all_devices_allowed"},
	{theirs: handler + "cgroup_writable", ours: ours + "cgroup_writable"},
	{theirs: handler + "options.BinaryName", ours: ours + "path", value: program},
	{theirs: handler + "options.Root", ours: ours + "root", value: filled},
	{theirs: handler + "options.SystemdCgroup", ours: "cgroup.driver", value: choice(map[string]any{"true": "systemd", "false": "cgroupfs"}), note: "of the whole node, as the kubelet's"},
	{theirs: handler + "options.NoNewKeyring", note: "runc makes a keyring for each container", lost: true},
	{theirs: handler + "options.NoPivotRoot", note: "Berth's root file systems can be pivoted to"},
	{theirs: handler + "options.ShimCgroup", note: ownShim},
	{theirs: handler + "options.IoUid", note: ownShim},
	{theirs: handler + "options.IoGid", note: ownShim},
	{theirs: handler + "options.CriuImagePath", note: "Berth takes criu from the PATH and works below paths.root"},
	{theirs: handler + "options.CriuPath", note: "Berth takes criu from the PATH and works below paths.root"},
	{theirs: handler + "options.CriuWorkPath", note: "Berth takes criu from the PATH and works below paths.root"},
	{theirs: handler + "options.TaskApiAddress", note: ownShim},
	{theirs: handler + "options.TaskApiVersion", note: ownShim},
	{theirs: handler + "options.TypeUrl", note: ownShim},
	{theirs: handler + "options.ConfigPath", note: ownShim},
}

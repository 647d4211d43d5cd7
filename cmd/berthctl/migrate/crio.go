package migrate

import (
	"fmt"
	"maps"
	"slices"
)

// fromCRIO translates CRI-O's configuration. Pure.
func fromCRIO(doc map[string]any) (Report, error) {
	crio, _ := doc["crio"].(map[string]any)
	rows, handlers := crioHandlers(crio)
	rows = append(rows, metricsOfCRIO(crio)...)
	rows = append(rows, tracingOfCRIO(crio)...)
	return Report{"crio", handlers, append(rows, translate(flatten(doc, nil), crioRules, handlers)...)}, nil
}

// mergeCRIO adds a file to what was read before it; doc is nil for the first. A
// handler is what the last file that names it says, and nothing of the others.
func mergeCRIO(_ string, doc, below map[string]any) (map[string]any, error) {
	named, _ := at(below, "crio.runtime.runtimes").(map[string]any)
	if known, _ := at(doc, "crio.runtime.runtimes").(map[string]any); known != nil {
		maps.DeleteFunc(known, func(name string, _ any) bool { _, ok := named[name]; return ok })
	}
	return merged(doc, below), nil
}

// crioHandlers takes out the handlers that are no OCI runtimes, and names the others.
func crioHandlers(crio map[string]any) (rows []Row, handlers []string) {
	runtime, _ := crio["runtime"].(map[string]any)
	all, _ := runtime["runtimes"].(map[string]any)
	for _, name := range slices.Sorted(maps.Keys(all)) {
		h, _ := all[name].(map[string]any)
		if kind, _ := h["runtime_type"].(string); kind != "" && kind != "oci" && kind != "pod" {
			delete(all, name)
			rows = append(rows, Row{Key: "crio.runtime.runtimes." + name, Value: show(kind), Verdict: lost,
				Note: "Berth runs OCI runtimes with its own shim; pods whose RuntimeClass names this handler are refused"})
			continue
		}
		handlers = append(handlers, name)
	}
	// CRI-O has its default without being told.
	standard, _ := runtime["default_runtime"].(string)
	if standard == "" {
		standard = "runc"
		rows = append(rows, Row{Key: "crio.runtime.default_runtime", Value: `""`, Verdict: lost,
			Note: "CRI-O's own is crun from version 1.31 on, and was runc; Berth's is runc: set runtime.default"})
	}
	if _, named := all[standard]; !named && !slices.ContainsFunc(rows, func(r Row) bool { return r.Key == "crio.runtime.runtimes."+standard }) {
		handlers = append(handlers, standard)
	}
	return rows, handlers
}

// metricsOfCRIO joins what CRI-O says in four keys.
func metricsOfCRIO(crio map[string]any) []Row {
	m, _ := crio["metrics"].(map[string]any)
	if m["enable_metrics"] != true {
		return nil
	}
	host, port := "127.0.0.1", any(int64(9090))
	if h, ok := m["metrics_host"].(string); ok && h != "" {
		host = h
	}
	if p, ok := m["metrics_port"].(int64); ok {
		port = p
	}
	address := fmt.Sprintf("%s:%v", host, port)
	if s, ok := m["metrics_socket"].(string); ok && s != "" {
		address = "unix://" + s
	}
	return []Row{{Key: "crio.metrics.enable_metrics", Value: "true", Verdict: taken, Berth: "metrics.address",
		Note: "other names, see docs/metrics.md; set metrics.allow_remote for an address that is not loopback", ours: map[string]any{"metrics.address": address}}}
}

// tracingOfCRIO joins what CRI-O says in three keys.
func tracingOfCRIO(crio map[string]any) []Row {
	t, _ := crio["tracing"].(map[string]any)
	if t["enable_tracing"] != true {
		return nil
	}
	endpoint, _ := t["tracing_endpoint"].(string)
	set := map[string]any{"tracing.endpoint": endpoint}
	if n, ok := t["tracing_sampling_rate_per_million"].(int64); ok {
		set["tracing.percent"] = (n + 9999) / 10000
	}
	return []Row{{Key: "crio.tracing.enable_tracing", Value: "true", Verdict: taken, Berth: "tracing.endpoint", Note: "and tracing.percent", ours: set}}
}

const (
	noConmon    = "there is no conmon: " + ownShim
	crioRuntime = "crio.runtime.runtimes.*."
	joined      = "with enable_metrics or enable_tracing"
	ownStore    = "Berth has a store of its own"
	bySelf      = "the CRI and the image say"
)

var crioRules = slices.Concat([]rule{
	{theirs: "crio.root", note: ownPaths},
	{theirs: "crio.runroot", note: ownPaths},
	{theirs: "crio.imagestore", note: ownStore},
	{theirs: "crio.storage_driver", ours: nothing, value: func(v any) (any, string) {
		if v == "overlay" || v == "" {
			return nil, ""
		}
		return nil, "Berth has overlayfs only"
	}},
	{theirs: "crio.storage_option", note: ownStore},
	{theirs: "crio.log_dir", note: "the kubelet names the files"},
	{theirs: "crio.version_file", note: "after an unclean end layers are verified, nothing is wiped"},
	{theirs: "crio.version_file_persist", note: "after an unclean end layers are verified, nothing is wiped"},
	{theirs: "crio.clean_shutdown_file", note: "after an unclean end layers are verified, nothing is wiped"},
	{theirs: "crio.internal_wipe", note: "nothing is ever wiped"},
	{theirs: "crio.internal_repair", note: byItself},
	{theirs: "crio.api.listen", note: "the kubelet's containerRuntimeEndpoint becomes Berth's socket, unix:///run/berth/berth.sock"},
	{theirs: "crio.api.stream_address", ours: "streaming.address", value: filled},
	{theirs: "crio.api.stream_port", ours: "streaming.port", value: number},
	{theirs: "crio.api.stream_idle_timeout", ours: "streaming.idle_timeout", value: filled},
	{theirs: "crio.api.stream_enable_tls", note: "on when streaming.tls_cert is set"},
	{theirs: "crio.api.stream_tls_cert", ours: "streaming.tls_cert", value: filled},
	{theirs: "crio.api.stream_tls_key", ours: "streaming.tls_key", value: filled},
	{theirs: "crio.api.stream_tls_ca", note: "clients show no certificates: a session's address is its secret", lost: true},
	{theirs: "crio.api.grpc_max_send_msg_size", note: "16 MiB, and streaming lists beyond"},
	{theirs: "crio.api.grpc_max_recv_msg_size", note: "16 MiB, and streaming lists beyond"},
	{theirs: "crio.network.cni_default_network", note: "the first configuration by name is used; rename the files, or give handlers a cni_conf_dir", lost: true},
	{theirs: "crio.network.network_dir", ours: "cni.conf_dir", value: filled},
	{theirs: "crio.network.plugin_dirs", ours: "cni.bin_dirs", value: filled},
	{theirs: "crio.metrics.enable_metrics", ours: nothing, value: func(any) (any, string) { return nil, "" }},
	{theirs: "crio.metrics.metrics_host", note: joined},
	{theirs: "crio.metrics.metrics_port", note: joined},
	{theirs: "crio.metrics.metrics_socket", note: joined},
	{theirs: "crio.metrics.metrics_collectors", note: "Prometheus can drop what it does not want"},
	{theirs: "crio.metrics.metrics_cert", note: "put a proxy in front: Berth's listener is for the node itself", lost: true},
	{theirs: "crio.metrics.metrics_key", note: "put a proxy in front: Berth's listener is for the node itself", lost: true},
	{theirs: "crio.tracing.enable_tracing", ours: nothing, value: func(any) (any, string) { return nil, "" }},
	{theirs: "crio.tracing.tracing_endpoint", note: joined},
	{theirs: "crio.tracing.tracing_sampling_rate_per_million", note: joined},
	{theirs: "crio.nri.enable_nri", ours: "nri.enable"},
	{theirs: "crio.nri.nri_listen", ours: "nri.socket_path", value: filled},
	{theirs: "crio.nri.nri_plugin_dir", ours: "nri.plugin_path", value: filled},
	{theirs: "crio.nri.nri_plugin_config_dir", ours: "nri.plugin_config_path", value: filled},
	{theirs: "crio.nri.nri_plugin_registration_timeout", ours: "nri.plugin_registration_timeout", value: filled},
	{theirs: "crio.nri.nri_plugin_request_timeout", ours: "nri.plugin_request_timeout", value: filled},
	{theirs: "crio.nri.nri_disable_connections", ours: "nri.disable_connections"},
	{theirs: "crio.stats.stats_collection_period", note: onDemand},
	{theirs: "crio.stats.collection_period", note: onDemand},
	{theirs: "crio.stats.included_pod_metrics", note: "all are there"},
}, crioImage, crioRuntimeRules)

var crioImage = []rule{
	{theirs: "crio.image.default_transport", note: "registries only"},
	{theirs: "crio.image.global_auth_file", ours: "image.auth_files", value: list},
	{theirs: "crio.image.namespaced_auth_dir", note: "the kubelet's credential providers do that", lost: true},
	{theirs: "crio.image.pause_image", note: noPause},
	{theirs: "crio.image.pause_image_auth_file", note: noPause},
	{theirs: "crio.image.pause_command", note: noPause},
	{theirs: "crio.image.pinned_images", ours: "image.pinned", value: filled},
	{theirs: "crio.image.signature_policy", note: "write rules below image.signatures, see docs/signatures.md", lost: true},
	{theirs: "crio.image.signature_policy_dir", note: "write rules below image.signatures, see docs/signatures.md", lost: true},
	{theirs: "crio.image.insecure_registries", note: perHost, lost: true},
	{theirs: "crio.image.registries", note: "a short name is one of docker.io/library", lost: true},
	{theirs: "crio.image.image_volumes", note: "Berth makes no volumes of an image's VOLUME: what is written there is in the writable layer"},
	{theirs: "crio.image.big_files_temporary_dir", note: ownStore},
	{theirs: "crio.image.separate_pull_cgroup", note: "pulls run in the daemon; bound them with image.max_bandwidth", lost: true},
	{theirs: "crio.image.auto_reload_registries", note: "hosts.toml is read at every pull"},
	{theirs: "crio.image.pull_progress_timeout", ours: "image.pull_idle_timeout", value: filled},
	{theirs: "crio.image.short_name_mode", note: "a short name is one of docker.io/library"},
	{theirs: "crio.image.oci_artifact_mount_support", note: byItself},
}

var crioRuntimeRules = []rule{
	{theirs: "crio.runtime.default_runtime", ours: "runtime.default", value: filled},
	{theirs: "crio.runtime.cgroup_manager", ours: "cgroup.driver", value: choice(map[string]any{"systemd": "systemd", "cgroupfs": "cgroupfs"})},
	{theirs: "crio.runtime.log_level", ours: "log.level", value: levels},
	{theirs: "crio.runtime.log_filter", note: "log.level decides", lost: true},
	{theirs: "crio.runtime.log_size_max", ours: "container.log_file_size", value: text},
	{theirs: "crio.runtime.log_to_journald", note: "the kubelet reads the log files", lost: true},
	{theirs: "crio.runtime.pids_limit", ours: "runtime.handlers.**.pids_limit", note: "the kubelet's podPidsLimit does the same for pods"},
	{theirs: "crio.runtime.selinux", ours: "container.selinux"},
	{theirs: "crio.runtime.hostnetwork_disable_selinux", note: "pods of the node's network have labels too", lost: true},
	{theirs: "crio.runtime.seccomp_profile", note: "Berth's default profile is built in; others are files below the kubelet's seccomp directory", lost: true},
	{theirs: "crio.runtime.privileged_seccomp_profile", note: "privileged containers have none", lost: true},
	{theirs: "crio.runtime.apparmor_profile", note: "the default profile is berth-default", lost: true},
	{theirs: "crio.runtime.blockio_config_file", ours: "container.blockio_classes", value: filled},
	{theirs: "crio.runtime.blockio_reload", note: "restart the daemon to read the classes again: containers go on", lost: true},
	{theirs: "crio.runtime.rdt_config_file", ours: "container.rdt_classes", value: filled},
	{theirs: "crio.runtime.irqbalance_config_file", note: "Berth does not change interrupts", lost: true},
	{theirs: "crio.runtime.irqbalance_config_restore_file", note: "Berth does not change interrupts", lost: true},
	{theirs: "crio.runtime.cdi_spec_dirs", ours: "container.cdi_spec_dirs", value: filled},
	{theirs: "crio.runtime.device_ownership_from_security_context", ours: "runtime.handlers.**.device_ownership_from_security_context"},
	{theirs: "crio.runtime.add_inheritable_capabilities", ours: nothing, value: func(v any) (any, string) {
		if v == true {
			return nil, "inheritable capabilities are never set; ambient ones are, by the handler's ambient_capabilities"
		}
		return nil, ""
	}},
	{theirs: "crio.runtime.default_capabilities", note: "containers start with those of containerd and Docker; pods add and drop", lost: true},
	{theirs: "crio.runtime.default_sysctls", ours: "container.default_sysctls", value: filled},
	{theirs: "crio.runtime.default_ulimits", note: "name them in a handler's base_spec, or use an NRI plugin", lost: true},
	{theirs: "crio.runtime.default_env", note: "name them in a handler's base_spec", lost: true},
	{theirs: "crio.runtime.default_mounts_file", note: "name them in a handler's base_spec", lost: true},
	{theirs: "crio.runtime.absent_mount_sources_to_reject", note: "a source that is missing is made, as the kubelet expects", lost: true},
	{theirs: "crio.runtime.hooks_dir", note: "name hooks in a handler's base_spec, or use an NRI plugin", lost: true},
	{theirs: "crio.runtime.allowed_devices", note: "use CDI, or an NRI plugin", lost: true},
	{theirs: "crio.runtime.additional_devices", note: "name them in a handler's base_spec", lost: true},
	{theirs: "crio.runtime.read_only", note: "set readOnlyRootFilesystem in the pods", lost: true},
	{theirs: "crio.runtime.timezone", note: "set TZ in the pods", lost: true},
	{theirs: "crio.runtime.uid_mappings", note: "pods have hostUsers: false", lost: true},
	{theirs: "crio.runtime.gid_mappings", note: "pods have hostUsers: false", lost: true},
	{theirs: "crio.runtime.minimum_mappable_uid", note: "the kubelet chooses the mappings"},
	{theirs: "crio.runtime.minimum_mappable_gid", note: "the kubelet chooses the mappings"},
	{theirs: "crio.runtime.infra_ctr_cpuset", note: noPause},
	{theirs: "crio.runtime.drop_infra_ctr", note: noPause},
	{theirs: "crio.runtime.shared_cpuset", note: "Berth does not move containers between sets of processors", lost: true},
	{theirs: "crio.runtime.ctr_stop_timeout", note: "the kubelet says how long"},
	{theirs: "crio.runtime.bind_mount_prefix", note: bySelf, lost: true},
	{theirs: "crio.runtime.no_pivot", note: "Berth's root file systems can be pivoted to"},
	{theirs: "crio.runtime.decryption_keys_path", note: withCrypt},
	{theirs: "crio.runtime.conmon", note: noConmon},
	{theirs: "crio.runtime.conmon_cgroup", note: noConmon},
	{theirs: "crio.runtime.conmon_env", note: noConmon},
	{theirs: "crio.runtime.container_exits_dir", note: noConmon},
	{theirs: "crio.runtime.container_attach_socket_dir", note: noConmon},
	{theirs: "crio.runtime.container_min_memory", note: "runc says what is too little"},
	{theirs: "crio.runtime.namespaces_dir", note: "namespaces are pinned below paths.run"},
	{theirs: "crio.runtime.pinns_path", note: "namespaces are pinned below paths.run"},
	{theirs: "crio.runtime.enable_criu_support", note: "Berth makes checkpoints of containers wherever criu works; there is nothing to turn on"},
	{theirs: "crio.runtime.enable_pod_events", note: byItself},
	{theirs: "crio.runtime.disable_hostport_mapping", note: "leave portmap out of the network configuration", lost: true},
	{theirs: crioRuntime + "runtime_path", ours: ours + "path", value: program},
	{theirs: crioRuntime + "runtime_type", note: ownShim},
	{theirs: crioRuntime + "runtime_root", ours: ours + "root", value: filled},
	{theirs: crioRuntime + "runtime_config_path", note: ownShim, lost: true},
	{theirs: crioRuntime + "inherit_default_runtime", note: "write the handler's keys out", lost: true},
	{theirs: crioRuntime + "allowed_annotations", note: "annotations do not change what Berth does; pod_annotations names those that the runtime is handed", lost: true},
	{theirs: crioRuntime + "privileged_without_host_devices", ours: ours + "privileged_without_host_devices"},
	{theirs: crioRuntime + "container_min_memory", note: "runc says what is too little"},
	{theirs: crioRuntime + "monitor_path", note: noConmon},
	{theirs: crioRuntime + "monitor_cgroup", note: noConmon},
	{theirs: crioRuntime + "monitor_exec_cgroup", note: noConmon},
	{theirs: crioRuntime + "monitor_env", note: noConmon},
	{theirs: crioRuntime + "no_sync_log", note: noConmon},
	{theirs: crioRuntime + "exec_cpu_affinity", note: "commands run on the container's processors", lost: true},
	{theirs: crioRuntime + "stream_websockets", note: byItself},
}

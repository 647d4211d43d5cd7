// Package config is the configuration of berthd: one TOML file, read strictly.
// It imports no other layer; the daemon translates it for each part.
package config

// Version is Berth's version. The build sets it with
// -ldflags "-X github.com/berth-dev/berth/config.Version=v1.2.3"; it is never
// written at run time.
var Version = "0.1.0-dev"

// DefaultPath is where berthd looks when --config is not given. A missing file
// there means the built-in defaults; a missing file that was named is an error.
const DefaultPath = "/etc/berth/config.toml"

// Config is the whole file. Default returns the documented defaults; a key
// that the file leaves out keeps its default. The tags "doc" become the
// comments of the generated file, and reload:"hot" marks keys that SIGHUP
// applies without a restart.
type Config struct {
	Paths     Paths     `toml:"paths" doc:"Directories and programs. Daemons with different directories share a machine without touching each other."`
	Listen    Listen    `toml:"listen" doc:"Unix sockets."`
	Log       Log       `toml:"log" doc:"The daemon's own log, on standard error."`
	Cgroup    Cgroup    `toml:"cgroup" doc:"Control groups."`
	Runtime   Runtime   `toml:"runtime" doc:"OCI runtimes. The kubelet picks one of the handlers by a pod's RuntimeClass."`
	CNI       CNI       `toml:"cni" doc:"Pod networks, by the node's CNI configuration."`
	Network   Network   `toml:"network" doc:"What Berth itself does for pod networks."`
	Image     Image     `toml:"image" doc:"Images and registries."`
	Streaming Streaming `toml:"streaming" doc:"The HTTP server behind exec, attach and port-forward."`
	Container Container `toml:"container" doc:"Behaviour common to all containers."`
}

// Paths are directories and programs.
type Paths struct {
	Root string `toml:"root" doc:"State directory: database, images, writable layers. Survives a reboot."`
	Run  string `toml:"run" doc:"Run-time directory: namespaces, bundles, shim sockets. May vanish at a reboot."`
	Shim string `toml:"shim" doc:"The berth-shim program. Empty: beside berthd, else in PATH."`
}

// Listen are the sockets berthd serves.
type Listen struct {
	CRI   string `toml:"cri" doc:"CRI socket for the kubelet and crictl, mode 0660. Empty: berth.sock in paths.run."`
	Admin string `toml:"admin" doc:"Admin socket for berthctl, mode 0600. Empty: admin.sock in paths.run."`
}

// Log is the daemon's log.
type Log struct {
	Level  string `toml:"level" reload:"hot" doc:"debug, info, warn or error. At debug every CRI call is logged with its duration and code."`
	Format string `toml:"format" doc:"text or json."`
}

// Cgroup says how cgroups are made.
type Cgroup struct {
	Driver string `toml:"driver" doc:"auto, cgroupfs or systemd; must be what the kubelet uses (it asks over the CRI). auto: systemd on a cgroup v2 machine that systemd runs, else cgroupfs."`
}

// Runtime is the set of OCI runtimes.
type Runtime struct {
	Default  string             `toml:"default" doc:"Handler that serves pods which name none."`
	Handlers map[string]Handler `toml:"handlers" doc:"One table for each handler. A file that has any replaces the built-in one."`
}

// Handler is one OCI runtime.
type Handler struct {
	Path                         string   `toml:"path" doc:"The runtime's program. Empty: the handler's name, looked for beside berthd, then in PATH."`
	Root                         string   `toml:"root" doc:"The runtime's own state directory. Empty: below paths.run."`
	PrivilegedWithoutHostDevices bool     `toml:"privileged_without_host_devices" doc:"Privileged containers do not see all devices of the node."`
	AmbientCapabilities          bool     `toml:"ambient_capabilities" doc:"Added capabilities become ambient too, so that processes of other users than root have them."`
	SeccompDefault               bool     `toml:"seccomp_default" doc:"Containers whose client names no seccomp profile get the default profile instead of none."`
	PrivilegedAllDevicesAllowed  bool     `toml:"privileged_all_devices_allowed" doc:"With privileged_without_host_devices: privileged containers may still use every device they make."`
	CgroupWritable               bool     `toml:"cgroup_writable" doc:"Mount the container's cgroups read-write instead of read-only."`
	DeviceOwnership              bool     `toml:"device_ownership_from_security_context" doc:"Devices belong to run_as_user and run_as_group of the container instead of to their owner on the node."`
	PidsLimit                    int64    `toml:"pids_limit" doc:"Most processes and threads of one container. 0: no limit of its own; -1: explicitly unlimited."`
	PodAnnotations               []string `toml:"pod_annotations" doc:"Patterns of pod annotations that the runtime is handed, such as \"run.oci.*\". All others stay data."`
	ContainerAnnotations         []string `toml:"container_annotations" doc:"The same for the annotations of containers."`
}

// CNI says where network configuration and plugins are.
type CNI struct {
	ConfDir string   `toml:"conf_dir" doc:"Directory of network configurations. The first by name is used."`
	BinDirs []string `toml:"bin_dirs" doc:"Directories of plugin programs, in order of search."`
}

// Network is Berth's own part in pod networks.
type Network struct {
	Builtin []string `toml:"builtin" doc:"CNI plugin types that berthd serves itself, without starting a program: any of bridge, host-local, loopback, portmap. A configuration that asks for more than berthd can do goes to the plugin's program. Empty: programs only."`
	Default string   `toml:"default" doc:"What pods get while cni.conf_dir holds no configuration. wait: nothing, the node is not ready until a network is installed, as Kubernetes expects. builtin: a bridge with address translation, for a machine on its own."`
	Bridge  string   `toml:"bridge" doc:"Bridge of the built-in network. Daemons that share a machine need different ones."`
	Subnets []string `toml:"subnets" doc:"Subnets of the built-in network: one IPv4, one IPv6 or both. Daemons that share a machine need different ones."`
}

// Image says how images are pulled and kept.
type Image struct {
	RegistryDirs  []string `toml:"registry_hosts_dirs" doc:"Directories with HOST/hosts.toml (mirrors, certificates). The first that knows a host, or has _default, is used for it; read at every pull."`
	MaxDownloads  int      `toml:"max_downloads" doc:"Layers of one image that are downloaded at the same time."`
	UnpackWorkers int      `toml:"unpack_workers" doc:"Layers unpacked at the same time. 0: one for each CPU."`
	KeepBlobs     bool     `toml:"keep_blobs" doc:"Keep compressed layers after they are unpacked: costs disk, but a damaged layer can be repaired without the registry."`
	MaxLayerSize  Size     `toml:"max_layer_size" doc:"Largest unpacked layer. A layer that grows beyond it fails the pull."`
	MaxLayerFiles int      `toml:"max_layer_files" doc:"Most files in one layer."`
	PullTimeout   Duration `toml:"pull_idle_timeout" doc:"A pull that gets no byte for so long fails."`
}

// Streaming is the server behind exec, attach and port-forward.
type Streaming struct {
	Address     string   `toml:"address" doc:"Address to listen on. The kubelet connects to it, so loopback is enough."`
	Port        int      `toml:"port" doc:"TCP port. 0: any free one."`
	IdleTimeout Duration `toml:"idle_timeout" doc:"A session without traffic ends after so long."`
	TLSCert     string   `toml:"tls_cert" doc:"Certificate in PEM, with tls_key, to serve TLS. Empty: plain HTTP."`
	TLSKey      string   `toml:"tls_key" doc:"Private key in PEM."`
}

// Container is behaviour common to all containers.
type Container struct {
	ExecOutputLimit     Size   `toml:"exec_output_limit" doc:"Most output that one ExecSync returns of each stream; the rest is dropped."`
	MaxLogLine          Size   `toml:"max_log_line" doc:"Log lines longer than this are split into partial lines."`
	RestrictOOMScoreAdj string `toml:"restrict_oom_score_adj" doc:"auto, true or false: raise a container's oom_score_adj to the daemon's own when a lower one is not permitted. auto: when the daemon lacks CAP_SYS_RESOURCE."`
}

// Default returns the configuration of a node without a file.
func Default() Config {
	return Config{
		Paths:   Paths{Root: "/var/lib/berth", Run: "/run/berth"},
		Log:     Log{Level: "info", Format: "text"},
		Cgroup:  Cgroup{Driver: "auto"},
		Runtime: Runtime{Default: "runc", Handlers: map[string]Handler{"runc": {}}},
		CNI: CNI{
			ConfDir: "/etc/cni/net.d",
			BinDirs: []string{"/opt/cni/bin", "/usr/lib/cni"},
		},
		Network: Network{
			Builtin: []string{"bridge", "host-local", "loopback", "portmap"},
			Default: "wait",
			Bridge:  "berth0",
			Subnets: []string{"10.90.0.0/16", "fd42:6265:7274:68::/64"},
		},
		Image: Image{
			RegistryDirs:  []string{"/etc/berth/certs.d", "/etc/containerd/certs.d"},
			MaxDownloads:  3,
			MaxLayerSize:  64 << 30,
			MaxLayerFiles: 5_000_000,
			PullTimeout:   Duration(defaultPullIdle),
		},
		Streaming: Streaming{Address: "127.0.0.1", IdleTimeout: Duration(defaultStreamIdle)},
		Container: Container{
			ExecOutputLimit:     16 << 20,
			MaxLogLine:          16 << 10,
			RestrictOOMScoreAdj: "auto",
		},
	}
}

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
	NRI       NRI       `toml:"nri" doc:"Node resource plugins: programs that watch pods and containers and may adjust them (github.com/containerd/nri)."`
	Network   Network   `toml:"network" doc:"What Berth itself does for pod networks."`
	Image     Image     `toml:"image" doc:"Images and registries."`
	Streaming Streaming `toml:"streaming" doc:"The HTTP server behind exec, attach and port-forward."`
	Container Container `toml:"container" doc:"Behaviour common to all containers."`
	Watching
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
	HandlerFiles
	PrivilegedWithoutHostDevices bool     `toml:"privileged_without_host_devices" doc:"Privileged containers do not see all devices of the node."`
	AmbientCapabilities          bool     `toml:"ambient_capabilities" doc:"Added capabilities become ambient too, so that processes of other users than root have them."`
	SeccompNativeOnly            bool     `toml:"seccomp_native_only" doc:"The default seccomp profile is for the node's own architecture alone: programs of 32 bits are killed at their first system call, and the OCI runtime starts containers, and commands in them, with a third less CPU time."`
	SeccompDefault               bool     `toml:"seccomp_default" doc:"Containers whose client names no seccomp profile get the default profile instead of none."`
	PrivilegedAllDevicesAllowed  bool     `toml:"privileged_all_devices_allowed" doc:"With privileged_without_host_devices: privileged containers may still use every device they make."`
	CgroupWritable               bool     `toml:"cgroup_writable" doc:"Mount the container's cgroups read-write instead of read-only."`
	DeviceOwnership              bool     `toml:"device_ownership_from_security_context" doc:"Devices belong to run_as_user and run_as_group of the container instead of to their owner on the node."`
	Platform                     string   `toml:"platform" doc:"Platform of the images of the handler's pods, such as linux/arm64, for runtimes that emulate. Pulls and look-ups that name the handler are for it. Empty: the node's."`
	PidsLimit                    int64    `toml:"pids_limit" doc:"Most processes and threads of one container. 0: no limit of its own; -1: explicitly unlimited."`
	PodAnnotations               []string `toml:"pod_annotations" doc:"Patterns of pod annotations that the runtime is handed, such as \"run.oci.*\". All others stay data."`
	ContainerAnnotations         []string `toml:"container_annotations" doc:"The same for the annotations of containers."`
}

// HandlerFiles are what a handler reads and runs.
type HandlerFiles struct {
	Path       string `toml:"path" doc:"The runtime's program. Empty: the handler's name, looked for beside berthd, then in PATH. For a start runc itself is not run: the shim opens the FIFO that the container waits at. A script in its place is run for that too."`
	Root       string `toml:"root" doc:"The runtime's own state directory. Empty: below paths.run."`
	BaseSpec   string `toml:"base_spec" doc:"File with an OCI runtime specification, for what neither clients nor images decide: hooks, rlimits, sysctls, more mounts, devices and variables, limits that the client does not set. Read at the start. Empty: none."`
	CNIConfDir string `toml:"cni_conf_dir" doc:"Directory of network configurations for the handler's pods. Empty: cni.conf_dir, as for all."`
}

// CNI says where network configuration and plugins are.
type CNI struct {
	ConfDir  string   `toml:"conf_dir" doc:"Directory of network configurations. The first by name is used."`
	BinDirs  []string `toml:"bin_dirs" doc:"Directories of plugin programs, in order of search."`
	Template string   `toml:"conf_template" doc:"Template of a network configuration, in Go's text/template with containerd's fields .PodCIDR, .PodCIDRRanges and .Routes. When the kubelet tells the node's pod CIDR and pods have no network, conf_dir gets what comes of it. Empty: none."`
	Timeout  Duration `toml:"timeout" doc:"Longest time for the plugins to attach, detach or check one pod; they are killed then. 1s to 10m."`
}

// NRI says how node resource plugins are served.
type NRI struct {
	Enable             bool     `toml:"enable" doc:"Serve plugins."`
	Socket             string   `toml:"socket_path" doc:"Socket that plugins connect to. Empty: /var/run/nri/nri.sock with the default paths.run, else nri.sock in paths.run."`
	DisableConnections bool     `toml:"disable_connections" doc:"Plugins cannot connect: only those in plugin_path run."`
	PluginPath         string   `toml:"plugin_path" doc:"Directory of programs that are started, as plugins, with the daemon. It need not exist."`
	PluginConfigPath   string   `toml:"plugin_config_path" doc:"Directory of their configurations."`
	RegistrationTime   Duration `toml:"plugin_registration_timeout" doc:"For a plugin to register. One that takes longer is disconnected."`
	RequestTime        Duration `toml:"plugin_request_timeout" doc:"For a plugin to answer; one that takes longer is disconnected. A hanging plugin holds up the node for so long, once."`
}

// Network is Berth's own part in pod networks.
type Network struct {
	Builtin []string `toml:"builtin" doc:"CNI plugin types that berthd serves itself, without starting a program: any of bandwidth, bridge, firewall, host-local, loopback, portmap, ptp, sbr, tuning. A configuration that asks for more than berthd can do goes to the plugin's program. Empty: programs only."`
	Default string   `toml:"default" doc:"What pods get while cni.conf_dir holds no configuration. wait: nothing, the node is not ready until a network is installed, as Kubernetes expects. builtin: a bridge with address translation, for a machine on its own."`
	Bridge  string   `toml:"bridge" doc:"Bridge of the built-in network. Daemons that share a machine need different ones."`
	Subnets []string `toml:"subnets" doc:"Subnets of the built-in network: one IPv4, one IPv6 or both. Daemons that share a machine need different ones."`
}

// Image says how images are pulled and kept.
type Image struct {
	RegistryDirs  []string `toml:"registry_hosts_dirs" reload:"hot" doc:"Directories with HOST/hosts.toml (mirrors, certificates). The first that knows a host, or has _default, is used for it; read at every pull."`
	AuthFiles     []string `toml:"auth_files" reload:"hot" doc:"Files in the format of docker's config.json, with credentials (or the names of helper programs, docker-credential-NAME in PATH) for pulls that bring none. Read when a registry asks."`
	UnpackWorkers int      `toml:"unpack_workers" reload:"hot" doc:"Layers unpacked at the same time, on the whole node. 0: one for each CPU."`
	Gzip          string   `toml:"gzip" reload:"hot" doc:"What unpacks gzip layers. auto: the program igzip if it is in PATH at the start or a reload, without rights of its own, for layers of 4 MiB and more. builtin: berthd itself."`
	Transfer
	Pinned        []string `toml:"pinned" reload:"hot" doc:"Images that the kubelet must not remove to free space: names, such as registry.k8s.io/pause:3.10, or patterns of whole names, in which * stands for any text. Names on Docker Hub are whole as docker.io/library/busybox:1.37."`
	KeepBlobs     bool     `toml:"keep_blobs" doc:"Keep compressed layers after they are unpacked: costs disk, but a damaged layer can be repaired without the registry."`
	MaxLayerSize  Size     `toml:"max_layer_size" doc:"Largest unpacked layer. A layer that grows beyond it fails the pull."`
	MaxLayerFiles int      `toml:"max_layer_files" doc:"Most files in one layer."`

	Signatures Signatures `toml:"signatures" doc:"Which images may be used, by who signed them; docs/signatures.md. Off unless there is a rule or default is reject. A rule is a table of its own, [image.signatures.rules.\"registry.example/team\"], for all images whose names begin so; the longest one counts. Its keys: keys, trusted_root, issuer, identities, unsigned."`
}

// Signatures is the signature policy of images.
type Signatures struct {
	Default string                   `toml:"default" reload:"hot" doc:"What becomes of images that no rule is for. accept or reject."`
	Timeout Duration                 `toml:"timeout" reload:"hot" doc:"Longest time for a registry to serve the signatures of one image."`
	Rules   map[string]SignatureRule `toml:"rules" doc:"Who must have signed images whose names begin so: one of the keys or one of the identities."`
}

// SignatureRule says who must have signed an image.
type SignatureRule struct {
	Keys        []string `toml:"keys" reload:"hot" doc:"Files of public keys, in PEM."`
	TrustedRoot string   `toml:"trusted_root" reload:"hot" doc:"File of sigstore's trusted root, for identities: trusted_root.json."`
	Issuer      string   `toml:"issuer" reload:"hot" doc:"Who must have known the identity: the OpenID Connect issuer in the certificate."`
	Identities  []string `toml:"identities" reload:"hot" doc:"Subjects of the certificates: addresses or URIs. * stands for any text."`
	Unsigned    bool     `toml:"unsigned" reload:"hot" doc:"These images need no signature."`
}

// Transfer bounds the downloads of all pulls together, and the patience with
// one registry host.
type Transfer struct {
	MaxDownloads     int      `toml:"max_downloads" reload:"hot" doc:"Layers downloaded at the same time, on the whole node."`
	MaxConnections   int      `toml:"max_connections" reload:"hot" doc:"Transfers from registries at the same time, on the whole node. Each holds up to 4 MiB of memory."`
	LayerConnections int      `toml:"layer_connections" reload:"hot" doc:"Connections of one large layer, if the registry serves ranges and no other layer waits for one. 1: never more than one."`
	MaxBandwidth     Size     `toml:"max_bandwidth" reload:"hot" doc:"Most bytes all downloads take per second. 0: no limit."`
	ConnectTimeout   Duration `toml:"connect_timeout" reload:"hot" doc:"A registry host that does not accept a connection for so long is passed over. dial_timeout in hosts.toml overrides it."`
	FirstByteTimeout Duration `toml:"first_byte_timeout" reload:"hot" doc:"The same for a host that does not begin to answer."`
	PullTimeout      Duration `toml:"pull_idle_timeout" reload:"hot" doc:"A transfer that gets no byte for so long is broken off; it goes on elsewhere or again, and fails after four such times in a row."`
	MinRate          Size     `toml:"min_rate" reload:"hot" doc:"Least bytes per second of one transfer, on the average of pull_idle_timeout; a slower one is broken off in the same way. 0: no limit."`
}

// Streaming is the server behind exec, attach and port-forward.
type Streaming struct {
	Address     string   `toml:"address" doc:"Address to listen on. The kubelet connects to it, so loopback is enough."`
	Port        int      `toml:"port" doc:"TCP port. 0: any free one."`
	IdleTimeout Duration `toml:"idle_timeout" doc:"A session without traffic ends after so long."`
	TLSCert     string   `toml:"tls_cert" doc:"Certificate in PEM, with tls_key, to serve TLS. Empty: plain HTTP."`
	TLSKey      string   `toml:"tls_key" doc:"Private key in PEM."`
	KeepExec    bool     `toml:"keep_exec" doc:"Let exec'ed processes go on, without input and output, when their client has gone. false: they are killed with all they started. They end with the daemon in any case."`
}

// Container is behaviour common to all containers.
type Container struct {
	ExecOutputLimit     Size     `toml:"exec_output_limit" doc:"Most output that one ExecSync returns of each stream; the rest is dropped."`
	MaxLogLine          Size     `toml:"max_log_line" doc:"Log lines longer than this are split into partial lines."`
	LogRate             Size     `toml:"log_rate" doc:"Most bytes a container writes to its log in a second, after a free burst of one second and at least 64KiB. 0: no limit."`
	LogFileSize         Size     `toml:"log_file_size" doc:"Most bytes of one log file, until the kubelet rotates it. 0: no limit."`
	LogOverflow         string   `toml:"log_overflow" doc:"What happens beyond log_rate and log_file_size. drop: output is lost, and a line in the log counts it. block: the container waits."`
	CDISpecDirs         []string `toml:"cdi_spec_dirs" doc:"Directories of the files in which vendors say what their devices are (Container Device Interface); later ones win. Empty: no CDI devices."`
	RestrictOOMScoreAdj string   `toml:"restrict_oom_score_adj" doc:"auto, true or false: raise a container's oom_score_adj to the daemon's own when a lower one is not permitted. auto: when the daemon lacks CAP_SYS_RESOURCE."`
	DefaultSysctls      []string `toml:"default_sysctls" doc:"Sysctls, NAME=VALUE, that pods get in the namespaces they have of their own, unless they set them. By default any user may listen on every port and send ICMP echo requests; the latter not in pods with user namespaces."`
	BlockIOClasses      string   `toml:"blockio_classes" doc:"YAML file of block I/O classes, as containerd's and CRI-O's. Pods pick one by the annotation blockio.resources.beta.kubernetes.io/pod, or .../container.NAME. Empty: no classes, and a pod that asks for one is refused."`
	AppArmor            bool     `toml:"apparmor" doc:"Use AppArmor where the kernel has it: the profile berth-default is loaded if it is missing, and confines containers that ask for none."`
	SELinux             bool     `toml:"selinux" doc:"Use SELinux where it is on and its policy has labels for containers: each pod gets categories of its own."`
	RDTClasses          string   `toml:"rdt_classes" doc:"The same for classes of caches and memory bandwidth (Intel RDT, AMD QoS), by rdt.resources.beta.kubernetes.io/... The kernel must have resctrl, mounted at /sys/fs/resctrl."`
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
			Timeout: Duration(defaultCNITimeout),
		},
		NRI: NRI{
			Enable: true, PluginPath: "/opt/nri/plugins", PluginConfigPath: "/etc/nri/conf.d",
			RegistrationTime: Duration(defaultPluginTime), RequestTime: Duration(defaultPluginTime),
		},
		Network: Network{
			Builtin: []string{"bridge", "host-local", "loopback", "portmap"},
			Default: "wait",
			Bridge:  "berth0",
			Subnets: []string{"10.90.0.0/16", "fd42:6265:7274:68::/64"},
		},
		Image: Image{
			RegistryDirs:  []string{"/etc/berth/certs.d", "/etc/containerd/certs.d"},
			AuthFiles:     []string{},
			Pinned:        []string{},
			Gzip:          "auto",
			MaxLayerSize:  64 << 30,
			MaxLayerFiles: 5_000_000,
			Signatures:    Signatures{Default: "accept", Timeout: Duration(defaultSignatures)},
			Transfer: Transfer{
				MaxDownloads: 3, MaxConnections: 6, LayerConnections: 3, MinRate: 1 << 10,
				ConnectTimeout: Duration(defaultConnect), FirstByteTimeout: Duration(defaultFirstByte), PullTimeout: Duration(defaultPullIdle),
			},
		},
		Streaming: Streaming{Address: "127.0.0.1", IdleTimeout: Duration(defaultStreamIdle)},
		Watching:  defaultWatching(),
		Container: Container{
			ExecOutputLimit:     16 << 20,
			MaxLogLine:          16 << 10,
			LogOverflow:         "drop",
			CDISpecDirs:         []string{"/etc/cdi", "/var/run/cdi"},
			RestrictOOMScoreAdj: "auto",
			DefaultSysctls:      []string{"net.ipv4.ip_unprivileged_port_start=0", "net.ipv4.ping_group_range=0 2147483647"},
			AppArmor:            true,
			SELinux:             true,
		},
	}
}

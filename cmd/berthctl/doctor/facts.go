package doctor

import "time"

// Facts is what was found on a node. A zero part means that it could not be
// looked at; the checks then say nothing of it, or that it is missing.
type Facts struct {
	Root     bool // the facts were gathered by root
	Kernel   Kernel
	Cgroup   Cgroup
	Sysctls  map[string]string // by dotted name; those the kernel does not have are absent
	Security Security
	Handlers []Handler
	Network  Network
	Disks    []Disk
	Clock    Clock
	Limits   Limits
	Daemon   Daemon
	Config   Config
}

// Kernel is the running kernel.
type Kernel struct {
	Release     string
	Machine     string
	FileSystems []string        // of /proc/filesystems, and overlay when its module can be loaded
	Calls       map[string]bool // system calls that Berth or runc use, and whether they exist
	Seccomp     bool
}

// Cgroup is the control group set-up.
type Cgroup struct {
	Version     int // 1 or 2; 0: nothing is mounted
	Hybrid      bool
	Controllers []string
	Systemd     bool   // systemd runs the machine
	Driver      string // as configured: auto, cgroupfs, systemd
}

// Security are the Linux security modules.
type Security struct {
	Modules        []string // of /sys/kernel/security/lsm
	AppArmor       bool     // enabled
	AppArmorParser string   // path of apparmor_parser, "" when it is missing
	SELinux        string   // "", "permissive" or "enforcing"
}

// Handler is an OCI runtime handler.
type Handler struct {
	Name     string
	Default  bool
	Path     string // as configured, or where it was found
	Version  string // "1.2.3"
	Features []string
	Error    string // why it does not run
}

// Network is the CNI configuration.
type Network struct {
	ConfDir string
	Files   []string // configuration files, by name
	Used    string   // the first one
	Error   string   // why the first one can't be used
	Default string   // network.default: wait or builtin
	Plugins []Plugin
	BinDirs []string
}

// Plugin is a CNI plugin type that the configuration names.
type Plugin struct {
	Type    string
	Builtin bool   // berthd serves it
	Path    string // program, "" when none was found
}

// Disk is the file system of one of Berth's directories.
type Disk struct {
	Role       string // "state", "run-time"
	Path       string
	Missing    bool // the directory does not exist yet; the rest is its parent's
	FSType     string
	Size, Free uint64 // bytes
	Inodes     uint64 // 0: the file system has no fixed number
	FreeInodes uint64
	ReadOnly   bool
	NoDType    bool   // directory entries do not tell types
	WriteError string // why a test directory could not be made there
	Overlay    string // why overlay can't be mounted there; "" when it can or was not tried
}

// Clock is the node's time.
type Clock struct {
	Now      time.Time
	Unsynced bool
	Newest   time.Time // of the files in the state directory
}

// Limits bound the daemon; when it does not run, its would-be parent's.
type Limits struct {
	Of           string // "the daemon" or "this shell"
	OpenFiles    uint64
	PIDsMax      uint64 // of the daemon's cgroup; 0: none
	PIDsNow      uint64
	MemoryMax    uint64 // bytes; 0: none
	MemoryNow    uint64
	Capabilities uint64 // effective set
}

// Daemon is berthd as seen from outside.
type Daemon struct {
	CRI, Admin       Socket
	Version          string
	Tool             string // version of berthctl
	PID              int
	Conditions       []Condition
	OldOperations    int // unfinished for longer than operationAge
	OtherCRIServices []string
}

// Socket is one of the daemon's Unix sockets.
type Socket struct {
	Path   string
	Exists bool
	Mode   uint32 // permission bits
	UID    uint32
	Error  string // why no answer came
}

// Condition is one of the CRI's status conditions.
type Condition struct {
	Type    string
	Status  bool
	Message string
}

// Config is the configuration file.
type Config struct {
	Source string
	Error  string
}

package bench

import "time"

// Schema is the version of the JSON document. It is raised when the meaning of
// a field changes; a new field does not change it.
const Schema = 1

// Result is all that a run measured. Times are milliseconds, memory is KiB.
type Result struct {
	Schema  int       `json:"schema"`
	Started time.Time `json:"started"`
	Command []string  `json:"command"`
	Machine Machine   `json:"machine"`
	Runtime Runtime   `json:"runtime"`
	Plan    Plan      `json:"plan"`
	Pull    *Stats    `json:"pull,omitempty"` // download and unpacking of Plan.Pull
	Disk    *Stats    `json:"fsync,omitempty"`
	Fork    *Stats    `json:"forkExec,omitempty"`
	Rounds  []Round   `json:"rounds,omitempty"`
	Held    *Held     `json:"held,omitempty"`
	Soak    *Soak     `json:"soak,omitempty"`
}

// Machine is where it ran.
type Machine struct {
	Kernel string `json:"kernel"`
	CPU    string `json:"cpu"`
	CPUs   int    `json:"cpus"`
	Memory uint64 `json:"memoryKiB"`
	Cgroup string `json:"cgroup"` // v1 or v2
}

// Runtime is what was measured, and with which OCI runtime the floor.
type Runtime struct {
	Endpoint string `json:"endpoint"`
	Name     string `json:"name"`
	Version  string `json:"version"`
	PID      int    `json:"pid"`
	OCI      string `json:"ociRuntime,omitempty"` // first line of its --version
	OCIPath  string `json:"ociPath,omitempty"`
}

// Round is what calls took at one concurrency, and what the OCI runtime alone
// took for the same, in turn with it.
type Round struct {
	Concurrency int              `json:"concurrency"`
	Pods        int              `json:"pods"`
	Calls       map[string]Stats `json:"calls"`
	Floor       map[string]Stats `json:"floor,omitempty"`
	Rates       Rates            `json:"rates"`
	FloorRates  *Rates           `json:"floorRates,omitempty"`
}

// Rates are figures of a round as a whole. CPU time is that of the runtime's
// processes and of what they ran, up to the container's own program.
type Rates struct {
	UpPerSecond   float64 `json:"upPerSecond"`
	DownPerSecond float64 `json:"downPerSecond"`
	CPUPerUp      float64 `json:"cpuPerUp"`
	CPUPerExec    float64 `json:"cpuPerExec,omitempty"`
}

// Held is what pods cost while they run.
type Held struct {
	Pods            int     `json:"pods"`
	DaemonBefore    uint64  `json:"daemonPSSBefore"`
	DaemonAfter     uint64  `json:"daemonPSSAfter"`
	Others          uint64  `json:"otherPSS"` // of the runtime's other processes: shims, monitors, pause processes
	OtherProcesses  int     `json:"otherProcesses"`
	PSSPerPod       float64 `json:"pssPerPod"`          // of the other processes, and what the daemon grew by, but for pages of files
	AvailablePerPod float64 `json:"memAvailablePerPod"` // fall of MemAvailable, the container's own memory with it
	IdleSeconds     float64 `json:"idleSeconds,omitempty"`
	IdleCPUPercent  float64 `json:"idleCPUPercent"`
	RestartFirst    float64 `json:"restartToFirstAnswer,omitempty"`
	RestartAll      float64 `json:"restartToWholeList,omitempty"`
}

// Soak is how the runtime's daemon changed over a long run of pods.
type Soak struct {
	Seconds float64  `json:"seconds"`
	Pods    int      `json:"pods"` // that were made and removed
	Samples []Sample `json:"samples"`
}

// Sample is the state of the daemon between two waves of pods.
type Sample struct {
	Second      float64 `json:"second"`
	PSS         uint64  `json:"pss"`
	Descriptors int     `json:"descriptors"`
	Threads     int     `json:"threads"`
	Goroutines  int     `json:"goroutines,omitempty"` // 0: not known
}

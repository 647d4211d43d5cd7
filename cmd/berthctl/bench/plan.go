package bench

import (
	"fmt"
	"os/exec"
	"time"
)

// Plan is what a run does.
type Plan struct {
	Image        string        `json:"image"`
	Command      []string      `json:"command"` // of the containers; must run until it is killed
	Exec         []string      `json:"exec"`    // run in them
	Pods         int           `json:"pods"`    // at each concurrency
	Concurrency  []int         `json:"concurrency"`
	Execs        int           `json:"execsPerPod"`
	Lists        int           `json:"lists"` // times each list is asked for
	Idle         time.Duration `json:"idleNanoseconds"`
	Handler      string        `json:"runtimeHandler,omitempty"`
	CgroupParent string        `json:"cgroupParent,omitempty"`
	Pull         string        `json:"pull,omitempty"` // image whose pull is measured
	Pulls        int           `json:"pulls,omitempty"`
}

// Local is what a run uses of this machine.
type Local struct {
	OCI      string        // OCI runtime of the floor; "": the floor of pods is left out
	StateDir string        // on the disk whose fsync is measured
	PID      int           // of the daemon; 0: the process that listens on the endpoint
	Restart  string        // shell command that restarts the daemon; "": not measured
	Soak     time.Duration // waves of pods for so long, in place of the rest
}

// check refuses a plan that cannot be carried out, before anything is made.
func (p Plan) check(l Local) error {
	switch {
	case p.Image == "":
		return fmt.Errorf("no image: name one that has the programs %q and %q with --image", p.Command, p.Exec)
	case len(p.Command) == 0 || len(p.Exec) == 0:
		return fmt.Errorf("--command and --exec need a program each")
	case p.Pods < 1 || p.Execs < 0 || p.Lists < 0 || p.Pulls < 1 || p.Idle < 0 || l.Soak < 0:
		return fmt.Errorf("--pods and --pulls are at least 1, and --execs, --lists, --idle and --soak at least 0")
	case len(p.Concurrency) == 0:
		return fmt.Errorf("--concurrency needs a number, or several as in 1,8,32")
	case p.Pull != "" && p.Pull == p.Image:
		return fmt.Errorf("--pull %s is the image of the pods too: it would be removed under them; name another", p.Pull)
	}
	for _, c := range p.Concurrency {
		if c < 1 {
			return fmt.Errorf("--concurrency %d: it is at least 1", c)
		}
	}
	if l.Restart != "" && l.PID != 0 {
		return fmt.Errorf("--pid and --restart exclude each other: after a restart the daemon is another process")
	}
	if l.OCI == "" || l.Soak > 0 {
		return nil
	}
	if _, err := exec.LookPath(l.OCI); err != nil {
		return fmt.Errorf("OCI runtime of the floor: %w; name it with --oci-runtime, or leave the floor out with --oci-runtime ''", err)
	}
	return nil
}

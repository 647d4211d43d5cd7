package pod

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/spf13/cobra"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-dev/berth/cmd/berthctl/cli"
)

// shim is the process that stands by a container.
type shim struct {
	Container string          `json:"container"` // ID
	Name      string          `json:"name"`
	PID       int             `json:"pid"` // 0: not found
	Init      int             `json:"containerPid"`
	Program   string          `json:"program"`
	Pss       uint64          `json:"pssBytes"`     // memory, what is shared counted in parts
	Private   uint64          `json:"privateBytes"` // memory that it has alone
	Threads   int             `json:"threads"`
	Files     int             `json:"openFiles"`
	StateDir  string          `json:"stateDir"`
	Health    shimHealth      `json:"shim"`
	Log       json.RawMessage `json:"log,omitempty"`
}

// shimHealth is what the daemon says of a shim.
type shimHealth struct {
	Protocol int64  `json:"protocol,omitempty"`
	Waits    string `json:"waitsFor,omitempty"`
	Since    string `json:"waitingSince,omitempty"`
	Error    string `json:"error,omitempty"`
}

func shims(a *cli.App) *cobra.Command {
	ls := a.Command("ls", "List the shims of containers that have not ended", cobra.NoArgs, func(c *cobra.Command, cl cli.Clients, _ []string) error {
		r, err := cl.ListContainers(c.Context(), &runtimeapi.ListContainersRequest{})
		if err != nil {
			return err
		}
		all := []shim{}
		for _, k := range r.GetContainers() {
			if k.GetState() == runtimeapi.ContainerState_CONTAINER_EXITED {
				continue
			}
			s, err := shimOf(c.Context(), cl, k)
			if err != nil {
				return err
			}
			all = append(all, s)
		}
		return a.Show(c.OutOrStdout(), all, shimTable(a, all))
	})
	inspect := a.Command("inspect CONTAINER", "What the daemon and the kernel say of a container's shim, as JSON or YAML", cobra.ExactArgs(1),
		func(c *cobra.Command, cl cli.Clients, args []string) error {
			k, err := cl.Container(c.Context(), args[0])
			if err != nil {
				return err
			}
			if k.GetState() == runtimeapi.ContainerState_CONTAINER_EXITED {
				return cli.Failed(fmt.Errorf("container %s has ended, and its shim with it", k.GetId()), "`berthctl shims ls` lists those there are.")
			}
			s, err := shimOf(c.Context(), cl, k)
			if err != nil {
				return err
			}
			return a.ShowDocument(c.OutOrStdout(), s)
		})
	return cli.Group("shims", "The processes that stand by containers", ls, cli.Completed(inspect, a.Containers(1)))
}

// shimOf asks the daemon, and /proc of this node.
func shimOf(ctx context.Context, cl cli.Clients, k *runtimeapi.Container) (shim, error) {
	s := shim{Container: k.GetId(), Name: k.GetMetadata().GetName()}
	r, err := cl.ContainerStatus(ctx, &runtimeapi.ContainerStatusRequest{ContainerId: k.GetId(), Verbose: true})
	if err != nil {
		return s, err
	}
	var info struct {
		PID      int             `json:"pid"`
		StateDir string          `json:"stateDir"`
		Shim     *shimHealth     `json:"shim"`
		Log      json.RawMessage `json:"log"`
	}
	if err := json.Unmarshal([]byte(r.GetInfo()["info"]), &info); err != nil {
		return s, cli.Failed(fmt.Errorf("read the verbose status of container %s: %w", k.GetId(), err), "Compare `berthctl version`: is this daemon Berth?")
	}
	s.Init, s.StateDir, s.Log = info.PID, info.StateDir, info.Log
	if info.Shim != nil {
		s.Health = *info.Shim
	}
	s.look(procRoot)
	return s, nil
}

// look finds the shim's process: the parent of the container's first one. What
// can't be seen, of a process that ends meanwhile too, stays empty.
func (s *shim) look(root string) {
	first, err := readProcess(root, s.Init)
	if err != nil {
		return
	}
	p, err := readProcess(root, first.Parent)
	if err != nil || !strings.Contains(p.Command, "berth-shim") {
		return
	}
	s.PID, s.Threads = p.PID, p.Threads
	s.Pss, s.Private, _ = memoryOf(root, p.PID)
	s.Program, _ = os.Readlink(filepath.Join(root, strconv.Itoa(p.PID), "exe"))
	files, _ := os.ReadDir(filepath.Join(root, strconv.Itoa(p.PID), "fd"))
	s.Files = len(files)
}

// state says in a word how a shim fares, and then why.
func (s shim) state() string {
	switch {
	case s.Health.Error != "":
		return "mute (" + s.Health.Error + ")"
	case s.Health.Waits != "":
		return "waits (for " + s.Health.Waits + " since " + s.Health.Since + ")"
	case s.PID == 0:
		return "unseen (its process is not the parent of the container's)"
	}
	return "ok"
}

func shimTable(a *cli.App, all []shim) cli.Table {
	t := cli.Table{Header: "CONTAINER NAME PID CONTAINER-PID PROTOCOL MEMORY STATE PRIVATE THREADS FILES PROGRAM", Wide: 4}
	for _, s := range all {
		t.Rows = append(t.Rows, []string{a.ID(s.Container), s.Name, fmt.Sprint(s.PID), fmt.Sprint(s.Init), fmt.Sprint(s.Health.Protocol), cli.Bytes(s.Pss), s.state(),
			cli.Bytes(s.Private), fmt.Sprint(s.Threads), fmt.Sprint(s.Files), s.Program})
	}
	return t
}

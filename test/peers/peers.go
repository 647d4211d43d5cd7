// Package peers starts container runtimes on throw-away nodes, for measurements:
// Berth, containerd and CRI-O, whose programs are given, all with the same OCI
// runtime and network, in namespaces of their own.
package peers

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-dev/berth/test/harness"
	"github.com/berth-dev/berth/test/images"
)

// Config is what a runtime is started with.
type Config struct {
	Programs harness.Programs
	Dir      string // of the runtime's programs
	Place    *Place
	Space    *harness.Space
	Registry Registry
	TOML     string // Berth's configuration; "": the default
}

// Registry is where the images are.
type Registry struct {
	Name, Addr string
	WriteHosts func(dir string) error // as hosts.toml below dir
}

// Peer is a runtime that runs.
type Peer struct {
	Socket   string
	StateDir string // on the disk of the place
	PID      func() int

	start func(context.Context) error
	kill  func() error
	close func() error
	place *Place
}

// Close ends the runtime and removes what it kept.
func (p *Peer) Close() error { return p.close() }

// Restarter returns a shell command that kills the daemon, and starts it anew
// without waiting until it answers.
func (p *Peer) Restarter(ctx context.Context) (string, error) {
	fifo := filepath.Join(p.place.dir, "restart")
	if err := syscall.Mkfifo(fifo, 0o600); err != nil {
		return "", err
	}
	f, err := os.OpenFile(fifo, os.O_RDWR, 0) // both ends, so that neither waits for the other
	if err != nil {
		return "", err
	}
	context.AfterFunc(ctx, func() { f.Close() })
	go func() {
		for b := make([]byte, 1); ; {
			if _, err := f.Read(b); err != nil {
				return
			}
			if err := errors.Join(p.kill(), p.start(ctx)); err != nil {
				fmt.Fprintln(os.Stderr, "bench: restart:", err)
			}
		}
	}()
	return "printf x >" + fifo, nil
}

// Berth starts berthd.
func Berth(ctx context.Context, c Config) (*Peer, error) {
	state, err := os.MkdirTemp(c.Place.Disk, "berth-")
	if err != nil {
		return nil, err
	}
	n, err := harness.New(harness.Config{Programs: c.Programs, Space: c.Space, TOML: c.TOML, Dir: filepath.Join(c.Place.Run, "berth"), Args: []string{"--root", state}})
	if err != nil {
		return nil, errors.Join(err, os.RemoveAll(state))
	}
	p := &Peer{Socket: n.Dir("run", "berth.sock"), StateDir: state, PID: n.PID, place: c.Place, kill: n.Kill,
		start: func(ctx context.Context) error { return n.Start(ctx) },
		close: func() error { return errors.Join(n.Close(), os.RemoveAll(state)) }}
	if err := errors.Join(c.Registry.WriteHosts(n.HostsDir()), n.Start(ctx)); err != nil {
		return nil, errors.Join(err, p.close())
	}
	return p, nil
}

// containerdTOML takes the directory of what does not outlive a boot, that of
// plugins, the path of runc, and the directory of what does. Sizes and limits are the
// defaults.
const containerdTOML = `version = 3
root = "%[4]s/root"
state = "%[1]s/state"
[grpc]
address = "%[1]s/sock"
[plugins.'io.containerd.cri.v1.images'.pinned_images]
sandbox = "` + images.HostPlain + `/pause:1"
[plugins.'io.containerd.cri.v1.images'.registry]
config_path = "%[1]s/hosts"
[plugins.'io.containerd.nri.v1.nri']
disable = true
[plugins.'io.containerd.cri.v1.runtime']
restrict_oom_score_adj = true
[plugins.'io.containerd.cri.v1.runtime'.cni]
conf_dir = "%[1]s/cni"
bin_dirs = ["%[2]s"]
[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc.options]
BinaryName = "%[3]s"
`

// Containerd starts containerd, with its defaults.
func Containerd(ctx context.Context, c Config) (*Peer, error) {
	return foreign(ctx, c, "containerd", func(dir, state string) (*exec.Cmd, error) {
		toml := fmt.Appendf(nil, containerdTOML, dir, c.Programs.CNI, c.Programs.Runc, state)
		cmd := c.Space.Command(context.Background(), filepath.Join(c.Dir, "containerd"), "--config", dir+"/config.toml")
		return cmd, errors.Join(os.WriteFile(dir+"/config.toml", toml, 0o600), c.Registry.WriteHosts(dir+"/hosts"))
	})
}

// crioRegistries sends the registry's name to where it is served.
const crioRegistries = `[[registry]]
prefix = "%s"
location = "%s"
insecure = true
`

// CRIO starts CRI-O, with its defaults.
func CRIO(ctx context.Context, c Config) (*Peer, error) {
	return foreign(ctx, c, "crio", func(dir, state string) (*exec.Cmd, error) {
		err := errors.Join(os.WriteFile(dir+"/registries.conf", fmt.Appendf(nil, crioRegistries, c.Registry.Name, c.Registry.Addr), 0o600),
			os.WriteFile(dir+"/policy.json", []byte(`{"default":[{"type":"insecureAcceptAnything"}]}`), 0o600),
			os.WriteFile(dir+"/crio.conf", fmt.Appendf(nil, crioTOML, c.Programs.Runc), 0o600))
		return c.Space.Command(context.Background(), filepath.Join(c.Dir, "crio"), "--config", dir+"/crio.conf", "--config-dir", "",
			"--root", state+"/root", "--runroot", dir+"/run", "--listen", dir+"/sock", "--storage-driver", "overlay",
			"--registries-conf", dir+"/registries.conf", "--signature-policy", dir+"/policy.json",
			"--pinns-path", filepath.Join(c.Dir, "pinns"), "--conmon", filepath.Join(c.Dir, "conmon"), "--conmon-cgroup", "pod",
			"--cgroup-manager", "cgroupfs", "--cni-config-dir", dir+"/cni", "--cni-plugin-dir", c.Programs.CNI,
			"--namespaces-dir", dir+"/ns", "--container-exits-dir", dir+"/exits", "--container-attach-socket-dir", dir+"/attach",
			"--version-file", dir+"/version", "--version-file-persist", dir+"/version-persist", "--clean-shutdown-file", dir+"/clean",
			"--log-dir", dir+"/log", "--pause-image", images.HostPlain+"/pause:1", "--default-runtime", "runc"), err
	})
}

const crioTOML = `[crio.runtime.runtimes.runc]
runtime_path = "%s"
runtime_type = "oci"
[crio.nri]
enable_nri = false
`

// foreign starts a runtime that is not Berth in directories of its own, one that
// goes with the boot and one that stays; configure writes its configuration.
func foreign(ctx context.Context, c Config, name string, configure func(dir, state string) (*exec.Cmd, error)) (*Peer, error) {
	dir := filepath.Join(c.Place.Run, name)
	state, err := os.MkdirTemp(c.Place.Disk, name+"-")
	if err != nil {
		return nil, err
	}
	remove := func() error { return errors.Join(os.RemoveAll(dir), os.RemoveAll(state)) }
	err = errors.Join(os.Mkdir(dir, 0o711), os.Mkdir(dir+"/cni", 0o755), os.Mkdir(dir+"/ipam", 0o755), os.Mkdir(dir+"/hosts", 0o755), harness.WriteConflist(dir+"/cni", dir+"/ipam", harness.Bridge{}))
	if err != nil {
		return nil, errors.Join(err, remove())
	}
	var proc *harness.Process
	p := &Peer{Socket: dir + "/sock", StateDir: state, PID: func() int { return proc.PID() }, place: c.Place}
	p.kill = func() error { return proc.End(syscall.SIGKILL) }
	p.close = func() error { return errors.Join(proc.End(syscall.SIGTERM), remove()) }
	p.start = func(ctx context.Context) error {
		cmd, err := configure(dir, state)
		if err != nil {
			return err
		}
		log, err := os.OpenFile(dir+"/log.txt", os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
		if err != nil {
			return err
		}
		defer log.Close()
		cmd.Stdout, cmd.Stderr = log, log
		cmd.Env = append(os.Environ(), "PATH="+c.Dir+":"+os.Getenv("PATH"))
		// A daemon must not outlive a run that crashes.
		cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGTERM}
		if proc, err = harness.Launch(name, cmd); err != nil {
			return err
		}
		return p.ready(ctx, proc.Done())
	}
	if err := p.start(ctx); err != nil {
		log, _ := os.ReadFile(dir + "/log.txt")
		err = fmt.Errorf("%w:\n%s", err, log[max(0, len(log)-4096):])
		if proc == nil {
			return nil, errors.Join(err, remove())
		}
		return nil, errors.Join(err, p.close())
	}
	return p, nil
}

func (p *Peer) ready(ctx context.Context, ended <-chan struct{}) error {
	conn, err := grpc.NewClient("unix://"+p.Socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return err
	}
	defer conn.Close()
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	for {
		_, err := runtimeapi.NewRuntimeServiceClient(conn).Version(ctx, &runtimeapi.VersionRequest{})
		if err == nil {
			return nil
		}
		if ctx.Err() != nil {
			return fmt.Errorf("it does not answer: %w", err)
		}
		conn.ResetConnectBackoff()
		select {
		case <-ended:
			return errors.New("it has ended")
		case <-time.After(10 * time.Millisecond):
		}
	}
}

package main

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

// config is what a runtime is started with.
type config struct {
	programs harness.Programs
	dir      string // of the runtime's programs
	served   map[string]any
	place    *place
	space    *harness.Space
	reg      *images.Registry
}

// peer is a runtime that runs on a throw-away node.
type peer struct {
	socket   string
	stateDir string
	dir      string // for the way to restart it
	start    func(context.Context) error
	kill     func() error
	close    func() error
}

// restarter returns a shell command that kills the daemon, and starts it anew
// without waiting until it answers.
func (p *peer) restarter(ctx context.Context) (string, error) {
	fifo := filepath.Join(p.dir, "restart")
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

func startBerth(ctx context.Context, c config) (*peer, error) {
	n, err := harness.New(harness.Config{Programs: c.programs, Space: c.space, Dir: filepath.Join(c.place.run, "berth"), Args: []string{"--root", c.place.disk}})
	if err != nil {
		return nil, err
	}
	p := &peer{socket: n.Dir("run", "berth.sock"), stateDir: c.place.disk, dir: c.place.dir, kill: n.Kill, close: n.Close,
		start: func(ctx context.Context) error { return n.Start(ctx) }}
	if err := errors.Join(c.reg.WriteHosts(n.HostsDir()), n.Start(ctx)); err != nil {
		return nil, errors.Join(err, n.Close())
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

func startContainerd(ctx context.Context, c config) (*peer, error) {
	return startForeign(ctx, c, "containerd", func(dir string) (*exec.Cmd, error) {
		toml := fmt.Appendf(nil, containerdTOML, dir, c.programs.CNI, c.programs.Runc, c.place.disk)
		cmd := c.space.Command(context.Background(), filepath.Join(c.dir, "containerd"), "--config", dir+"/config.toml")
		return cmd, errors.Join(os.WriteFile(dir+"/config.toml", toml, 0o600), c.reg.WriteHosts(dir+"/hosts"))
	})
}

// crioRegistries sends the registry's name to where it is served.
const crioRegistries = `[[registry]]
prefix = "` + images.HostPlain + `"
location = "%s"
insecure = true
`

func startCRIO(ctx context.Context, c config) (*peer, error) {
	return startForeign(ctx, c, "crio", func(dir string) (*exec.Cmd, error) {
		err := errors.Join(os.WriteFile(dir+"/registries.conf", fmt.Appendf(nil, crioRegistries, c.reg.Addr(images.HostPlain)), 0o600),
			os.WriteFile(dir+"/policy.json", []byte(`{"default":[{"type":"insecureAcceptAnything"}]}`), 0o600),
			os.WriteFile(dir+"/crio.conf", fmt.Appendf(nil, crioTOML, c.programs.Runc), 0o600))
		return c.space.Command(context.Background(), filepath.Join(c.dir, "crio"), "--config", dir+"/crio.conf", "--config-dir", "",
			"--root", c.place.disk+"/root", "--runroot", dir+"/run", "--listen", dir+"/sock", "--storage-driver", "overlay",
			"--registries-conf", dir+"/registries.conf", "--signature-policy", dir+"/policy.json",
			"--pinns-path", filepath.Join(c.dir, "pinns"), "--conmon", filepath.Join(c.dir, "conmon"), "--conmon-cgroup", "pod",
			"--cgroup-manager", "cgroupfs", "--cni-config-dir", dir+"/cni", "--cni-plugin-dir", c.programs.CNI,
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

// startForeign starts a runtime that is not Berth in a directory of its own,
// where make writes its configuration.
func startForeign(ctx context.Context, c config, name string, configure func(dir string) (*exec.Cmd, error)) (*peer, error) {
	dir := filepath.Join(c.place.run, name)
	err := errors.Join(os.Mkdir(dir, 0o711), os.Mkdir(dir+"/cni", 0o755), os.Mkdir(dir+"/ipam", 0o755), os.Mkdir(dir+"/hosts", 0o755), harness.WriteConflist(dir+"/cni", dir+"/ipam", harness.Bridge{}))
	if err != nil {
		return nil, errors.Join(err, os.RemoveAll(dir))
	}
	var proc *harness.Process
	p := &peer{socket: dir + "/sock", stateDir: c.place.disk, dir: c.place.dir}
	p.kill = func() error { return proc.End(syscall.SIGKILL) }
	p.close = func() error { return errors.Join(proc.End(syscall.SIGTERM), os.RemoveAll(dir)) }
	p.start = func(ctx context.Context) error {
		cmd, err := configure(dir)
		if err != nil {
			return err
		}
		log, err := os.OpenFile(dir+"/log.txt", os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
		if err != nil {
			return err
		}
		defer log.Close()
		cmd.Stdout, cmd.Stderr = log, log
		cmd.Env = append(os.Environ(), "PATH="+c.dir+":"+os.Getenv("PATH"))
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
		if proc != nil {
			err = errors.Join(err, p.close())
		}
		return nil, err
	}
	return p, nil
}

func (p *peer) ready(ctx context.Context, ended <-chan struct{}) error {
	conn, err := grpc.NewClient("unix://"+p.socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
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

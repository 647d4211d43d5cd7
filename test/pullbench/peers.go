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
)

// containerdTOML takes the directory of all that it keeps. Its unpacking runs
// with the defaults of the program given.
const containerdTOML = `version = 3
root = "%[1]s/root"
state = "%[1]s/state"
[grpc]
address = "%[1]s/sock"
[plugins.'io.containerd.cri.v1.images'.registry]
config_path = "%[1]s/hosts"
[plugins.'io.containerd.nri.v1.nri']
disable = true
`

// containerd pulls with a fresh containerd over the CRI.
func (b *bench) containerd(ctx context.Context) (figure, error) {
	return b.peer(ctx, "containerd", func(dir string) (*exec.Cmd, error) {
		err := errors.Join(os.WriteFile(dir+"/config.toml", fmt.Appendf(nil, containerdTOML, dir), 0o600), b.writeHosts(dir+"/hosts"))
		return b.space.Command(context.Background(), filepath.Join(b.ctrd, "containerd"), "--config", dir+"/config.toml", "--log-level", "error"), err
	})
}

// crioRegistries takes the registry's address.
const crioRegistries = `[[registry]]
location = "%s"
insecure = true
`

// crioTOML takes the path of runc.
const crioTOML = `[crio.runtime]
default_runtime = "runc"
[crio.runtime.runtimes.runc]
runtime_path = "%s"
[crio.nri]
enable_nri = false
`

// criO pulls with a fresh CRI-O over the CRI.
func (b *bench) criO(ctx context.Context) (figure, error) {
	return b.peer(ctx, "cri-o", func(dir string) (*exec.Cmd, error) {
		err := errors.Join(os.Mkdir(dir+"/cni", 0o755), os.WriteFile(dir+"/registries.conf", fmt.Appendf(nil, crioRegistries, b.addr), 0o600),
			os.WriteFile(dir+"/policy.json", []byte(`{"default":[{"type":"insecureAcceptAnything"}]}`), 0o600),
			os.WriteFile(dir+"/crio.conf", fmt.Appendf(nil, crioTOML, b.programs.Runc), 0o600))
		return b.space.Command(context.Background(), filepath.Join(b.crio, "crio"), "--config", dir+"/crio.conf", "--config-dir", "",
			"--root", dir+"/root", "--runroot", dir+"/run", "--listen", dir+"/sock", "--storage-driver", "overlay", "--log-level", "fatal",
			"--registries-conf", dir+"/registries.conf", "--signature-policy", dir+"/policy.json",
			"--pinns-path", filepath.Join(b.crio, "pinns"), "--conmon", filepath.Join(b.crio, "conmon"), "--conmon-cgroup", "pod",
			"--cgroup-manager", "cgroupfs", "--cni-config-dir", dir+"/cni", "--cni-plugin-dir", b.programs.CNI,
			"--namespaces-dir", dir+"/ns", "--container-exits-dir", dir+"/exits", "--container-attach-socket-dir", dir+"/attach",
			"--version-file", dir+"/version", "--version-file-persist", dir+"/version-persist", "--clean-shutdown-file", dir+"/clean",
			"--log-dir", dir+"/log"), err
	})
}

// peer pulls with a daemon that configure makes the command of; its socket is
// called sock in the directory.
func (b *bench) peer(ctx context.Context, who string, configure func(dir string) (*exec.Cmd, error)) (f figure, err error) {
	dir, err := os.MkdirTemp(b.dir, who+"-")
	if err != nil {
		return f, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	cmd, err := configure(dir)
	if err != nil {
		return f, err
	}
	cmd.Stderr = os.Stderr
	// A daemon must not outlive a run that crashes.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGTERM}
	p, err := harness.Launch(who, cmd)
	if err != nil {
		return f, err
	}
	defer func() { err = errors.Join(err, p.End(syscall.SIGTERM)) }()
	conn, err := grpc.NewClient("unix://"+dir+"/sock", grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return f, err
	}
	defer conn.Close()
	images := runtimeapi.NewImageServiceClient(conn)
	for try := 0; ; try++ {
		if _, err = images.ListImages(ctx, &runtimeapi.ListImagesRequest{}); err == nil {
			break
		}
		if try > 100 {
			return f, fmt.Errorf("it does not answer: %w", err)
		}
		conn.ResetConnectBackoff()
		time.Sleep(100 * time.Millisecond)
	}
	return watch(who, cmd.Process.Pid, func() error { return b.pull(ctx, images) })
}

func (b *bench) pull(ctx context.Context, images runtimeapi.ImageServiceClient) error {
	_, err := images.PullImage(ctx, &runtimeapi.PullImageRequest{Image: &runtimeapi.ImageSpec{Image: b.ref()}})
	return err
}

// writeHosts sends all that is pulled to the registry of the image.
func (b *bench) writeHosts(dir string) error {
	hosts := filepath.Join(dir, "_default")
	return errors.Join(os.MkdirAll(hosts, 0o755), os.WriteFile(filepath.Join(hosts, "hosts.toml"), []byte("[host.\"http://"+b.addr+"\"]\n"), 0o644))
}

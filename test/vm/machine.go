package main

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// boot says what to boot.
type boot struct {
	cache   string // directory with root.ext4, vmlinuz, initrd
	payload string // disk with programs and tests
	group   string
	extra   string   // added to the kernel's command line, where the last word counts
	console string   // file for the kernel's messages
	disks   []string // more of them, whose changes stay
}

// machine is a running virtual machine.
type machine struct {
	cmd   *exec.Cmd
	lines chan string // second serial line; closed when the machine has ended
}

func (b boot) command(ctx context.Context) *exec.Cmd {
	line := "console=ttyS0 quiet loglevel=4 panic=-1 random.trust_cpu=on apparmor=1 security=apparmor systemd.unified_cgroup_hierarchy=1 net.ifnames=0 berth.group=" + b.group + " " + b.extra
	args := []string{
		"-accel", "tcg,thread=multi", "-M", "pc", "-cpu", "max", "-smp", "2", "-m", "2048",
		"-nodefaults", "-display", "none", "-no-reboot", "-nic", "none",
		"-kernel", filepath.Join(b.cache, "vmlinuz"), "-initrd", filepath.Join(b.cache, "initrd"), "-append", line,
		"-drive", "if=virtio,format=raw,snapshot=on,file=" + filepath.Join(b.cache, "root.ext4"),
		"-drive", "if=virtio,format=raw,snapshot=on,file=" + b.payload,
		"-serial", "file:" + b.console, "-serial", "stdio",
	}
	for _, d := range b.disks {
		args = append(args, "-drive", "if=virtio,format=raw,file="+d)
	}
	cmd := exec.CommandContext(ctx, "qemu-system-x86_64", args...)
	// Changes to the disks that are thrown away go there.
	cmd.Env = append(os.Environ(), "TMPDIR="+b.cache)
	return cmd
}

// start starts a machine. It ends when it powers itself off or the context ends.
func start(ctx context.Context, b boot) (*machine, error) {
	m := &machine{cmd: b.command(ctx), lines: make(chan string, 1000)}
	out, err := m.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	var stderr strings.Builder
	m.cmd.Stderr = &stderr
	m.cmd.WaitDelay = 5 * time.Second
	if err := m.cmd.Start(); err != nil {
		return nil, fmt.Errorf("start a machine: %w", err)
	}
	go func() {
		defer close(m.lines)
		in := bufio.NewScanner(out)
		in.Buffer(nil, 1<<20)
		for in.Scan() {
			m.lines <- strings.TrimRight(in.Text(), "\r")
		}
		if err := m.cmd.Wait(); err != nil && stderr.Len() > 0 {
			m.lines <- "qemu: " + stderr.String()
		}
	}()
	return m, nil
}

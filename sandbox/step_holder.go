package sandbox

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/berth-dev/berth/cni/netns"
	"github.com/berth-dev/berth/sandbox/spec"
)

// holderGroup is the holder's cgroup below the pod's: on v2 a group with child
// groups cannot have processes.
const holderGroup = "/holder"

// holderStep starts the first process of a shared PID namespace and pins that.
func (m *Manager) holderStep() step {
	return step{
		Name: "holder",
		Do: func(_ context.Context, s *state) error {
			if !sharedPID(s.Rec.Config) || ownUser(s.Rec.Config) {
				return nil // not wanted, or there since the namespaces were made
			}
			pid, err := m.startHolder(s, []string{netns.PID})
			if err != nil {
				return fmt.Errorf("start holder of the PID namespace: %w", err)
			}
			s.Rec.Facts.HolderPID = pid
			if err := m.placeHolder(pid, s); err != nil {
				return err // Undo finds it by its command line
			}
			_, err = netns.PinFrom(pid, m.at.nsDir(s.Rec.ID), netns.PID)
			return err
		},
		Undo: m.killHolder,
		Done: func(_ context.Context, s *state) (bool, error) {
			if !sharedPID(s.Rec.Config) {
				return true, nil
			}
			ok, err := netns.IsPinned(m.at.pin(s.Rec.ID, netns.PID))
			return ok && isHolder(s.Rec.Facts.HolderPID, s.Rec.ID), err
		},
	}
}

// startHolder launches "berth-shim holder ID" in new namespaces of these kinds
// and of UTS, and in the pod's network namespace if that exists, so that nothing
// of the node's is found through PID 1. Its IPC namespace it makes itself.
func (m *Manager) startHolder(s *state, kinds []string) (int, error) {
	cmd := exec.Command(m.cfg.ShimBinary, "holder", s.Rec.ID)
	cmd.Dir, cmd.Env = "/", []string{}
	flags, err := netns.CloneFlags(append(slices.DeleteFunc(slices.Clone(kinds), func(k string) bool { return k == netns.IPC }), netns.UTS)...)
	if err != nil {
		return 0, err
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Cloneflags: flags}
	ready, theirs, err := os.Pipe()
	if err != nil {
		return 0, err
	}
	defer ready.Close()
	defer theirs.Close()
	cmd.ExtraFiles = []*os.File{theirs} // descriptor 3
	start := cmd.Start
	if maps := spec.UserNamespace(s.Rec.Config); maps != nil {
		program, err := mapRoot(cmd, maps)
		if err != nil {
			return 0, err
		}
		defer program.Close()
	} else if !hostNetwork(s.Rec.Config) {
		start = func() error { return netns.Do(m.at.pin(s.Rec.ID, netns.Net), cmd.Start) }
	}
	if err := start(); err != nil {
		return 0, err
	}
	_ = theirs.Close()
	go func() { _ = cmd.Wait() }() // reaps it; watchHolder sees its end
	return cmd.Process.Pid, confinedHolder(ready)
}

// mapRoot makes the command the root of its user namespace. That root need not
// be able to walk to the program: it gets it as a descriptor.
func mapRoot(cmd *exec.Cmd, maps *spec.IDMaps) (*os.File, error) {
	program, err := os.Open(cmd.Path)
	if err != nil {
		return nil, err
	}
	cmd.ExtraFiles = append(cmd.ExtraFiles, program)
	cmd.Path = fmt.Sprintf("/proc/self/fd/%d", 2+len(cmd.ExtraFiles))
	cmd.SysProcAttr.UidMappings = sysMaps(maps.UIDs)
	cmd.SysProcAttr.GidMappings = sysMaps(maps.GIDs)
	cmd.SysProcAttr.GidMappingsEnableSetgroups = true
	cmd.SysProcAttr.Credential = &syscall.Credential{}
	return program, nil
}

func sysMaps(list []specs.LinuxIDMapping) []syscall.SysProcIDMap {
	var out []syscall.SysProcIDMap
	for _, m := range list {
		out = append(out, syscall.SysProcIDMap{ContainerID: int(m.ContainerID), HostID: int(m.HostID), Size: int(m.Size)})
	}
	return out
}

// confinedHolder waits until the holder has given up all it has on the node:
// before that no container may see it.
func confinedHolder(ready *os.File) error {
	if err := ready.SetReadDeadline(time.Now().Add(holderWait)); err != nil {
		return err
	}
	said, err := io.ReadAll(ready)
	switch {
	case err != nil:
		return fmt.Errorf("wait until it is confined: %w", err)
	case len(said) == 0:
		return errors.New("it ended before it was confined")
	case len(said) > 1 || said[0] != 0:
		return errors.New(strings.TrimSpace(string(said)))
	}
	return nil
}

// placeHolder moves the holder into the pod's cgroup. Below a systemd slice
// groups are systemd's to make, and the holder stays where shims are, in the
// daemon's: KillMode=process lets both outlive it, and a scope for a process
// that only sleeps would cost each pod a call to systemd.
func (m *Manager) placeHolder(pid int, s *state) error {
	if m.cfg.SystemdCgroup {
		return nil
	}
	group := s.Rec.Facts.CgroupParent + holderGroup
	if err := m.cg.Create(group); err != nil {
		return err
	}
	moved := map[string]bool{}
	for _, c := range []string{"cpu", "cpuset", "memory", "pids", "freezer", "devices", "blkio"} {
		dir := m.cg.Dir(c, group)
		if dir == "" || moved[dir] {
			continue
		}
		moved[dir] = true
		if err := os.WriteFile(dir+"/cgroup.procs", []byte(strconv.Itoa(pid)), 0); err != nil {
			return fmt.Errorf("move holder into its cgroup: %w", err)
		}
	}
	return nil
}

// killHolder ends the holder, wherever the verb was interrupted, and removes
// its pin and group.
func (m *Manager) killHolder(ctx context.Context, s *state) error {
	if !sharedPID(s.Rec.Config) && !ownUser(s.Rec.Config) {
		return nil
	}
	pid := s.Rec.Facts.HolderPID
	if !isHolder(pid, s.Rec.ID) {
		found, err := findHolders()
		if err != nil {
			return err
		}
		pid = found[s.Rec.ID]
	}
	if err := killAndWait(ctx, pid); err != nil {
		return fmt.Errorf("kill holder %d: %w", pid, err)
	}
	err := netns.Unpin(m.at.nsDir(s.Rec.ID), netns.PID)
	if m.cfg.SystemdCgroup {
		return err
	}
	return errors.Join(err, m.removeHolderGroup(s))
}

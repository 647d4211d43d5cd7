package sandbox

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-dev/berth/sandbox/spec"
)

// shmOptions size /dev/shm as other runtimes do.
const shmOptions = "mode=1777,size=65536k"

// maxNodeFile bounds what is read of the node's resolv.conf and hosts, in bytes.
const maxNodeFile = 1 << 20

// filesStep writes the files that containers mount, and mounts a private /dev/shm.
func (m *Manager) filesStep() step {
	return step{
		Name: "files",
		Do: func(_ context.Context, s *state) error {
			if err := m.writeFiles(s); err != nil {
				return fmt.Errorf("write sandbox files: %w", err)
			}
			if hostIPC(s.Rec.Config) {
				return nil
			}
			uid, gid := podRoot(s.Rec.Config)
			options := fmt.Sprintf("%s,uid=%d,gid=%d", shmOptions, uid, gid)
			if label := s.Rec.Facts.SELinuxMount; label != "" {
				options += `,context="` + label + `"`
			}
			return mountShm(m.at.shm(s.Rec.ID), options)
		},
		Undo: m.removeFiles,
		Done: func(_ context.Context, s *state) (bool, error) {
			for _, f := range []string{m.at.hostname(s.Rec.ID), m.at.hosts(s.Rec.ID), m.at.resolvConf(s.Rec.ID)} {
				if _, err := os.Stat(f); err != nil {
					return false, nil
				}
			}
			return hostIPC(s.Rec.Config) || isMountPoint(m.at.shm(s.Rec.ID)), nil
		},
	}
}

func (m *Manager) writeFiles(s *state) error {
	id, cfg := s.Rec.ID, s.Rec.Config
	if err := os.MkdirAll(m.at.filesDir(id), 0o711); err != nil {
		return err
	}
	if err := os.MkdirAll(m.at.stateDir(id), 0o700); err != nil {
		return err
	}
	hostname := cfg.GetHostname()
	if hostname == "" || hostNetwork(cfg) {
		hostname = m.cfg.Hostname
	}
	hosts := podHosts(hostname, s.Rec.Facts.Network.IPs)
	if hostNetwork(cfg) {
		var err error
		if hosts, err = readNodeFile(m.cfg.NodeHosts); err != nil {
			return err
		}
	}
	resolv := resolvConf(cfg.GetDnsConfig())
	if len(resolv) == 0 {
		var err error
		if resolv, err = readNodeFile(m.cfg.NodeResolvConf); err != nil {
			return err
		}
	}
	uid, gid := podRoot(cfg)
	for path, content := range map[string][]byte{
		m.at.hostname(id): []byte(hostname + "\n"), m.at.hosts(id): hosts, m.at.resolvConf(id): resolv,
	} {
		if err := errors.Join(os.WriteFile(path, content, 0o644), os.Chown(path, int(uid), int(gid)), setLabel(path, s.Rec.Facts.SELinuxMount)); err != nil {
			return err
		}
	}
	return nil
}

// setLabel gives a file the SELinux label. A file system without labels is no
// error: its mount has one for all.
func setLabel(path, label string) error {
	if label == "" {
		return nil
	}
	if err := unix.Setxattr(path, "security.selinux", []byte(label), 0); err != nil && !errors.Is(err, unix.ENOTSUP) {
		return fmt.Errorf("label %s: %w", path, err)
	}
	return nil
}

// podRoot returns who owns what the pod's containers may change.
func podRoot(cfg *runtimeapi.PodSandboxConfig) (uid, gid uint32) {
	if maps := spec.UserNamespace(cfg); maps != nil {
		return maps.Root()
	}
	return 0, 0
}

// readNodeFile returns the file's content, empty when there is none.
func readNodeFile(path string) ([]byte, error) {
	st, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	if st.Size() > maxNodeFile {
		return nil, fmt.Errorf("%s is larger than %d bytes", path, maxNodeFile)
	}
	return os.ReadFile(path)
}

func mountShm(dir, options string) error {
	if err := os.MkdirAll(dir, 0o711); err != nil {
		return fmt.Errorf("mount /dev/shm: %w", err)
	}
	if isMountPoint(dir) {
		return nil
	}
	if err := unix.Mount("shm", dir, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, options); err != nil {
		return fmt.Errorf("mount /dev/shm at %s: %w", dir, err)
	}
	return nil
}

// isMountPoint compares devices: the run directory may be a tmpfs as well.
func isMountPoint(path string) bool {
	var here, above unix.Stat_t
	return unix.Stat(path, &here) == nil && unix.Stat(path+"/..", &above) == nil && here.Dev != above.Dev
}

// removeFiles takes the mount away before anything is deleted, and deletes
// nothing when that fails.
func (m *Manager) removeFiles(_ context.Context, s *state) error {
	if err := m.removeFilesDir(s.Rec.ID); err != nil {
		return err
	}
	if err := os.RemoveAll(m.at.stateDir(s.Rec.ID)); err != nil {
		return fmt.Errorf("remove sandbox state directory: %w", err)
	}
	return nil
}

func (m *Manager) removeFilesDir(id string) error {
	shm := m.at.shm(id)
	for isMountPoint(shm) {
		if err := unix.Unmount(shm, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil {
			return fmt.Errorf("unmount %s: %w", shm, err)
		}
	}
	if err := os.RemoveAll(m.at.filesDir(id)); err != nil {
		return fmt.Errorf("remove sandbox files: %w", err)
	}
	return nil
}

package sandbox

import (
	"context"
	"errors"
	"fmt"
	"strings"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-dev/berth/cni/netns"
	"github.com/berth-dev/berth/store"
)

// TryUserNamespace makes a user namespace for a moment and hands its path to
// check. It returns why pods cannot have one here, nil when they can. Nothing
// is left.
func (m *Manager) TryUserNamespace(ctx context.Context, check func(path string) error) error {
	ids := []*runtimeapi.IDMapping{{HostId: 1 << 16, Length: 1 << 16}}
	s := &state{Rec: store.Sandbox{
		ID: strings.Repeat("0", 64),
		Config: &runtimeapi.PodSandboxConfig{Linux: &runtimeapi.LinuxPodSandboxConfig{
			SecurityContext: &runtimeapi.LinuxSandboxSecurityContext{NamespaceOptions: &runtimeapi.NamespaceOption{
				UsernsOptions: &runtimeapi.UserNamespace{Uids: ids, Gids: ids},
			}},
		}},
	}}
	pid, err := m.startHolder(s, []string{netns.User})
	if err == nil {
		err = check(fmt.Sprintf("/proc/%d/ns/user", pid))
	}
	if pid > 0 {
		err = errors.Join(err, killAndWait(ctx, pid))
	}
	if err != nil {
		return fmt.Errorf("make user namespace: %w", err)
	}
	return nil
}

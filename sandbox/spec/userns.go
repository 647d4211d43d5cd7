package spec

import (
	"errors"
	"math"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// IDMaps are the maps of a user namespace.
type IDMaps struct{ UIDs, GIDs []specs.LinuxIDMapping }

// UserNamespace returns the maps of the sandbox's user namespace, nil when it
// uses the node's. The configuration has passed ValidateSandbox.
func UserNamespace(cfg *runtimeapi.PodSandboxConfig) *IDMaps {
	u := cfg.GetLinux().GetSecurityContext().GetNamespaceOptions().GetUsernsOptions()
	if u == nil || u.GetMode() != runtimeapi.NamespaceMode_POD {
		return nil
	}
	return &IDMaps{UIDs: idMappings(u.GetUids()), GIDs: idMappings(u.GetGids())}
}

// Root returns the node's IDs of the namespace's root.
func (m *IDMaps) Root() (uid, gid uint32) { return m.UIDs[0].HostID, m.GIDs[0].HostID }

func idMappings(list []*runtimeapi.IDMapping) []specs.LinuxIDMapping {
	var out []specs.LinuxIDMapping
	for _, m := range list {
		out = append(out, specs.LinuxIDMapping{ContainerID: m.GetContainerId(), HostID: m.GetHostId(), Size: m.GetLength()})
	}
	return out
}

// validateUserNS holds the rules of the CRI. No message at all means the POD
// mode of old kubelets, which knew no mappings.
func validateUserNS(field string, u *runtimeapi.UserNamespace) error {
	switch {
	case u == nil:
		return nil
	case u.GetMode() == runtimeapi.NamespaceMode_NODE:
		if len(u.GetUids())+len(u.GetGids()) != 0 {
			return invalid(field, "mappings with mode NODE")
		}
		return nil
	case u.GetMode() != runtimeapi.NamespaceMode_POD:
		return invalid(field, "mode %s: only POD and NODE are possible", u.GetMode())
	}
	return errors.Join(checkPodMap(field+".uids", u.GetUids()), checkPodMap(field+".gids", u.GetGids()))
}

func checkPodMap(field string, list []*runtimeapi.IDMapping) error {
	if len(list) != 1 {
		return invalid(field, "%d mappings: mode POD takes exactly one", len(list))
	}
	if list[0].GetContainerId() != 0 {
		return invalid(field, "the container's root is not mapped: container_id is %d", list[0].GetContainerId())
	}
	return checkMappings(field, list)
}

func checkMappings(field string, list []*runtimeapi.IDMapping) error {
	for _, m := range list {
		last := max(uint64(m.GetContainerId()), uint64(m.GetHostId())) + uint64(m.GetLength())
		if m.GetLength() == 0 || last > math.MaxUint32 {
			return invalid(field, "%d IDs from %d to %d are not a range of IDs", m.GetLength(), m.GetContainerId(), m.GetHostId())
		}
	}
	return nil
}

// validateSandboxUserNS refuses what the kernel does not let a user namespace
// have of the node: proc and mqueue are mounted by who owns their namespace.
func validateSandboxUserNS(field string, o *runtimeapi.NamespaceOption) error {
	if err := validateUserNS(field+".userns_options", o.GetUsernsOptions()); err != nil {
		return err
	}
	if o.GetUsernsOptions() == nil || o.GetUsernsOptions().GetMode() != runtimeapi.NamespaceMode_POD {
		return nil
	}
	const why = "NODE in a sandbox with a user namespace of its own"
	switch runtimeapi.NamespaceMode_NODE {
	case o.GetPid():
		return invalid(field+".pid", why)
	case o.GetIpc():
		return invalid(field+".ipc", why)
	}
	return nil
}

// checkUserNS refuses a container that asks for another user namespace than
// its sandbox has; one that asks for nothing gets the sandbox's.
func checkUserNS(in Input, field string, asked *runtimeapi.UserNamespace) error {
	if err := validateUserNS(field, asked); err != nil {
		return err
	}
	theirs := in.Sandbox.GetLinux().GetSecurityContext().GetNamespaceOptions().GetUsernsOptions()
	own := theirs != nil && theirs.GetMode() == runtimeapi.NamespaceMode_POD
	switch {
	case own != (in.Pod.UserNS != ""):
		return invalid(field, "the sandbox has not the user namespace it asked for")
	case asked == nil, !own && asked.GetMode() == runtimeapi.NamespaceMode_NODE:
		return nil
	case !proto.Equal(asked, theirs):
		return invalid(field, "not those of the sandbox")
	}
	return nil
}

// addUserNamespace joins the sandbox's namespace. The maps are in the document
// too: the OCI runtime compares them, and other tools read them there.
func addUserNamespace(in Input, s *specs.Spec) {
	if in.Pod.UserNS == "" {
		return
	}
	maps := UserNamespace(in.Sandbox)
	s.Linux.UIDMappings, s.Linux.GIDMappings = maps.UIDs, maps.GIDs
	s.Linux.Namespaces = append(s.Linux.Namespaces, specs.LinuxNamespace{Type: specs.UserNamespace, Path: in.Pod.UserNS})
}

// checkMapped refuses a user or group that the pod's user namespace does not have.
func checkMapped(in Input) error {
	if in.Pod.UserNS == "" {
		return nil
	}
	maps := UserNamespace(in.Sandbox)
	if users := maps.UIDs[0].Size; in.User.UID >= users {
		return invalid(secField+"run_as_user", "%d is not among the %d users of the pod's user namespace", in.User.UID, users)
	}
	for _, g := range append([]uint32{in.User.GID}, in.User.Groups...) {
		if groups := maps.GIDs[0].Size; g >= groups {
			return invalid(secField+"supplemental_groups", "%d is not among the %d groups of the pod's user namespace", g, groups)
		}
	}
	return nil
}

// addIDMap makes the mount show its owners shifted. Without a recursive option
// the OCI runtime maps the top mount only and hides nothing of those below.
func addIDMap(field string, h Host, m *runtimeapi.Mount, out *specs.Mount) error {
	uids, gids := m.GetUidMappings(), m.GetGidMappings()
	switch {
	case len(uids)+len(gids) == 0 || m.GetImage() != nil: // an image is mounted with the pod's owners
		return nil
	case len(uids) == 0 || len(gids) == 0:
		return invalid(field+" uidMappings", "needs mappings of users and of groups")
	case !h.UserNamespaces:
		return unable(field+" uidMappings", "this node's kernel or OCI runtime makes no idmapped mounts")
	}
	if err := errors.Join(checkMappings(field+" uidMappings", uids), checkMappings(field+" gidMappings", gids)); err != nil {
		return err
	}
	out.UIDMappings, out.GIDMappings = idMappings(uids), idMappings(gids)
	return nil
}

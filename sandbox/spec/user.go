package spec

import (
	"math"
	"slices"
	"strconv"
	"strings"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

const userField = "linux.security_context."

// ResolveUser decides the identity of a container from the security context,
// the image's USER and the contents of the image's passwd and group files
// (nil when the file is missing). An unknown name is an InvalidArgument that
// names it. Like its peers it gives a user without an entry the group 0.
func ResolveUser(passwd, group []byte, sc *runtimeapi.LinuxContainerSecurityContext, imageUser string) (User, error) {
	if err := checkUserFields(sc); err != nil {
		return User{}, err
	}
	p, u, err := lookupUser(parsePasswd(passwd), sc, imageUser)
	if err != nil {
		return User{}, err
	}
	groups := parseGroup(group)
	if u.GID, err = primaryGroup(groups, sc, imageUser, u.GID); err != nil {
		return User{}, err
	}
	u.Groups = []uint32{u.GID}
	switch policy := sc.GetSupplementalGroupsPolicy(); policy {
	case runtimeapi.SupplementalGroupsPolicy_Merge:
		u.Groups = append(u.Groups, memberships(groups, p)...)
	case runtimeapi.SupplementalGroupsPolicy_Strict:
	default:
		return User{}, invalid(userField+"supplemental_groups_policy", "unknown policy %d", policy)
	}
	for _, g := range sc.GetSupplementalGroups() {
		id, err := parseID(userField+"supplemental_groups", g)
		if err != nil {
			return User{}, err
		}
		u.Groups = append(u.Groups, id)
	}
	u.Groups = unique(u.Groups)
	return u, nil
}

func checkUserFields(sc *runtimeapi.LinuxContainerSecurityContext) error {
	if sc.GetRunAsUser() != nil && sc.GetRunAsUsername() != "" {
		return invalid(userField+"run_as_username", "given together with run_as_user")
	}
	if sc.GetRunAsGroup() != nil && sc.GetRunAsUser() == nil && sc.GetRunAsUsername() == "" {
		return invalid(userField+"run_as_group", "given without run_as_user or run_as_username")
	}
	return nil
}

// lookupUser returns the passwd entry, nil when there is none, and the
// identity it gives.
func lookupUser(users []passwdEntry, sc *runtimeapi.LinuxContainerSecurityContext, imageUser string) (*passwdEntry, User, error) {
	if v := sc.GetRunAsUser(); v != nil {
		uid, err := parseID(userField+"run_as_user", v.GetValue())
		if err != nil {
			return nil, User{}, err
		}
		p, u := userByID(users, uid)
		return p, u, nil
	}
	if name := sc.GetRunAsUsername(); name != "" {
		p := userByName(users, name)
		if p == nil {
			return nil, User{}, invalid(userField+"run_as_username", "no user %q in the image's /etc/passwd", name)
		}
		return p, p.user(), nil
	}
	name, _, _ := strings.Cut(imageUser, ":")
	if name == "" {
		p, u := userByID(users, 0)
		return p, u, nil
	}
	if p := userByName(users, name); p != nil {
		return p, p.user(), nil
	}
	uid, ok := number(name)
	if !ok {
		return nil, User{}, invalid("image USER", "no user %q in the image's /etc/passwd", name)
	}
	p, u := userByID(users, uid)
	return p, u, nil
}

// primaryGroup returns the group asked for, def when none is. The group of the
// image's USER counts only when its user does.
func primaryGroup(groups []groupEntry, sc *runtimeapi.LinuxContainerSecurityContext, imageUser string, def uint32) (uint32, error) {
	if v := sc.GetRunAsGroup(); v != nil {
		return parseID(userField+"run_as_group", v.GetValue())
	}
	_, name, _ := strings.Cut(imageUser, ":")
	if name == "" || sc.GetRunAsUser() != nil || sc.GetRunAsUsername() != "" {
		return def, nil
	}
	for _, g := range groups {
		if g.name == name {
			return g.gid, nil
		}
	}
	if gid, ok := number(name); ok {
		return gid, nil
	}
	return 0, invalid("image USER", "no group %q in the image's /etc/group", name)
}

// memberships lists the groups that name p as a member, in the file's order.
func memberships(groups []groupEntry, p *passwdEntry) []uint32 {
	if p == nil {
		return nil
	}
	var ids []uint32
	for _, g := range groups {
		if slices.Contains(g.members, p.name) {
			ids = append(ids, g.gid)
		}
	}
	return ids
}

// parseID checks that v can be an ID; the all-ones value means "no change" to the kernel.
func parseID(field string, v int64) (uint32, error) {
	if v < 0 || v >= math.MaxUint32 {
		return 0, invalid(field, "%d is not an ID", v)
	}
	return uint32(v), nil
}

func number(s string) (uint32, bool) {
	v, err := strconv.ParseUint(s, 10, 32)
	return uint32(v), err == nil && v != math.MaxUint32
}

func unique(ids []uint32) []uint32 {
	var out []uint32
	for _, id := range ids {
		if !slices.Contains(out, id) {
			out = append(out, id)
		}
	}
	return out
}

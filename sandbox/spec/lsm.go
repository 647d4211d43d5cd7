package spec

import (
	"cmp"
	"path"
	"slices"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

const secField = "linux.security_context."

// addPaths takes the lists as they are. An empty list masks nothing: that is
// how the kubelet asks for procMount Unmasked.
func addPaths(in Input, s *specs.Spec) error {
	sc := securityContext(in)
	if sc.GetPrivileged() {
		return nil
	}
	for field, list := range map[string][]string{"masked_paths": sc.GetMaskedPaths(), "readonly_paths": sc.GetReadonlyPaths()} {
		for _, p := range list {
			if !path.IsAbs(p) {
				return invalid(secField+field, "%q is not absolute", p)
			}
		}
	}
	s.Linux.MaskedPaths = slices.Clone(sc.GetMaskedPaths())
	s.Linux.ReadonlyPaths = slices.Clone(sc.GetReadonlyPaths())
	return nil
}

// localhostPrefix is what the deprecated form of a profile has before its name.
const localhostPrefix = "localhost/"

// addAppArmor names the profile. A privileged container has none, whatever it asks.
func addAppArmor(in Input, s *specs.Spec) error {
	sc, host := securityContext(in), in.Host.Security
	profile, field := sc.GetApparmor(), secField+"apparmor"
	if profile == nil {
		var err error
		field = secField + "apparmor_profile"
		//nolint:staticcheck // Deprecated in the CRI, and still sent.
		if profile, err = profileFromString(field, sc.GetApparmorProfile()); err != nil {
			return err
		}
	}
	if err := checkProfile(field, profile); err != nil || sc.GetPrivileged() {
		return err
	}
	asked := profile != nil
	if !asked {
		profile = &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_RuntimeDefault}
	}
	switch profile.GetProfileType() {
	case runtimeapi.SecurityProfile_RuntimeDefault:
		if host.AppArmor && host.AppArmorDefault == "" && asked {
			return unable(field, "no default profile is loaded: %s", cmp.Or(host.AppArmorTrouble, "the daemon's log says why"))
		}
		if host.AppArmor {
			s.Process.ApparmorProfile = host.AppArmorDefault
		}
	case runtimeapi.SecurityProfile_Localhost:
		name := profile.GetLocalhostRef()
		if !slices.Contains(host.AppArmorProfiles, name) {
			name = strings.TrimPrefix(name, localhostPrefix) // clients write it as they do in the deprecated field
		}
		if name == "" {
			return invalid(field+".localhost_ref", "names no profile")
		}
		if !host.AppArmor {
			return unable(field, "profile %q: this node has no AppArmor", name)
		}
		if host.AppArmorProfiles != nil && !slices.Contains(host.AppArmorProfiles, name) {
			return unable(field, "profile %q is not loaded on this node", name)
		}
		s.Process.ApparmorProfile = name
	}
	return nil
}

// profileFromString reads the deprecated string form; nil when it is empty.
func profileFromString(field, v string) (*runtimeapi.SecurityProfile, error) {
	switch v {
	case "":
		return nil, nil
	case "runtime/default", "docker/default":
		return &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_RuntimeDefault}, nil
	case "unconfined":
		return &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_Unconfined}, nil
	}
	ref, ok := strings.CutPrefix(v, localhostPrefix)
	if !ok || ref == "" {
		return nil, invalid(field, "%q is not runtime/default, unconfined or localhost/<name>", v)
	}
	return &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_Localhost, LocalhostRef: ref}, nil
}

// checkProfile holds the rules the CRI has for every profile.
func checkProfile(field string, p *runtimeapi.SecurityProfile) error {
	if p == nil {
		return nil
	}
	if runtimeapi.SecurityProfile_ProfileType_name[int32(p.GetProfileType())] == "" {
		return invalid(field+".profile_type", "unknown type %d", p.GetProfileType())
	}
	localhost := p.GetProfileType() == runtimeapi.SecurityProfile_Localhost
	switch {
	case !localhost && p.GetLocalhostRef() != "":
		return invalid(field+".localhost_ref", "only with type Localhost")
	case localhost && p.GetLocalhostRef() == "":
		return invalid(field+".localhost_ref", "is empty")
	}
	return nil
}

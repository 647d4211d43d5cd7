package spec

import (
	"fmt"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// Build returns the specification. A configuration that cannot be honoured is
// an InvalidArgument that names the field; one that only this node cannot
// honour is a FailedPrecondition; one that Berth does not do yet is a
// NotImplemented. Build keeps no reference to in and changes nothing in it.
func Build(in Input) (*specs.Spec, error) {
	if err := validate(in); err != nil {
		return nil, fmt.Errorf("build specification %s: %w", in.ID, err)
	}
	s := &specs.Spec{
		Version: specs.Version,
		Root:    &specs.Root{Path: "rootfs", Readonly: securityContext(in).GetReadonlyRootfs()},
		Linux:   &specs.Linux{CgroupsPath: in.CgroupsPath},
	}
	// Later parts read what earlier ones wrote: seccomp rules depend on the
	// capabilities, the cgroup mount on the namespaces.
	parts := []func(Input, *specs.Spec) error{
		addProcess, addCapabilities, addNamespaces, addMounts, addResources,
		addDevices, addPaths, addSeccomp, addAppArmor, addSELinux, addAnnotations, addBase,
	}
	for _, part := range parts {
		if err := part(in, s); err != nil {
			return nil, fmt.Errorf("build specification %s: %w", in.ID, err)
		}
	}
	return s, nil
}

// invalid is an InvalidArgument that starts with the field's name.
func invalid(field, format string, args ...any) error {
	return fmt.Errorf("%s: %s: %w", field, fmt.Sprintf(format, args...), errdefs.ErrInvalidArgument)
}

// unable is a FailedPrecondition: the request is right, this node cannot serve it.
func unable(field, format string, args ...any) error {
	return fmt.Errorf("%s: %s: %w", field, fmt.Sprintf(format, args...), errdefs.ErrFailedPrecondition)
}

// unsupported is a NotImplemented: Berth has no such function.
func unsupported(field, format string, args ...any) error {
	return fmt.Errorf("%s: %s: %w", field, fmt.Sprintf(format, args...), errdefs.ErrNotImplemented)
}

// Package cdi puts devices of the Container Device Interface
// (https://github.com/cncf-tags/container-device-interface) into
// specifications: a vendor's file on the node says what a device's name stands
// for. The files are read when a container asks for a device, and not before.
package cdi

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"tags.cncf.io/container-device-interface/pkg/cdi"
	"tags.cncf.io/container-device-interface/pkg/parser"
)

// Requested returns the devices that a container asks for, each once: those of
// CDI_devices, then those of its annotations cdi.k8s.io/*, by key. A name that
// is none is InvalidArgument. Pure.
func Requested(c *runtimeapi.ContainerConfig) ([]string, error) {
	var out []string
	add := func(field, name string) error {
		if !parser.IsQualifiedName(name) {
			return fmt.Errorf("%s: %q is not of the form vendor/class=device: %w", field, name, errdefs.ErrInvalidArgument)
		}
		if !slices.Contains(out, name) {
			out = append(out, name)
		}
		return nil
	}
	for _, d := range c.GetCDIDevices() {
		if err := add("CDI_devices", d.GetName()); err != nil {
			return nil, err
		}
	}
	for _, key := range slices.Sorted(maps.Keys(c.GetAnnotations())) {
		if !strings.HasPrefix(key, cdi.AnnotationPrefix) {
			continue
		}
		for name := range strings.SplitSeq(c.GetAnnotations()[key], ",") {
			if err := add("annotation "+key, name); err != nil {
				return nil, err
			}
		}
	}
	return out, nil
}

// Inject edits the specification as the files in dirs say for the devices;
// later directories win. A device that no file knows is FailedPrecondition, and
// so is one whose node is missing. doc is not to be used after an error.
func Inject(dirs []string, doc *specs.Spec, devices []string) error {
	if len(devices) == 0 {
		return nil
	}
	if len(dirs) == 0 {
		return fmt.Errorf("CDI devices %s: the node's configuration names no container.cdi_spec_dirs: %w",
			strings.Join(devices, ", "), errdefs.ErrFailedPrecondition)
	}
	cache, err := cdi.NewCache(cdi.WithAutoRefresh(false), cdi.WithSpecDirs(dirs...))
	if err != nil {
		return fmt.Errorf("read CDI files in %s: %w", strings.Join(dirs, ", "), err)
	}
	if _, err := cache.InjectDevices(doc, devices...); err != nil {
		return fmt.Errorf("%w (files in %s)%s: %w", err, strings.Join(dirs, ", "), trouble(cache), errdefs.ErrFailedPrecondition)
	}
	return nil
}

// trouble says which files could not be read: one may be the one that is missed.
func trouble(cache *cdi.Cache) string {
	all := cache.GetErrors()
	if len(all) == 0 {
		return ""
	}
	var out strings.Builder
	for _, path := range slices.Sorted(maps.Keys(all)) {
		fmt.Fprintf(&out, "; bad file %s: %v", path, errors.Join(all[path]...))
	}
	return out.String()
}

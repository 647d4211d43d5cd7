package spec

import (
	"cmp"
	"path"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// addAnnotations writes the keys that OCI runtimes and tools know from the
// peers, and copies those the handler lets through. They describe; nothing in
// Berth reads them.
func addAnnotations(in Input, s *specs.Spec) error {
	const prefix = "io.kubernetes.cri."
	a := make(map[string]string)
	for _, from := range []struct {
		patterns []string
		values   map[string]string
	}{
		{in.Handler.PodAnnotations, in.Sandbox.GetAnnotations()},
		{in.Handler.ContainerAnnotations, in.Container.GetAnnotations()},
	} {
		for key, value := range from.values {
			ok, err := matches(from.patterns, key)
			if err != nil {
				return err
			}
			if ok {
				a[key] = value
			}
		}
	}
	// Last, so that no annotation of the client's can pose as one of these.
	image, meta := in.Container.GetImage(), in.Sandbox.GetMetadata()
	a[prefix+"container-type"] = "container"
	a[prefix+"container-name"] = in.Container.GetMetadata().GetName()
	a[prefix+"image-name"] = cmp.Or(image.GetUserSpecifiedImage(), image.GetImage())
	a[prefix+"sandbox-id"] = in.Pod.SandboxID
	a[prefix+"sandbox-name"] = meta.GetName()
	a[prefix+"sandbox-namespace"] = meta.GetNamespace()
	a[prefix+"sandbox-uid"] = meta.GetUid()
	s.Annotations = a
	return nil
}

func matches(patterns []string, key string) (bool, error) {
	for _, p := range patterns {
		ok, err := path.Match(p, key)
		if err != nil {
			return false, invalid("handler annotations", "pattern %q: %v", p, err)
		}
		if ok {
			return true, nil
		}
	}
	return false, nil
}

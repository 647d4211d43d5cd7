package checkpoint

import (
	"encoding/json"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// Fits reports how the container of a checkpoint differs from the one that it is
// to go on in, beyond what is of a place and not of the container: the processes
// are what they were made as, and no setting reaches them any more. Values are
// not shown, they may be secrets. Pure.
func Fits(was, now *specs.Spec) error {
	a, err := essence(was)
	if err != nil {
		return err
	}
	b, err := essence(now)
	if err != nil {
		return err
	}
	if where := difference("", a, b); where != "" {
		return fmt.Errorf("the checkpoint is not of such a container: %s: %w", where, errdefs.ErrFailedPrecondition)
	}
	return nil
}

// essence is a specification without what is of the place, as JSON with lists
// that have names in them as maps.
func essence(in *specs.Spec) (map[string]any, error) {
	s := *in
	s.Version, s.Hostname, s.Domainname, s.Annotations = "", "", "", nil
	process := *s.Process
	process.OOMScoreAdj = nil // depends on the node's memory; CRIU keeps the old one
	env := map[string]string{}
	for _, e := range process.Env {
		if name, value, _ := strings.Cut(e, "="); name != "HOSTNAME" {
			env[name] = value
		}
	}
	process.Env = nil
	s.Process = &process
	root := *s.Root
	root.Path = ""
	s.Root = &root
	mounts := map[string]specs.Mount{}
	for _, m := range s.Mounts {
		if slices.Contains(m.Options, "bind") || slices.Contains(m.Options, "rbind") {
			m.Source = ""
		}
		mounts[m.Destination] = m
	}
	s.Mounts = nil
	linux := *s.Linux
	linux.CgroupsPath, linux.Resources, linux.IntelRdt = "", nil, nil
	namespaces := map[string]string{}
	for _, n := range linux.Namespaces {
		namespaces[string(n.Type)] = "its own"
		if n.Path != "" {
			namespaces[string(n.Type)] = "shared"
		}
	}
	linux.Namespaces = nil
	s.Linux = &linux
	b, err := json.Marshal(map[string]any{"spec": s, "process.env": env, "mounts": mounts, "namespaces": namespaces})
	if err != nil {
		return nil, err
	}
	out := map[string]any{}
	return out, json.Unmarshal(b, &out)
}

// difference names the first place where two documents differ; "": they do not.
func difference(at string, was, now any) string {
	a, isMap := was.(map[string]any)
	b, isMapToo := now.(map[string]any)
	if isMap && isMapToo {
		both := maps.Clone(a)
		maps.Copy(both, b)
		for _, k := range slices.Sorted(maps.Keys(both)) {
			v, had := a[k]
			w, has := b[k]
			place := strings.TrimPrefix(at+"."+k, ".")
			if place == "spec" {
				place = ""
			}
			switch {
			case !had:
				return fmt.Sprintf("%.300s is not in the checkpoint", place)
			case !has:
				return fmt.Sprintf("%.300s is only in the checkpoint", place)
			}
			if where := difference(place, v, w); where != "" {
				return where
			}
		}
		return ""
	}
	c, isList := was.([]any)
	d, isListToo := now.([]any)
	if isList && isListToo && len(c) == len(d) {
		for i := range c {
			if where := difference(fmt.Sprintf("%s[%d]", at, i), c[i], d[i]); where != "" {
				return where
			}
		}
		return ""
	}
	if reflect.DeepEqual(was, now) {
		return ""
	}
	return fmt.Sprintf("%.300s is another", at)
}

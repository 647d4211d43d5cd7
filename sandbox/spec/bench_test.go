package spec

import (
	"encoding/json"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// BenchmarkBuild makes the document of a usual container, default seccomp
// profile included, as CreateContainer does.
func BenchmarkBuild(b *testing.B) {
	in := base()
	in.Container.Linux.SecurityContext.Seccomp = &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_RuntimeDefault}
	b.ReportAllocs()
	for b.Loop() {
		s, err := Build(in)
		if err != nil {
			b.Fatal(err)
		}
		if s.Linux.Seccomp == nil {
			b.Fatal("no seccomp profile")
		}
		if _, err := json.Marshal(s); err != nil {
			b.Fatal(err)
		}
	}
}

package sandbox

import (
	"testing"

	"github.com/google/go-cmp/cmp"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-dev/berth/sandbox/spec"
	"github.com/berth-dev/berth/shim/cgroup"
)

func TestPodLimits(t *testing.T) {
	type res = runtimeapi.LinuxContainerResources
	controllers := spec.Controllers{CgroupV2: true, SwapController: true, HugePageSizes: []string{"2MB"}}
	for _, c := range []struct {
		name                string
		overhead, resources *res
		v1, v2              []string
	}{
		{"nothing", nil, nil, nil, nil},
		{"overhead alone is no limit", &res{CpuQuota: 5000, MemoryLimitInBytes: 1 << 20}, nil, nil, nil},
		{"processors", &res{CpuShares: 24, CpuQuota: 5000, CpuPeriod: 50000}, &res{CpuShares: 1000, CpuQuota: 20000, CpusetCpus: "0"},
			[]string{"cpu.shares=1024", "cpu.cfs_quota_us=-1", "cpu.cfs_quota_us=30000", "cpuset.cpus=0"},
			[]string{"cpu.weight=100", "cpu.max=30000", "cpuset.cpus=0"}},
		{"no limit of processors", nil, &res{CpuQuota: -1, CpuPeriod: 50000},
			[]string{"cpu.cfs_quota_us=-1", "cpu.cfs_period_us=50000", "cpu.cfs_quota_us=-1"},
			[]string{"cpu.max=max 50000"}},
		{"memory without swap", &res{MemoryLimitInBytes: 1 << 20}, &res{MemoryLimitInBytes: 3 << 20},
			[]string{"memory.memsw.limit_in_bytes=-1", "memory.limit_in_bytes=4194304", "memory.memsw.limit_in_bytes=4194304"},
			[]string{"memory.max=4194304", "memory.swap.max=0"}},
		{"memory with swap", nil, &res{MemoryLimitInBytes: 3 << 20, MemorySwapLimitInBytes: 4 << 20},
			[]string{"memory.memsw.limit_in_bytes=-1", "memory.limit_in_bytes=3145728", "memory.memsw.limit_in_bytes=4194304"},
			[]string{"memory.max=3145728", "memory.swap.max=1048576"}},
		{"no limit of memory", &res{MemoryLimitInBytes: 1 << 20}, &res{MemoryLimitInBytes: -1, MemorySwapLimitInBytes: -1},
			[]string{"memory.memsw.limit_in_bytes=-1", "memory.limit_in_bytes=-1", "memory.memsw.limit_in_bytes=-1"},
			[]string{"memory.max=max", "memory.swap.max=max"}},
		{"huge pages the node knows, and files of v2", nil, &res{HugepageLimits: []*runtimeapi.HugepageLimit{{PageSize: "2MB", Limit: 2 << 20}, {PageSize: "1GB", Limit: 1}}, Unified: map[string]string{"memory.low": "1", "memory.high": "2"}},
			[]string{"hugetlb.2MB.limit_in_bytes=2097152"},
			[]string{"hugetlb.2MB.max=2097152", "memory.high=2", "memory.low=1"}},
	} {
		r, err := spec.LinuxResources(podLimits(c.overhead, c.resources), spec.Host{Controllers: controllers})
		if err != nil {
			t.Fatalf("%s: %v", c.name, err)
		}
		if d := cmp.Diff(c.v1, shown(settingsV1(r))); d != "" {
			t.Errorf("%s, v1: %s", c.name, d)
		}
		if d := cmp.Diff(c.v2, shown(settingsV2(r))); d != "" {
			t.Errorf("%s, v2: %s", c.name, d)
		}
	}
}

func shown(settings []cgroup.Setting) (out []string) {
	for _, s := range settings {
		out = append(out, s.File+"="+s.Value)
	}
	return out
}

func TestCPUWeight(t *testing.T) {
	for shares, want := range map[uint64]uint64{0: 1, 2: 1, 1024: 100, 1 << 18: 10000, 1 << 20: 10000} {
		if got := cpuWeight(shares); got != want {
			t.Errorf("%d shares: weight %d, want %d", shares, got, want)
		}
	}
}

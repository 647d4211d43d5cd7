package spec

import (
	"cmp"
	"math"
	"slices"
	"strconv"
	"strings"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// checkCpusets refuses lists that are none, and members that the pod's cgroup
// does not have: the kernel would refuse them with a number, or ignore them.
func checkCpusets(r *runtimeapi.LinuxContainerResources, h Host) error {
	if err := checkCpuset(resField+"cpuset_cpus", r.GetCpusetCpus(), h.Cpuset.CPUs); err != nil {
		return err
	}
	return checkCpuset(resField+"cpuset_mems", r.GetCpusetMems(), h.Cpuset.Mems)
}

func checkCpuset(field, asked, have string) error {
	if strings.TrimSpace(asked) == "" {
		return nil
	}
	want, ok := parseCpuset(asked)
	if !ok {
		return invalid(field, "%q is not a list such as 0-3,8", asked)
	}
	all, ok := parseCpuset(have)
	if !ok || len(all) == 0 {
		return nil
	}
	for _, r := range want {
		if !slices.ContainsFunc(all, func(a span) bool { return a.first <= r.first && r.last <= a.last }) {
			return invalid(field, "%s is not among the pod's %s", asked, strings.TrimSpace(have))
		}
	}
	return nil
}

// span is a range of numbers, both ends included.
type span struct{ first, last int }

// parseCpuset reads a list as cpuset(7) describes it, without the form with
// strides, and joins ranges that touch.
func parseCpuset(s string) ([]span, bool) {
	var all []span
	for part := range strings.SplitSeq(strings.TrimSpace(s), ",") {
		if part == "" && len(all) == 0 && strings.TrimSpace(s) == "" {
			return nil, true
		}
		from, to, isRange := strings.Cut(part, "-")
		if !isRange {
			to = from
		}
		a, err := strconv.ParseUint(from, 10, 31)
		b, err2 := strconv.ParseUint(to, 10, 31)
		if err != nil || err2 != nil || a > b || b >= math.MaxInt32 {
			return nil, false
		}
		all = append(all, span{int(a), int(b)})
	}
	slices.SortFunc(all, func(a, b span) int { return cmp.Compare(a.first, b.first) })
	var out []span
	for _, r := range all {
		if n := len(out); n > 0 && r.first <= out[n-1].last+1 {
			out[n-1].last = max(out[n-1].last, r.last)
			continue
		}
		out = append(out, r)
	}
	return out, true
}

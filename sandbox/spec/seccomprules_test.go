package spec

import (
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/moby/profiles/seccomp"
	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// allowed evaluates rules as libseccomp does: any rule whose comparisons all
// hold decides.
func allowed(rules []specs.LinuxSyscall, name string, args ...uint64) bool {
	for _, r := range rules {
		if !slices.Contains(r.Names, name) || r.Action != specs.ActAllow {
			continue
		}
		if !slices.ContainsFunc(r.Args, func(a specs.LinuxSeccompArg) bool {
			v := uint64(0)
			if int(a.Index) < len(args) {
				v = args[a.Index]
			}
			switch a.Op {
			case specs.OpEqualTo:
				return v != a.Value
			case specs.OpLessThan:
				return v >= a.Value
			case specs.OpMaskedEqual:
				return v&a.Value != a.ValueTwo
			case specs.OpNotEqual:
				return v == a.Value
			}
			return true
		}) {
			return true
		}
	}
	return false
}

// The default profile allows the same with fewer rules: for every first
// argument up to 4096, and for each of those with any one further bit.
func TestFewerRulesSayTheSame(t *testing.T) {
	f := seccompFacts{arch: "amd64", kernel: seccomp.KernelVersion{Kernel: 6}}
	before := f.evaluate(seccomp.DefaultProfile()).Syscalls
	after := fewerRules(before)
	t.Logf("%d rules become %d", len(before), len(after))
	if len(after) >= len(before)-10 {
		t.Errorf("%d rules are still %d", len(before), len(after))
	}
	for _, name := range []string{"socket", "personality", "clone", "read", "mount"} {
		yes := 0
		check := func(v uint64) {
			was := allowed(before, name, v)
			if is := allowed(after, name, v); was != is {
				t.Fatalf("%s(%d): allowed was %v, is %v", name, v, was, is)
			}
			if was {
				yes++
			}
		}
		for v := range uint64(4096) {
			check(v)
			for bit := range 64 {
				check(v ^ 1<<bit)
			}
		}
		check(0xffffffff)
		check(0x20008)
		if (name == "socket" || name == "personality") && yes == 0 {
			t.Errorf("%s is never allowed: nothing was compared", name)
		}
	}
}

// Covers of any sets hold just their values, in the same order each time.
func TestCover(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	for range 300 {
		var set []uint64
		for v := range uint64(64) {
			if rnd.IntN(3) > 0 {
				set = append(set, v<<rnd.IntN(2))
			}
		}
		cover := coverOf(set)
		if again := coverOf(set); !slices.Equal(cover, again) {
			t.Fatalf("%v: once %v, once %v", set, cover, again)
		}
		for v := range uint64(256) {
			in := slices.ContainsFunc(cover, func(c cube) bool { return v&c.mask == c.value })
			if in != slices.Contains(set, v) {
				t.Fatalf("%v: %d is %v in %v", set, v, in, cover)
			}
		}
	}
	if got := coverOf(nil); got != nil {
		t.Errorf("of nothing: %v", got)
	}
}

// What is no list of values stays as it is.
func TestFewerRulesLeavesOthers(t *testing.T) {
	eq := func(action specs.LinuxSeccompAction, v uint64) specs.LinuxSyscall {
		return specs.LinuxSyscall{Names: []string{"x"}, Action: action, Args: []specs.LinuxSeccompArg{{Value: v, Op: specs.OpEqualTo}}}
	}
	rules := []specs.LinuxSyscall{eq(specs.ActErrno, 2), eq(specs.ActErrno, 3), eq(specs.ActAllow, 8), eq(specs.ActAllow, 16),
		{Names: []string{"x"}, Action: specs.ActAllow, Args: []specs.LinuxSeccompArg{{Value: 1, Op: specs.OpLessThan}, {Index: 1, Op: specs.OpEqualTo}}}}
	if got := fewerRules(rules); len(got) != len(rules) || got[2].Args[0].Op != specs.OpEqualTo {
		t.Errorf("%+v", got)
	}
}

package spec

import (
	"cmp"
	"encoding/binary"
	"maps"
	"slices"
	"sync"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// cube is the values v with v & mask == value.
type cube struct{ mask, value uint64 }

// fewerRules says the same with fewer rules. A profile allows some system
// calls for a list of values of an argument, one rule for each; the OCI runtime
// compiles them again for every architecture, at each create and each exec, and
// that is most of what a rule costs. Values that differ in some bits only are
// put together into one comparison under a mask.
func fewerRules(rules []specs.LinuxSyscall) []specs.LinuxSyscall {
	type key struct {
		name string
		arg  uint
	}
	values, count := map[key][]uint64{}, map[key]int{}
	of := func(r specs.LinuxSyscall) (key, []uint64) {
		if r.Action != specs.ActAllow || len(r.Names) != 1 || len(r.Args) != 1 {
			return key{}, nil
		}
		a := r.Args[0]
		k := key{r.Names[0], a.Index}
		switch {
		case a.Op == specs.OpEqualTo:
			return k, []uint64{a.Value}
		case a.Op == specs.OpLessThan && a.Value <= 64:
			var below []uint64
			for v := range a.Value {
				below = append(below, v)
			}
			return k, below
		}
		return key{}, nil
	}
	for _, r := range rules {
		if k, v := of(r); len(v) > 0 {
			values[k] = append(values[k], v...)
			count[k]++
		}
	}
	short := map[key][]cube{}
	for k, v := range values {
		if c := knownCover(v); len(c) < count[k] {
			short[k] = c
		}
	}
	var out []specs.LinuxSyscall
	done := map[key]bool{}
	for _, r := range rules {
		k, v := of(r)
		switch {
		case len(v) == 0 || short[k] == nil:
			out = append(out, r)
		case !done[k]:
			done[k] = true
			for _, c := range short[k] {
				arg := specs.LinuxSeccompArg{Index: k.arg, Value: c.mask, ValueTwo: c.value, Op: specs.OpMaskedEqual}
				out = append(out, specs.LinuxSyscall{Names: r.Names, Action: r.Action, Args: []specs.LinuxSeccompArg{arg}})
			}
		}
	}
	return out
}

// covers keeps what coverOf has found: profiles have few lists of values, and
// each container asks for them again.
var covers sync.Map // string of values: []cube

func knownCover(values []uint64) []cube {
	var key []byte
	for _, v := range values {
		key = binary.LittleEndian.AppendUint64(key, v)
	}
	if c, ok := covers.Load(string(key)); ok {
		return c.([]cube)
	}
	c := coverOf(values)
	covers.Store(string(key), c)
	return c
}

// coverOf returns cubes that together hold the values and nothing else: those
// that cannot grow, and of them, again and again, the one with the most values
// that are still missing.
func coverOf(values []uint64) (out []cube) {
	missing := map[uint64]bool{}
	for _, v := range values {
		missing[v] = true
	}
	candidates := largest(missing)
	for len(missing) > 0 {
		best, most := cube{}, 0
		for _, c := range candidates {
			n := 0
			for v := range missing {
				if v&c.mask == c.value {
					n++
				}
			}
			if n > most {
				best, most = c, n
			}
		}
		out = append(out, best)
		maps.DeleteFunc(missing, func(v uint64, _ bool) bool { return v&best.mask == best.value })
	}
	return out
}

// largest returns the cubes within a set that are part of no other, in a fixed
// order, by joining two that differ in one bit until none are left (Quine and
// McCluskey).
func largest(values map[uint64]bool) (out []cube) {
	level := map[cube]bool{} // whether it is part of a larger one
	var all, any uint64
	all = ^all
	for v := range values {
		level[cube{^uint64(0), v}] = false
		all, any = all&v, any|v
	}
	for len(level) > 0 {
		next := map[cube]bool{}
		for c := range level {
			for bits := c.mask & (any &^ all); bits != 0; bits &= bits - 1 {
				bit := bits & -bits
				twin := cube{c.mask, c.value ^ bit}
				if _, ok := level[twin]; ok {
					level[c], level[twin] = true, true
					next[cube{c.mask &^ bit, c.value &^ bit}] = false
				}
			}
		}
		for c, part := range level {
			if !part {
				out = append(out, c)
			}
		}
		level = next
	}
	slices.SortFunc(out, func(a, b cube) int { return cmp.Or(cmp.Compare(a.mask, b.mask), cmp.Compare(a.value, b.value)) })
	return out
}

package image

import (
	"encoding/binary"
	"fmt"
	"maps"
	"slices"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// abi is a way to call the kernel: what a filter sees as the architecture, and
// which bit is set in the numbers.
type abi struct {
	name specs.Arch
	arch uint32
	bit  uint32
	list string
}

func abis(goarch string) []abi {
	switch goarch {
	case "amd64":
		return []abi{{specs.ArchX86_64, 0xc000003e, 0, callsX86_64}, {specs.ArchX86, 0x40000003, 0, callsX86},
			{specs.ArchX32, 0xc000003e, 0x40000000, callsX86_64 + " " + callsX32}}
	case "arm64":
		return []abi{{specs.ArchAARCH64, 0xc00000b7, 0, callsARM64}, {specs.ArchARM, 0x40000028, 0, callsARM}}
	}
	return nil
}

// call is a system call as a filter sees it.
type call struct {
	arch, number uint32
	name         string
}

// denied returns the calls that a profile never allows, whatever their arguments.
func denied(p *specs.LinuxSeccomp, all []abi) (out []call) {
	rules := map[string]bool{} // whether a call may be allowed
	for _, r := range p.Syscalls {
		for _, name := range r.Names {
			if permits(r.Action) {
				rules[name] = true
			} else if _, ok := rules[name]; !ok && len(r.Args) == 0 {
				rules[name] = false
			}
		}
	}
	for i, a := range all {
		known := i == 0 || slices.Contains(p.Architectures, a.name)
		byNumber := numbers(a.list)
		for _, n := range slices.Sorted(maps.Keys(byNumber)) {
			name := byNumber[n]
			may, ok := rules[name]
			if !ok {
				may = permits(p.DefaultAction)
			}
			if !may || !known {
				out = append(out, call{a.arch, n | a.bit, string(a.name[len("SCMP_ARCH_"):]) + "'s " + name})
			}
		}
	}
	return out
}

func permits(a specs.LinuxSeccompAction) bool {
	return slices.Contains([]specs.LinuxSeccompAction{specs.ActAllow, specs.ActLog, specs.ActNotify, specs.ActTrace}, a)
}

// maxPrograms bounds how many different filters are looked into.
const maxPrograms = 64

// filters knows which calls the filters of the images deny.
type filters struct {
	calls    []call
	programs map[string][]bool
	chains   map[uint32]error // by their last filter
}

// chain reports a call that a thread's filters allow and the profile does not.
func (f *filters) chain(all []Filter, last uint32) error {
	if err, ok := f.chains[last]; ok {
		return err
	}
	passes := make([]bool, len(f.calls))
	for i := range passes {
		passes[i] = true
	}
	for n := &last; n != nil; n = all[*n].Before {
		denies, err := f.program(all[*n].Program)
		if err != nil {
			return err
		}
		for i := range passes {
			passes[i] = passes[i] && !denies[i]
		}
	}
	var err error
	if i := slices.Index(passes, true); i >= 0 {
		err = fmt.Errorf("its seccomp filter allows %s, and the container's profile does not", f.calls[i].name)
	}
	f.chains[last] = err
	return err
}

// program returns which of the calls a filter denies.
func (f *filters) program(b []byte) ([]bool, error) {
	if d, ok := f.programs[string(b)]; ok {
		return d, nil
	}
	if len(f.programs) >= maxPrograms {
		return nil, fmt.Errorf("there are more than %d seccomp filters", maxPrograms)
	}
	prog, err := instructions(b)
	if err != nil {
		return nil, err
	}
	out := make([]bool, len(f.calls))
	at := make([]machine, len(prog))
	for i, c := range f.calls {
		clear(at)
		out[i] = prog.denies(c, at)
	}
	f.programs[string(b)] = out
	return out, nil
}

func newFilters(p *specs.LinuxSeccomp, goarch string) *filters {
	return &filters{calls: denied(p, abis(goarch)), programs: map[string][]bool{}, chains: map[uint32]error{}}
}

type instruction struct {
	code   uint16
	jt, jf uint8
	k      uint32
}

type program []instruction

func instructions(b []byte) (program, error) {
	if len(b)%8 != 0 || len(b) > 8*4096 {
		return nil, fmt.Errorf("a seccomp filter has %d bytes", len(b))
	}
	p := make(program, 0, len(b)/8)
	for ; len(b) > 0; b = b[8:] {
		p = append(p, instruction{binary.LittleEndian.Uint16(b), b[2], b[3], binary.LittleEndian.Uint32(b[4:])})
	}
	return p, nil
}

// word is what is known of a register.
type word struct {
	known bool
	v     uint32
}

// machine is what is known before an instruction, on whatever way there.
type machine struct {
	reached bool
	a, x    word
	mem     [16]word
}

// join adds what is known on another way.
func (m *machine) join(o *machine) {
	if !m.reached {
		*m = *o
		m.reached = true
		return
	}
	same := func(w *word, o word) {
		if *w != o {
			*w = word{}
		}
	}
	same(&m.a, o.a)
	same(&m.x, o.x)
	for i := range m.mem {
		same(&m.mem[i], o.mem[i])
	}
}

// denies reports whether a filter denies a call on each way that it may take: both
// where it asks for arguments. Programs only jump forward. It needs a machine for
// each instruction.
func (p program) denies(c call, at []machine) bool {
	if len(p) > 0 {
		at[0].reached = true
	}
	for pc, in := range p {
		m := &at[pc]
		if !m.reached {
			continue
		}
		if in.code&7 == 6 { // return
			result := word{true, in.k}
			if in.code == 0x16 {
				result = m.a
			}
			if in.code != 6 && in.code != 0x16 || !result.known || !denies(result.v) {
				return false
			}
			continue
		}
		steps, ok := m.run(in, c)
		if !ok || max(steps[0], steps[1]) >= uint64(len(p)-pc-1) {
			return false
		}
		at[pc+1+int(steps[0])].join(m)
		if steps[0] != steps[1] {
			at[pc+1+int(steps[1])].join(m)
		}
	}
	return len(p) > 0
}

// denies reports whether an action of a filter is none of those that let a call pass.
func denies(action uint32) bool {
	switch action & 0xffff0000 {
	case 0x80000000, 0, 0x00030000, 0x00050000: // kill the process or the thread, a signal, an error
		return true
	}
	return false
}

// run does an instruction that does not return, and says over how many others
// the program goes on: two numbers, the same if there is one way.
func (m *machine) run(in instruction, c call) (steps [2]uint64, ok bool) {
	next := [2]uint64{}
	switch in.code {
	case 0x20: // load a word of the call
		m.a = word{}
		switch in.k {
		case 0:
			m.a = word{true, c.number}
		case 4:
			m.a = word{true, c.arch}
		}
	case 0x00:
		m.a = word{true, in.k}
	case 0x01:
		m.x = word{true, in.k}
	case 0x80:
		m.a = word{true, 64} // the size of what a filter sees
	case 0x81:
		m.x = word{true, 64}
	case 0x60, 0x61, 0x02, 0x03:
		return next, in.k < 16 && m.memory(in)
	case 0x07:
		m.x = m.a
	case 0x87:
		m.a = m.x
	case 0x05:
		return [2]uint64{uint64(in.k), uint64(in.k)}, true
	case 0x15, 0x25, 0x35, 0x45, 0x1d, 0x2d, 0x3d, 0x4d:
		return m.branch(in), true
	case 0x54: // and, with what filters mask arguments with
		if m.a.known {
			m.a.v &= in.k
		}
	default:
		if in.code&7 != 4 { // arithmetics: nothing is known of the result
			return next, false
		}
		m.a = word{}
	}
	return next, true
}

func (m *machine) memory(in instruction) bool {
	switch in.code {
	case 0x60:
		m.a = m.mem[in.k]
	case 0x61:
		m.x = m.mem[in.k]
	case 0x02:
		m.mem[in.k] = m.a
	case 0x03:
		m.mem[in.k] = m.x
	}
	return true
}

func (m *machine) branch(in instruction) [2]uint64 {
	with := word{true, in.k}
	if in.code&8 != 0 {
		with = m.x
	}
	yes, no := uint64(in.jt), uint64(in.jf)
	if !m.a.known || !with.known {
		return [2]uint64{yes, no}
	}
	is := false
	switch in.code & 0xf0 {
	case 0x10:
		is = m.a.v == with.v
	case 0x20:
		is = m.a.v > with.v
	case 0x30:
		is = m.a.v >= with.v
	case 0x40:
		is = m.a.v&with.v != 0
	}
	if is {
		return [2]uint64{yes, yes}
	}
	return [2]uint64{no, no}
}

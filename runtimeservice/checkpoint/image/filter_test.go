package image

import (
	"encoding/binary"
	"fmt"
	"slices"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// ins are instructions: code, where to go, constant.
func ins(all ...[4]uint32) (b []byte) {
	for _, i := range all {
		b = binary.LittleEndian.AppendUint16(b, uint16(i[0]))
		b = append(b, byte(i[1]), byte(i[2]))
		b = binary.LittleEndian.AppendUint32(b, i[3])
	}
	return b
}

const (
	x86_64 = 0xc000003e
	allow  = 0x7fff0000
	fail   = 0x00050001
)

// getpid is a filter as libseccomp makes them: it allows getpid on x86_64 by name.
func getpid(rest ...[4]uint32) []byte {
	return ins(append([][4]uint32{
		{0x20, 0, 0, 4}, {0x15, 0, 5, x86_64}, // the architecture
		{0x20, 0, 0, 0}, {0x35, 3, 0, 0x40000000}, // the number, but for those of x32
		{0x15, 0, 1, 39}, {0x06, 0, 0, allow},
	}, append(rest, [4]uint32{0x06, 0, 0, fail}, [4]uint32{0x06, 0, 0, 0})...)...)
}

func TestFilters(t *testing.T) {
	profile := &specs.LinuxSeccomp{DefaultAction: specs.ActErrno, Architectures: []specs.Arch{specs.ArchX86_64},
		Syscalls: []specs.LinuxSyscall{{Names: []string{"getpid"}, Action: specs.ActAllow}}}
	open := *profile
	open.DefaultAction, open.Syscalls = specs.ActAllow, []specs.LinuxSyscall{{Names: []string{"mount"}, Action: specs.ActErrno},
		{Names: []string{"bpf"}, Action: specs.ActErrno, Args: []specs.LinuxSeccompArg{{}}}}
	open.Architectures = []specs.Arch{specs.ArchX86, specs.ArchX32}
	mount := ins([4]uint32{0x20, 0, 0, 0}, [4]uint32{0x20, 0, 0, 0}, [4]uint32{0x54, 0, 0, 0xbfffffff}, [4]uint32{0x15, 2, 0, 165},
		[4]uint32{0x15, 1, 0, 21}, [4]uint32{0x06, 0, 0, allow}, [4]uint32{0x06, 0, 0, fail})
	tests := []struct {
		name    string
		profile *specs.LinuxSeccomp
		chain   [][]byte // the first is in force first
		want    string
	}{
		{"as the profile is", profile, [][]byte{getpid()}, ""},
		{"nothing is allowed", profile, [][]byte{errno}, ""},
		{"one denies, one allows", profile, [][]byte{getpid(), ins([4]uint32{0x06, 0, 0, allow})}, ""},
		{"one allows, one denies", profile, [][]byte{ins([4]uint32{0x06, 0, 0, allow}), getpid()}, ""},
		{"what is left is denied together", profile, [][]byte{
			ins([4]uint32{0x20, 0, 0, 0}, [4]uint32{0x25, 0, 1, 100}, [4]uint32{0x06, 0, 0, fail}, [4]uint32{0x06, 0, 0, allow}),
			ins([4]uint32{0x20, 0, 0, 0}, [4]uint32{0x25, 1, 0, 100}, [4]uint32{0x06, 0, 0, fail}, [4]uint32{0x06, 0, 0, allow})}, ""},
		{"all is allowed", profile, [][]byte{ins([4]uint32{0x06, 0, 0, allow})}, "X86_64's read"},
		{"logged", profile, [][]byte{ins([4]uint32{0x06, 0, 0, 0x7ffc0000})}, "X86_64's read"},
		{"left to a listener", profile, [][]byte{ins([4]uint32{0x06, 0, 0, 0x7fc00000})}, "X86_64's read"},
		{"by an argument", profile, [][]byte{ins([4]uint32{0x20, 0, 0, 16}, [4]uint32{0x15, 0, 1, 0x1234}, [4]uint32{0x06, 0, 0, allow}, [4]uint32{0x06, 0, 0, fail})}, "X86_64's read"},
		{"by the program's place", profile, [][]byte{ins([4]uint32{0x20, 0, 0, 8}, [4]uint32{0x04, 0, 0, 1}, [4]uint32{0x16, 0, 0, 0})}, "X86_64's read"},
		{"another architecture", profile, [][]byte{ins([4]uint32{0x20, 0, 0, 4}, [4]uint32{0x15, 1, 0, x86_64}, [4]uint32{0x06, 0, 0, allow}, [4]uint32{0x06, 0, 0, fail})}, "X86's "},
		{"x32", profile, [][]byte{ins([4]uint32{0x20, 0, 0, 0}, [4]uint32{0x45, 0, 1, 0x40000000}, [4]uint32{0x06, 0, 0, allow}, [4]uint32{0x06, 0, 0, fail})}, "X32's "},
		{"over memory", profile, [][]byte{ins([4]uint32{0x20, 0, 0, 0}, [4]uint32{0x02, 0, 0, 3}, [4]uint32{0x00, 0, 0, fail}, [4]uint32{0x61, 0, 0, 3},
			[4]uint32{0x07, 0, 0, 0}, [4]uint32{0x16, 0, 0, 0})}, ""},
		{"one call of many", profile, [][]byte{getpid([4]uint32{0x15, 0, 1, 321}, [4]uint32{0x06, 0, 0, allow})}, "X86_64's bpf"},
		{"a profile that denies", &open, [][]byte{mount}, ""},
		{"a profile that denies, and all is allowed", &open, [][]byte{ins([4]uint32{0x06, 0, 0, allow})}, "X86_64's mount"},
		{"no end", profile, [][]byte{ins([4]uint32{0x00, 0, 0, 0})}, "allows"},
		{"a jump out", profile, [][]byte{ins([4]uint32{0x05, 0, 0, 0xffffffff}, [4]uint32{0x06, 0, 0, 0})}, "allows"},
		{"an unknown instruction", profile, [][]byte{ins([4]uint32{0xff, 0, 0, 0}, [4]uint32{0x06, 0, 0, 0})}, "allows"},
		{"memory that is not there", profile, [][]byte{ins([4]uint32{0x60, 0, 0, 16}, [4]uint32{0x06, 0, 0, 0})}, "allows"},
		{"not a program", profile, [][]byte{[]byte("123")}, "3 bytes"},
	}
	for _, c := range tests {
		t.Run(c.name, func(t *testing.T) {
			var all []Filter
			for i, p := range c.chain {
				f := Filter{Program: p}
				if i > 0 {
					before := uint32(i - 1)
					f.Before = &before
				}
				all = append(all, f)
			}
			err := newFilters(c.profile, "amd64").chain(all, uint32(len(all)-1))
			if got := fmt.Sprint(err); (err == nil) != (c.want == "") || !strings.Contains(got, c.want) {
				t.Errorf("got %v, want %q", err, c.want)
			}
		})
	}
	if f := newFilters(profile, "riscv64"); len(f.calls) != 0 {
		t.Errorf("%d calls of an unknown machine", len(f.calls))
	}
}

// BenchmarkFilter looks into the largest program.
func BenchmarkFilter(b *testing.B) {
	all := make([][4]uint32, 4095)
	for i := range all {
		all[i] = [4]uint32{0x20, 0, 0, 16}
	}
	program := ins(append(all, [4]uint32{6, 0, 0, 0})...)
	for b.Loop() {
		f := newFilters(&specs.LinuxSeccomp{DefaultAction: specs.ActErrno}, "amd64")
		if err := f.chain([]Filter{{Program: program}}, 0); err != nil {
			b.Fatal(err)
		}
	}
}

func TestManyFilters(t *testing.T) {
	f := newFilters(&specs.LinuxSeccomp{DefaultAction: specs.ActErrno}, "amd64")
	var err error
	for i := uint32(0); err == nil && i < 100; i++ {
		err = f.chain([]Filter{{Program: ins([4]uint32{0, 0, 0, i}, [4]uint32{6, 0, 0, 0})}}, 0)
		clear(f.chains)
	}
	if err == nil || !strings.Contains(err.Error(), "more than 64") {
		t.Error(err)
	}
}

// TestCalls knows the numbers of a few calls on each machine.
func TestCalls(t *testing.T) {
	for list, want := range map[string]map[uint32]string{
		callsX86_64: {0: "read", 165: "mount", 321: "bpf", 424: "pidfd_send_signal", 435: "clone3", 471: "rseq_slice_yield"},
		callsX86:    {1: "exit", 21: "mount", 357: "bpf", 435: "clone3"},
		callsX32:    {512: "rt_sigaction", 520: "execve", 547: "pwritev2"},
		callsARM64:  {40: "mount", 243: "recvmmsg", 260: "wait4", 280: "bpf", 435: "clone3"},
		callsARM:    {0: "restart_syscall", 21: "mount", 386: "bpf", 435: "clone3"},
	} {
		got := numbers(list)
		for n, name := range want {
			if got[n] != name {
				t.Errorf("%d is %q, not %q", n, got[n], name)
			}
		}
	}
	if n := len(denied(&specs.LinuxSeccomp{DefaultAction: specs.ActErrno}, abis("arm64"))); n < 700 {
		t.Errorf("%d calls", n)
	}
	if slices.Contains(strings.Fields(callsARM), "syscall_mask") {
		t.Error("a mask is no call")
	}
}

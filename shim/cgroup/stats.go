package cgroup

import (
	"syscall"

	"golang.org/x/sys/unix"
)

// Usage is what a group uses, groups below it included. A part is nil when the
// host does not account for it.
type Usage struct {
	CPUNanos *uint64 // CPU time since the group was made
	Memory   *MemoryUsage
	Swap     *SwapUsage
	Pressure PressureUsage
}

// MemoryUsage counts bytes, but for the faults.
type MemoryUsage struct {
	Usage        uint64 // all that is charged
	WorkingSet   uint64 // Usage without inactive file pages, as cAdvisor defines it
	RSS          uint64 // anonymous memory
	Limit        uint64 // of the group itself; 0: none
	Faults       uint64
	MajorFaults  uint64
	Cache        uint64
	Mapped       uint64 // of Cache
	ActiveFile   uint64
	InactiveFile uint64
}

// SwapUsage counts bytes.
type SwapUsage struct {
	Usage   uint64
	Limit   uint64 // of swap alone
	Limited bool
}

// PressureUsage is the stall information of a group; nil: the kernel has none.
type PressureUsage struct {
	CPU, Memory, IO *Pressure
}

// Pressure tells how long some and all tasks waited.
type Pressure struct {
	Some, Full Stall
}

// Stall is a line of a pressure file. Averages are percents.
type Stall struct {
	Avg10, Avg60, Avg300 float64
	TotalMicros          uint64
}

// Usage reads what the group uses: some eight small files, no directory. A
// group that is not there is ENOENT.
func (m Mode) Usage(path string) (Usage, error) {
	if !valid(path) {
		return Usage{}, wrap("read cgroup", path, syscall.EINVAL)
	}
	var u Usage
	r := reader{buf: make([]byte, 4096)}
	if m.v2 {
		r.usageV2(join(m.root, path), &u)
	} else {
		r.usageV1(m, path, &u)
	}
	if r.err != nil {
		return Usage{}, wrap("read cgroup", path, r.err)
	}
	if u.CPUNanos == nil && u.Memory == nil {
		return Usage{}, wrap("read cgroup", path, syscall.ENOENT)
	}
	r.pressure(m, path, &u.Pressure)
	return u, nil
}

// pressure reads stall information. Beside v1 the v2 tree may hold the group
// without its processes; what it says of nobody is left out.
func (r *reader) pressure(m Mode, path string, p *PressureUsage) {
	root := m.root
	if !m.v2 {
		if root = m.hybrid; root == "" {
			return
		}
	}
	dir := join(root, path)
	p.CPU = r.stalls(dir + "/cpu.pressure")
	p.Memory = r.stalls(dir + "/memory.pressure")
	p.IO = r.stalls(dir + "/io.pressure")
	// Only processes ever stall, so a look at whether there are any is due
	// only while nothing did.
	if !m.v2 && !p.any() && !r.populated(dir) {
		*p = PressureUsage{}
	}
}

// any reports whether there has been a stall of any kind.
func (p *PressureUsage) any() bool {
	for _, of := range []*Pressure{p.CPU, p.Memory, p.IO} {
		if of != nil && of.Some.TotalMicros > 0 {
			return true
		}
	}
	return false
}

func (r *reader) populated(dir string) bool {
	is := false
	r.pairs(dir+"/cgroup.events", func(key []byte, v uint64) {
		if string(key) == "populated" {
			is = v == 1
		}
	})
	return is
}

func (r *reader) stalls(path string) *Pressure {
	text, ok := r.text(path)
	if !ok {
		return nil
	}
	p, ok := parsePressure(text)
	if !ok {
		return nil
	}
	return &p
}

// reader reads control files into one buffer. Files that are missing are no
// error: the part stays out. err is the first other one.
type reader struct {
	buf []byte
	err error
}

// text returns the content of a file, valid until the next read.
func (r *reader) text(path string) ([]byte, bool) {
	fd, err := open(path, unix.O_RDONLY)
	if err != nil {
		r.note(err)
		return nil, false
	}
	defer unix.Close(fd)
	for n := 0; n < maxFile; {
		if n == len(r.buf) {
			r.buf = append(r.buf, make([]byte, len(r.buf))...)
		}
		got, err := unix.Read(fd, r.buf[n:])
		switch {
		case err == unix.EINTR:
		case err != nil:
			r.note(err)
			return nil, false
		case n+got < len(r.buf):
			// The kernel makes these files as a whole: what did not fill
			// the buffer was all. Saves a call per file.
			return r.buf[:n+got], true
		default:
			n += got
		}
	}
	r.note(syscall.EFBIG)
	return nil, false
}

// note keeps the first error that is more than "not accounted here".
func (r *reader) note(err error) {
	if r.err == nil && !gone(err) && err != syscall.EOPNOTSUPP {
		r.err = err
	}
}

// value returns the number a file holds. "max" is limited=false.
func (r *reader) value(path string) (n uint64, limited, ok bool) {
	text, ok := r.text(path)
	if !ok {
		return 0, false, false
	}
	text = trimLine(text)
	if string(text) == "max" {
		return 0, false, true
	}
	n, ok = parseUint(text)
	return n, ok, ok
}

// pairs calls f for every "key number" line and reports whether the file is there.
func (r *reader) pairs(path string, f func(key []byte, v uint64)) bool {
	text, ok := r.text(path)
	if ok {
		eachPair(text, f)
	}
	return ok
}

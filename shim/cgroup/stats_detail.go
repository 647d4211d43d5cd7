package cgroup

import (
	"bytes"
	"syscall"

	"golang.org/x/sys/unix"
)

// Detail is what Usage leaves out. What the host does not account for is 0.
type Detail struct {
	UserNanos, SystemNanos    uint64
	Periods, ThrottledPeriods uint64 // of CPU bandwidth control
	ThrottledNanos            uint64
	Bursts, BurstNanos        uint64 // periods that used saved quota, and how much of it
	Memory                    MemoryDetail
	IO                        []DeviceIO
}

// MemoryDetail is what MemoryUsage leaves out. Max to Reservation count bytes.
type MemoryDetail struct {
	Max         uint64 // highest usage seen
	Kernel      uint64
	Reservation uint64 // 0: none
	Failures    uint64 // times the limit was hit
	OOMKills    uint64
	Throttled   uint64  // times usage went over memory.high; v2
	Reclaim     Reclaim // of pages
}

// Reclaim is how hard the kernel works to keep a group's memory down.
type Reclaim struct {
	Dirty, Writeback           uint64 // bytes of changed files: not yet, and just now being written
	Scanned, Stolen            uint64 // pages; v2
	RefaultsFile, RefaultsAnon uint64 // pages that were wanted again; since Linux 5.9
}

// set takes a line of memory.stat.
func (r *Reclaim) set(key []byte, v uint64) {
	switch string(key) {
	case "file_dirty", "dirty": // v2, v1
		r.Dirty = v
	case "file_writeback", "writeback":
		r.Writeback = v
	case "pgscan":
		r.Scanned = v
	case "pgsteal":
		r.Stolen = v
	case "workingset_refault_file":
		r.RefaultsFile = v
	case "workingset_refault_anon":
		r.RefaultsAnon = v
	}
}

// DeviceIO is what a group did on one block device.
type DeviceIO struct {
	Major, Minor                        uint32
	ReadBytes, WriteBytes, DiscardBytes uint64
	Reads, Writes, Discards             uint64
	Cost                                IOCost
}

// IOCost is what the kernel's controller of I/O cost made of it, in
// microseconds of the device's time. All is 0 unless the node turned it on (v2).
type IOCost struct {
	Usage, Wait, Indebt, Indelay uint64
}

// IOCost reports whether the kernel's controller of I/O cost is on for any
// block device of the node.
func (m Mode) IOCost() bool {
	if !m.v2 {
		return false
	}
	r := reader{buf: make([]byte, 4096)}
	text, _ := r.text(m.root + "/io.cost.qos")
	return bytes.Contains(text, []byte(" enable=1"))
}

// device returns the entry of a device, made if missing.
func (d *Detail) device(major, minor uint32) *DeviceIO {
	for i := range d.IO {
		if d.IO[i].Major == major && d.IO[i].Minor == minor {
			return &d.IO[i]
		}
	}
	d.IO = append(d.IO, DeviceIO{Major: major, Minor: minor})
	return &d.IO[len(d.IO)-1]
}

// Detail reads the group's other figures. A group that is not there has none.
func (m Mode) Detail(path string) (Detail, error) {
	if !valid(path) {
		return Detail{}, wrap("read cgroup", path, syscall.EINVAL)
	}
	var d Detail
	r := reader{buf: make([]byte, 4096)}
	if m.v2 {
		r.detailV2(join(m.root, path), &d)
	} else {
		r.detailV1(m, path, &d)
	}
	return d, wrap("read cgroup", path, r.err)
}

// PidsUsage counts tasks.
type PidsUsage struct {
	Threads uint64
	Limit   uint64 // of threads; 0: none
}

// Threads reads how many threads the group and those below it have. ok is
// false when the host does not count them.
func (m Mode) Threads(path string) (u PidsUsage, ok bool) {
	dir := m.Dir("pids", path)
	if dir == "" || !valid(path) {
		return u, false
	}
	r := reader{buf: make([]byte, 64)}
	if u.Threads, _, ok = r.value(dir + "/pids.current"); ok {
		u.Limit, _, _ = r.value(dir + "/pids.max")
	}
	return u, ok
}

// HugePages reads the use of huge pages of one size, named as the controller
// does ("2MB"). max is 0 on v2, which does not keep it.
func (m Mode) HugePages(path, size string) (usage, highest uint64, ok bool) {
	dir := m.Dir("hugetlb", path)
	if dir == "" || !valid(path) {
		return 0, 0, false
	}
	r := reader{buf: make([]byte, 64)}
	if m.v2 {
		usage, _, ok = r.value(dir + "/hugetlb." + size + ".current")
		return usage, 0, ok
	}
	usage, _, ok = r.value(dir + "/hugetlb." + size + ".usage_in_bytes")
	highest, _, _ = r.value(dir + "/hugetlb." + size + ".max_usage_in_bytes")
	return usage, highest, ok
}

// Processes returns the processes in the group and below it, as Pids does, but
// lists no directory while the group has none below: the kernel counts them in
// the directory's links. A missing group has none.
func (m Mode) Processes(path string) ([]int, error) {
	if !valid(path) {
		return nil, wrap("list cgroup", path, syscall.EINVAL)
	}
	for _, dir := range m.procDirs(path) {
		var st unix.Stat_t
		if err := unix.Stat(dir, &st); err != nil {
			continue
		}
		if st.Nlink > 2 {
			return treePids(dir, nil)
		}
		text, err := readFile(dir + "/cgroup.procs")
		if err != nil {
			if gone(err) {
				return nil, nil
			}
			return nil, wrap("read", dir+"/cgroup.procs", err)
		}
		return parsePids(text, nil), nil
	}
	return nil, nil
}

package cgroup

import "bytes"

// unlimitedV1 is above any limit that means something: the kernel writes "no
// limit" as the largest number of whole pages.
const unlimitedV1 = 1 << 62

func limitV1(n uint64) uint64 {
	if n >= unlimitedV1 {
		return 0
	}
	return n
}

func (r *reader) usageV1(m Mode, path string, u *Usage) {
	if dir := m.Dir("cpuacct", path); dir != "" {
		if n, _, ok := r.value(dir + "/cpuacct.usage"); ok {
			u.CPUNanos = &n
		}
	}
	dir := m.Dir("memory", path)
	if dir == "" {
		return
	}
	usage, _, ok := r.value(dir + "/memory.usage_in_bytes")
	if !ok {
		return
	}
	mem := &MemoryUsage{Usage: usage}
	swap, counted := uint64(0), false
	effective := uint64(0) // smallest limit of the group and those above
	r.pairs(dir+"/memory.stat", func(key []byte, v uint64) {
		switch string(key) {
		case "total_swap":
			swap, counted = v, true
		case "hierarchical_memory_limit":
			effective = limitV1(v)
		default:
			mem.setV1(key, v)
		}
	})
	mem.WorkingSet = mem.Usage - min(mem.Usage, mem.InactiveFile)
	if effective > 0 {
		limit, _, _ := r.value(dir + "/memory.limit_in_bytes")
		mem.Limit = limitV1(limit)
	}
	u.Memory = mem
	if !counted {
		return
	}
	u.Swap = &SwapUsage{Usage: swap}
	// Memory and swap are limited together, and never lower than memory.
	if mem.Limit > 0 {
		if both, _, ok := r.value(dir + "/memory.memsw.limit_in_bytes"); ok && limitV1(both) > 0 {
			u.Swap.Limit, u.Swap.Limited = both-min(both, mem.Limit), true
		}
	}
}

func (u *MemoryUsage) setV1(key []byte, v uint64) {
	switch string(key) {
	case "total_inactive_file":
		u.InactiveFile = v
	case "total_active_file":
		u.ActiveFile = v
	case "total_rss":
		u.RSS = v
	case "total_cache":
		u.Cache = v
	case "total_mapped_file":
		u.Mapped = v
	case "total_pgfault":
		u.Faults = v
	case "total_pgmajfault":
		u.MajorFaults = v
	}
}

func (r *reader) detailV1(m Mode, path string, d *Detail) {
	if dir := m.Dir("cpuacct", path); dir != "" {
		d.UserNanos, _, _ = r.value(dir + "/cpuacct.usage_user")
		d.SystemNanos, _, _ = r.value(dir + "/cpuacct.usage_sys")
	}
	if dir := m.Dir("cpu", path); dir != "" {
		r.pairs(dir+"/cpu.stat", func(key []byte, v uint64) {
			switch string(key) {
			case "nr_periods":
				d.Periods = v
			case "nr_throttled":
				d.ThrottledPeriods = v
			case "throttled_time":
				d.ThrottledNanos = v
			case "nr_bursts":
				d.Bursts = v
			case "burst_time":
				d.BurstNanos = v
			}
		})
	}
	if dir := m.Dir("memory", path); dir != "" {
		d.Memory.Max, _, _ = r.value(dir + "/memory.max_usage_in_bytes")
		d.Memory.Kernel, _, _ = r.value(dir + "/memory.kmem.usage_in_bytes")
		d.Memory.Failures, _, _ = r.value(dir + "/memory.failcnt")
		soft, _, _ := r.value(dir + "/memory.soft_limit_in_bytes")
		d.Memory.Reservation = limitV1(soft)
		r.pairs(dir+"/memory.stat", func(key []byte, v uint64) {
			if key, whole := bytes.CutPrefix(key, []byte("total_")); whole { // with the groups below
				d.Memory.Reclaim.set(key, v)
			}
		})
		r.pairs(dir+"/memory.oom_control", func(key []byte, v uint64) {
			if string(key) == "oom_kill" {
				d.Memory.OOMKills = v
			}
		})
	}
	if dir := m.Dir("blkio", path); dir != "" {
		r.blkio(dir+"/blkio.throttle.io_service_bytes_recursive", d, true)
		r.blkio(dir+"/blkio.throttle.io_serviced_recursive", d, false)
	}
}

// blkio reads "8:0 Read 4096" lines; the sum at the end has two words only.
func (r *reader) blkio(path string, d *Detail, bytesNotOps bool) {
	text, ok := r.text(path)
	if !ok {
		return
	}
	eachLine(text, func(line []byte) {
		word, rest, _ := bytes.Cut(line, []byte{' '})
		op, val, _ := bytes.Cut(rest, []byte{' '})
		major, minor, ok1 := parseDevice(word)
		n, ok2 := parseUint(val)
		if !ok1 || !ok2 {
			return
		}
		dev := d.device(major, minor)
		switch string(op) {
		case "Read":
			*pick(bytesNotOps, &dev.ReadBytes, &dev.Reads) = n
		case "Write":
			*pick(bytesNotOps, &dev.WriteBytes, &dev.Writes) = n
		case "Discard":
			*pick(bytesNotOps, &dev.DiscardBytes, &dev.Discards) = n
		}
	})
}

func pick(first bool, a, b *uint64) *uint64 {
	if first {
		return a
	}
	return b
}

package cgroup

import "bytes"

func (r *reader) usageV2(dir string, u *Usage) {
	r.pairs(dir+"/cpu.stat", func(key []byte, v uint64) {
		if string(key) == "usage_usec" {
			n := v * 1000
			u.CPUNanos = &n
		}
	})
	usage, _, ok := r.value(dir + "/memory.current")
	if !ok {
		return
	}
	mem := &MemoryUsage{Usage: usage}
	r.pairs(dir+"/memory.stat", mem.setV2)
	mem.WorkingSet = mem.Usage - min(mem.Usage, mem.InactiveFile)
	mem.Limit, _, _ = r.value(dir + "/memory.max")
	u.Memory = mem
	if n, _, ok := r.value(dir + "/memory.swap.current"); ok {
		u.Swap = &SwapUsage{Usage: n}
		u.Swap.Limit, u.Swap.Limited, _ = r.value(dir + "/memory.swap.max")
	}
}

func (u *MemoryUsage) setV2(key []byte, v uint64) {
	switch string(key) {
	case "anon":
		u.RSS = v
	case "file":
		u.Cache = v
	case "file_mapped":
		u.Mapped = v
	case "active_file":
		u.ActiveFile = v
	case "inactive_file":
		u.InactiveFile = v
	case "pgfault":
		u.Faults = v
	case "pgmajfault":
		u.MajorFaults = v
	}
}

func (r *reader) detailV2(dir string, d *Detail) {
	r.pairs(dir+"/cpu.stat", func(key []byte, v uint64) {
		switch string(key) {
		case "user_usec":
			d.UserNanos = v * 1000
		case "system_usec":
			d.SystemNanos = v * 1000
		case "nr_periods":
			d.Periods = v
		case "nr_throttled":
			d.ThrottledPeriods = v
		case "throttled_usec":
			d.ThrottledNanos = v * 1000
		case "nr_bursts":
			d.Bursts = v
		case "burst_usec":
			d.BurstNanos = v * 1000
		}
	})
	d.Memory.Max, _, _ = r.value(dir + "/memory.peak")
	r.pairs(dir+"/memory.stat", func(key []byte, v uint64) {
		if string(key) == "kernel" {
			d.Memory.Kernel = v
		}
		d.Memory.Reclaim.set(key, v)
	})
	d.Memory.Reservation, _, _ = r.value(dir + "/memory.low")
	r.pairs(dir+"/memory.events", func(key []byte, v uint64) {
		switch string(key) {
		case "high":
			d.Memory.Throttled = v
		case "max":
			d.Memory.Failures = v
		case "oom_kill":
			d.Memory.OOMKills = v
		}
	})
	r.ioStat(dir+"/io.stat", d)
}

// ioStat reads "8:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=5 dios=6" lines.
func (r *reader) ioStat(path string, d *Detail) {
	text, ok := r.text(path)
	if !ok {
		return
	}
	eachLine(text, func(line []byte) {
		word, rest, _ := bytes.Cut(line, []byte{' '})
		major, minor, ok := parseDevice(word)
		if !ok {
			return
		}
		dev := d.device(major, minor)
		eachField(rest, func(_ int, word []byte) {
			key, val, _ := bytes.Cut(word, []byte{'='})
			n, _ := parseUint(val)
			switch string(key) {
			case "rbytes":
				dev.ReadBytes = n
			case "wbytes":
				dev.WriteBytes = n
			case "dbytes":
				dev.DiscardBytes = n
			case "rios":
				dev.Reads = n
			case "wios":
				dev.Writes = n
			case "dios":
				dev.Discards = n
			case "cost.usage":
				dev.Cost.Usage = n
			case "cost.wait":
				dev.Cost.Wait = n
			case "cost.indebt":
				dev.Cost.Indebt = n
			case "cost.indelay":
				dev.Cost.Indelay = n
			}
		})
	})
}

package stats

import (
	"context"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/berth-dev/berth/shim/cgroup"
	"github.com/berth-dev/berth/store"
)

// maxSocketScan bounds the file descriptors of a container that are looked at
// one by one to count sockets. Of one with more, the count is left out.
const maxSocketScan = 16384

// fsFacts describe the file system of writable layers.
type fsFacts struct {
	device              string
	bytes, inodes, free uint64
	known               bool
}

func statFS(dir string) fsFacts {
	var fs unix.Statfs_t
	var st unix.Stat_t
	if unix.Statfs(dir, &fs) != nil || unix.Stat(dir, &st) != nil {
		return fsFacts{}
	}
	return fsFacts{
		device: deviceName(unix.Major(st.Dev), unix.Minor(st.Dev)),
		bytes:  fs.Blocks * uint64(fs.Bsize), inodes: fs.Files, free: fs.Ffree, known: true,
	}
}

// deviceName is "/dev/sda1", or "8:1" when the device has no node of that name.
func deviceName(major, minor uint32) string {
	number := strconv.FormatUint(uint64(major), 10) + ":" + strconv.FormatUint(uint64(minor), 10)
	if link, err := os.Readlink("/sys/dev/block/" + number); err == nil {
		return "/dev/" + filepath.Base(link)
	}
	return number
}

func (m *meter) devices(all []cgroup.DeviceIO, cost bool) {
	for _, d := range all {
		name := deviceName(d.Major, d.Minor)
		m.add("container_fs_reads_bytes_total", d.ReadBytes, name)
		m.add("container_fs_reads_total", d.Reads, name)
		m.add("container_fs_writes_bytes_total", d.WriteBytes, name)
		m.add("container_fs_writes_total", d.Writes, name)
		if cost {
			m.cost(d.Cost, name)
		}
		major, minor := strconv.FormatUint(uint64(d.Major), 10), strconv.FormatUint(uint64(d.Minor), 10)
		m.add("container_blkio_device_usage_total", d.ReadBytes, name, major, minor, "Read")
		m.add("container_blkio_device_usage_total", d.WriteBytes, name, major, minor, "Write")
		m.add("container_blkio_device_usage_total", d.DiscardBytes, name, major, minor, "Discard")
	}
}

func (m *meter) cost(c cgroup.IOCost, device string) {
	m.add("container_fs_io_cost_usage_seconds_total", seconds(c.Usage*1000), device)
	m.add("container_fs_io_cost_wait_seconds_total", seconds(c.Wait*1000), device)
	m.add("container_fs_io_cost_indebt_seconds_total", seconds(c.Indebt*1000), device)
	m.add("container_fs_io_cost_indelay_seconds_total", seconds(c.Indelay*1000), device)
}

func (s *Server) meterHugePages(m *meter, group string) {
	for _, size := range s.cfg.HugePageSizes {
		used, highest, ok := s.deps.Cgroups.HugePages(group, size)
		if !ok {
			continue
		}
		m.add("container_hugetlb_usage_bytes", used, size)
		if !s.deps.Cgroups.V2() {
			m.add("container_hugetlb_max_usage_bytes", highest, size)
		}
	}
}

func (s *Server) meterFS(ctx context.Context, m *meter, id string, fs fsFacts) {
	if !fs.known {
		return
	}
	size, ok, err := s.disk.usage(ctx, id, false)
	s.trouble("writable layer", id, err)
	if ok {
		m.add("container_fs_usage_bytes", size.bytes, fs.device)
	}
	m.add("container_fs_limit_bytes", fs.bytes, fs.device)
	m.add("container_fs_inodes_total", fs.inodes, fs.device)
	m.add("container_fs_inodes_free", fs.free, fs.device)
}

func (s *Server) meterProcesses(m *meter, c store.Container) {
	if t, ok := s.deps.Cgroups.Threads(c.Facts.CgroupPath); ok {
		m.add("container_threads", t.Threads)
		m.add("container_threads_max", t.Limit)
	}
	var lim unix.Rlimit
	if c.Facts.PID > 0 && unix.Prlimit(c.Facts.PID, unix.RLIMIT_NOFILE, nil, &lim) == nil && lim.Cur != unix.RLIM_INFINITY {
		m.add("container_ulimits_soft", lim.Cur, "max_open_files")
	}
	pids, err := s.deps.Cgroups.Processes(c.Facts.CgroupPath)
	s.trouble("processes", c.ID, err)
	if err != nil {
		return
	}
	m.add("container_processes", uint64(len(pids)))
	fds, sockets, counted := openFiles(pids)
	m.add("container_file_descriptors", fds)
	if counted {
		m.add("container_sockets", sockets)
	}
}

// openFiles counts the file descriptors of processes. counted is false when
// there are too many to tell which are sockets. Processes that end meanwhile
// count nothing.
func openFiles(pids []int) (fds, sockets uint64, counted bool) {
	for _, pid := range pids {
		dir := "/proc/" + strconv.Itoa(pid) + "/fd"
		names, err := readNames(dir)
		if err != nil {
			continue
		}
		fds += uint64(len(names))
		if fds > maxSocketScan {
			continue
		}
		for _, n := range names {
			if link, err := os.Readlink(dir + "/" + n); err == nil && strings.HasPrefix(link, "socket:") {
				sockets++
			}
		}
	}
	return fds, sockets, fds <= maxSocketScan
}

func readNames(dir string) ([]string, error) {
	f, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return f.Readdirnames(-1)
}

package stats

import (
	"context"
	"slices"
	"strings"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// descriptor is one metric: its name as cAdvisor has it, so that dashboards
// made for the kubelet's own figures go on working, and the labels it has
// beside those of every metric.
type descriptor struct {
	name, help string
	labels     []string
}

// baseLabels are on every metric, as the kubelet gives them to cAdvisor's. Both
// name and id are the ID of the container or the pod.
func baseLabels() []string { return []string{"pod", "namespace", "container", "id", "name", "image"} }

// descriptors lists every metric Berth has; those of I/O cost only where the
// node's controller for it is on.
func descriptors(ioCost bool) []descriptor {
	all := slices.Concat(cpuDescriptors(), memoryDescriptors(), diskDescriptors(), networkDescriptors(),
		pressureDescriptors(), processDescriptors(), specDescriptors())
	if ioCost {
		all = append(all, costDescriptors()...)
	}
	return all
}

func cpuDescriptors() []descriptor {
	return []descriptor{
		{"container_cpu_usage_seconds_total", "CPU time consumed, in whole seconds; cpu is always total", []string{"cpu"}},
		{"container_cpu_user_seconds_total", "CPU time consumed in user mode, in whole seconds", nil},
		{"container_cpu_system_seconds_total", "CPU time consumed in the kernel, in whole seconds", nil},
		{"container_cpu_cfs_periods_total", "Periods in which the CPU quota was enforced", nil},
		{"container_cpu_cfs_throttled_periods_total", "Periods in which the CPU quota was used up", nil},
		{"container_cpu_cfs_throttled_seconds_total", "Time tasks waited for CPU quota, in whole seconds", nil},
		{"container_cpu_cfs_burst_periods_total", "Periods in which saved CPU quota was used", nil},
		{"container_cpu_cfs_burst_seconds_total", "CPU time consumed out of saved quota, in whole seconds", nil},
	}
}

func memoryDescriptors() []descriptor {
	page := []string{"pagesize"}
	return []descriptor{
		{"container_memory_usage_bytes", "Memory in use, whenever it was last accessed", nil},
		{"container_memory_working_set_bytes", "Memory in use without inactive file pages", nil},
		{"container_memory_max_usage_bytes", "Highest memory use recorded", nil},
		{"container_memory_rss", "Anonymous memory, in bytes", nil},
		{"container_memory_cache", "Page cache, in bytes", nil},
		{"container_memory_mapped_file", "Mapped files, in bytes", nil},
		{"container_memory_kernel_usage", "Kernel memory, in bytes", nil},
		{"container_memory_swap", "Swap in use, in bytes", nil},
		{"container_memory_failcnt", "Times the memory limit was hit", nil},
		{"container_memory_total_active_file_bytes", "File pages in recent use", nil},
		{"container_memory_total_inactive_file_bytes", "File pages out of use", nil},
		{"container_memory_failures_total", "Page faults, by type", []string{"failure_type", "scope"}},
		{"container_memory_events_high_total", "Times memory use went over its soft ceiling and was throttled", nil},
		{"container_memory_events_max_total", "Times memory use was about to go over its limit", nil},
		{"container_memory_file_dirty_bytes", "Changed file pages that are not yet being written to disk", nil},
		{"container_memory_file_writeback_bytes", "File pages that are being written to disk", nil},
		{"container_memory_pgscan_total", "Pages looked at by reclaim", nil},
		{"container_memory_pgsteal_total", "Pages taken away by reclaim", nil},
		{"container_memory_workingset_refault_file_total", "File pages that were wanted again after reclaim", nil},
		{"container_memory_workingset_refault_anon_total", "Anonymous pages that were wanted again after reclaim", nil},
		{"container_oom_events_total", "Processes killed for want of memory", nil},
		{"container_hugetlb_usage_bytes", "Huge pages in use", page},
		{"container_hugetlb_max_usage_bytes", "Highest use of huge pages recorded", page},
	}
}

func diskDescriptors() []descriptor {
	device := []string{"device"}
	return []descriptor{
		{"container_fs_usage_bytes", "Bytes the container has written to its root file system", device},
		{"container_fs_limit_bytes", "Size of the file system that holds what containers write", device},
		{"container_fs_inodes_total", "Inodes of the file system that holds what containers write", device},
		{"container_fs_inodes_free", "Free inodes of the file system that holds what containers write", device},
		{"container_fs_reads_bytes_total", "Bytes read from a block device", device},
		{"container_fs_reads_total", "Reads from a block device", device},
		{"container_fs_writes_bytes_total", "Bytes written to a block device", device},
		{"container_fs_writes_total", "Writes to a block device", device},
		{"container_blkio_device_usage_total", "Bytes moved on a block device, by operation", []string{"device", "major", "minor", "operation"}},
	}
}

func costDescriptors() []descriptor {
	device := []string{"device"}
	return []descriptor{
		{"container_fs_io_cost_usage_seconds_total", "Time of a block device used, as its cost model has it, in whole seconds", device},
		{"container_fs_io_cost_wait_seconds_total", "Time I/O waited for its share of a block device, in whole seconds", device},
		{"container_fs_io_cost_indebt_seconds_total", "Time in debt for I/O that could not wait, in whole seconds", device},
		{"container_fs_io_cost_indelay_seconds_total", "Time tasks were held up to pay such debts, in whole seconds", device},
	}
}

func networkDescriptors() []descriptor {
	on := []string{"interface"}
	return []descriptor{
		{"container_network_receive_bytes_total", "Bytes received", on},
		{"container_network_receive_packets_total", "Packets received", on},
		{"container_network_receive_packets_dropped_total", "Packets dropped while receiving", on},
		{"container_network_receive_errors_total", "Errors while receiving", on},
		{"container_network_transmit_bytes_total", "Bytes sent", on},
		{"container_network_transmit_packets_total", "Packets sent", on},
		{"container_network_transmit_packets_dropped_total", "Packets dropped while sending", on},
		{"container_network_transmit_errors_total", "Errors while sending", on},
	}
}

func pressureDescriptors() []descriptor {
	return []descriptor{
		{"container_pressure_cpu_waiting_seconds_total", "Time some tasks waited for CPU, in whole seconds", nil},
		{"container_pressure_cpu_stalled_seconds_total", "Time all tasks waited for CPU, in whole seconds", nil},
		{"container_pressure_memory_waiting_seconds_total", "Time some tasks waited for memory, in whole seconds", nil},
		{"container_pressure_memory_stalled_seconds_total", "Time all tasks waited for memory, in whole seconds", nil},
		{"container_pressure_io_waiting_seconds_total", "Time some tasks waited for I/O, in whole seconds", nil},
		{"container_pressure_io_stalled_seconds_total", "Time all tasks waited for I/O, in whole seconds", nil},
	}
}

func processDescriptors() []descriptor {
	return []descriptor{
		{"container_processes", "Processes", nil},
		{"container_threads", "Threads", nil},
		{"container_threads_max", "Most threads allowed; 0: no limit", nil},
		{"container_file_descriptors", "Open file descriptors", nil},
		{"container_sockets", "Open sockets", nil},
		{"container_ulimits_soft", "Soft limit of the first process", []string{"ulimit"}},
		{"container_last_seen", "When the container was last seen, in seconds since 1970", nil},
		{"container_start_time_seconds", "When the container was started, in seconds since 1970", nil},
	}
}

func specDescriptors() []descriptor {
	return []descriptor{
		{"container_spec_cpu_period", "Period of the CPU quota, in microseconds", nil},
		{"container_spec_cpu_quota", "CPU time allowed per period, in microseconds", nil},
		{"container_spec_cpu_shares", "Share of the CPU", nil},
		{"container_spec_memory_limit_bytes", "Memory limit; 0: none", nil},
		{"container_spec_memory_reservation_limit_bytes", "Memory reservation; 0: none", nil},
		{"container_spec_memory_swap_limit_bytes", "Limit of memory and swap together; 0: none", nil},
	}
}

// ListMetricDescriptors lists the metrics that ListPodSandboxMetrics returns.
// Clients read the list once, so it stays the same while the daemon runs.
func (s *Server) ListMetricDescriptors(context.Context, *runtimeapi.ListMetricDescriptorsRequest) (*runtimeapi.ListMetricDescriptorsResponse, error) {
	out := &runtimeapi.ListMetricDescriptorsResponse{}
	for _, d := range descriptors(s.ioCost) {
		out.Descriptors = append(out.Descriptors, &runtimeapi.MetricDescriptor{
			Name: d.name, Help: d.help, LabelKeys: append(baseLabels(), d.labels...),
		})
	}
	return out, nil
}

// metricType follows the names: what only grows ends in _total, but for one.
func metricType(name string) runtimeapi.MetricType {
	if strings.HasSuffix(name, "_total") && name != "container_fs_inodes_total" || name == "container_memory_failcnt" {
		return runtimeapi.MetricType_COUNTER
	}
	return runtimeapi.MetricType_GAUGE
}

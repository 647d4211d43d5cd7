package main

import (
	"fmt"
	"slices"
	"strings"
	"time"
)

// group is what one machine runs.
type group struct {
	name  string
	about string
	tests []string // lines of the guest's file: t PACKAGE ARGUMENTS, c NAME COMMAND
	boot  string   // added to the kernel's command line
	limit time.Duration
	cuts  int // times that the power goes while the tests run; see powerCuts
}

// criuModules loads what CRIU asks for, some of it too late for its first dump.
const criuModules = "c modules modprobe -a nfnetlink nft_ct nft_reject nf_conntrack nf_reject_ipv4 nf_reject_ipv6 xt_conntrack xt_tcpudp xt_mark ip_tables ip6_tables iptable_filter ip6table_filter inet_diag tcp_diag udp_diag unix_diag netlink_diag af_packet_diag raw_diag"

// groups lists all of them, in the order they run.
func groups() []group {
	return []group{
		// The old shim is built from its source, for which the machine has no Go.
		{name: "cgroup2", about: "cgroup v2, driver cgroupfs", limit: time.Hour, tests: []string{
			"t shim/cgroup", "t shim/supervise", "t test/suite -test.skip Stories/checkpoint", "t sandbox -test.run Integration", "t runtimeservice/stats", "t shim -test.run Integration -test.skip OldShim",
		}},
		{name: "kernel", about: "network, layers and the daemon itself on another kernel", limit: time.Hour, tests: []string{
			"t cmd/berthd -test.run Integration", "t imageservice/snapshot", "t imageservice/layer", "t cni/netns", "t cni/builtin",
		}},
		{name: "systemd", about: "systemd as PID 1: its cgroup driver, Berth's package and unit", limit: time.Hour, boot: "berth.init=systemd", tests: []string{
			"c install /berth/guest/install",
			"t test/suite -bin /usr/bin -unit berth.service -test.run 'Stories/(node|pod|container|process|resources|mount|exec|log|stop|stats|restart|network|handler|userns)/'",
			criuModules, "t test/suite -bin /usr/bin -unit berth.service -test.run 'Stories/checkpoint/(container|berthctl|pod)$'",
			"c upgrade /berth/guest/upgrade", "c signed /berth/guest/signed", "c remove /berth/guest/remove",
		}},
		{name: "lsm", about: "AppArmor enforces", limit: time.Hour, tests: []string{
			"t runtimeservice/confine", "t test/suite -test.run 'Stories/(security|node|volume)/'",
		}},
		{name: "selinux", about: "SELinux with Debian's policy, permissive", limit: time.Hour, boot: "security=selinux selinux=1 enforcing=0", tests: []string{
			"c load-policy /berth/guest/selinux", "t runtimeservice/confine", "t test/suite -test.run 'Stories/(security|volume|pod)/'",
		}},
		{name: "checkpoint", about: "CRIU: checkpoints of containers", limit: time.Hour, tests: []string{
			criuModules,
			"t shim/cgroup -test.run Freeze", "t shim -test.run 'Integration(F(reeze|rozen)|Restore)'", "t runtimeservice/checkpoint", "t test/suite -test.run 'Stories/checkpoint/'",
		}},
		{name: "clock", about: "the machine's clock jumps", limit: time.Hour, boot: "berth.clock=jump", tests: []string{
			"t test/suite -test.run 'Stories/clock/'",
		}},
		{name: "powercut", about: "the power goes in the middle of pulls and starts", limit: time.Hour, cuts: 8, tests: []string{
			"t test/powercut -test.v -test.run IntegrationNode",
		}},
		{name: "crun", about: "crun instead of runc", limit: time.Hour, tests: []string{
			"t test/suite -runtime crun -test.run 'Stories/(container|process|security|resources|mount|exec|stop|stream|userns|volume|pod)/'",
		}},
	}
}

// choose finds groups by name; no name means all.
func choose(names string) ([]group, error) {
	all := groups()
	if names == "" {
		return all, nil
	}
	var out []group
	for name := range strings.SplitSeq(names, ",") {
		i := slices.IndexFunc(all, func(g group) bool { return g.name == name })
		if i < 0 {
			var known []string
			for _, g := range all {
				known = append(known, g.name)
			}
			return nil, fmt.Errorf("no group %q: known are %s", name, strings.Join(known, ", "))
		}
		out = append(out, all[i])
	}
	return out, nil
}

// packages lists the packages whose tests the groups run.
func packages(gs []group) []string {
	var out []string
	for _, g := range gs {
		for _, line := range g.tests {
			if f := strings.Fields(line); f[0] == "t" && !slices.Contains(out, f[1]) {
				out = append(out, f[1])
			}
		}
	}
	return out
}

// Command vm runs Berth's integration tests in a virtual machine: another
// kernel, cgroup v2 alone, AppArmor active. It needs root and Debian; everything
// else it fetches and makes.
//
//	go run ./test/vm [-run GROUP[,GROUP]] [-cache bin/vm]
//
// A machine has two disks: a Debian root that is made once, and one with the
// programs and tests of today's tree. It is emulated (no KVM), so everything
// takes some ten times as long.
package main

// Package crash kills the daemon at every fault point of every verb, and
// shims, OCI runtime and CNI plugins at theirs, and checks after the restart
// that nothing is lost, stuck or leaked.
//
// The daemon is built with the tag faults. Fault points are not listed here:
// the daemon declares those of its journaled verbs when it recovers, those of
// other verbs are read from the source, and a point that the workload did not
// reach fails the test. An ordinary "go test" tries a random sample, whose seed
// it prints, within a minute; BERTH_CRASH=full tries them all, BERTH_CRASH_SEED repeats a sample,
// and BERTH_CRASH_POINT tries one point.
package crash

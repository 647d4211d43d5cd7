//go:build !faults

package op

// fault is a point where a crash test may kill the daemon; nothing here.
func fault(_, _, _ string) {}

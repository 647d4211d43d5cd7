//go:build !faults

package op

// Fault is a point where a crash test may kill the daemon; nothing here.
func Fault(_, _, _ string) {}

// declare tells crash tests which points a verb has; nothing here.
func declare(_ []string) {}

// Package chaos kills the daemon again and again while containers write, end,
// run out of memory and are probed, attached to and exec'ed into, and checks
// that none of them noticed: every byte of every log is there once, no writer
// had to wait for a daemon, and each end was seen as it was.
//
// An ordinary "go test" takes a small load through a few lives of the daemon;
// BERTH_CHAOS=full is a hundred containers and many lives. What the test
// asserts does not depend on time or chance; how long the slowest write took
// is printed, and in the full run bounded.
package chaos

// Package osthread runs code that changes the state of its thread, such as its
// namespaces or credentials, where nothing else ever sees that state.
package osthread

import (
	"runtime"

	"golang.org/x/sys/unix"
)

// Run calls fn on a thread of its own and returns fn's error. The thread ends
// afterwards, unless fn reports that it left the thread as it was: a goroutine
// that ends while locked takes its thread along. The main thread is the
// exception, it would stay for ever with what fn did to it; it is occupied here
// while another one does the work. fn must not start goroutines that rely on
// the state. Safe for concurrent use.
func Run(fn func() (restored bool, err error)) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		if unix.Gettid() == unix.Getpid() {
			done <- Run(fn)
			runtime.UnlockOSThread()
			return
		}
		restored, err := fn()
		done <- err
		if restored {
			runtime.UnlockOSThread()
		}
	}()
	return <-done
}

// RunAndEnd is Run for a thread that is not to be used again.
func RunAndEnd(fn func() error) error {
	return Run(func() (bool, error) { return false, fn() })
}

package supervise

import (
	"syscall"
	"testing"
)

func testChildren(t *testing.T) *children {
	t.Helper()
	l, err := newLoop()
	if err != nil {
		t.Fatal(err)
	}
	c, err := newChildren(l)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { closeFD(&c.null); closeFD(&l.ep) })
	return c
}

// runLoop runs the loop until it is done, but not for ever.
func runLoop(t *testing.T, l *loop) {
	t.Helper()
	l.after(10000, func() { t.Error("it never happened"); l.done = true })
	l.run()
}

// TestAdoptReaped: a process that was reaped and forgotten counts as ended.
func TestAdoptReaped(t *testing.T) {
	c := testChildren(t)
	pid, err := syscall.ForkExec("/bin/true", []string{"true"}, nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := syscall.Wait4(pid, nil, 0, nil); err != nil {
		t.Fatal(err)
	}
	c.adopt(pid, func(ws syscall.WaitStatus) {
		if code, _ := exitCode(ws); code != 255 {
			t.Errorf("code %d", code)
		}
		c.loop.done = true
	})
	runLoop(t, c.loop)
	if c.knows(pid) {
		t.Error("it is still watched")
	}
}

// TestLinger: a child that nobody knows of is reaped soon after its end.
func TestLinger(t *testing.T) {
	c := testChildren(t)
	pid, err := syscall.ForkExec("/bin/sleep", []string{"sleep", "0.2"}, nil)
	if err != nil {
		t.Fatal(err)
	}
	c.linger()
	c.linger()
	var look func()
	look = func() {
		if _, ok := c.strays[pid]; ok {
			c.loop.done = true
			return
		}
		c.loop.after(10, look)
	}
	look()
	runLoop(t, c.loop)
}

// TestAdoptReusedPID: how an earlier process of the same pid ended is not taken
// for the end of the one that has it now.
func TestAdoptReusedPID(t *testing.T) {
	c := testChildren(t)
	pid, err := syscall.ForkExec("/bin/sh", []string{"sh", "-c", "sleep 0.1; exit 3"}, nil)
	if err != nil {
		t.Fatal(err)
	}
	c.strays[pid] = syscall.WaitStatus(7 << 8)
	c.adopt(pid, func(ws syscall.WaitStatus) {
		if code, _ := exitCode(ws); code != 3 {
			t.Errorf("code %d", code)
		}
		c.loop.done = true
	})
	runLoop(t, c.loop)
	if len(c.strays) != 0 {
		t.Errorf("%v is kept", c.strays)
	}
}

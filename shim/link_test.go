package shim

import (
	"context"
	"net"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berth-dev/berth/shim/wire"
)

// answerer is a shim that answers every request but the greeting with a descriptor.
func answerer(fd int) {
	defer unix.Close(fd)
	buf := make([]byte, wire.MaxFrame+1)
	for {
		n, err := unix.Read(fd, buf)
		if err != nil || n <= 0 {
			return
		}
		f, err := wire.Parse(buf[:n])
		if err != nil {
			return
		}
		body, rights := wire.Encode(&wire.Reply{}), unix.UnixRights(fd)
		if f.Kind == wire.KindHello {
			body, rights = wire.Encode(&wire.Hello{Version: wire.Version, Oldest: wire.Oldest}), nil
		}
		b := wire.Append(nil, wire.Frame{Kind: wire.KindReply, ID: f.ID, Body: body})
		if unix.Sendmsg(fd, b, rights, nil, 0) != nil {
			return
		}
	}
}

// TestLinkAnswersUnderLock: a call that is given up finds its answer in the
// channel, with the descriptors to be closed, or none can come any more. Here
// the channel has no room, so whoever puts the answer there has to wait.
func TestLinkAnswersUnderLock(t *testing.T) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	go answerer(pair[1])
	ours := os.NewFile(uintptr(pair[0]), "link")
	c, err := net.FileConn(ours)
	_ = ours.Close()
	if err != nil {
		t.Fatal(err)
	}
	l, _, err := newLink(context.Background(), c.(*net.UnixConn), false, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer l.close()
	const id = 999
	ch := make(chan answer)
	l.calls[id] = ch
	if err := l.tell(wire.KindState, id, nil, nil); err != nil {
		t.Fatal(err)
	}
	for end := time.Now().Add(300 * time.Millisecond); time.Now().Before(end); time.Sleep(time.Millisecond) {
		if !l.mu.TryLock() {
			continue
		}
		if _, ok := l.calls[id]; !ok {
			t.Error("the call is forgotten and its answer is not there")
			end = time.Now()
		}
		l.mu.Unlock()
	}
	a := <-ch
	if len(a.files) != 1 {
		t.Errorf("%+v", a)
	}
	closeFDs(a.files)
}

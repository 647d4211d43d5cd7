package shim

import (
	"context"
	"net"
	"os"
	"testing"

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

// TestLinkGivesUpAsAnswerComes: no descriptor of such an answer is lost.
func TestLinkGivesUpAsAnswerComes(t *testing.T) {
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
	before := countFDs()
	for range 20000 {
		ctx, cancel := context.WithCancel(context.Background())
		go cancel()
		_, files, _ := l.call(ctx, wire.KindState, nil, nil)
		closeFDs(files)
		cancel()
	}
	// What is under way is read before this is answered.
	_, files, err := l.call(context.Background(), wire.KindState, nil, nil)
	closeFDs(files)
	if n := countFDs(); err != nil || n > before+2 {
		t.Errorf("%d descriptors, %d before; %v", n, before, err)
	}
}

package cli

import (
	"context"
	"io"
	"os"
	"os/signal"

	"golang.org/x/sys/unix"
)

// Coloured says whether w is a terminal whose user has not turned colours off
// (NO_COLOR, TERM=dumb).
func Coloured(w io.Writer) bool {
	_, tty := Terminal(w)
	return tty && os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb"
}

// Size of a terminal in characters.
type Size struct{ Rows, Cols int }

// Terminal returns the size of the terminal that w (or a reader) is.
func Terminal(w any) (Size, bool) {
	f, ok := w.(*os.File)
	if !ok {
		return Size{}, false
	}
	size, err := unix.IoctlGetWinsize(int(f.Fd()), unix.TIOCGWINSZ)
	if err != nil {
		return Size{}, false
	}
	return Size{Rows: int(size.Row), Cols: int(size.Col)}, true
}

// RawMode hands on every key as it is pressed, unseen, if in is a terminal.
// With signals ctrl-c still interrupts, and output is left alone. restore
// undoes it.
func RawMode(in io.Reader, signals bool) (restore func(), err error) {
	f, ok := in.(*os.File)
	if !ok {
		return func() {}, nil
	}
	old, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	if err != nil {
		return func() {}, nil //nolint:nilerr // it is no terminal
	}
	raw := *old
	raw.Lflag &^= unix.ECHO | unix.ECHONL | unix.ICANON
	if !signals {
		raw.Iflag &^= unix.IGNBRK | unix.BRKINT | unix.PARMRK | unix.ISTRIP | unix.INLCR | unix.IGNCR | unix.ICRNL | unix.IXON
		raw.Oflag &^= unix.OPOST
		raw.Lflag &^= unix.ISIG | unix.IEXTEN
		raw.Cflag = raw.Cflag&^(unix.CSIZE|unix.PARENB) | unix.CS8
	}
	raw.Cc[unix.VMIN], raw.Cc[unix.VTIME] = 1, 0
	if err := unix.IoctlSetTermios(int(f.Fd()), unix.TCSETS, &raw); err != nil {
		return nil, Failed(err, "Is this a terminal?")
	}
	return func() { _ = unix.IoctlSetTermios(int(f.Fd()), unix.TCSETS, old) }, nil
}

// WatchSize sends the size of the terminal now and whenever it changes, until
// ctx ends. Without a terminal nothing is sent.
func WatchSize(ctx context.Context, terminal any) <-chan Size {
	sizes := make(chan Size, 1)
	first, ok := Terminal(terminal)
	if !ok {
		close(sizes)
		return sizes
	}
	changed := make(chan os.Signal, 1)
	signal.Notify(changed, unix.SIGWINCH)
	sizes <- first
	go func() {
		defer close(sizes)
		defer signal.Stop(changed)
		for {
			select {
			case <-ctx.Done():
				return
			case <-changed:
			}
			if size, ok := Terminal(terminal); ok {
				select {
				case sizes <- size:
				case <-ctx.Done():
					return
				}
			}
		}
	}()
	return sizes
}

package session

import (
	"bytes"
	"errors"
	"io"
)

// errDetached says that the user has pressed the keys that leave a session.
var errDetached = errors.New("detached")

// detachKeys leave a session: ctrl-p ctrl-q, as docker has it.
var detachKeys = []byte{0x10, 0x11}

// detacher reads keys and calls left at those that leave.
type detacher struct {
	in   io.Reader
	left func()
	held bool // the first of the keys has come and was not passed on
}

// Read implements io.Reader.
func (d *detacher) Read(p []byte) (int, error) {
	room := len(p)
	if d.held {
		room-- // for the key that is held back
	}
	if room <= 0 {
		return 0, io.ErrShortBuffer
	}
	buf := make([]byte, room)
	n, err := d.in.Read(buf)
	keys := buf[:n]
	if d.held && n > 0 {
		keys, d.held = append(detachKeys[:1:1], keys...), false
	}
	if i := bytes.Index(keys, detachKeys); i >= 0 {
		d.left()
		return copy(p, keys[:i]), io.EOF
	}
	if bytes.HasSuffix(keys, detachKeys[:1]) && err == nil {
		keys, d.held = keys[:len(keys)-1], true
	}
	return copy(p, keys), err
}

// Package wire is what a shim and a daemon say to each other, and the two
// files by which they find each other's facts after one of them has died.
//
// The transport is a Unix socket of type SOCK_SEQPACKET: a frame is a packet,
// so neither side keeps half a frame, and file descriptors travel with the
// frame that names them. A frame is a header and a body:
//
//	0  uint32  length of the frame, header included (little endian, as all)
//	4  uint16  kind
//	6  uint16  0, for later use
//	8  uint32  id: a reply carries that of its request; 0 for events
//
// Bodies of data frames are raw bytes. All other bodies are fields: tag and
// length as uvarints, then the value. A reader skips tags it doesn't know, and
// missing fields are zero, so an old shim serves a new daemon. Each side opens
// with its version; both speak the lower one.
package wire

import (
	"encoding/binary"
	"errors"
)

// Version is the newest protocol version this code speaks; Oldest the oldest.
// What a version added is named here, so that either side can tell what its
// peer lacks.
const (
	Version = 3
	Oldest  = 1

	VersionLimits  = 2 // Create.Limits, Reply.Busy, Log.Capped, Log.Paused, KindLogHealth
	VersionRestore = 3 // Create.Restore
)

// Sizes in bytes. MaxFrame is below the default socket buffer of Linux.
const (
	HeaderSize = 12
	MaxData    = 64 << 10
	MaxFrame   = HeaderSize + MaxData
	MaxFiles   = 4 // descriptors in one frame
)

// Kind says what a frame is. The numbers are for ever.
type Kind uint16

// Kinds of frames.
const (
	KindHello     Kind = 1  // both ways, first: Hello
	KindCreate    Kind = 2  // Create
	KindStart     Kind = 3  // no body; reply carries StartedAt and PID
	KindSignal    Kind = 4  // Signal
	KindResize    Kind = 5  // Size
	KindReopen    Kind = 6  // no body
	KindUpdate    Kind = 7  // one file: the OCI resources document
	KindState     Kind = 8  // no body
	KindDelete    Kind = 9  // Delete
	KindExec      Kind = 10 // Exec, files: process document, stdin, stdout, stderr; the connection becomes the exec's
	KindAttach    Kind = 11 // Attach; the connection becomes the attachment's
	KindKillExec  Kind = 12 // no body, on an exec's connection
	KindFreeze    Kind = 13 // no body; the container stands still until KindThaw, or until the connection ends
	KindDump      Kind = 14 // Dump, on the connection that froze it
	KindThaw      Kind = 15 // no body; answered when the container is neither frozen nor dumped, whoever did it
	KindReply     Kind = 32 // Reply
	KindExited    Kind = 33 // Exit: event to all connections that said Hello with Events
	KindExecEnded Kind = 34 // Exit, on an exec's connection
	KindLogHealth Kind = 35 // LogHealth: event as KindExited, when writes to the log begin to fail or cease to
	KindStdout    Kind = 48 // data, from the shim; empty: end of stream
	KindStderr    Kind = 49 // data, from the shim; empty: end of stream
	KindStdin     Kind = 50 // data, to the shim; empty: the sender closed it
)

// Errors of this package.
var (
	ErrShort   = errors.New("wire: frame is truncated")
	ErrLong    = errors.New("wire: frame is too long")
	ErrField   = errors.New("wire: malformed field")
	ErrVersion = errors.New("wire: no common protocol version")
)

// Frame is one packet. Body aliases the buffer it was parsed from.
type Frame struct {
	Kind Kind
	ID   uint32
	Body []byte
}

// Append appends the frame's encoding. The caller keeps the body within MaxData.
func Append(dst []byte, f Frame) []byte {
	le := binary.LittleEndian
	dst = le.AppendUint32(dst, uint32(HeaderSize+len(f.Body)))
	dst = le.AppendUint16(dst, uint16(f.Kind))
	dst = le.AppendUint16(dst, 0)
	dst = le.AppendUint32(dst, f.ID)
	return append(dst, f.Body...)
}

// Parse reads one packet.
func Parse(b []byte) (Frame, error) {
	if len(b) < HeaderSize {
		return Frame{}, ErrShort
	}
	le := binary.LittleEndian
	n := le.Uint32(b)
	switch {
	case n > MaxFrame:
		return Frame{}, ErrLong
	case n < HeaderSize || int(n) != len(b):
		return Frame{}, ErrShort
	}
	return Frame{Kind: Kind(le.Uint16(b[4:])), ID: le.Uint32(b[8:]), Body: b[HeaderSize:]}, nil
}

// field is one member of a message: exactly one pointer is set.
type field struct {
	tag uint64
	s   *string
	n   *int64
	b   *bool
}

func appendFields(dst []byte, fs []field) []byte {
	var num [binary.MaxVarintLen64]byte
	for _, f := range fs {
		var v []byte
		switch {
		case f.s != nil && *f.s != "":
			v = []byte(*f.s)
		case f.n != nil && *f.n != 0:
			v = num[:binary.PutVarint(num[:], *f.n)]
		case f.b != nil && *f.b:
			v = num[:1]
			v[0] = 1
		default:
			continue
		}
		dst = binary.AppendUvarint(dst, f.tag)
		dst = binary.AppendUvarint(dst, uint64(len(v)))
		dst = append(dst, v...)
	}
	return dst
}

func parseFields(b []byte, fs []field) error {
	for len(b) > 0 {
		tag, n := binary.Uvarint(b)
		if n <= 0 {
			return ErrField
		}
		b = b[n:]
		size, n := binary.Uvarint(b)
		if n <= 0 || size > uint64(len(b)-n) {
			return ErrField
		}
		v := b[n : n+int(size)]
		b = b[n+int(size):]
		for _, f := range fs {
			if f.tag != tag {
				continue
			}
			if err := f.set(v); err != nil {
				return err
			}
			break
		}
	}
	return nil
}

func (f field) set(v []byte) error {
	switch {
	case f.s != nil:
		*f.s = string(v)
	case f.b != nil:
		*f.b = len(v) == 1 && v[0] == 1
	default:
		n, k := binary.Varint(v)
		if k <= 0 || k != len(v) {
			return ErrField
		}
		*f.n = n
	}
	return nil
}

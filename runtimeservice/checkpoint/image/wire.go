package image

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math"

	"google.golang.org/protobuf/encoding/protowire"
)

// kind is what a field of a message holds. CRIU reads protocol buffers with
// another library than this package. So that both see the same, nothing is taken
// here on which they may differ: an unknown field, one that comes twice, a number
// that is too large for its type, a string that ends before its length.
type kind uint8

const (
	u32 kind = iota + 1
	u64
	i32 // negative numbers take ten bytes
	s32 // zigzag
	s64 // zigzag
	flag
	text
	blob
	fix64

	many kind = 0x80 // may be repeated
)

// maxText is the length of strings: paths, and options of mounts.
const maxText = 4095

// value is what was read of a field.
type value struct {
	num uint64
	b   []byte
}

func (v value) u32() uint32  { return uint32(v.num) }
func (v value) i32() int32   { return int32(v.num) }
func (v value) bool() bool   { return v.num != 0 }
func (v value) text() string { return string(v.b) }

// message is the fields of a message by number.
type message map[protowire.Number]kind

// read calls set for each field, in the order of the message.
func (m message) read(b []byte, set func(n protowire.Number, v value) error) error {
	var seen [4]uint64
	for len(b) > 0 {
		n, wire, used := protowire.ConsumeTag(b)
		if used < 0 {
			return fmt.Errorf("no field: %w", protowire.ParseError(used))
		}
		b = b[used:]
		k := m[n]
		if k == 0 {
			return fmt.Errorf("field %d is unknown", n)
		}
		if k&many == 0 {
			if seen[n/64]&(1<<(n%64)) != 0 {
				return fmt.Errorf("field %d comes twice", n)
			}
			seen[n/64] |= 1 << (n % 64)
		}
		rest, err := k.take(b, wire, func(v value) error { return set(n, v) })
		if err != nil {
			return fmt.Errorf("field %d: %w", n, err)
		}
		b = rest
	}
	return nil
}

func (k kind) take(b []byte, wire protowire.Type, set func(value) error) ([]byte, error) {
	base := k &^ many
	switch base {
	case text, blob:
		if wire != protowire.BytesType {
			return nil, fmt.Errorf("is of wire type %d", wire)
		}
		v, used := protowire.ConsumeBytes(b)
		if used < 0 {
			return nil, protowire.ParseError(used)
		}
		if base == text && bytes.IndexByte(v, 0) >= 0 {
			return nil, fmt.Errorf("string with a zero byte")
		}
		if base == text && len(v) > maxText {
			return nil, fmt.Errorf("string of %d bytes", len(v))
		}
		return b[used:], set(value{b: v})
	case fix64:
		if wire != protowire.Fixed64Type {
			return nil, fmt.Errorf("is of wire type %d", wire)
		}
		v, used := protowire.ConsumeFixed64(b)
		if used < 0 {
			return nil, protowire.ParseError(used)
		}
		return b[used:], set(value{num: v})
	}
	if wire == protowire.BytesType && k&many != 0 { // packed
		packed, used := protowire.ConsumeBytes(b)
		if used < 0 {
			return nil, protowire.ParseError(used)
		}
		for len(packed) > 0 {
			rest, err := base.number(packed, set)
			if err != nil {
				return nil, err
			}
			packed = rest
		}
		return b[used:], nil
	}
	if wire != protowire.VarintType {
		return nil, fmt.Errorf("is of wire type %d", wire)
	}
	return base.number(b, set)
}

func (k kind) number(b []byte, set func(value) error) ([]byte, error) {
	v, used := protowire.ConsumeVarint(b)
	if used < 0 {
		return nil, protowire.ParseError(used)
	}
	wide := v > math.MaxUint32
	switch k {
	case i32:
		if s := int64(v); wide && (s >= 0 || s < math.MinInt32) {
			return nil, fmt.Errorf("number %d is too large", v)
		}
	case flag:
		if v > 1 {
			return nil, fmt.Errorf("number %d for yes or no", v)
		}
	case u64, s64:
	default:
		if wide {
			return nil, fmt.Errorf("number %d is too large", v)
		}
	}
	if k == s32 || k == s64 {
		v = uint64(protowire.DecodeZigZag(v))
	}
	return b[used:], set(value{num: v})
}

// Magic numbers. Each file begins with the common one and its own, except for the
// inventory, which has its own only.
const (
	magicCommon    = 0x54564319
	magicInventory = 0x58313116
	magicPstree    = 0x50273030
	magicCore      = 0x55053847
	magicIDs       = 0x54432030
	magicMounts    = 0x55563928
	magicFiles     = 0x56303138
	magicSeccomp   = 0x64413049
	magicNetns     = 0x55933752
	magicPidns     = 0x61157326
	magicUserns    = 0x55474906
	magicTTY       = 0x59453036
	magicRemap     = 0x59133954
	magicGhost     = 0x52583605
	magicMemory    = 0x57492820
)

// records calls each for the messages of a file.
func records(b []byte, magic uint32, each func(b []byte) error) error {
	heads := []uint32{magicCommon, magic}
	if magic == magicInventory {
		heads = heads[1:]
	}
	for _, want := range heads {
		if len(b) < 4 || binary.LittleEndian.Uint32(b) != want {
			return fmt.Errorf("it does not begin as an image of its kind")
		}
		b = b[4:]
	}
	for n := 1; len(b) > 0; n++ {
		if len(b) < 4 {
			return fmt.Errorf("entry %d is cut off", n)
		}
		size := binary.LittleEndian.Uint32(b)
		b = b[4:]
		if uint64(size) > uint64(len(b)) {
			return fmt.Errorf("entry %d is cut off", n)
		}
		if err := each(b[:size]); err == errEnough {
			return nil
		} else if err != nil {
			return fmt.Errorf("entry %d: %w", n, err)
		}
		b = b[size:]
	}
	return nil
}

// one reads a file that has one message.
func one(b []byte, magic uint32, read func(b []byte) error) error {
	n := 0
	err := records(b, magic, func(b []byte) error {
		if n++; n > 1 {
			return fmt.Errorf("there should be one entry only")
		}
		return read(b)
	})
	if err == nil && n == 0 {
		err = fmt.Errorf("it is empty")
	}
	return err
}

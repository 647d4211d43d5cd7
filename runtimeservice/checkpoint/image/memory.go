package image

import (
	"fmt"

	"google.golang.org/protobuf/encoding/protowire"
)

var (
	memoryFields = message{1: u64, 2: u64, 3: u64, 4: u64, 5: u64, 6: u64, 7: u64, 8: u64, 9: u64, 10: u64, 11: u64, 12: u32, 13: u64 | many,
		14: blob | many, 15: i32, 16: blob | many, 17: flag}
	areaFields = message{1: u64, 2: u64, 3: u64, 4: u64, 5: u32, 6: u32, 7: u32, 8: s64, 9: u64, 10: u32}
	ringFields = message{1: u64, 2: u32, 3: u32}
)

// What an area of memory is. What else there may be are CRIU's own marks, and
// plugins'.
const (
	areaKinds  = 0x1ffff
	areaOfRing = 1 << 13
	areaOfCall = 1 << 2 // the page that is at the same place in every process

	callStart = 0xffffffffff600000
	pageSize  = 4096
)

type area struct {
	start, end uint64
	kind       uint32
}

// memory checks that areas do not overlap. CRIU restores them around itself, while
// it is root, in the gaps that it finds in an ordered list.
func (r *reader) memory(_ uint32, b []byte) error {
	return one(b, magicMemory, func(b []byte) error {
		var last area
		areas := 0
		rings := map[uint64]uint64{} // lengths by where they are
		var used []area
		err := memoryFields.read(b, func(n protowire.Number, v value) error {
			switch n {
			case 14:
				a, err := readArea(v.b)
				if err != nil {
					return err
				}
				if err := a.after(last); err != nil {
					return err
				}
				if a.kind&areaOfRing != 0 {
					rings[a.start] = a.end - a.start
				}
				last = a
				areas++
			case 16:
				a, err := readRing(v.b)
				used = append(used, a)
				return err
			}
			return nil
		})
		if err != nil {
			return err
		}
		if areas == 0 {
			return fmt.Errorf("there is no memory")
		}
		for _, a := range used {
			if size, ok := rings[a.start]; !ok || size != a.end-a.start {
				return fmt.Errorf("ring at %#x: there is none of this length", a.start)
			}
			delete(rings, a.start)
		}
		return nil
	})
}

func readArea(b []byte) (a area, err error) {
	err = areaFields.read(b, func(n protowire.Number, v value) error {
		switch n {
		case 1:
			a.start = v.num
		case 2:
			a.end = v.num
		case 7:
			a.kind = v.u32()
		}
		return nil
	})
	return a, err
}

func readRing(b []byte) (a area, err error) {
	var size uint64
	err = ringFields.read(b, func(n protowire.Number, v value) error {
		switch n {
		case 1:
			a.start = v.num
		case 3:
			size = v.num
		}
		return nil
	})
	a.end = a.start + size
	return a, err
}

// after checks an area, and that it comes after another.
func (a area) after(last area) error {
	if a.kind&^areaKinds != 0 {
		return fmt.Errorf("memory at %#x: status %#x", a.start, a.kind)
	}
	top := uint64(1) << 56
	if a.kind&areaOfCall != 0 && a.start == callStart {
		top = callStart + pageSize
	}
	if a.start < last.end || a.start >= a.end || a.end > top || (a.start|a.end)%pageSize != 0 {
		return fmt.Errorf("memory at %#x to %#x, after what ends at %#x", a.start, a.end, last.end)
	}
	return nil
}

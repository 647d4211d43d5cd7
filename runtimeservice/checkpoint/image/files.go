package image

import (
	"fmt"

	"google.golang.org/protobuf/encoding/protowire"
)

// Types of open files, those that are restored.
const (
	fileReg     = 1
	filePipe    = 2
	fileFIFO    = 3
	fileInet    = 4
	fileUnix    = 5
	fileEvent   = 6
	filePoll    = 7
	fileInotify = 8
	fileSignal  = 9
	fileTTY     = 11
	fileNetlink = 13
	fileTimer   = 17
	fileMemory  = 18
	filePidfd   = 20
)

// openFile is how a type of open file is read: which field of its entry has it,
// and which of those fields matter. What has no fields here is only state.
type openFile struct {
	in     protowire.Number
	fields message
	set    func(f *File, n protowire.Number, v value) error
}

func openFiles() map[uint32]openFile {
	return map[uint32]openFile{
		fileReg:     {3, regFields, (*File).reg},
		fileInet:    {4, inetFields, (*File).inet},
		fileNetlink: {7, netlinkFields, (*File).netlink},
		fileEvent:   {in: 8},
		filePoll:    {in: 9},
		fileSignal:  {in: 10},
		fileTimer:   {in: 12},
		fileInotify: {13, inotifyFields, (*File).inotify},
		fileUnix:    {16, unixFields, (*File).unix},
		fileFIFO:    {in: 17},
		filePipe:    {in: 18},
		fileTTY:     {in: 19},
		fileMemory:  {in: 20},
		filePidfd:   {in: 22},
	}
}

var (
	fileFields = message{1: i32, 2: u32, 3: blob, 4: blob, 5: blob, 6: blob, 7: blob, 8: blob, 9: blob, 10: blob, 11: blob, 12: blob, 13: blob,
		14: blob, 15: blob, 16: blob, 17: blob, 18: blob, 19: blob, 20: blob, 21: blob, 22: blob}
	regFields  = message{1: u32, 2: u32, 3: u64, 5: blob, 6: text, 7: s32, 8: u64, 9: flag, 10: u32, 11: u32 | many, 12: u32, 13: u32, 14: u32}
	inetFields = message{1: u32, 2: u32, 3: u32, 4: u32, 5: u32, 6: u32, 7: u32, 8: u32, 9: u32, 10: u32, 11: u32 | many, 12: u32 | many, 13: blob,
		14: blob, 15: flag, 16: blob, 17: text, 18: u32, 19: i32, 20: blob}
	unixFields = message{1: u32, 2: u32, 3: u32, 4: u32, 5: u32, 6: u32, 7: u32, 8: u32, 9: blob, 10: blob, 11: blob, 12: i32, 13: blob, 14: text,
		15: flag, 16: u32, 17: s32}
	netlinkFields = message{1: u32, 2: u32, 3: u32, 4: u32, 6: u32, 7: u32, 8: u32 | many, 9: u32, 10: u32, 11: blob, 12: blob, 13: u32}
	optionFields  = message{1: u32, 2: u32, 3: u64, 4: u64, 5: u64, 6: u64, 7: flag, 8: u32, 9: u32, 10: u32, 11: flag, 12: flag, 13: flag, 14: flag,
		15: text, 16: fix64 | many, 17: flag, 18: flag, 19: flag, 20: u32, 21: u32, 22: u32, 23: u32, 24: u32, 25: u32}
	inotifyFields = message{1: u32, 2: u32, 4: blob, 5: blob | many}
	watchFields   = message{1: u32, 2: u64, 3: u32, 4: u32, 5: u32, 6: u32, 7: blob}
	handleFields  = message{1: u32, 2: u32, 3: u64 | many, 4: text, 5: u32}
)

func (r *reader) files(_ uint32, b []byte) error {
	types := openFiles()
	return records(b, magicFiles, func(b []byte) error {
		if len(r.img.Files) >= maxFiles {
			return fmt.Errorf("more than %d open files", maxFiles)
		}
		var f File
		var content []byte
		var in protowire.Number
		err := fileFields.read(b, func(n protowire.Number, v value) error {
			switch n {
			case 1:
				f.Type = v.u32()
			case 2:
				f.ID = v.u32()
			default:
				if in != 0 {
					return fmt.Errorf("it is of two types")
				}
				in, content = n, v.b
			}
			return nil
		})
		if err != nil {
			return err
		}
		t, ok := types[f.Type]
		if !ok {
			return fmt.Errorf("open file %d is of type %d, which is not restored", f.ID, f.Type)
		}
		if in != t.in {
			return fmt.Errorf("open file %d is of type %d but has field %d", f.ID, f.Type, in)
		}
		if t.set != nil {
			err = t.fields.read(content, func(n protowire.Number, v value) error { return t.set(&f, n, v) })
		}
		if s := f.Socket; err == nil && f.Type == fileInet {
			if want, ok := map[uint32]int{2: 1, 10: 4}[s.Family]; !ok || s.From != want || s.To != want {
				err = fmt.Errorf("socket of family %d with %d and %d words of addresses", s.Family, s.From, s.To)
			}
		}
		if err != nil {
			return fmt.Errorf("open file %d: %w", f.ID, err)
		}
		r.img.Files = append(r.img.Files, f)
		return nil
	})
}

func (f *File) reg(n protowire.Number, v value) error {
	switch n {
	case 1:
		f.ID = v.u32() // which CRIU goes by
	case 6:
		f.Path = v.text()
	case 7:
		f.Mount = v.i32()
	case 9:
		f.Elsewhere = v.bool()
	}
	return nil
}

func (f *File) inet(n protowire.Number, v value) error {
	switch n {
	case 3:
		f.Socket.Family = v.u32()
	case 11:
		f.Socket.From++
	case 12:
		f.Socket.To++
	case 4:
		f.Socket.Type = v.u32()
	case 14:
		return f.options(v.b)
	}
	return nil
}

func (f *File) netlink(n protowire.Number, v value) error {
	switch n {
	case 3:
		f.Socket.Protocol = v.u32()
	case 8:
		f.Socket.Groups = f.Socket.Groups || v.num != 0
	case 12:
		return f.options(v.b)
	}
	return nil
}

func (f *File) unix(n protowire.Number, v value) error {
	switch n {
	case 6:
		f.Socket.Flags = v.u32()
	case 10:
		return f.options(v.b)
	case 11:
		f.Path = v.text()
		if len(f.Path) > maxSocket { // CRIU does not look
			return fmt.Errorf("name of %d bytes", len(f.Path))
		}
	case 14:
		f.Dir = v.text()
	}
	return nil
}

// maxSocket is the room for the name of a Unix socket.
const maxSocket = 108

func (f *File) options(b []byte) error {
	return optionFields.read(b, func(n protowire.Number, v value) error {
		switch n {
		case 10:
			f.Socket.Mark = v.u32()
		case 15:
			f.Socket.Device = v.text()
		}
		return nil
	})
}

func (f *File) inotify(n protowire.Number, v value) error {
	if n != 5 {
		return nil
	}
	var dev uint32
	byPath := false
	err := watchFields.read(v.b, func(n protowire.Number, v value) error {
		switch n {
		case 5:
			dev = v.u32()
		case 7:
			return handleFields.read(v.b, func(n protowire.Number, v value) error {
				if n == 4 {
					byPath = true
					f.Watched = append(f.Watched, v.text())
				}
				return nil
			})
		}
		return nil
	})
	if !byPath {
		f.Handles = append(f.Handles, dev)
	}
	return err
}

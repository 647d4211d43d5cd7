package image

import (
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"path"
	"strconv"
	"strings"
)

// Tree is what the archive of a temporary file system holds, by path.
type Tree map[string]Node

// Node is a file in a tree: its type as tar has it, and the numbers of a device.
type Node struct {
	Type         byte
	Major, Minor uint32
}

const (
	maxNodes = 100_000
	maxTree  = 4 << 30 // bytes, unpacked
	block    = 512
)

// tree reads the archive that CRIU has tar unpack into a temporary file system,
// as root and while the node's files are in reach. It has to be in the only format
// in which CRIU's dump writes it, each directory before what is in it: then
// nothing in it can lead elsewhere, and no other reader sees other files in it.
func (r *reader) tree(id uint32, f io.Reader) error {
	z, err := gzip.NewReader(f)
	if err != nil {
		return err
	}
	t := Tree{}
	r.img.Trees[id] = t
	in := &archive{in: io.LimitReader(z, maxTree)}
	for {
		done, err := in.next(t)
		if err != nil {
			return err
		}
		if done {
			return nil
		}
	}
}

type archive struct {
	in         io.Reader
	path, link string // from headers for long names
	zero       bool   // the block before was empty
	head       [block]byte
}

// next reads a header and what belongs to it.
func (a *archive) next(t Tree) (done bool, err error) {
	if _, err := io.ReadFull(a.in, a.head[:]); err != nil {
		if errors.Is(err, io.EOF) && a.zero && a.path == "" && a.link == "" {
			return true, nil
		}
		return false, fmt.Errorf("the archive is cut off or too large: %w", err)
	}
	if a.head == [block]byte{} {
		a.zero = true
		return false, nil
	}
	if a.zero {
		return false, errors.New("data after the end of the archive")
	}
	h := a.head[:]
	if string(h[257:265]) != "ustar  \x00" {
		return false, errors.New("the archive is not of GNU tar's format")
	}
	if want, err := octal(h[148:156]); err != nil || want != checksum(h) {
		return false, errors.New("wrong checksum in the archive")
	}
	size, err := octal(h[124:136])
	if err != nil {
		return false, fmt.Errorf("size in the archive: %w", err)
	}
	switch kind := h[156]; kind {
	case 'L', 'K':
		if size > 8192 {
			return false, errors.New("long name in the archive")
		}
		b := make([]byte, size)
		if _, err := io.ReadFull(a.in, b); err != nil {
			return false, err
		}
		to := &a.path
		if kind == 'K' {
			to = &a.link
		}
		if *to != "" {
			return false, errors.New("two long names for a file in the archive")
		}
		if *to, err = cut(b); err != nil || *to == "" {
			return false, errors.New("long name in the archive")
		}
	default:
		if err := a.node(t, kind, size); err != nil {
			return false, err
		}
		if _, err := io.CopyN(io.Discard, a.in, int64(size)); err != nil {
			return false, fmt.Errorf("the archive is cut off or too large: %w", err)
		}
	}
	_, err = io.CopyN(io.Discard, a.in, int64((block-size%block)%block))
	return false, err
}

// node notes the file of a header.
func (a *archive) node(t Tree, kind byte, size uint64) error {
	name, target := a.path, a.link
	a.path, a.link = "", ""
	var err error
	if name == "" {
		if name, err = cut(a.head[:100]); err != nil {
			return err
		}
	}
	if target == "" {
		if target, err = cut(a.head[157:257]); err != nil {
			return err
		}
	}
	// What other formats, or other options of tar, have behind the device numbers.
	if !bytes.Equal(a.head[345:], make([]byte, block-345)) {
		return fmt.Errorf("%q in the archive has more than a dump writes", name)
	}
	clean, err := inTree(name)
	if err != nil {
		return err
	}
	if _, ok := t[clean]; ok {
		return fmt.Errorf("%q is in the archive twice", name)
	}
	if len(t) >= maxNodes {
		return fmt.Errorf("more than %d files in the archive", maxNodes)
	}
	if clean != "." && t[path.Dir(clean)].Type != '5' {
		return fmt.Errorf("%q is in the archive before its directory", name)
	}
	if size > 0 && kind != '0' {
		return fmt.Errorf("%q in the archive has data", name)
	}
	n := Node{Type: kind}
	switch kind {
	case '0', '2', '5', '6':
	case '1':
		to, err := inTree(target)
		if err != nil || t[to].Type != '0' {
			return fmt.Errorf("%q in the archive is a link to %q", name, target)
		}
	case '3', '4':
		major, err := octal(a.head[329:337])
		minor, err2 := octal(a.head[337:345])
		if err := errors.Join(err, err2); err != nil {
			return fmt.Errorf("device %q in the archive: %w", name, err)
		}
		n.Major, n.Minor = uint32(major), uint32(minor)
	default:
		return fmt.Errorf("%q in the archive is of type %q", name, kind)
	}
	t[clean] = n
	return nil
}

// inTree returns the path of a file in a tree, which dumps write as ./path.
func inTree(name string) (string, error) {
	clean := path.Clean(name)
	if name != "./" && strings.TrimSuffix(name, "/") != "./"+clean || strings.HasPrefix(clean, "..") {
		return "", fmt.Errorf("path %q in the archive", name)
	}
	return clean, nil
}

// cut returns a string up to its zero byte, with nothing behind it.
func cut(b []byte) (string, error) {
	s, rest, _ := bytes.Cut(b, []byte{0})
	if len(bytes.Trim(rest, "\x00")) > 0 {
		return "", errors.New("name with a zero byte in the archive")
	}
	return string(s), nil
}

func octal(b []byte) (uint64, error) {
	s := strings.TrimRight(string(b), " \x00")
	s = strings.TrimLeft(s, " ")
	return strconv.ParseUint(s, 8, 40)
}

// checksum is the sum of a header's bytes, those of the sum itself as spaces.
func checksum(h []byte) (sum uint64) {
	for i, b := range h {
		if i >= 148 && i < 156 {
			b = ' '
		}
		sum += uint64(b)
	}
	return sum
}

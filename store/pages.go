package store

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/fnv"
	"io/fs"
	"os"
	"runtime/debug"
	"time"

	"golang.org/x/sys/unix"
)

// bbolt trusts the pages of its file. A damaged one makes it panic, or fault in
// a goroutine of its own, where nothing can be caught (Tx.Check), or hand out a
// page that is in use; one damaged meta page makes it go back by a transaction
// without a word. So a file is looked at, page by page, before bbolt has it.
// What lies in the pages is not looked at: records have checksums.
//
// Numbers are in the machine's byte order. A page:
//
//	0  number, 8 bytes    8  kind, 2    10  elements, 2    12  further pages that belong to it, 4
//	16 elements of 16 bytes, then keys and values
const (
	pageHeader   = 16
	elementSize  = 16
	bucketHeader = 16 // number of the root page, 0 when the page follows; a counter

	kindBranch = 0x01
	kindLeaf   = 0x02
	kindMeta   = 0x04
	kindFree   = 0x10

	boltMagic   = 0xED0CDAED
	boltVersion = 2
	metaSize    = 56 // without its checksum

	noFreelist = 1<<64 - 1 // the list of free pages is found out at each start, as containerd has it
)

var order = binary.NativeEndian

// CheckPages reports what is wrong with a bbolt database file, whatever is in it,
// as DataLoss. One that is empty or is not there has nothing wrong with it. It
// waits for whoever uses the file; FailedPrecondition when that takes too long.
func CheckPages(path string, timeout time.Duration) (err error) {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if err := flock(f, unix.LOCK_SH, timeout); err != nil {
		return err
	}
	return walkFile(f)
}

// walkFile reports what is wrong with a file that nobody writes to meanwhile.
func walkFile(f *os.File) (err error) {
	st, err := f.Stat()
	if err != nil || st.Size() == 0 {
		return err
	}
	data, err := unix.Mmap(int(f.Fd()), 0, int(st.Size()), unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		return fmt.Errorf("map %s: %w", f.Name(), err)
	}
	defer func() { err = errors.Join(err, unix.Munmap(data)) }()
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if r := recover(); r != nil { // the disk cannot be read
			err = damaged(fmt.Errorf("%v", r))
		}
	}()
	if err := walk(data); err != nil {
		return damaged(err)
	}
	return nil
}

// walk reports what is wrong with the content of a database file. Pure.
func walk(data []byte) error {
	m, err := newestMeta(data)
	if err != nil {
		return err
	}
	w := walker{data: data, size: m.pageSize, used: make([]bool, m.end)}
	w.used[0], w.used[1] = true, true
	if err := w.tree(m.root, nil, nil); err != nil {
		return err
	}
	if m.freelist == noFreelist {
		return nil
	}
	if err := w.free(m.freelist); err != nil {
		return err
	}
	for id, used := range w.used {
		if !used {
			return fmt.Errorf("page %d belongs to nothing", id)
		}
	}
	return nil
}

// meta is what a meta page says. Pages from end on are not in use.
type meta struct{ pageSize, root, freelist, end, tx uint64 }

// newestMeta reads both meta pages: each is whole, except when the machine
// stopped in the middle of a sector.
func newestMeta(data []byte) (meta, error) {
	first, err := readMeta(data, 0)
	if err != nil {
		return meta{}, err
	}
	second, err := readMeta(data, first.pageSize)
	if err != nil {
		return meta{}, err
	}
	if second.tx > first.tx {
		first = second
	}
	have := uint64(len(data)) / first.pageSize
	if first.end > have || first.end < 4 {
		return meta{}, fmt.Errorf("it has %d pages, and should have %d", have, first.end)
	}
	return first, nil
}

func readMeta(data []byte, at uint64) (meta, error) {
	if uint64(len(data)) < at+pageHeader+metaSize+8 {
		return meta{}, errors.New("it is cut short")
	}
	b := data[at+pageHeader:]
	sum := fnv.New64a()
	_, _ = sum.Write(b[:metaSize])
	if order.Uint16(data[at+8:]) != kindMeta || order.Uint32(b) != boltMagic || order.Uint32(b[4:]) != boltVersion || order.Uint64(b[metaSize:]) != sum.Sum64() {
		return meta{}, fmt.Errorf("the meta page at %d is damaged", at)
	}
	m := meta{
		pageSize: uint64(order.Uint32(b[8:])), root: order.Uint64(b[16:]),
		freelist: order.Uint64(b[32:]), end: order.Uint64(b[40:]), tx: order.Uint64(b[48:]),
	}
	if m.pageSize < 1024 {
		return meta{}, fmt.Errorf("its pages have %d bytes", m.pageSize)
	}
	return m, nil
}

// walker notes which pages belong to something.
type walker struct {
	data []byte
	size uint64
	used []bool
}

// take returns a page with those that belong to it. Each is taken once.
func (w *walker) take(id uint64) (kind uint16, page []byte, err error) {
	end := uint64(len(w.used))
	if id < 2 || id >= end {
		return 0, nil, fmt.Errorf("page %d is out of bounds", id)
	}
	page = w.data[id*w.size:]
	n := 1 + uint64(order.Uint32(page[12:]))
	if order.Uint64(page) != id || n > end-id {
		return 0, nil, fmt.Errorf("page %d is damaged", id)
	}
	for i := id; i < id+n; i++ {
		if w.used[i] {
			return 0, nil, fmt.Errorf("page %d is used twice", i)
		}
		w.used[i] = true
	}
	return order.Uint16(page[8:]), page[:n*w.size], nil
}

// tree takes the pages below id, whose keys are from lo up to, without, hi.
func (w *walker) tree(id uint64, lo, hi []byte) error {
	kind, page, err := w.take(id)
	if err != nil {
		return err
	}
	if kind != kindBranch && kind != kindLeaf {
		return fmt.Errorf("page %d is of kind %#x", id, kind)
	}
	all, err := elementsOf(page, kind, lo, hi)
	if err != nil {
		return fmt.Errorf("page %d: %w", id, err)
	}
	for i, e := range all {
		switch {
		case kind == kindBranch:
			next := hi
			if i+1 < len(all) {
				next = all[i+1].key
			}
			err = w.tree(e.child, e.key, next)
		case e.bucket:
			err = w.bucket(e.value)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// bucket takes the pages of a bucket; a small one has its only page in it.
func (w *walker) bucket(b []byte) error {
	if len(b) < bucketHeader {
		return errors.New("a bucket is cut short")
	}
	if root := order.Uint64(b); root != 0 {
		return w.tree(root, nil, nil)
	}
	page := b[bucketHeader:]
	if len(page) < pageHeader || order.Uint16(page[8:]) != kindLeaf {
		return errors.New("the page in a bucket is damaged")
	}
	_, err := elementsOf(page, kindLeaf, nil, nil)
	return err
}

// free takes the pages that the list of free ones holds.
func (w *walker) free(list uint64) error {
	kind, page, err := w.take(list)
	if err != nil {
		return err
	}
	ids, n := page[pageHeader:], uint64(order.Uint16(page[10:]))
	if n == 0xFFFF { // more than the field holds: the first number tells
		n, ids = order.Uint64(ids), ids[8:]
	}
	if kind != kindFree || n > uint64(len(ids))/8 {
		return fmt.Errorf("the list of free pages at %d is damaged", list)
	}
	for i := range n {
		id := order.Uint64(ids[8*i:])
		if id >= uint64(len(w.used)) || w.used[id] {
			return fmt.Errorf("page %d is listed as free", id)
		}
		w.used[id] = true
	}
	return nil
}

type element struct {
	key, value []byte
	child      uint64
	bucket     bool
}

// elementsOf reads a page's elements, whose keys grow, from lo up to hi.
func elementsOf(page []byte, kind uint16, lo, hi []byte) ([]element, error) {
	n := int(order.Uint16(page[10:]))
	if pageHeader+n*elementSize > len(page) || kind == kindBranch && n == 0 {
		return nil, fmt.Errorf("it cannot have %d elements", n)
	}
	all := make([]element, n)
	for i := range all {
		b := page[pageHeader+i*elementSize:]
		e := element{}
		pos, key, value := order.Uint32(b), order.Uint32(b[4:]), uint32(0)
		if kind == kindBranch {
			e.child = order.Uint64(b[8:])
		} else {
			e.bucket = pos == 1
			if pos > 1 {
				return nil, fmt.Errorf("element %d is of kind %#x", i, pos)
			}
			pos, key, value = order.Uint32(b[4:]), order.Uint32(b[8:]), order.Uint32(b[12:])
		}
		from, to := uint64(pos), uint64(pos)+uint64(key)
		if key == 0 || to+uint64(value) > uint64(len(b)) {
			return nil, fmt.Errorf("element %d is out of bounds", i)
		}
		e.key, e.value = b[from:to], b[to:to+uint64(value)]
		if i > 0 && bytes.Compare(all[i-1].key, e.key) >= 0 || bytes.Compare(e.key, lo) < 0 || hi != nil && bytes.Compare(e.key, hi) >= 0 {
			return nil, fmt.Errorf("element %d is out of order", i)
		}
		all[i] = e
	}
	return all, nil
}

package store

import (
	"bufio"
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"maps"
	"math"
	"os"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
)

// pageSums are the checksums of every page of a database's main file, which
// has none of its own: a bit that rots there is a wrong amount and no error.
// Only checkpoints write the main file, and only the writer makes them, so the
// sums are brought up to date by each complete checkpoint, before the log is
// begun anew. A page that the log has is therefore never judged by its sum.
type pageSums struct {
	path  string // of the database
	f     *os.File
	sums  []uint32 // of page i+1; CRC-32C
	dirty bool     // some are written and not synced
}

// openSums reads the sums of the database at path. known is false if there
// are none yet.
func openSums(path string) (s *pageSums, known bool, err error) {
	f, err := os.OpenFile(path+sumsSuffix, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, false, err
	}
	b, err := io.ReadAll(f)
	if err != nil {
		return nil, false, errors.Join(err, f.Close())
	}
	s = &pageSums{path: path, f: f, sums: make([]uint32, len(b)/4)}
	for i := range s.sums {
		s.sums[i] = binary.LittleEndian.Uint32(b[4*i:])
	}
	return s, len(b) > 0, nil
}

func (s *pageSums) close() error { return s.f.Close() }

// verify reads the whole main file, but for the pages in log, and is an error
// that names the first page that is not as it was written. It is what a start
// waits for when the book is long, so it reads many pages at a time, on every
// core.
func (s *pageSums) verify(log *wal) error {
	f, err := os.Open(s.path)
	if err != nil {
		return err
	}
	defer f.Close()
	size, err := pageSize(f)
	if err != nil || size == 0 {
		return err
	}
	info, err := f.Stat()
	if err != nil {
		return err
	}
	pages := max(len(s.sums), int((info.Size()+int64(size)-1)/int64(size)))
	parts := (pages + verifyPages - 1) / verifyPages
	wrong := make([]error, parts)
	var next atomic.Int64
	var wg sync.WaitGroup
	for range min(parts, runtime.GOMAXPROCS(0)) {
		wg.Go(func() {
			buf := make([]byte, verifyPages*size)
			for i := int(next.Add(1)) - 1; i < parts; i = int(next.Add(1)) - 1 {
				first := i * verifyPages
				if wrong[i] = s.verifyPart(f, log, buf, first, min(pages, first+verifyPages)); wrong[i] != nil {
					next.Store(int64(parts)) // the parts before it are begun
				}
			}
		})
	}
	wg.Wait()
	return cmp.Or(wrong...)
}

// verifyPages is how many pages are read at once.
const verifyPages = 256

// verifyPart verifies pages first+1 to end. buf has room for them.
func (s *pageSums) verifyPart(f *os.File, log *wal, buf []byte, first, end int) error {
	size := len(buf) / verifyPages
	n, err := f.ReadAt(buf[:(end-first)*size], int64(first)*int64(size))
	if err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	for i := first; i < end; i++ {
		page := buf[:min(size, n)]
		buf, n = buf[size:], n-len(page)
		switch number := uint32(i + 1); {
		case log.has(number) || int64(i)*int64(size) == lockByte:
		case len(page) < size:
			return fmt.Errorf("the database ends before page %d", number)
		case i >= len(s.sums) || crc32.Checksum(page, castagnoli) != s.sums[i]:
			return fmt.Errorf("page %d of the database is not as it was written; another program that opened clawr.db, such as the sqlite3 shell, may have checkpointed it", number)
		}
	}
	return nil
}

// baseline takes the main file for right, whose log must be empty.
func (s *pageSums) baseline() error {
	f, err := os.Open(s.path)
	if err != nil {
		return err
	}
	defer f.Close()
	size, err := pageSize(f)
	if err != nil {
		return err
	}
	s.sums = s.sums[:0]
	for page := make([]byte, size); size > 0; {
		_, err := io.ReadFull(f, page)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return err
		}
		s.sums = append(s.sums, crc32.Checksum(page, castagnoli))
	}
	b := make([]byte, 4*len(s.sums))
	for i, sum := range s.sums {
		binary.LittleEndian.PutUint32(b[4*i:], sum)
	}
	if _, err := s.f.WriteAt(b, 0); err != nil {
		return err
	}
	if err := s.f.Truncate(int64(len(b))); err != nil {
		return err
	}
	return s.f.Sync()
}

// update takes over the sums of the pages that a checkpoint has copied, and is
// to be done before the log begins anew.
func (s *pageSums) update(log *wal) error {
	if err := s.take(log); err != nil || !s.dirty {
		return err
	}
	if err := s.f.Sync(); err != nil {
		return err
	}
	s.dirty = false
	return nil
}

// take writes the sums of the pages that were read of the log since the last
// time, as it has them: what the disk made of the copy is seen later.
func (s *pageSums) take(log *wal) error {
	if len(log.fresh) == 0 {
		return nil
	}
	pages := slices.Sorted(maps.Keys(log.fresh))
	for _, n := range pages {
		for int(n) > len(s.sums) {
			s.sums = append(s.sums, 0)
		}
		s.sums[n-1] = log.fresh[n]
	}
	s.dirty = true
	for i := 0; i < len(pages); { // runs of pages in one write
		j := i + 1
		for j < len(pages) && pages[j] == pages[j-1]+1 {
			j++
		}
		b := make([]byte, 0, 4*(j-i))
		for _, n := range pages[i:j] {
			b = binary.LittleEndian.AppendUint32(b, s.sums[n-1])
		}
		if _, err := s.f.WriteAt(b, 4*int64(pages[i]-1)); err != nil {
			return err
		}
		i = j
	}
	clear(log.fresh)
	return nil
}

// pageSize reads the size of pages from a database's first bytes, 0 if it is
// empty.
func pageSize(f *os.File) (int, error) {
	var b [18]byte
	n, err := f.ReadAt(b[:], 0)
	if n == 0 && errors.Is(err, io.EOF) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	size := int(binary.BigEndian.Uint16(b[16:]))
	if size == 1 {
		size = 1 << 16
	}
	if size < 512 || size&(size-1) != 0 {
		return 0, errors.New("the first page of the database cannot be read")
	}
	return size, nil
}

// wal is a write-ahead log as SQLite would read it: up to the last commit
// before the first frame that does not match its checksum
// (https://www.sqlite.org/fileformat2.html#the_write_ahead_log). What was read
// of it is not read again.
type wal struct {
	path  string // of the database
	f     *os.File
	last  map[uint32]uint32 // of each page: the CRC-32C of its newest committed content
	fresh map[uint32]uint32 // those of last that no sums were updated with

	header [walHeader]byte // of the generation that was read
	order  binary.ByteOrder
	size   int    // of a page
	at     int64  // after the last commit
	a, b   uint32 // the checksum there
}

// has reports whether the log has a page.
func (w *wal) has(n uint32) bool {
	_, ok := w.last[n]
	return ok
}

// lockByte is where the page lies that SQLite never writes.
const lockByte = 1 << 30

const (
	walHeader   = 32
	frameHeader = 24
)

// readWAL reads the log of the database at path; an empty one if there is
// none. The caller closes it.
func readWAL(path string) (*wal, error) {
	w := &wal{path: path}
	if err := w.read(allFrames); err != nil {
		return nil, errors.Join(err, w.close())
	}
	return w, nil
}

// allFrames has the log read to its end.
const allFrames = math.MaxInt

// read goes on to the end of the log, or until that many of its frames are
// read. Others may write it meanwhile: what is not committed by then is left for
// later. A log that has begun anew is read from its beginning.
func (w *wal) read(until int) error {
	if w.f == nil {
		f, err := os.Open(w.path + walSuffix)
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		w.f = f
	}
	var h [walHeader]byte
	if _, err := w.f.ReadAt(h[:], 0); errors.Is(err, io.EOF) {
		w.last, w.at = nil, 0 // too short to have anything
		return nil
	} else if err != nil {
		return err
	}
	if w.at == 0 || h != w.header {
		if !w.begin(h) {
			return nil
		}
	}
	frames := bufio.NewReaderSize(io.NewSectionReader(w.f, w.at, math.MaxInt64-w.at), 256<<10)
	frame := make([]byte, frameHeader+w.size)
	pending := map[uint32]uint32{}
	a, b := w.a, w.b
	for at := w.at + int64(len(frame)); (at-walHeader)/int64(len(frame)) <= int64(until); at += int64(len(frame)) {
		if _, err := io.ReadFull(frames, frame); err != nil {
			return nil
		}
		if [8]byte(frame[8:16]) != [8]byte(h[16:24]) {
			return nil // of an earlier generation
		}
		a, b = walSum(w.order, a, b, frame[:8])
		a, b = walSum(w.order, a, b, frame[frameHeader:])
		if a != binary.BigEndian.Uint32(frame[16:]) || b != binary.BigEndian.Uint32(frame[20:]) {
			return nil
		}
		pending[binary.BigEndian.Uint32(frame)] = crc32.Checksum(frame[frameHeader:], castagnoli)
		if binary.BigEndian.Uint32(frame[4:]) == 0 {
			continue
		}
		maps.Copy(w.last, pending) // a commit
		maps.Copy(w.fresh, pending)
		clear(pending)
		w.at, w.a, w.b = at, a, b
	}
	return nil
}

// begin takes up a generation of the log; false means that it has none.
func (w *wal) begin(h [walHeader]byte) bool {
	w.last, w.at = map[uint32]uint32{}, 0
	if w.fresh == nil {
		w.fresh = map[uint32]uint32{}
	}
	magic := binary.BigEndian.Uint32(h[:])
	if magic&^1 != 0x377f0682 {
		return false
	}
	w.order = binary.LittleEndian
	if magic&1 == 1 {
		w.order = binary.BigEndian
	}
	w.a, w.b = walSum(w.order, 0, 0, h[:24])
	if w.a != binary.BigEndian.Uint32(h[24:]) || w.b != binary.BigEndian.Uint32(h[28:]) {
		return false
	}
	w.size = int(binary.BigEndian.Uint32(h[8:]))
	if w.size < 512 || w.size > 1<<16 {
		return false
	}
	w.header, w.at = h, walHeader
	return true
}

func (w *wal) close() error {
	if w.f == nil {
		return nil
	}
	f := w.f
	w.f = nil
	return f.Close()
}

// walSum is the log's checksum, gone on from a and b.
func walSum(order binary.ByteOrder, a, b uint32, data []byte) (uint32, uint32) {
	if order == binary.LittleEndian { // the compiler reads these words itself
		for ; len(data) >= 8; data = data[8:] {
			a += binary.LittleEndian.Uint32(data) + b
			b += binary.LittleEndian.Uint32(data[4:]) + a
		}
		return a, b
	}
	for ; len(data) >= 8; data = data[8:] {
		a += order.Uint32(data) + b
		b += order.Uint32(data[4:]) + a
	}
	return a, b
}

package store

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"os"
	"slices"
)

// pageSums are the checksums of every page of a database's main file, which
// has none of its own: a bit that rots there is a wrong amount and no error.
// Only checkpoints write the main file, and only the writer makes them, so the
// sums are brought up to date by each complete checkpoint, before the log is
// begun anew. A page that the log has is therefore never judged by its sum.
type pageSums struct {
	path string // of the database
	f    *os.File
	sums []uint32 // of page i+1; CRC-32C
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
// that names the first page that is not as it was written.
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
	page := make([]byte, size)
	for n := uint32(1); ; n++ {
		switch _, err := io.ReadFull(f, page); {
		case errors.Is(err, io.EOF) && int(n) > len(s.sums):
			return nil
		case errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF):
			if log.last[n] > 0 {
				return nil // it ends in what the log writes again
			}
			return fmt.Errorf("the database ends before page %d", n)
		case err != nil:
			return err
		}
		if log.last[n] > 0 || int64(n-1)*int64(size) == lockByte {
			continue
		}
		if int(n) > len(s.sums) || crc32.Checksum(page, castagnoli) != s.sums[n-1] {
			return fmt.Errorf("page %d of the database is not as it was written; another program that opened clawr.db, such as the sqlite3 shell, may have checkpointed it", n)
		}
	}
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

// update takes over the sums of the pages that a checkpoint has copied, as the
// log has them: what the disk made of the copy is seen later.
func (s *pageSums) update(log *wal) error {
	pages := make([]uint32, 0, len(log.last))
	for n := range log.last {
		pages = append(pages, n)
	}
	slices.Sort(pages)
	page := make([]byte, log.pageSize)
	for _, n := range pages {
		if _, err := log.f.ReadAt(page, log.last[n]); err != nil {
			return err
		}
		for int(n) > len(s.sums) {
			s.sums = append(s.sums, 0)
		}
		s.sums[n-1] = crc32.Checksum(page, castagnoli)
	}
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
	return s.f.Sync()
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
// (https://www.sqlite.org/fileformat2.html#the_write_ahead_log).
type wal struct {
	f        *os.File
	pageSize int
	last     map[uint32]int64 // of each page: where its newest committed content is
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
	w := &wal{last: map[uint32]int64{}}
	f, err := os.Open(path + walSuffix)
	if errors.Is(err, fs.ErrNotExist) {
		return w, nil
	}
	if err != nil {
		return nil, err
	}
	w.f = f
	in := bufio.NewReaderSize(f, 1<<20)
	h := make([]byte, walHeader)
	if _, err := io.ReadFull(in, h); err != nil {
		return w, nil // too short to have anything
	}
	magic := binary.BigEndian.Uint32(h)
	if magic&^1 != 0x377f0682 {
		return w, nil
	}
	var order binary.ByteOrder = binary.LittleEndian
	if magic&1 == 1 {
		order = binary.BigEndian
	}
	a, b := walSum(order, 0, 0, h[:24])
	if a != binary.BigEndian.Uint32(h[24:]) || b != binary.BigEndian.Uint32(h[28:]) {
		return w, nil
	}
	w.pageSize = int(binary.BigEndian.Uint32(h[8:]))
	if w.pageSize < 512 || w.pageSize > 1<<16 {
		return w, nil
	}
	frame := make([]byte, frameHeader+w.pageSize)
	pending := map[uint32]int64{}
	for at := int64(walHeader); ; at += int64(len(frame)) {
		if _, err := io.ReadFull(in, frame); err != nil {
			return w, nil
		}
		if [8]byte(frame[8:16]) != [8]byte(h[16:24]) {
			return w, nil // of an earlier generation
		}
		a, b = walSum(order, a, b, frame[:8])
		a, b = walSum(order, a, b, frame[frameHeader:])
		if a != binary.BigEndian.Uint32(frame[16:]) || b != binary.BigEndian.Uint32(frame[20:]) {
			return w, nil
		}
		pending[binary.BigEndian.Uint32(frame)] = at + frameHeader
		if binary.BigEndian.Uint32(frame[4:]) == 0 {
			continue
		}
		for page, where := range pending { // a commit
			w.last[page] = where
		}
		clear(pending)
	}
}

func (w *wal) close() error {
	if w.f == nil {
		return nil
	}
	return w.f.Close()
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

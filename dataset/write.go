package dataset

import (
	"bufio"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"hash"
	"hash/crc32"
	"io"
	"unsafe"
)

// A segment is: magic, sections, table of sections, trailer. Sections start at
// multiples of 64 bytes, so that they can be looked at as arrays of integers
// (little-endian). A file of at most 1 GB has less than 2^32 bytes of values and
// fewer words in its rows, so that 32 bits count them. The table has a CRC-32C of each section, verified when the
// segment is opened, and a SHA-256, so that the hash of the table is the name
// of all that the segment says: the segment's id.
//
//	"CLAWRSG2" | section, padding | … | table: entry × n | n u32, "CLAWREND"
const (
	magic       = "CLAWRSG2"
	endMagic    = "CLAWREND"
	entrySize   = 2 + 2 + 4 + 8 + 8 + 32
	trailerSize = 4 + 8
	align       = 64
	maxSections = 4096
)

// kind says what a section holds; column sections carry the column's number.
type kind uint16

const (
	secMeta     kind = iota + 1 // JSON of segmentMeta
	secRows                     // rendered rows: {…},{…},
	secRowBase                  // u64 offset of every 256th row, and of the end
	secRowRel                   // u32 offset of each row from its base
	secValues                   // i64 ordinal per row: numbers, dates
	secCodes                    // u8, u16 or u32 per row: 0 is null
	secDictOff                  // u32 offsets into the dictionary, one more than values
	secDict                     // values of a text column, code 1 first
	secPerm                     // u32 rows in order of value, ties in row order
	secTokenOff                 // u32 offsets into the tokens, one more than tokens
	secTokens                   // words of q, sorted
	secPostOff                  // u32 offsets into the postings, one more than tokens
	secPosts                    // u32 rows that contain a word, ascending
)

type section struct {
	kind     kind
	col      uint16
	crc      uint32
	off, len uint64
	sha      [32]byte
}

// segmentMeta is the part of a segment that is JSON.
type segmentMeta struct {
	Schema *Schema  `json:"schema"`
	Index  []string `json:"index,omitempty"`
	Sorted []bool   `json:"sorted"` // whether a text column's dictionary is in order
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// segmentWriter writes a segment front to back.
type segmentWriter struct {
	w     *bufio.Writer
	off   uint64
	table []section
	cur   section
	sha   hash.Hash
	err   error
}

func newSegmentWriter(w io.Writer) *segmentWriter {
	s := &segmentWriter{w: bufio.NewWriterSize(w, 1<<16), sha: sha256.New()}
	s.raw([]byte(magic))
	return s
}

func (s *segmentWriter) raw(b []byte) {
	if s.err == nil {
		_, s.err = s.w.Write(b)
	}
	s.off += uint64(len(b))
}

// begin starts a section; Write fills it and end closes it.
func (s *segmentWriter) begin(k kind, col int) {
	var zero [align]byte
	s.raw(zero[:(align-s.off%align)%align])
	s.cur = section{kind: k, col: uint16(col), off: s.off}
	s.sha.Reset()
}

// Write adds to the current section. Its error is kept: finish returns it.
func (s *segmentWriter) Write(b []byte) (int, error) {
	s.cur.crc = crc32.Update(s.cur.crc, castagnoli, b)
	s.sha.Write(b)
	s.raw(b)
	return len(b), s.err
}

func (s *segmentWriter) end() {
	s.cur.len = s.off - s.cur.off
	s.sha.Sum(s.cur.sha[:0])
	s.table = append(s.table, s.cur)
}

// put writes a whole section of integers.
func put[T uint8 | uint16 | uint32 | uint64 | int64](s *segmentWriter, k kind, col int, v []T) {
	s.begin(k, col)
	writeInts(s, v)
	s.end()
}

// writeInts adds integers to the current section.
func writeInts[T uint8 | uint16 | uint32 | uint64 | int64](s *segmentWriter, v []T) {
	var t T
	n := len(v) * int(unsafe.Sizeof(t))
	b := unsafe.Slice((*byte)(unsafe.Pointer(unsafe.SliceData(v))), n)
	for len(b) > 0 { // in pieces that stay in the CPU's cache for all three readers
		m := min(len(b), 1<<18)
		_, _ = s.Write(b[:m])
		b = b[m:]
	}
}

// finish writes the table and returns the id of the segment.
func (s *segmentWriter) finish() (id string, err error) {
	table := make([]byte, 0, len(s.table)*entrySize)
	for i := range s.table {
		e := &s.table[i]
		table = binary.LittleEndian.AppendUint16(table, uint16(e.kind))
		table = binary.LittleEndian.AppendUint16(table, e.col)
		table = binary.LittleEndian.AppendUint32(table, e.crc)
		table = binary.LittleEndian.AppendUint64(table, e.off)
		table = binary.LittleEndian.AppendUint64(table, e.len)
		table = append(table, e.sha[:]...)
	}
	s.raw(table)
	s.raw(binary.LittleEndian.AppendUint32(nil, uint32(len(s.table))))
	s.raw([]byte(endMagic))
	if s.err == nil {
		s.err = s.w.Flush()
	}
	return idOf(table), s.err
}

// idOf names what a table of sections says: its SHA-256 in hex.
func idOf(table []byte) string {
	sum := sha256.Sum256(table)
	return hex.EncodeToString(sum[:])
}

// VersionOf is the short form of a segment's id, as answers, cursors and the
// parameter version have it: 64 bits in hex.
func VersionOf(id string) string { return id[:min(len(id), 16)] }
